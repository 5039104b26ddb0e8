from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared import plain
from shared.bodies import (
    MAX_ERRORS,
    MAX_JSON_BYTES,
    MAX_JSON_KEY_BYTES,
    FieldError,
    InvalidBody,
    InvalidRecord,
    _decode_typed,
    decode,
    decode_raw,
    validate,
)
from shared.records import KINDS, SESSIONS, TASKS, Kind, Record, Session, Task, utc
from tests.support.service import session, task, values_of

UTC = timezone.utc
NOW = datetime(2026, 11, 23, 10, 15, 30, tzinfo=UTC)
MAX_INT = 2147483647
MAKE: dict[str, Callable[..., dict[str, Any]]] = {"sessions": session, "tasks": task}

# CONTRACT 2, column by column.
STRINGS = [
    (SESSIONS, "session_id", 36),
    (SESSIONS, "filename", 255),
    (SESSIONS, "file_path", 512),
    (SESSIONS, "llm_provider", 50),
    (TASKS, "task_id", 64),
    (TASKS, "batch_id", 64),
    (TASKS, "session_id", 36),
    (TASKS, "sheet_name", 255),
    (TASKS, "column_name", 255),
    (TASKS, "source_text", 65535),
]
TEXTS = ["target_text", "context", "error_message"]
INTEGERS = [
    (SESSIONS, "total_tasks"),
    (SESSIONS, "completed_tasks"),
    (SESSIONS, "failed_tasks"),
    (SESSIONS, "processing_tasks"),
    (TASKS, "row_index"),
    (TASKS, "retry_count"),
    (TASKS, "duration_ms"),
]
OBJECTS = ["game_info", "metadata"]
TIMES = [(SESSIONS, "updated_at"), (TASKS, "updated_at"), (TASKS, "start_time"), (TASKS, "end_time")]
STATUSES = {
    SESSIONS: {"pending", "processing", "completed", "failed", "cancelled"},
    TASKS: {"pending", "processing", "completed", "failed"},
}
REQUIRED = {
    SESSIONS: ["session_id", "filename", "file_path", "status", "llm_provider"],
    TASKS: [
        "task_id",
        "batch_id",
        "session_id",
        "sheet_name",
        "column_name",
        "row_index",
        "source_text",
        "status",
    ],
}


def body_of(kind: Kind, *items: Any) -> bytes:
    return orjson.dumps({kind.name: items})


def check(kind: Kind, body: bytes, **limits: Any) -> list[Record]:
    """validate(), and that decode() says the same of what it accepts: what was accepted is what is written; and that a
    body which plain.count() counts is one of these."""
    limits = {"now": NOW, "max_clock_skew_s": 300.0, "max_records": 1000, **limits}
    latest_s = int(limits["now"].timestamp() + limits["max_clock_skew_s"])
    counted = plain.count(kind, body, latest_s)
    try:
        records = validate(kind, body, **limits)
    except (InvalidBody, InvalidRecord):
        assert counted == 0 or counted > limits["max_records"]
        raise
    assert counted in (0, len(records))
    for decoded in (decode(kind, body), decode(kind, memoryview(body))):
        assert values_of(decoded) == values_of(records)
    return records


def one(kind: Kind, **fields: Any) -> Any:
    return check(kind, body_of(kind, MAKE[kind.name](**fields)))[0]


def errors_of(kind: Kind, body: bytes, **limits: Any) -> list[FieldError]:
    with pytest.raises(InvalidRecord) as raised:
        check(kind, body, **limits)
    return list(raised.value.errors)


def error_of(kind: Kind, **fields: Any) -> FieldError:
    (error,) = errors_of(kind, body_of(kind, MAKE[kind.name](**fields)))
    return error


def nested(depth: int, *, lists: bool = False) -> dict[str, Any]:
    value: Any = {}
    for level in range(depth - 1):
        value = [value] if lists and level < depth - 2 else {"a": value}
    return value  # type: ignore[no-any-return]


# ---- shape of the body


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"tasks":[NaN]}', b'{"tasks":["\\ud800"]}', b'{"tasks":[]}x'])
def test_what_is_not_json_is_an_invalid_body(body: bytes) -> None:
    with pytest.raises(InvalidBody) as raised:
        check(TASKS, body)
    assert raised.value.code == "INVALID_JSON"


