"""What records may be, and how bodies of them are read."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.bodies import InvalidBody, decode, decode_raw
from shared.clock import time_zone
from shared.records import KINDS, SESSIONS, TASKS, V1_RULES, Kind, Rules, utc
from shared.validation import FieldError, InvalidRecord
from tests.support.bodies import MAKE, NOW, POLICY, body_of, check, count, error_of, errors_of, nested, one, policy
from tests.support.service import session, task, values_of

UTC = timezone.utc
MAX_INT = 2147483647

# CONTRACT 3, column by column: fewest and most characters.
STRINGS = [
    (SESSIONS, "session_id", 1, 36),
    (SESSIONS, "filename", 0, 255),
    (SESSIONS, "file_path", 0, 512),
    (SESSIONS, "llm_provider", 0, 50),
    (TASKS, "session_id", 1, 36),
    (TASKS, "task_id", 1, 64),
    (TASKS, "batch_id", 0, 64),
    (TASKS, "sheet_name", 0, 255),
    (TASKS, "column_name", 0, 255),
    (TASKS, "source_text", 0, 65535),
    (TASKS, "target_text", 0, 65535),
    (TASKS, "context", 0, 65535),
    (TASKS, "error_message", 0, 65535),
]
INTEGERS = [
    (SESSIONS, "total_tasks"),
    (SESSIONS, "completed_tasks"),
    (SESSIONS, "failed_tasks"),
    (SESSIONS, "processing_tasks"),
    (TASKS, "row_index"),
    (TASKS, "retry_count"),
]
OBJECTS = [(SESSIONS, "game_info"), (SESSIONS, "metadata"), (TASKS, "metadata")]
TIMES = [(SESSIONS, "updated_at"), (TASKS, "updated_at"), (TASKS, "start_time"), (TASKS, "end_time")]
REQUIRED = {
    SESSIONS: ["session_id", "filename", "status"],
    TASKS: ["session_id", "task_id", "source_text", "status"],
}
DEFAULTS: dict[Kind, dict[str, Any]] = {
    SESSIONS: {
        **dict.fromkeys(["file_path", "llm_provider"], ""),
        **dict.fromkeys(["total_tasks", "completed_tasks", "failed_tasks", "processing_tasks"], 0),
        **dict.fromkeys(["game_info", "metadata", "updated_at"]),
    },
    TASKS: {
        **dict.fromkeys(["batch_id", "sheet_name", "column_name"], ""),
        **dict.fromkeys(["row_index", "retry_count"], 0),
        **dict.fromkeys(["target_text", "context", "error_message", "confidence", "duration_ms", "metadata"]),
        **dict.fromkeys(["start_time", "end_time", "updated_at"]),
    },
}


# ---- fields, their defaults and limits


@pytest.mark.parametrize("kind", KINDS)
def test_these_are_the_fields(kind: Kind) -> None:
    assert {*REQUIRED[kind], *DEFAULTS[kind]} == set(kind.record.__struct_fields__)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sent", ["nothing", "null"])
def test_an_optional_field_that_is_missing_or_null_has_its_default(kind: Kind, sent: str) -> None:
    full = MAKE[kind.name]()
    item = {name: full[name] for name in REQUIRED[kind]} | ({} if sent == "nothing" else dict.fromkeys(DEFAULTS[kind]))
    (record,) = values_of(check(kind, body_of(kind, item)))
    assert record == {**item, **DEFAULTS[kind], "extra": None}
    assert count(kind, body_of(kind, item)) == 1


@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind in KINDS for field in REQUIRED[kind]])
def test_a_required_field_that_is_missing_or_null_is_named(kind: Kind, field: str) -> None:
    item = MAKE[kind.name]()
    del item[field]
    error = FieldError(f"{kind.name}[0].{field}", "is required", f"{kind.name}.{field}")
    assert errors_of(kind, body_of(kind, item)) == [error]
    assert error_of(kind, **{field: None}).field == f"{kind.name}[0].{field}"


@pytest.mark.parametrize(("kind", "field", "shortest", "longest"), STRINGS)
@pytest.mark.parametrize("character", ["x", "你", "😀", "\x00"])
def test_a_string_has_so_many_characters(kind: Kind, field: str, shortest: int, longest: int, character: str) -> None:
    for length in (shortest, 1, longest):
        body = body_of(kind, MAKE[kind.name](**{field: character * length}))
        assert getattr(check(kind, body)[0], field) == character * length
        assert count(kind, body) == 1
    for length in {longest + 1, shortest - 1} - {-1}:
        assert error_of(kind, **{field: character * length}).field == f"{kind.name}[0].{field}"


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


@pytest.mark.parametrize(("kind", "statuses"), [(SESSIONS, 12), (TASKS, 6)])
def test_the_configured_statuses_are_taken_and_no_other(kind: Kind, statuses: int) -> None:
    assert len(set(POLICY.statuses[kind.name])) == statuses
    for status in POLICY.statuses[kind.name]:
        assert count(kind, body_of(kind, MAKE[kind.name](status=status))) == 1
        assert one(kind, status=status).status == status
    for status in ("", "done", "Pending", "pending ", "x" * 33):
        assert error_of(kind, status=status).field == f"{kind.name}[0].status"
    other = policy(statuses={kind.name: ("done", "été 你好")})
    assert one(kind, other, status="été 你好").status == "été 你好"
    assert error_of(kind, other, status="pending") == FieldError(
        f"{kind.name}[0].status",
        f"must be one of done, été 你好 (records.{kind.name[:-1]}_statuses)",
        f"{kind.name}.status",
    )


def test_decode_knows_no_configured_status() -> None:
    (record,) = decode(TASKS, body_of(TASKS, task(status="of yesterday")))
    assert record.status == "of yesterday"


# ---- numbers


@pytest.mark.parametrize(("kind", "field"), [*INTEGERS, (TASKS, "duration_ms")])
def test_an_integer_lies_between_0_and_2147483647(kind: Kind, field: str) -> None:
    for value in (0, 1, MAX_INT):
        assert getattr(one(kind, **{field: value}), field) == value
    for value in (-1, MAX_INT + 1, 2**63, "-1", str(MAX_INT + 1), -1.0, 1e300, "1" * 10_000):
        assert error_of(kind, **{field: value}).field == f"{kind.name}[0].{field}"


@pytest.mark.parametrize(("kind", "field"), INTEGERS)
@pytest.mark.parametrize(
    ("sent", "read"),
    [("10", 10), ("0", 0), (" 10 ", 10), ("+3", 3), ("007", 7), (246.0, 246), ("10.0", 10), ("10.", 10), (-0.0, 0)],
)
def test_integers_in_strings_and_integral_floats_are_converted(kind: Kind, field: str, sent: Any, read: int) -> None:
    value = getattr(one(kind, **{field: sent}), field)
    assert value == read
    assert type(value) is int


@pytest.mark.parametrize("value", [10.5, "10.5", "1e1", "ten", "", " ", "1_0", "0x10", "٣", True, False, [1], {"a": 1}])
def test_other_values_are_no_integers(value: Any) -> None:
    assert error_of(TASKS, row_index=value).field == "tasks[0].row_index"


@pytest.mark.parametrize(
    ("sent", "read"),
    [(1234.5, 1234), (1235.5, 1236), (0.4, 0), (-0.4, 0), ("12.7", 13), ("1e3", 1000), (MAX_INT + 0.4, MAX_INT)],
)
def test_a_duration_is_rounded(sent: Any, read: int) -> None:
    value = one(TASKS, duration_ms=sent).duration_ms
    assert value == read
    assert type(value) is int


@pytest.mark.parametrize("value", [MAX_INT + 0.6, -0.6, "1e999", "nan", "ten", "", True, [1]])
def test_other_values_are_no_duration(value: Any) -> None:
    assert error_of(TASKS, duration_ms=value).field == "tasks[0].duration_ms"


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        *((0, 0.0), (1, 1.0), (0.25, 0.25), ("0.5", 0.5), ("1", 1.0), (" .5 ", 0.5), ("1e-3", 0.001)),
        *((1.0000001, 1.0), (1.00004, 1.0), (-0.00004, 0.0), ("1.00004", 1.0)),
    ],
)
def test_confidence_is_a_number_from_0_to_1_once_it_is_rounded(sent: Any, read: float) -> None:
    value = one(TASKS, confidence=sent).confidence
    assert value == read
    assert type(value) is float


@pytest.mark.parametrize("value", [1.0001, -0.0001, 2, "1.5", "-1", "nan", "inf", "", "high", True, [0.5], "1" * 20000])
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
        ("2026-11-23T14:18:03+04:02:33", datetime(2026, 11, 23, 10, 15, 30)),
        ("2026-11-23 06:12:57.25-04:02:33", datetime(2026, 11, 23, 10, 15, 30, 250000)),
        ("2026-11-23T10:15:30.1234567+00:00:00", datetime(2026, 11, 23, 10, 15, 30, 123457)),
        ("1969-12-31T23:59:59.999999Z", datetime(1969, 12, 31, 23, 59, 59, 999999)),
        ("1000-01-01T00:00:00Z", datetime(1000, 1, 1)),
    ],
)
@pytest.mark.parametrize(("kind", "field"), TIMES)
def test_iso_8601_times_are_read_and_those_without_an_offset_are_utc(
    kind: Kind, field: str, sent: str, read: datetime
) -> None:
    assert getattr(one(kind, **{field: sent}), field) == read


@pytest.mark.parametrize("time", ["2026-11-23T10:15:30.123456789Z", "2026-11-23T10:15:30.1234565Z", "2026-11-23"])
def test_a_time_reads_the_same_whatever_stands_beside_it(time: str) -> None:
    # Or the split into batches would decide which of two states is the later one.
    alone = one(TASKS, updated_at=time)
    beside_a_lax_record = check(TASKS, body_of(TASKS, task(updated_at=time), task(row_index="7")))[0]
    in_a_lax_record = one(TASKS, updated_at=time, row_index="1")
    assert alone.updated_at == utc(beside_a_lax_record.updated_at) == in_a_lax_record.updated_at


@pytest.mark.parametrize("field", ["start_time", "end_time"])
def test_other_times_than_updated_at_may_lie_in_the_future(field: str) -> None:
    for sent, read in (
        ("2100-02-28T00:00:00Z", datetime(2100, 2, 28)),
        ("9999-12-31T23:59:59.999999Z", datetime(9999, 12, 31, 23, 59, 59, 999999)),
        ("9999-12-31T23:59:59.9999999Z", datetime(9999, 12, 31, 23, 59, 59, 999999)),
    ):
        assert getattr(one(TASKS, **{field: sent}), field) == read


@pytest.mark.parametrize(
    "value", ["", "soon", "2026-13-01", "2026-02-30T00:00:00Z", "10:15", 0, 1.5, "5", True, [], "2" * 10_000]
)
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


ZONES = ["UTC", "+08:00", "-03:30", "Asia/Shanghai", "America/Sao_Paulo", "Europe/Berlin", "Pacific/Apia"]


@pytest.mark.parametrize("zone", ZONES)
@given(st.datetimes(datetime(1001, 1, 2), datetime(2026, 11, 21)), st.sampled_from(["T", " "]))
@example(datetime(2026, 3, 29, 2, 30), "T")  # skipped in Berlin
@example(datetime(2025, 10, 26, 2, 30), "T")  # twice in Berlin
@example(datetime(2018, 11, 4, 0, 30), "T")  # skipped in Sao Paulo
@example(datetime(2011, 12, 30, 12), "T")  # a day that Apia never had
def test_a_time_without_an_offset_is_read_in_the_zone_with_fold_0(zone: str, time: datetime, separator: str) -> None:
    in_zone = policy(time_zone=zone)
    record = one(TASKS, in_zone, start_time=time.isoformat(separator), end_time=time.isoformat() + "Z")
    assert record.start_time == time.replace(tzinfo=time_zone(zone)).astimezone(UTC).replace(tzinfo=None)
    assert record.end_time == time


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", ["", "Z", "+00:00"])
def test_updated_at_may_be_ahead_by_the_clock_skew_and_no_more(kind: Kind, offset: str) -> None:
    latest = datetime(2026, 11, 23, 10, 20, 30)
    assert one(kind, updated_at=latest.isoformat() + offset).updated_at == latest
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
    strict = policy(max_clock_skew_s=0.0)
    check(TASKS, body_of(TASKS, task(updated_at=NOW.isoformat())), strict)
    error_of(TASKS, strict, updated_at=(NOW + timedelta(microseconds=1)).isoformat())


def test_a_future_time_without_an_offset_says_in_which_zone_it_was_read() -> None:
    in_shanghai = policy(time_zone="Asia/Shanghai")
    assert one(TASKS, in_shanghai, updated_at="2026-11-23 18:20:30").updated_at == datetime(2026, 11, 23, 10, 20, 30)
    for zone, time in ((POLICY, "2026-11-23 18:15:30"), (in_shanghai, "2026-11-23 18:20:31")):
        message = error_of(TASKS, zone, updated_at=time).message
        assert message.endswith(f"has no offset and was read in {zone.time_zone} (records.time_zone)")
    assert "offset" not in error_of(TASKS, in_shanghai, updated_at="2026-11-23T18:15:30Z").message


@settings(max_examples=300)
@given(st.sampled_from(ZONES), st.integers(-26 * 3600, 26 * 3600), st.integers(-26 * 3600, 26 * 3600), st.data())
def test_near_a_change_of_the_zones_offset_no_future_time_is_counted(
    zone: str, before_s: int, ahead_s: int, data: st.DataObject
) -> None:
    """check() compares the fast path, which knows only one offset, with the slow one."""
    changes = [(2026, 3, 29, 1), (2026, 10, 25, 1), (2018, 11, 4, 3), (2018, 2, 18, 2), (2011, 12, 30, 10)]
    now = datetime(*data.draw(st.sampled_from(changes)), tzinfo=UTC) - timedelta(seconds=before_s)
    sent = (now + timedelta(seconds=ahead_s)).astimezone(time_zone(zone)).replace(tzinfo=None)
    try:
        check(TASKS, body_of(TASKS, task(updated_at=sent.isoformat())), policy(time_zone=zone), now)
    except InvalidRecord:
        pass


# ---- objects and unknown fields


@pytest.mark.parametrize(("kind", "field"), OBJECTS)
@pytest.mark.parametrize("value", ["{}", 1, [], True, [{}]])
def test_an_object_must_be_sent_as_one(kind: Kind, field: str, value: Any) -> None:
    error = error_of(kind, **{field: value})
    assert error.field == f"{kind.name}[0].{field}"
    assert "Expected `object | null`, got" in error.message


@pytest.mark.parametrize(("kind", "field"), OBJECTS)
@pytest.mark.parametrize(
    "value", [{}, {"": None, "a": [1, -1.5, True, "😀", {}, []], "日本": {"x": 2**53}}, {"a": 2**64 - 1, "b": -(2**63)}]
)
def test_an_object_comes_through_as_sent(kind: Kind, field: str, value: dict[str, Any]) -> None:
    assert getattr(one(kind, **{field: value}), field) == value
    assert count(kind, body_of(kind, MAKE[kind.name](**{field: value}))) == 1


def test_a_context_may_be_an_object_and_is_kept_as_its_text() -> None:
    assert one(TASKS, context={"b": [1, "é"], "a": None}).context == '{"b":[1,"é"],"a":null}'
    assert one(TASKS, context={"a": "x" * 65527}).context == '{"a":"' + "x" * 65527 + '"}'
    assert error_of(TASKS, context={"a": "x" * 65528}).field == "tasks[0].context"
    assert error_of(TASKS, target_text={"a": 1}).field == "tasks[0].target_text"


EXTRA = {"source_lang": "zh", "cost": 0.25, "is_final": True, "note": None, "extra": {"extra": [1]}, "日本": "x"}


def test_unknown_fields_are_kept_by_their_names_one_called_extra_included() -> None:
    for kind in KINDS:
        assert one(kind, **EXTRA).extra == EXTRA
        assert count(kind, body_of(kind, MAKE[kind.name](**EXTRA))) == 1
        assert one(kind).extra is None
    assert one(TASKS, row_index="7", **EXTRA).extra == EXTRA
    assert one(TASKS, extra="only").extra == {"extra": "only"}


def test_created_at_is_always_ignored() -> None:
    for setting in ("keep", "ignore", "reject"):
        for value in ("2026-01-01T00:00:00Z", None, 5, {"a": []}):
            assert one(TASKS, policy(unknown_fields=setting), created_at=value).extra is None


PROGRESS = {"total": 2, "by_status": {"failed": 2}, "last_task_at": None}


def test_the_progress_of_a_session_that_was_read_is_ignored_and_any_other_is_kept() -> None:
    for setting in ("keep", "ignore", "reject"):
        assert one(SESSIONS, policy(unknown_fields=setting), progress=PROGRESS).extra is None
    full = {"notes": "x" * 65520}
    assert one(SESSIONS, progress=PROGRESS, **full).extra == full
    for other in (0.5, None, "", [], {}, {**PROGRESS, "eta": 3}, {"total": 2}):
        assert one(SESSIONS, progress=other).extra == {"progress": other}
    assert one(TASKS, progress=PROGRESS).extra == {"progress": PROGRESS}
    assert error_of(SESSIONS, policy(unknown_fields="reject"), progress=0.5).field == "sessions[0].progress"


def test_unknown_fields_may_be_ignored_or_refused() -> None:
    assert one(TASKS, policy(unknown_fields="ignore"), **EXTRA).extra is None
    errors = errors_of(TASKS, body_of(TASKS, task(colour="red", shape=1)), policy(unknown_fields="reject"))
    message = "is no field of tasks (records.unknown_fields: reject)"
    assert errors == [FieldError(f"tasks[0].{name}", message, "tasks unknown field") for name in ("colour", "shape")]


# ---- the two ways of reading, and what earlier versions and settings have accepted


def test_raw_records_are_those_that_were_received() -> None:
    items = [task("a", row_index="7", colour="red"), task("b")]
    assert decode_raw(TASKS, body_of(TASKS, *items)) == items


@pytest.mark.parametrize("body", [b"", b"{}", b'{"tasks":', b'{"tasks":[{]}', b'{"sessions":[]}', b'{"tasks":{}x}'])
def test_what_is_no_body_of_tasks_is_an_invalid_body(body: bytes) -> None:
    for read in (decode, decode_raw):
        with pytest.raises(InvalidBody):
            read(TASKS, body)


def test_a_body_means_what_its_rules_say() -> None:
    body = body_of(TASKS, task(updated_at="2026-11-23T12:00:00", colour="red"))
    for rules, hour, extra in (
        (b"", 12, {"colour": "red"}),
        (Rules("Asia/Shanghai").encode(), 4, {"colour": "red"}),
        (Rules("+08:00", "ignore").encode(), 4, None),
        (V1_RULES, 12, None),
    ):
        (values,) = values_of(decode(TASKS, body, rules))
        assert (values["updated_at"], values["extra"]) == (datetime(2026, 11, 23, hour), extra)


def test_a_zone_that_is_not_known_any_more_is_said_so() -> None:
    with pytest.raises(ValueError, match="IANA name"):
        decode(TASKS, body_of(TASKS, task()), Rules("Atlantis/Capital").encode())


def test_what_version_1_accepted_is_read_as_it_was() -> None:
    large = {"a": ["x" * 10] * 10_000}
    record = orjson.dumps(session(metadata=large, game_info=nested(20)))
    twice = (
        b'{"version":2,"sessions":[1],"sessions":['
        + record[:-1]
        + b',"filename":"last","x":['
        + b"[" * 999
        + b"]" * 999
    )
    (values,) = values_of(decode(SESSIONS, twice + b"]}]}", V1_RULES))
    assert (values["metadata"], values["filename"], values["extra"]) == (large, "last", None)
    integer = orjson.dumps(session(metadata={"a": 77})).replace(b"77", b"18446744073709551617")
    (values,) = values_of(decode(SESSIONS, b'{"sessions":[' + integer + b"]}", V1_RULES))
    assert values["metadata"] == {"a": 1.8446744073709552e19}
