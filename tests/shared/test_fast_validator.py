"""Which bodies take the fast path, and what children() finds. That no body is counted which validate() refuses, all
tests of test_bodies.py and the fuzzers look at."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Annotated, Any, Literal

import msgspec
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Meta

from shared.fast_path import fast_validator_of
from shared.fast_validator import FastValidator, children, fold
from shared.records import KINDS, SESSIONS, TASKS, Kind, Object
from shared.validation import Validator
from tests.support.bodies import POLICY, policy
from tests.support.service import session, task

NOW_S = datetime(2026, 11, 23, 10, 15, 30, tzinfo=timezone.utc).timestamp()
LATEST_S = int(NOW_S) + 300
TASK_VALIDATOR = Validator(TASKS, POLICY)
SESSION_VALIDATOR = Validator(SESSIONS, POLICY)


def count_at(body: bytes, latest_s: int) -> int:
    return TASK_VALIDATOR.count(body, latest_s - 300)


def body_of(*tasks: dict[str, Any]) -> bytes:
    return orjson.dumps({"tasks": tasks})


def is_plain(**fields: Any) -> bool:
    return count_at(body_of(task(**fields)), LATEST_S) == 1


def test_every_record_is_counted() -> None:
    for count in (1, 2, 1000):
        assert count_at(body_of(*(task(f"t{number}") for number in range(count))), LATEST_S) == count


def test_one_record_that_is_not_plain_makes_its_body_one_that_is_not() -> None:
    for at in range(3):
        tasks = [task(), task(), task()]
        tasks[at]["row_index"] = "7"
        assert count_at(body_of(*tasks), LATEST_S) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"source_text": 'line\n"quoted" \\ 你好 🙂'},
        {"target_text": "", "context": None, "error_message": None},
        {"confidence": 0.25, "retry_count": 3, "duration_ms": 2147483647},
        {"confidence": 1, "row_index": 246.0, "duration_ms": 12.5},
        {"retry_count": None, "batch_id": None, "source_text": "", "metadata": None},
        {"context": {"a": [1]}, "metadata": {}, "colour": "red", "extra": None},
        {"sheet_name": "表" * 255, "updated_at": "2025-11-23 10:00:00"},
        {"start_time": None, "end_time": "2026-11-23T10:20:29.999999"},
        {"sheet_name": "表" * 85},
    ],
)
def test_what_most_senders_send_is_plain(fields: dict[str, Any]) -> None:
    assert is_plain(**fields)


def test_any_order_of_fields_and_any_space_between_them_is_plain() -> None:
    backwards = dict(reversed(task(updated_at="2026-11-23T10:00:00Z").items()))
    assert count_at(body_of(task(), backwards, task()), LATEST_S) == 3
    spaced = orjson.dumps({"tasks": [task()]}, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    assert count_at(spaced, LATEST_S) == 1


def test_characters_may_be_sent_as_escapes() -> None:
    body = body_of(task())
    assert count_at(body.replace(b"Sheet1", rb"\u4f60\u597d\n"), LATEST_S) == 1
    assert count_at(body.replace(b"Sheet1", rb"\ud83d\ude42"), LATEST_S) == 1
    assert count_at(body.replace(b"Sheet1", rb"\\ud83d"), LATEST_S) == 1
    for half in (rb"\ud83d", rb"\uDE42", rb"\ude42\ud83d", rb"\ud83d\ud83d", rb"\ud83dx", rb"\ud83d\\ude42"):
        assert count_at(body.replace(b"Sheet1", half), LATEST_S) == 0


def test_objects_are_measured() -> None:
    def count(**fields: Any) -> int:
        return SESSION_VALIDATOR.count(orjson.dumps({"sessions": [session(**fields)]}), NOW_S)

    assert count(metadata=None, game_info=None, total_tasks=5) == 1
    assert count(metadata={}) == count(game_info={"a": 1}) == count(colour={"a": []}) == 1
    deep: Any = {}
    for _ in range(19):
        deep = {"a": deep}
    for most, beyond in (
        ({"a": [1] * 4095}, {"a": [1] * 4096}),
        (deep, {"a": deep}),
        # Not to the last byte: what is close takes a closer look.
        ({"a": "x" * 65500}, {"a": "x" * 65536}),
        ({"a": "\\" * 32700}, {"a": "\\" * 32768}),
        ({"a": "\x01" * 10900}, {"a": "\x01" * 10930}),
    ):
        assert count(metadata=most) == 1
        assert count(metadata=beyond) == 0
    assert count(a=[1] * 2000, b=[1] * 2094) == count(a="x" * 32000, b="x" * 33000) == 1
    assert count(a=[1] * 2000, b=[1] * 2095) == count(a="x" * 32000, b="x" * 33600) == 0


def test_unknown_fields_take_the_fast_path_only_where_they_are_kept() -> None:
    body = body_of(task(colour="red", extra=1))
    assert Validator(TASKS, policy(unknown_fields="keep")).count(body, NOW_S) == 1
    for setting in ("ignore", "reject"):
        assert Validator(TASKS, policy(unknown_fields=setting)).count(body, NOW_S) == 0
        assert Validator(TASKS, policy(unknown_fields=setting)).count(body_of(task(created_at=[])), NOW_S) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"row_index": -1},
        {"row_index": 2147483648},
        {"row_index": "1"},
        {"row_index": True},
        {"row_index": 2**63},
        {"source_text": 1},
        {"source_text": "x" * 65536},
        {"sheet_name": "表" * 256},
        {"status": "done"},
        {"status": None},
        {"row_index": 1.5},
        {"duration_ms": -0.4},
        {"target_text": {}},
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
    assert count_at(body_of(item), LATEST_S) == 0


@pytest.mark.parametrize(
    "change",
    [
        (b'"row_index":', b'"row_index":1,"row_index":'),
        (b'{"task_id":', b'{"a":1,"\\u0061":2,"task_id":'),
        (b'{"task_id":', b'{"a":18446744073709551616,"task_id":'),
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
    assert count_at(body, LATEST_S) == 1
    assert body.count(change[0]) == 1
    assert count_at(body.replace(*change), LATEST_S) == 0


def test_nor_is_what_is_no_list_or_empty_or_over_a_mebibyte() -> None:
    for body in (b"", b"{", b"{}", b"[]", b"null", b'{"tasks":{}}', b'{"tasks":null}', b'{"tasks":[]}'):
        assert count_at(body, LATEST_S) == 0
    body = body_of(task())
    assert count_at(body.ljust(1024 * 1024), LATEST_S) == 1
    assert count_at(body.ljust(1024 * 1024 + 1), LATEST_S) == 0
    assert count_at(body, LATEST_S) == 1


@pytest.mark.parametrize(("digits", "records", "counted"), [(19, 501, 501), (20, 500, 500), (20, 501, 0)])
def test_nor_is_one_of_many_numbers_that_the_parser_would_be_slow_with(digits: int, records: int, counted: int) -> None:
    """Each takes 6 us: a body of nothing else would hold the worker for 0.2 s. They lie in every way to what is looked
    at."""
    tasks = [task(source_text=" " * (number % 20 + 100) + "0." + "1" * (digits - 2)) for number in range(records)]
    assert count_at(body_of(*tasks), LATEST_S) == counted


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
    assert count_at(body_of(task(end_time=f"{year}-06-01T00:00:00Z")), 2**60) == counted


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
    counted = count_at(body_of(task(updated_at=sent)), second + ahead_s)
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
    attributes: Object = None


SAMPLES = Kind(9, "samples", Sample, ("key",), "samples")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "counted"),
    [
        ({}, 1),
        ({"level": "warning", "weight": -1e300, "signed": -5}, 1),
        ({"level": "loud"}, 0),
        ({"signed": -6}, 0),
        ({"key": "x" * 9}, 0),
        # Limits that the fast validator does not know: null alone takes the fast path.
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
        ({"attributes": {}, "unknown": 1, "created_at": 5}, 1),
        ({"attributes": []}, 0),
    ],
)
def test_a_limit_that_is_not_known_is_never_passed_over(fields: dict[str, Any], counted: int) -> None:
    fast = fast_validator_of(SAMPLES, (), keep_unknown=True)
    assert fast is not None
    assert fast.count(orjson.dumps({"samples": [{"key": "a", **fields}]}), LATEST_S, LATEST_S) == counted


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
        kind = Kind(9, "samples", record, ("key",), "samples")  # type: ignore[arg-type]
        assert fast_validator_of(kind, (), keep_unknown=True) is None


def test_nor_has_one_of_more_fields_than_a_word_has_bits() -> None:
    for fields in (63, 64):  # created_at is one more
        record = msgspec.defstruct("Many", [(f"f{number}", str) for number in range(fields)])
        kind = Kind(9, "x", record, ("f0",), "x")  # type: ignore[arg-type]
        fast = fast_validator_of(kind, (), keep_unknown=True)
        assert (fast is None) is (fields == 64)
        if fast is not None:
            item = dict.fromkeys(record.__struct_fields__, "")
            assert fast.count(orjson.dumps({"x": [item]}), LATEST_S, LATEST_S) == 1
            del item["f62"]
            assert fast.count(orjson.dumps({"x": [item]}), LATEST_S, LATEST_S) == 0


def test_all_kinds_of_today_have_a_fast_path() -> None:
    assert all(Validator(kind, POLICY)._fast for kind in KINDS)


def test_a_field_that_makes_no_sense_is_named() -> None:
    with pytest.raises(ValueError, match="a: no type of a field is called words"):
        FastValidator("x", (("a", "words", True, 0, 1, ()),), True)
    with pytest.raises(ValueError, match="x: 1 to 64 fields, not 0"):
        FastValidator("x", (), True)
    with pytest.raises(TypeError):
        FastValidator("x", ("a",), True)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        FastValidator("x", (("a", "choice", True, 0, 1, (1,)),), True)  # type: ignore[arg-type]


def test_a_body_that_is_none_of_bytes_is_a_type_error() -> None:
    fast = FastValidator("x", (("a", "text", True, 0, 1, ()),), True)
    for arguments in (("text", 1, 1), (b"{}",), (b"{}", "soon", 1), (b"{}", 1, "soon")):
        with pytest.raises(TypeError):
            fast.count(*arguments)  # type: ignore[arg-type]
    for arguments in (("[]", 0, 2, 1), (b"[]", 0, 2), (b"[]", "0", 2, 1)):
        with pytest.raises(TypeError):
            children(*arguments)  # type: ignore[arg-type]


# ---- children

MOST = b"18446744073709551615"
LEAST = b"[-9223372036854775808]"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b" {} ", []),
        (b"[\n]", []),
        (b'{"a" : 1 , "b\\"":"]}\\\\" }', [(b'"a"', b"1 ", 0, 0, False), (b'"b\\""', b'"]}\\\\" ', 0, 0, False)]),
        (b"[[], x]", [(None, b"[]", 0, 1, False), (None, b"x", 0, 0, False)]),
        (b'[{"a":[1,{"b":2}]}]', [(None, b'{"a":[1,{"b":2}]}', 4, 3, False)]),
        (b"[%b,%b0]" % (MOST, MOST), [(None, MOST, 0, 0, False), (None, MOST + b"0", 0, 0, True)]),
        (b"[18446744073709551616]", [(None, b"18446744073709551616", 0, 0, True)]),
        (b"[%b]" % LEAST, [(None, LEAST, 1, 1, False)]),
        (b"[[-9223372036854775809]]", [(None, b"[-9223372036854775809]", 1, 1, True)]),
        (b"[99999999999999999999.0]", [(None, b"99999999999999999999.0", 0, 0, False)]),
        (b"[1,]", [(None, b"1", 0, 0, False), (None, b"", 0, 0, False)]),
    ],
)
def test_children_are_found_and_measured(text: bytes, found: list[Any]) -> None:
    count, tuples = children(text, 0, len(text), 100)
    assert count == len(tuples)
    assert [(key, text[start:end], *rest) for key, start, end, *rest in tuples] == found
    assert children(text, 0, len(text), 1) == (count, tuples[:1])
    assert children(b"[" + text + b"]", 1, len(text) + 1, 0) == (count, [])


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b" ", b"1", b"[", b"{", b"[1", b'["', b'["\\"', b'{"a', b'{"a"', b'{"a":', b'{"a":1', b"{1:2}", b"{,}"),
        *(b'{"a":1,}', b"[1}", b"[]x", b"[] []", b'{"a" 1}', b"[[]"),
    ],
)
def test_what_is_no_container_has_no_children(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"at byte \d$"):
        children(text, 0, len(text), 9)
    with pytest.raises(ValueError, match="do not lie in the text"):
        children(text, 0, len(text) + 1, 9)


trees = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
)


@given(st.lists(trees) | st.dictionaries(st.text(max_size=3), trees))
def test_children_are_those_that_a_parser_finds(value: Any) -> None:
    def inside(node: Any) -> list[Any]:
        return list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []

    def values(node: Any) -> int:
        return sum(1 + values(child) for child in inside(node))

    text = json.dumps(value).encode()
    _, found = children(text, 0, len(text), 1000)
    assert [json.loads(text[start:end]) for _, start, end, *_ in found] == inside(value)
    assert [json.loads(key) for key, *_ in found if key] == list(value if isinstance(value, dict) else [])
    assert [inner for _, _, _, inner, *_ in found] == [values(child) for child in inside(value)]


# ---- fold


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (b'{"x":[{"a":1,"c":[{}],"b":"2","extra":"]"}]}', b'[{"a":1,"b":"2","extra":{"c":[{}],"extra":"]"}}]'),
        (b' { "x" : [ {"a":1 , "created_at":2} , {} ] } ', b'[{"a":1 },{}]'),
        (b'{"x":[{"c":1}]}', b'[{"extra":{"c":1}}]'),
    ],
)
def test_unknown_fields_are_folded_into_one(body: bytes, kept: bytes) -> None:
    assert fold(body, "x", ("a", "b"), True) == kept
    dropped = fold(memoryview(body), "x", ("a", "b"), False)
    assert dropped is not None
    assert json.loads(dropped) == [
        {name: value for name, value in item.items() if name != "extra"} for item in json.loads(kept)
    ]


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"{", b'{"x":{}}', b'{"x":[]}', b'{"x":[1]}', b'{"y":[{}]}', b'{"x":[{}],"y":1}', b'{"x":[{}]}x'),
        *(
            b'{"x":[{"\\u0061":1}]}',
            b'{"x":[{}',
            b'{"x":[{}]',
            b'{"x":[{"a":1]]}',
            b'{"x":[{},]}',
            b'{"x"',
            b'{"x":[{}}',
        ),
    ],
)
def test_what_is_no_body_of_records_is_not_folded(body: bytes) -> None:
    assert fold(body, "x", ("a",), True) is None