@pytest.mark.parametrize(
    "body", [b"null", b"1", b"[]", b'"tasks"', b"{}", b'{"tasks":null}', b'{"tasks":{}}', b'{"sessions":[]}']
)
def test_another_top_level_shape_is_an_invalid_body(body: bytes) -> None:
    with pytest.raises(InvalidBody) as raised:
        check(TASKS, body)
    assert raised.value.code == "INVALID_SHAPE"
    assert '{"tasks": [...]}' in raised.value.detail


def test_brackets_without_end_are_an_invalid_body() -> None:
    with pytest.raises(InvalidBody):
        check(TASKS, b"[" * 1_000_000)


def test_from_one_to_the_most_records_are_taken() -> None:
    assert len(check(TASKS, body_of(TASKS, task()), max_records=3)) == 1
    assert len(check(TASKS, body_of(TASKS, *[task()] * 3), max_records=3)) == 3
    for count in (0, 4):
        (error,) = errors_of(TASKS, body_of(TASKS, *[task()] * count), max_records=3)
        assert error.field == "tasks"
        assert "1 to 3" in error.message
        assert f"{count} were sent" in error.message


@pytest.mark.parametrize("item", [None, 1, "x", [], True])
def test_a_record_that_is_no_object_is_named(item: Any) -> None:
    (error,) = errors_of(TASKS, body_of(TASKS, task(), item))
    assert error.field == "tasks[1]"


def test_unknown_fields_are_ignored_at_every_level() -> None:
    body = orjson.dumps({"version": 2, "tasks": [task(colour="red", confidnce=5)]})
    assert values_of(check(TASKS, body)) == values_of(check(TASKS, body_of(TASKS, task())))


# ---- fields, their defaults and limits


def test_omitted_fields_have_their_defaults() -> None:
    assert one(SESSIONS) == Session(
        session_id="s1",
        filename="game.xlsx",
        file_path="/data/game.xlsx",
        status="processing",
        llm_provider="openai",
        game_info=None,
        metadata=None,
        total_tasks=0,
        completed_tasks=0,
        failed_tasks=0,
        processing_tasks=0,
        updated_at=None,
    )
    assert one(TASKS) == Task(
        task_id="t1",
        batch_id="b1",
        session_id="s1",
        sheet_name="Sheet1",
        column_name="A",
        row_index=1,
        source_text="你好，世界",
        status="pending",
        target_text=None,
        context=None,
        error_message=None,
        confidence=None,
        retry_count=0,
        start_time=None,
        end_time=None,
        duration_ms=None,
        updated_at=None,
    )


@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind in KINDS for field in REQUIRED[kind]])
def test_a_required_field_that_is_missing_is_named(kind: Kind, field: str) -> None:
    item = MAKE[kind.name]()
    del item[field]
    assert errors_of(kind, body_of(kind, item)) == [
        FieldError(f"{kind.name}[0].{field}", "is required", f"{kind.name}.{field}")
    ]


@pytest.mark.parametrize(
    ("kind", "field"),
    [*((kind, field) for kind in KINDS for field in REQUIRED[kind]), (SESSIONS, "total_tasks"), (TASKS, "retry_count")],
)
def test_null_is_refused_where_the_contract_does_not_name_it(kind: Kind, field: str) -> None:
    assert error_of(kind, **{field: None}).field == f"{kind.name}[0].{field}"


@pytest.mark.parametrize(
    ("kind", "field"),
    [*((TASKS, field) for field in [*TEXTS, "confidence", "duration_ms"]), *TIMES, *((SESSIONS, f) for f in OBJECTS)],
)
def test_null_is_taken_where_the_contract_names_it(kind: Kind, field: str) -> None:
    assert getattr(one(kind, **{field: None}), field) is None


@pytest.mark.parametrize(("kind", "field", "longest"), STRINGS)
@pytest.mark.parametrize("character", ["x", "你", "😀", "\x00"])
def test_a_string_has_one_to_so_many_characters(kind: Kind, field: str, longest: int, character: str) -> None:
    for length in (1, longest):
        assert getattr(one(kind, **{field: character * length}), field) == character * length
    for length in (0, longest + 1):
        assert error_of(kind, **{field: character * length}).field == f"{kind.name}[0].{field}"


