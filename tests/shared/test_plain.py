"""What counts as plain, and that nothing else does. That no body is counted which validate() refuses, all tests of
test_bodies.py and the fuzzers look at."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Annotated, Any, Literal

import msgspec
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Meta

from shared import plain
from shared.recognizer import Recognizer
from shared.records import KINDS, SESSIONS, TASKS, Kind
from tests.support.service import session, task

LATEST_S = int(datetime(2026, 11, 23, 10, 20, 30, tzinfo=timezone.utc).timestamp())


def body_of(*tasks: dict[str, Any]) -> bytes:
    return orjson.dumps({"tasks": tasks})


def is_plain(**fields: Any) -> bool:
    return plain.count(TASKS, body_of(task(**fields)), LATEST_S) == 1


def test_every_record_is_counted() -> None:
    for count in (1, 2, 1000):
        assert plain.count(TASKS, body_of(*(task(f"t{number}") for number in range(count))), LATEST_S) == count


def test_one_record_that_is_not_plain_makes_its_body_one_that_is_not() -> None:
    for at in range(3):
        tasks = [task(), task(), task()]
        tasks[at]["row_index"] = "7"
        assert plain.count(TASKS, body_of(*tasks), LATEST_S) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"source_text": 'line\n"quoted" \\ 你好 🙂'},
        {"target_text": "", "context": None, "error_message": None},
        {"confidence": 0.25, "retry_count": 3, "duration_ms": 2147483647},
        {"confidence": 1, "row_index": 0, "duration_ms": None},
        {"start_time": None, "end_time": "2026-11-23T10:20:29.999999"},
        {"sheet_name": "表" * 85},
    ],
)
def test_what_most_senders_send_is_plain(fields: dict[str, Any]) -> None:
    assert is_plain(**fields)


def test_any_order_of_fields_and_any_space_between_them_is_plain() -> None:
    backwards = dict(reversed(task(updated_at="2026-11-23T10:00:00Z").items()))
    assert plain.count(TASKS, body_of(task(), backwards, task()), LATEST_S) == 3
    spaced = orjson.dumps({"tasks": [task()]}, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    assert plain.count(TASKS, spaced, LATEST_S) == 1


def test_characters_may_be_sent_as_escapes() -> None:
    body = body_of(task())
    assert plain.count(TASKS, body.replace(b"Sheet1", rb"\u4f60\u597d\n"), LATEST_S) == 1
    assert plain.count(TASKS, body.replace(b"Sheet1", rb"\ud83d\ude42"), LATEST_S) == 1
    assert plain.count(TASKS, body.replace(b"Sheet1", rb"\\ud83d"), LATEST_S) == 1
    for half in (rb"\ud83d", rb"\uDE42", rb"\ude42\ud83d", rb"\ud83d\ud83d", rb"\ud83dx", rb"\ud83d\\ude42"):
        assert plain.count(TASKS, body.replace(b"Sheet1", half), LATEST_S) == 0


def test_a_session_is_plain_without_objects() -> None:
    def count(**fields: Any) -> int:
        return plain.count(SESSIONS, orjson.dumps({"sessions": [session(**fields)]}), LATEST_S)

    assert count(metadata=None, game_info=None, total_tasks=5) == 1
    assert count(metadata={}) == count(game_info={"a": 1}) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"extra": 1},
        {"extra": None},
        {"row_index": -1},
        {"row_index": 2147483648},
        {"row_index": "1"},
        {"row_index": 1.0},
        {"row_index": True},
        {"row_index": None},
        {"row_index": 2**63},
        {"source_text": ""},
        {"source_text": 1},
        {"source_text": "x" * 65536},
        {"sheet_name": "表" * 86},  # may have 255 characters, which are more bytes
        {"status": "cancelled"},
        {"status": "pending "},
        {"confidence": 1.5},
        {"confidence": -0.1},
        {"confidence": "0.5"},
        {"updated_at": 1700000000},
        {"task_id": {}},
        {"task_id": []},
    ],
)
def test_what_takes_a_closer_look_is_not(fields: dict[str, Any]) -> None:
    assert is_plain()
    assert not is_plain(**fields)


@pytest.mark.parametrize("field", [field.name for field in msgspec.structs.fields(TASKS.record) if field.required])
def test_nor_is_a_record_without_a_required_field(field: str) -> None:
    item = task()
    del item[field]
    assert plain.count(TASKS, body_of(item), LATEST_S) == 0


@pytest.mark.parametrize(
    "change",
    [
        (b'"row_index":', b'"row_index":1,"row_index":'),
        (b'{"task_id":', b'{"extra":null,"task_id":'),
        (b'{"tasks":', b'{"tasks":[],"tasks":'),
        (b'{"tasks":', b'{"version":1,"tasks":'),
        (b'{"tasks":', b'{"task":'),
        (b'{"tasks":', b'\xef\xbb\xbf{"tasks":'),
        (b'{"tasks":', b' {"tasks":'),
        (b"Sheet1", b"\xff"),
        (b"Sheet1", b"\xed\xa0\x80"),
        (b"Sheet1", b"a\nb"),
        (b"]}", b"]}]"),
        (b"]}", b"]} {}"),
        (b"]}", b""),
        (b"]}", b",]}"),
        (b"[", b"[null,"),
    ],
)
def test_nor_is_a_body_that_is_anything_but_a_list_of_records(change: tuple[bytes, bytes]) -> None:
    body = body_of(task())
    assert plain.count(TASKS, body, LATEST_S) == 1
    assert body.count(change[0]) == 1
    assert plain.count(TASKS, body.replace(*change), LATEST_S) == 0


def test_nor_is_what_is_no_list_or_empty_or_over_a_mebibyte() -> None:
    for body in (b"", b"{", b"{}", b"[]", b"null", b'{"tasks":{}}', b'{"tasks":null}', b'{"tasks":[]}'):
        assert plain.count(TASKS, body, LATEST_S) == 0
    body = body_of(task())
    assert plain.count(TASKS, body.ljust(1024 * 1024), LATEST_S) == 1
    assert plain.count(TASKS, body.ljust(1024 * 1024 + 1), LATEST_S) == 0
    assert plain.count(TASKS, body, LATEST_S) == 1


@pytest.mark.parametrize(
    "time",
    [
        "2026-11-23T10:20:29Z",
        "2026-11-23T10:20:29.123456+00:00",
        "2026-11-23T10:20:29",
        "2026-11-23T18:20:29.5+08:00",
        "2026-11-22T23:50:29-10:30",
        "2024-02-29T23:59:59Z",
        "2000-02-29T00:00:00Z",
        "1001-01-01T00:00:00Z",
    ],
)
def test_times_are_plain_in_the_forms_that_programs_write(time: str) -> None:
    assert is_plain(updated_at=time)


@pytest.mark.parametrize(
    "time",
    [
        "2026-11-23T10:20:30Z",
        "2026-11-23T18:20:30+08:00",
        "2026-11-23T00:20:30-10:00",
        "2025-11-23 10:00:00",
        "2025-11-23T10:00:00z",
        "2025-11-23t10:00:00Z",
        "2025-11-23T10:00",
        "2025-11-23",
        "2025-11-23T10:00:00.Z",
        "2025-11-23T10:00:00.1234567Z",
        "2025-11-23T10:00:00+0800",
        "2025-11-23T10:00:00+08x00",
        "2025-11-23T10:00:00*08:00",
        "2025-11-23T10:00:00+15:00",
        "2025-11-23T10:00:00+08:60",
        "2025-11-23T10:00:00+08:00:00",
        "2025-11-23T10:00:00ZZ",
        "2025-11-23T24:00:00Z",
        "2025-11-23T10:60:00Z",
        "2025-11-23T10:00:60Z",
        "2025-13-01T00:00:00Z",
        "2025-00-01T00:00:00Z",
        "2025-11-31T00:00:00Z",
        "2025-11-00T00:00:00Z",
        "2025-02-29T00:00:00Z",
        "1900-02-29T00:00:00Z",
        "1000-12-31T23:59:59Z",
        "0000-01-01T00:00:00Z",
        "2O26-11-23T10:00:00Z",
        "2026/11/23T10:00:00Z",
        "",
    ],
)
def test_all_other_times_take_a_closer_look(time: str) -> None:
    assert not is_plain(updated_at=time)


@pytest.mark.parametrize(("year", "counted"), [(1000, 0), (1001, 1), (9998, 1), (9999, 0)])
def test_so_do_years_that_an_offset_could_take_out_of_a_datetime(year: int, counted: int) -> None:
    assert plain.count(TASKS, body_of(task(end_time=f"{year}-06-01T00:00:00Z")), 2**60) == counted


@given(
    st.datetimes(datetime(1001, 1, 2), datetime(9998, 12, 30)),
    st.integers(-14 * 60, 14 * 60),
    st.integers(-2, 2),
)
@example(datetime(2024, 2, 29), 0, 0)
@example(datetime(2000, 3, 1), -60, 1)
def test_a_time_is_plain_until_the_latest_second(time: datetime, offset_min: int, ahead_s: int) -> None:
    sign, minutes = "-" if offset_min < 0 else "+", abs(offset_min)
    sent = f"{time.isoformat()}{sign}{minutes // 60:02}:{minutes % 60:02}"
    second = int(datetime.fromisoformat(sent).replace(microsecond=0).timestamp())
    counted = plain.count(TASKS, body_of(task(updated_at=sent)), second + ahead_s)
    assert counted == (1 if ahead_s > 0 else 0)


# ---- what follows from a kind


class Sample(msgspec.Struct):
    key: Annotated[str, Meta(min_length=1, max_length=8)]
    level: Literal["info", "warning"] = "info"
    short: Annotated[str, Meta(min_length=2)] | None = None
    shaped: Annotated[str, Meta(pattern="^a")] | None = None
    above: Annotated[int, Meta(gt=0, le=9)] | None = None
    tenth: Annotated[int, Meta(ge=0, le=90, multiple_of=10)] | None = None
    unbounded: int | None = None
    weight: float | None = None
    signed: Annotated[int, Meta(ge=-5, le=5)] | None = None
    aware: Annotated[datetime, Meta(tz=True)] | None = None
    grade: Literal[1, 2] | None = None
    either: int | str | None = None
    tags: list[str] | None = None


SAMPLES = Kind(9, "samples", Sample, ("key",), "samples")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "counted"),
    [
        ({}, 1),
        ({"level": "warning", "weight": -1e300, "signed": -5}, 1),
        ({"level": "loud"}, 0),
        ({"signed": -6}, 0),
        ({"key": "x" * 9}, 0),
        # Limits that the recognizer does not know: null alone is plain.
        *(({name: None}, 1) for name in ("short", "shaped", "above", "tenth", "unbounded", "aware", "grade", "either")),
        ({"short": "ä"}, 0),
        ({"short": "ab"}, 0),
        ({"shaped": "a"}, 0),
        ({"above": 5}, 0),
        ({"tenth": 10}, 0),
        ({"unbounded": 1}, 0),
        ({"aware": "2026-11-23T10:00:00Z"}, 0),
        ({"grade": 1}, 0),
        ({"either": 1}, 0),
        ({"tags": []}, 0),
    ],
)
def test_a_limit_that_is_not_known_is_never_passed_over(fields: dict[str, Any], counted: int) -> None:
    recognizer = plain._recognizer(SAMPLES)
    assert recognizer is not None
    assert recognizer.count(orjson.dumps({"samples": [{"key": "a", **fields}]}), LATEST_S) == counted


def test_a_type_that_is_read_in_another_way_has_no_plain_bodies() -> None:
    class Checked(msgspec.Struct):
        key: str

        def __post_init__(self) -> None:
            raise ValueError(self.key)

    class Listed(msgspec.Struct, array_like=True):
        key: str

    class Tagged(msgspec.Struct, tag=True):
        key: str

    for record in (Checked, Listed, Tagged):
        assert plain._recognizer(Kind(9, "samples", record, ("key",), "samples")) is None  # type: ignore[arg-type]


def test_nor_has_one_of_more_fields_than_a_word_has_bits() -> None:
    def kind(fields: int) -> Kind:
        return Kind(9, "x", msgspec.defstruct("Many", [(f"f{number}", str) for number in range(fields)]), ("f0",), "x")

    most = plain._recognizer(kind(64))
    assert most is not None
    record = {f"f{number}": "" for number in range(64)}
    assert most.count(orjson.dumps({"x": [record]}), LATEST_S) == 1
    del record["f63"]
    assert most.count(orjson.dumps({"x": [record]}), LATEST_S) == 0
    assert plain._recognizer(kind(65)) is None


def test_all_kinds_of_today_have_plain_bodies() -> None:
    assert plain._RECOGNIZERS.keys() == {kind.code for kind in KINDS}


def test_a_field_that_makes_no_sense_is_named() -> None:
    with pytest.raises(ValueError, match="a: no sort of value is called words"):
        Recognizer("x", (("a", "words", True, False, 0, 1, ()),))
    with pytest.raises(ValueError, match="x: 1 to 64 fields, not 0"):
        Recognizer("x", ())
    with pytest.raises(TypeError):
        Recognizer("x", ("a",))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Recognizer("x", (("a", "choice", True, False, 0, 1, (1,)),))  # type: ignore[arg-type]


def test_a_body_that_is_none_of_bytes_is_a_type_error() -> None:
    recognizer = Recognizer("x", (("a", "text", True, False, 0, 1, ()),))
    with pytest.raises(TypeError):
        recognizer.count("text", LATEST_S)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        recognizer.count(b"{}")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        recognizer.count(b"{}", "soon")  # type: ignore[arg-type]