@pytest.mark.parametrize("field", TEXTS)
@pytest.mark.parametrize("character", ["x", "😀"])
def test_a_text_has_none_to_65535_characters(field: str, character: str) -> None:
    for length in (0, 65535):
        assert getattr(one(TASKS, **{field: character * length}), field) == character * length
    assert error_of(TASKS, **{field: character * 65536}).field == f"tasks[0].{field}"


def test_length_counts_characters_not_bytes_and_not_what_is_seen() -> None:
    family = "👨‍👩‍👧‍👦"  # one picture, seven characters, 25 bytes
    assert len(family) == 7
    assert one(SESSIONS, session_id=family * 5).session_id == family * 5
    assert error_of(SESSIONS, session_id=family * 5 + "ab").field == "sessions[0].session_id"
    assert one(TASKS, source_text="é" * 65535).source_text == "é" * 65535


@pytest.mark.parametrize("value", [1, 1.5, True, [], {}])
@pytest.mark.parametrize(("kind", "field"), [(TASKS, "task_id"), (TASKS, "target_text"), (SESSIONS, "filename")])
def test_a_string_must_be_sent_as_one(kind: Kind, field: str, value: Any) -> None:
    assert error_of(kind, **{field: value}).field == f"{kind.name}[0].{field}"


@pytest.mark.parametrize("kind", KINDS)
def test_these_are_the_statuses(kind: Kind) -> None:
    for status in STATUSES[kind]:
        assert one(kind, status=status).status == status
    others = {"", "done", "Pending", "pending ", *STATUSES[SESSIONS]} - STATUSES[kind]
    for status in others:
        assert error_of(kind, status=status).field == f"{kind.name}[0].status"


# ---- numbers


@pytest.mark.parametrize(("kind", "field"), INTEGERS)
def test_an_integer_lies_between_0_and_2147483647(kind: Kind, field: str) -> None:
    for value in (0, 1, MAX_INT):
        assert getattr(one(kind, **{field: value}), field) == value
    for value in (-1, MAX_INT + 1, 2**63, "-1", str(MAX_INT + 1), -1.0, 1e300):
        assert error_of(kind, **{field: value}).field == f"{kind.name}[0].{field}"


def test_an_integer_beyond_64_bits_is_refused() -> None:
    body = body_of(TASKS, task(row_index=123454321)).replace(b"123454321", str(2**64).encode())
    assert errors_of(TASKS, body)[0].field == "tasks[0].row_index"


@pytest.mark.parametrize(("kind", "field"), INTEGERS)
@pytest.mark.parametrize(
    ("sent", "read"),
    [("10", 10), ("0", 0), (" 10 ", 10), ("+3", 3), ("007", 7), (10.0, 10), ("10.0", 10), ("10.", 10), (-0.0, 0)],
)
def test_integers_in_strings_and_integral_floats_are_converted(kind: Kind, field: str, sent: Any, read: int) -> None:
    value = getattr(one(kind, **{field: sent}), field)
    assert value == read
    assert type(value) is int


@pytest.mark.parametrize("value", [10.5, "10.5", "1e1", "ten", "", " ", "1_0", "0x10", "٣", True, False, [1], {"a": 1}])
def test_other_values_are_no_integers(value: Any) -> None:
    assert error_of(TASKS, row_index=value).field == "tasks[0].row_index"
    assert error_of(TASKS, duration_ms=value).field == "tasks[0].duration_ms"


@pytest.mark.parametrize(
    ("sent", "read"), [(0, 0.0), (1, 1.0), (0.25, 0.25), ("0.5", 0.5), ("1", 1.0), (" .5 ", 0.5), ("1e-3", 0.001)]
)
def test_confidence_is_a_number_from_0_to_1(sent: Any, read: float) -> None:
    value = one(TASKS, confidence=sent).confidence
    assert value == read
    assert type(value) is float


@pytest.mark.parametrize("value", [1.0001, -0.0001, 2, "1.5", "-1", "nan", "inf", "", "high", True, [0.5]])
def test_other_values_are_no_confidence(value: Any) -> None:
    assert error_of(TASKS, confidence=value).field == "tasks[0].confidence"


def test_one_lax_record_does_not_change_the_others() -> None:
    records = check(TASKS, body_of(TASKS, task("a"), task("b", row_index="7"), task("c", confidence=1)))
    assert [(record.task_id, record.row_index) for record in records] == [("a", 1), ("b", 7), ("c", 1)]  # type: ignore[union-attr]


def test_text_that_looks_like_a_number_or_a_time_stays_text() -> None:
    record = one(TASKS, row_index="1", source_text="10", context="2026-11-23", target_text=" 10.0 ")
    assert (record.source_text, record.context, record.target_text) == ("10", "2026-11-23", " 10.0 ")


# ---- times


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("2026-11-23T10:15:30Z", datetime(2026, 11, 23, 10, 15, 30)),
        ("2026-11-23T10:15:30.123456Z", datetime(2026, 11, 23, 10, 15, 30, 123456)),
        ("2026-11-23T10:15:30.5+00:00", datetime(2026, 11, 23, 10, 15, 30, 500000)),
        ("2026-11-23T18:15:30+08:00", datetime(2026, 11, 23, 10, 15, 30)),
        ("2026-11-22T23:45:30-10:30", datetime(2026, 11, 23, 10, 15, 30)),
        ("2026-11-23T10:15:30", datetime(2026, 11, 23, 10, 15, 30)),
        ("2026-11-23T10:15:30.25", datetime(2026, 11, 23, 10, 15, 30, 250000)),
        ("2026-11-23 10:15:30", datetime(2026, 11, 23, 10, 15, 30)),
        ("2026-11-23 10:15:30+00:00", datetime(2026, 11, 23, 10, 15, 30)),
        ("2026-11-23T10:15", datetime(2026, 11, 23, 10, 15)),
        ("2026-11-23T10:15+01:00", datetime(2026, 11, 23, 9, 15)),
        ("2026-11-23", datetime(2026, 11, 23)),
        ("1969-12-31T23:59:59.999999Z", datetime(1969, 12, 31, 23, 59, 59, 999999)),
        ("1000-01-01T00:00:00Z", datetime(1000, 1, 1)),
    ],
)
@pytest.mark.parametrize(("kind", "field"), TIMES)
def test_iso_8601_times_are_read_and_those_without_an_offset_are_utc(
    kind: Kind, field: str, sent: str, read: datetime
) -> None:
    assert utc(getattr(one(kind, **{field: sent}), field)) == read


@pytest.mark.parametrize("time", ["2026-11-23T10:15:30.123456789Z", "2026-11-23T10:15:30.1234565Z", "2026-11-23"])
def test_a_time_reads_the_same_whatever_stands_beside_it(time: str) -> None:
    # Or the split into batches would decide which of two states is the later one.
    alone = one(TASKS, updated_at=time)
    beside_a_lax_record = check(TASKS, body_of(TASKS, task(updated_at=time), task(row_index="7")))[0]
    in_a_lax_record = one(TASKS, updated_at=time, row_index="1")
    assert values_of([alone]) == values_of([beside_a_lax_record]) == values_of([in_a_lax_record])


@pytest.mark.parametrize("field", ["start_time", "end_time"])
def test_other_times_than_updated_at_may_lie_in_the_future(field: str) -> None:
    for sent, read in (
        ("2100-02-28T00:00:00Z", datetime(2100, 2, 28)),
        ("9999-12-31T23:59:59.999999Z", datetime(9999, 12, 31, 23, 59, 59, 999999)),
        ("9999-12-31T23:59:59.9999999Z", datetime(9999, 12, 31, 23, 59, 59, 999999)),
    ):
        assert utc(getattr(one(TASKS, **{field: sent}), field)) == read


@pytest.mark.parametrize("value", ["", "soon", "2026-13-01", "2026-02-30T00:00:00Z", "10:15", 0, 1.5, "5", True, []])
@pytest.mark.parametrize(("kind", "field"), TIMES)
def test_what_is_no_time_is_refused(kind: Kind, field: str, value: Any) -> None:
    assert error_of(kind, **{field: value}).field == f"{kind.name}[0].{field}"


@pytest.mark.parametrize(
    "value",
    [
        "0001-01-01T00:00:00Z",
        "0999-12-31T23:59:59Z",
        "1000-01-01T00:00:00+00:01",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
    ],
)
def test_a_time_that_no_datetime_column_holds_is_refused(value: str) -> None:
    assert error_of(TASKS, start_time=value).field == "tasks[0].start_time"


OFFSETS = ["", "Z", "+00:00", "+23:59", "-23:59", "+05:30"]
DAYS = st.one_of(
    st.sampled_from(["0999-12-31", "1000-01-01", "1000-12-31", "1001-01-01", "1001-01-02", "9998-12-30", "9999-12-31"]),
    st.dates().map(lambda date: f"{date.year:04}-{date.month:02}-{date.day:02}"),
)
CLOCKS = st.sampled_from(["00:00:00", "00:00:00.000001", "12:00:00", "23:59:59.999999"])
SENT_TIMES = st.builds("{}T{}{}".format, DAYS, CLOCKS, st.sampled_from(OFFSETS))


def since_the_year_one(time: str) -> timedelta:
    """In UTC; may lie outside of what a datetime holds."""
    read = datetime.fromisoformat(time.replace("Z", "+00:00"))
    return read.replace(tzinfo=None) - datetime.min - (read.utcoffset() or timedelta())


@given(st.lists(SENT_TIMES, min_size=1, max_size=6))
@example(["2026-11-23T10:15:30", "2026-11-23T10:15:30Z"])
@example(["1001-01-01T00:00:00+23:59", "1000-12-31T23:59:59.999999"])
@pytest.mark.parametrize(("field", "latest"), [("updated_at", NOW + timedelta(minutes=5)), ("end_time", None)])
def test_times_are_judged_each_by_itself(field: str, latest: datetime | None, times: list[str]) -> None:
    until = (utc(latest) if latest else datetime.max) - datetime.min
    since = datetime(1000, 1, 1) - datetime.min
    expected = [index for index, time in enumerate(times) if not since <= since_the_year_one(time) <= until]
    body = body_of(TASKS, *(task(**{field: time}) for time in times))
    if expected:
        errors = errors_of(TASKS, body)
        assert [error.field for error in errors] == [f"tasks[{index}].{field}" for index in expected]
    else:
        assert [utc(getattr(record, field)) - datetime.min for record in check(TASKS, body)] == [
            since_the_year_one(time) for time in times
        ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", ["", "Z", "+00:00"])
def test_updated_at_may_be_ahead_by_the_clock_skew_and_no_more(kind: Kind, offset: str) -> None:
    latest = datetime(2026, 11, 23, 10, 20, 30)
    assert utc(one(kind, updated_at=latest.isoformat() + offset).updated_at) == latest
    late = (latest + timedelta(microseconds=1)).isoformat() + offset
    error = error_of(kind, updated_at=late)
    assert error.field == f"{kind.name}[0].updated_at"
    assert "2026-11-23T10:20:30" in error.message
    assert "service.max_clock_skew" in error.message


def test_the_clock_skew_is_measured_in_utc() -> None:
    assert one(TASKS, updated_at="2026-11-23T20:20:30+10:00").updated_at is not None
    assert error_of(TASKS, updated_at="2026-11-23T20:20:31+10:00").field == "tasks[0].updated_at"
    assert error_of(TASKS, updated_at="2026-11-23T00:20:31-10:00").field == "tasks[0].updated_at"


def test_no_skew_means_no_time_ahead() -> None:
    check(TASKS, body_of(TASKS, task(updated_at=NOW.isoformat())), max_clock_skew_s=0.0)
    errors_of(
        TASKS,
        body_of(TASKS, task(updated_at=(NOW + timedelta(microseconds=1)).isoformat())),
        max_clock_skew_s=0.0,
    )


# ---- objects


@pytest.mark.parametrize("field", OBJECTS)
@pytest.mark.parametrize("lists", [False, True])
def test_an_object_is_nested_at_most_20_deep(field: str, lists: bool) -> None:
    assert getattr(one(SESSIONS, **{field: nested(20, lists=lists)}), field) == nested(20, lists=lists)
    error = error_of(SESSIONS, **{field: nested(21, lists=lists)})
    assert error == FieldError(f"sessions[0].{field}", "is nested over 20 deep", f"sessions.{field} too large")


def test_the_deepest_branch_counts_wherever_it_is() -> None:
    assert error_of(SESSIONS, metadata={"a": 1, "b": [{}, nested(19), 2], "c": {}}).field == "sessions[0].metadata"
    assert one(SESSIONS, metadata={"a": 1, "b": [{}, nested(18), 2], "c": {}}).metadata is not None


@pytest.mark.parametrize("depth", [100, 500, 1000])
def test_an_object_that_is_very_deep_is_an_invalid_record_not_a_crash(depth: int) -> None:
    deep = b'{"a":' * (depth - 1) + b"{}" + b"}" * (depth - 1)
    body = body_of(SESSIONS, session(metadata="@")).replace(b'"@"', deep)
    (error,) = errors_of(SESSIONS, body)
    assert error.field.startswith("sessions[0]")
    assert "nested" in error.message


@pytest.mark.parametrize("value", ["{}", 1, [], True, [{}]])
def test_an_object_must_be_sent_as_one(value: Any) -> None:
    assert error_of(SESSIONS, metadata=value).field == "sessions[0].metadata"


def test_an_object_comes_through_as_sent() -> None:
    value = {"": None, "a": [1, -1.5, True, "😀", {}, []], "日本": {"x": 2**53}}
    assert one(SESSIONS, game_info=value, metadata={}).game_info == value
    assert one(SESSIONS, metadata={}).metadata == {}


def test_a_key_has_at_most_65535_bytes() -> None:
    longest = "é" * 32767 + "x"
    assert len(longest.encode()) == MAX_JSON_KEY_BYTES
    assert one(SESSIONS, metadata={longest: 1}).metadata == {longest: 1}
    for value in ({longest + "x": 1}, {"a": [{longest + "x": 1}]}):
        error = error_of(SESSIONS, metadata=value)
        assert error.field == "sessions[0].metadata"
        assert "key" in error.message


def test_an_object_takes_at_most_its_bytes_as_json() -> None:
    frame = len(orjson.dumps({"a": ""}))
    assert one(SESSIONS, game_info={"a": "x" * (MAX_JSON_BYTES - frame)}).game_info is not None
    error = error_of(SESSIONS, game_info={"a": "x" * (MAX_JSON_BYTES - frame + 1)})
    assert error.field == "sessions[0].game_info"
    assert str(MAX_JSON_BYTES) in error.message


def test_what_grows_when_it_is_stored_is_measured_as_stored() -> None:
    # 1e15 becomes 1000000000000000.0: a body well under the limit, an object over it.
    body = body_of(SESSIONS, session(metadata={"a": "@"})).replace(b'"@"', b"[" + b"1e15," * 120_000 + b"1]")
    assert len(body) < MAX_JSON_BYTES
    assert errors_of(SESSIONS, body)[0].field == "sessions[0].metadata"


# ---- the list of errors


def test_every_invalid_record_is_listed_in_order() -> None:
    items = [task(), task(status="done"), task(), task(row_index=-1), {}, None]
    assert [error.field for error in errors_of(TASKS, body_of(TASKS, *items))] == [
        "tasks[1].status",
        "tasks[3].row_index",
        "tasks[4].task_id",
        "tasks[5]",
    ]


def test_every_record_over_a_limit_that_no_type_says_is_listed() -> None:
    items = [session(), session(updated_at="2030-01-01T00:00:00Z"), session(metadata=nested(21))]
    fields = [error.field for error in errors_of(SESSIONS, body_of(SESSIONS, *items))]
    assert fields == ["sessions[1].updated_at", "sessions[2].metadata"]


def test_both_sorts_of_invalid_record_are_listed_together() -> None:
    items = [task(status="done"), task(updated_at="2030-01-01T00:00:00Z"), task(row_index="x")]
    fields = [error.field for error in errors_of(TASKS, body_of(TASKS, *items))]
    assert fields == ["tasks[0].status", "tasks[1].updated_at", "tasks[2].row_index"]


@pytest.mark.parametrize("broken", [{"status": "done"}, {"updated_at": "2030-01-01T00:00:00Z"}])
def test_at_most_100_errors_are_listed(broken: dict[str, Any]) -> None:
    errors = errors_of(TASKS, body_of(TASKS, *[task(**broken)] * 150))
    assert len(errors) == MAX_ERRORS == 100
    (field,) = broken
    assert [error.field for error in errors] == [f"tasks[{index}].{field}" for index in range(100)]


def test_an_error_says_what_is_allowed_and_repeats_nothing_of_the_record() -> None:
    for kind, field, allowed in (
        (SESSIONS, "status", "must be one of pending, processing, completed, failed, cancelled"),
        (TASKS, "status", "must be one of pending, processing, completed, failed"),
        (TASKS, "row_index", "Expected `int`"),
        (TASKS, "start_time", "RFC3339"),
        (SESSIONS, "metadata", "Expected `object | null`"),
    ):
        message = error_of(kind, **{field: "s3cret"}).message
        assert allowed in message
        assert "s3cret" not in message


# ---- the two ways of reading


def test_raw_records_are_those_that_were_received() -> None:
    items = [task("a", row_index="7", colour="red"), task("b")]
    assert decode_raw(TASKS, body_of(TASKS, *items)) == items


def test_decode_refuses_what_no_version_would_have_accepted() -> None:
    with pytest.raises(InvalidRecord):
        decode(TASKS, body_of(TASKS, task(status="done")))
    with pytest.raises(InvalidBody):
        decode(TASKS, b"{}")


characters = st.characters(exclude_categories=["Cs"])
counts = st.integers(0, MAX_INT)
lax_counts = st.one_of(counts, counts.map(str), counts.map(float))
times = st.one_of(
    st.none(),
    st.datetimes(datetime(1000, 1, 2), datetime(2026, 11, 22)).map(datetime.isoformat),
    st.datetimes(datetime(1000, 1, 2), datetime(2026, 11, 22), timezones=st.just(UTC)).map(datetime.isoformat),
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.floats(allow_nan=False, allow_infinity=False))
    | st.text(characters, max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(characters, max_size=4), inner, max_size=3),
    max_leaves=8,
)
objects = st.none() | st.dictionaries(st.text(characters, max_size=8), json_values, max_size=4)
sessions = st.fixed_dictionaries(
    {
        "session_id": st.text(characters, min_size=1, max_size=36),
        "filename": st.text(characters, min_size=1, max_size=20),
        "file_path": st.text(characters, min_size=1, max_size=20),
        "status": st.sampled_from(sorted(STATUSES[SESSIONS])),
        "llm_provider": st.text(characters, min_size=1, max_size=20),
    },
    optional={"metadata": objects, "game_info": objects, "total_tasks": lax_counts, "updated_at": times},
)
tasks = st.fixed_dictionaries(
    {
        "task_id": st.text(characters, min_size=1, max_size=64),
        "batch_id": st.text(characters, min_size=1, max_size=20),
        "session_id": st.text(characters, min_size=1, max_size=36),
        "sheet_name": st.text(characters, min_size=1, max_size=20),
        "column_name": st.text(characters, min_size=1, max_size=20),
        "row_index": lax_counts,
        "source_text": st.text(characters, min_size=1, max_size=40),
        "status": st.sampled_from(sorted(STATUSES[TASKS])),
    },
    optional={
        "target_text": st.none() | st.text(characters, max_size=40),
        "confidence": st.none() | st.floats(0, 1) | st.floats(0, 1).map(repr),
        "retry_count": lax_counts,
        "start_time": times,
        "duration_ms": st.none() | lax_counts,
        "updated_at": times,
    },
)


@given(st.lists(sessions, min_size=1, max_size=4))
def test_every_valid_session_is_accepted_and_decoded_field_by_field(items: list[dict[str, Any]]) -> None:
    agree(SESSIONS, items)


@given(st.lists(tasks, min_size=1, max_size=4))
def test_every_valid_task_is_accepted_and_decoded_field_by_field(items: list[dict[str, Any]]) -> None:
    agree(TASKS, items)


def agree(kind: Kind, items: list[dict[str, Any]]) -> None:
    for item, record in zip(items, check(kind, body_of(kind, *items)), strict=True):
        fields = msgspec.structs.asdict(record)
        for name, sent in item.items():
            read = fields[name]
            if isinstance(read, datetime):
                assert read == datetime.fromisoformat(sent)
            elif isinstance(read, (int, float)):
                assert read == float(sent)
            else:
                assert read == sent


_JSON_VALUES = """
0 -0 1 1.0 1e2 1E+2 10e-1 2147483647 2147483648 -1 9007199254740993 18446744073709551616 1e400 1e-400 0.1 0e0 0E5 00 01
0.30000000000000004 0.9999999999999999 1.00000000000000005 5e-324 0.12345678901234567890123 1. .5 +1 0x1 NaN Infinity
-Infinity true false null [] {} [[]] "" "a" "\\n" "\\/" "\\x" "\\b\\f" 'a' "12 "2026-01-01" "2026-02-30T00:00:00Z"
"2026-01-01T24:00:00Z" "2026-01-01T00:00:00.1234567Z" "0999-01-01T00:00:00Z" "2026-01-01T00:00:00+24:00"
"""
VALUES = [*_JSON_VALUES.encode().split(), b'"\xff"', b'"\xed\xa0\x80"', b'"\\ud83d"']
PIECES = [
    *(b"%c" % code for code in (0, 9, 10, 11, 13, 31, 32, 34, 44, 47, 48, 58, 91, 92, 93, 101, 123, 125, 127, 255)),
    *(
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\xf0\x9f",
        b"\xc0\x80",
        b"/**/",
        b"//",
        b"\\ud83d",
        b"\\ude42",
        b"\\u0041",
        b"\\u00",
        b"{}",
    ),
    b'"extra":"\xff",',
    b'"tasks":[],',
    b'"task_id":"again",',
]
edits = st.lists(
    st.tuples(st.integers(0, 10_000), st.integers(0, 3), st.sampled_from(PIECES + VALUES)),
    max_size=3,
)
tasks_with_any_values = st.dictionaries(
    st.sampled_from([*Task.__struct_fields__, "extra"]), st.sampled_from(VALUES), max_size=3
)


@settings(max_examples=1000)
@given(tasks_with_any_values, edits)
@example({"extra": b'"\xff"'}, [])
def test_what_one_pass_reads_the_two_parsers_read_alike(
    values: dict[str, bytes], edits: list[tuple[int, int, bytes]]
) -> None:
    members = {name: orjson.dumps(value) for name, value in task().items()} | values
    body = b'{"tasks":[{' + b",".join(b'"%b":%b' % (name.encode(), value) for name, value in members.items()) + b"}]}"
    for number, cut, piece in edits:
        at = number % (len(body) + 1)
        body = body[:at] + piece + body[at + cut :]

    records = _decode_typed(TASKS, body)

    if plain.count(TASKS, body, int(NOW.timestamp())):
        assert records is not None
        check(TASKS, body)
    if records is not None:
        read_by_both = msgspec.convert(decode_raw(TASKS, body), list[Task])
        assert repr(values_of(records)) == repr(values_of(read_by_both))  # -0.0 equals 0.0, and is not the same


@pytest.mark.parametrize(
    ("body", "one_pass"),
    [
        (body_of(TASKS, task()), True),
        (body_of(TASKS, task(source_text='line\n"quoted" \\')), True),
        (body_of(SESSIONS, session()), False),
        (body_of(TASKS, task(extra=1)), False),
        (body_of(TASKS, task()).replace(b"Sheet1", b"\\u4f60\\ud83d\\ude42"), True),
        (body_of(TASKS, task()).replace(b"Sheet1", b"\\ud83d"), False),
        (b'{"version":2,' + body_of(TASKS, task())[1:], False),
        (body_of(TASKS), False),
    ],
)
def test_which_bodies_take_one_pass(body: bytes, one_pass: bool) -> None:
    assert (_decode_typed(TASKS, body) is not None) is one_pass


@given(st.binary(max_size=60) | json_values.map(orjson.dumps) | json_values.map(lambda v: orjson.dumps({"tasks": [v]})))
def test_whatever_comes_is_accepted_or_refused_in_our_own_words(body: bytes) -> None:
    for kind in KINDS:
        try:
            check(kind, body)
        except (InvalidBody, InvalidRecord):
            pass
