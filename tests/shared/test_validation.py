"""What is said of bodies and records that are refused, and how much work that may be."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import orjson
import pytest

from shared.bodies import MAX_OBJECT_BYTES, InvalidBody
from shared.records import SESSIONS, TASKS, Kind
from shared.validation import MAX_ERRORS, FieldError, InvalidRecord, Validator
from tests.support.bodies import MAKE, POLICY, body_of, check, count, error_of, errors_of, nested, one, policy
from tests.support.service import session, task

TOO_DEEP = "is nested over 20 deep"


def invalid_body(body: bytes) -> InvalidBody:
    with pytest.raises(InvalidBody) as raised:
        check(TASKS, body)
    return raised.value


# ---- the body as a whole


@pytest.mark.parametrize(
    "body",
    [
        *(
            b"",
            b"{",
            b"\xff",
            b'{"tasks":["\\ud800"]}',
            b'{"tasks":[]}x',
            b'{"tasks":nul}',
            b'\xef\xbb\xbf{"tasks":[{}]}',
        ),
        *(
            b'{"tasks":[{},]}',
            b'{"tasks":[{"a":1,}]}',
            b'{"tasks":[{"a":[1}]}]}',
            b'{"tasks":[{"a":1]]}',
            b"[" * 1_000_000,
        ),
        *(b'{"tasks":[{"a" 1}]}', b'{"tasks":[{"a":"\t"}]}', b'{"tasks":[{"\\x":1}]}', b'{"tasks":[{"a":1e999}]}'),
    ],
)
def test_what_is_not_json_is_an_invalid_body(body: bytes) -> None:
    assert invalid_body(body).code == "INVALID_JSON"


@pytest.mark.parametrize(
    "body",
    [
        *(b"null", b"1", b"[]", b'"tasks"', b"{}", b'{"tasks":null}', b'{"tasks":{}}', b'{"sessions":[]}'),
        *(b'{"tasks":[{}],"version":2}', b'{"tasks":[{}],"tasks":[{}]}', b'{"tasks":[],"sessions":[]}'),
        b"[" + b"[]," * 100_000 + b"1]",
    ],
)
def test_another_shape_is_an_invalid_body_of_which_nothing_is_taken(body: bytes) -> None:
    error = invalid_body(body)
    assert error.code == "INVALID_SHAPE"
    assert '{"tasks": [...]}, with no second key' in error.detail


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_json_does_not_know_is_named_with_its_field(constant: str) -> None:
    body = body_of(TASKS, task(), task(), task(), task(confidence="@")).replace(b'"@"', constant.encode())
    error = invalid_body(body)
    assert error.code == "INVALID_JSON"
    assert error.detail == f"tasks[3].confidence is {constant}, which JSON has not: send null"
    assert invalid_body(body_of(TASKS, task(m={"a": ["@"]})).replace(b'"@"', b"NaN")).detail.startswith(
        "tasks[0].m is not"
    )


def test_from_one_to_the_most_records_are_taken() -> None:
    few = policy(max_records=3)
    for number in (1, 3):
        assert len(check(TASKS, body_of(TASKS, *[task()] * number), few)) == number
        assert count(TASKS, body_of(TASKS, *[task()] * number), few) == number
    for number in (0, 4):
        (error,) = errors_of(TASKS, body_of(TASKS, *[task()] * number), few)
        assert error == FieldError("tasks", f"takes 1 to 3 records, {number} were sent", "tasks of a wrong number")


# ---- one record


@pytest.mark.parametrize(("item", "type_"), [(None, "null"), (1, "int"), ("x", "str"), ([], "array"), (True, "bool")])
def test_a_record_that_is_no_object_is_named(item: Any, type_: str) -> None:
    (error,) = errors_of(TASKS, body_of(TASKS, task(), item))
    assert error == FieldError("tasks[1]", f"Expected `object`, got `{type_}`", "tasks")


@pytest.mark.parametrize("field", ["task_id", "task\\u005fid", "colour", "col\\u006fur", "created_at"])
@pytest.mark.parametrize("more", [1, 3])
def test_a_field_that_is_sent_twice_or_more_often_is_named_once(field: str, more: int) -> None:
    name = json.loads(f'"{field}"')
    body = body_of(TASKS, task(colour=1, created_at=1))
    (error,) = errors_of(TASKS, body.replace(b'{"task_id"', b'{%b"task_id"' % (f'"{field}":"x",' * more).encode()))
    assert (error.field, error.message) == (f"tasks[0].{name}", "is sent twice")


def test_of_two_equal_keys_in_an_object_the_last_counts() -> None:
    body = body_of(TASKS, task(metadata={"a": 1}, m={"a": 1})).replace(b'{"a":1}', b'{"a":1,"a":2}')
    assert one_of(body).metadata == {"a": 2}
    assert one_of(body).extra == {"m": {"a": 2}}


def one_of(body: bytes) -> Any:
    (item,) = orjson.loads(body)["tasks"]
    check(TASKS, body)
    return one(TASKS, **item)


@pytest.mark.parametrize("integer", [2**64, -(2**63) - 1, 10**400])
@pytest.mark.parametrize("value", ["@", {"a": [1, {"b": "@"}]}])
@pytest.mark.parametrize("field", ["metadata", "context", "colour", "row_index"])
def test_an_integer_beyond_64_bits_is_refused_wherever_it_stands(field: str, value: Any, integer: int) -> None:
    body = body_of(TASKS, task(**{field: value})).replace(b'"@"', json.dumps(str(integer)).strip('"').encode())
    (error,) = errors_of(TASKS, body)
    assert (error.field, error.message) == (f"tasks[0].{field}", "holds an integer beyond 64 bits")


@pytest.mark.parametrize("field", ["game_info", "metadata", "colour"])
@pytest.mark.parametrize("lists", [False, True])
def test_an_object_is_nested_at_most_20_deep(field: str, lists: bool) -> None:
    assert check(SESSIONS, body_of(SESSIONS, session(**{field: nested(20, lists=lists)})))
    assert check(SESSIONS, body_of(SESSIONS, session(**{field: {"a": 1, "b": [{}, nested(18), 2], "c": {}}})))
    for value in (nested(21, lists=lists), {"a": 1, "b": [{}, nested(19), 2], "c": {}}):
        error = error_of(SESSIONS, **{field: value})
        assert (error.field, error.message) == (f"sessions[0].{field}", TOO_DEEP)
        assert error.reason.endswith(" too large")


@pytest.mark.parametrize("depth", [100, 1000, 100_000])
@pytest.mark.parametrize("field", ["metadata", "total_tasks", "x"])
def test_what_is_very_deep_is_an_invalid_record_not_a_crash(field: str, depth: int) -> None:
    body = body_of(SESSIONS, session(**{field: "@"})).replace(b'"@"', b'{"a":' * depth + b"{}" + b"}" * depth)
    (error,) = errors_of(SESSIONS, body)
    assert (error.field, error.message) == (f"sessions[0].{field}", TOO_DEEP)


@pytest.mark.parametrize(("kind", "field"), [(SESSIONS, "metadata"), (SESSIONS, "game_info"), (TASKS, "metadata")])
def test_an_object_takes_at_most_64_kib_and_4096_values(kind: Kind, field: str) -> None:
    frame = len(orjson.dumps({"a": ""}))
    for most in (
        {"a": "x" * (MAX_OBJECT_BYTES - frame)},
        {"a": [1] * 4095},
        {str(number): 0 for number in range(4096)},
    ):
        assert check(kind, body_of(kind, MAKE[kind.name](**{field: most})))
    for beyond, message in (
        ({"a": "x" * (MAX_OBJECT_BYTES - frame + 1)}, "takes over 65536 bytes as JSON"),
        ({"a": [1] * 4096}, "holds 4097 values, 4096 are allowed"),
    ):
        error = error_of(kind, **{field: beyond})
        assert error == FieldError(f"{kind.name}[0].{field}", message, f"{kind.name}.{field} too large")


def test_what_grows_when_it_is_stored_is_measured_as_stored() -> None:
    # 1e15 becomes 1000000000000000.0
    body = body_of(SESSIONS, session(metadata={"a": "@"})).replace(b'"@"', b"[" + b"1e15," * 4000 + b"1]")
    assert len(body) < MAX_OBJECT_BYTES
    assert errors_of(SESSIONS, body)[0].message == "takes over 65536 bytes as JSON"


def test_unknown_fields_have_the_limits_of_an_object_together() -> None:
    frame = len(orjson.dumps({"a": "", "b": ""}))
    half = "x" * (MAX_OBJECT_BYTES // 2 - frame)
    assert check(TASKS, body_of(TASKS, task(a=half, b=half + "x" * frame)))
    assert check(TASKS, body_of(TASKS, task(a=[1] * 4000, b=[1] * 94)))
    reason = "tasks unknown field too large"
    message = "its unknown fields take over 65536 bytes as JSON"
    assert error_of(TASKS, a=half, b=half + "x" * (frame + 1)) == FieldError("tasks[0]", message, reason)
    message = "its unknown fields hold 4097 values together, 4096 are allowed"
    assert error_of(TASKS, a=[1] * 4000, b=[1] * 95) == FieldError("tasks[0]", message, reason)
    assert errors_of(TASKS, body_of(TASKS, {"a": [1] * 4000, "b": [1] * 95, **task()})) == [
        FieldError("tasks[0]", message, reason)
    ]
    error = error_of(TASKS, **{f"f{number}": 0 for number in range(5000)})
    assert (error.field, error.reason) == ("tasks[0]", "tasks too large")


# ---- the list of errors


def test_every_faulty_field_of_every_invalid_record_is_named_in_order() -> None:
    items = [
        task(),
        task(
            status="done", row_index=-1, colour=nested(21), updated_at="2030-01-01T00:00:00Z", confidence=2, metadata=1
        ),
        {"session_id": "", "start_time": "0001-01-01", "metadata": {"a": "x" * 70_000}, "duration_ms": "ten"},
        None,
    ]
    fields = [error.field for error in errors_of(TASKS, body_of(TASKS, *items))]
    assert sorted(fields) == sorted(
        [f"tasks[1].{name}" for name in ("colour", "status", "row_index", "updated_at", "confidence", "metadata")]
        + [f"tasks[2].{name}" for name in ("session_id", "task_id", "source_text", "status")]
        + [f"tasks[2].{name}" for name in ("start_time", "metadata", "duration_ms")]
        + ["tasks[3]"]
    )
    assert [field[:8] for field in fields] == sorted(field[:8] for field in fields)


@pytest.mark.parametrize("broken", [{"status": "done"}, {"updated_at": "2030-01-01T00:00:00Z"}])
def test_at_most_100_records_are_named(broken: dict[str, Any]) -> None:
    errors = errors_of(TASKS, body_of(TASKS, *[task(**broken, row_index="x")] * 150))
    assert MAX_ERRORS == 100
    assert {error.field.partition(".")[0] for error in errors} == {f"tasks[{index}]" for index in range(100)}
    assert len(errors) == 200


def test_the_faults_of_one_record_have_a_bound_and_so_have_the_names_in_them() -> None:
    names = {f"{number}{'x' * 1000}": 0 for number in range(4000)}
    errors = errors_of(TASKS, body_of(TASKS, task(**names)), policy(unknown_fields="reject"))
    assert len(errors) == 32
    assert max(len(error.field) for error in errors) < 100


def test_an_error_says_what_is_allowed_and_repeats_nothing_of_the_record() -> None:
    for kind, field, allowed in (
        (SESSIONS, "status", f"must be one of {', '.join(POLICY.statuses['sessions'])} (records.session_statuses)"),
        (TASKS, "status", f"must be one of {', '.join(POLICY.statuses['tasks'])} (records.task_statuses)"),
        (TASKS, "row_index", "Expected `int`, got `str`"),
        (TASKS, "start_time", "must be an ISO 8601 time, such as 2026-11-23T10:15:30Z"),
        (SESSIONS, "metadata", "Expected `object | null`, got `str`"),
    ):
        message = error_of(kind, **{field: "s3cret"}).message
        assert allowed in message
        assert "s3cret" not in message


def test_ignored_fields_are_told_one_by_one() -> None:
    told: list[str] = []
    validator = Validator(TASKS, policy(unknown_fields="ignore"), told.append)
    body = body_of(TASKS, task(colour=1, created_at=1), task(colour=2, shape=3))
    assert validator.count(body, 0) == 0
    list(validator.validate(body, 2e9))
    assert told == ["colour", "colour", "shape"]


# ---- work


MIB = 1024 * 1024
HOSTILE = {
    "empty lists in an object": (b'{"metadata":{"a":[%b]}}', b"[],"),
    "empty lists in an unknown field": (b'{"x":[%b]}', b"[],"),
    "empty lists in a field of another type": (b'{"status":[%b]}', b"[],"),
    "a list for a record": (b"[%b]", b"[],"),
    "many records": (b"0,%b", b"{},"),
    "many fields": (b"{%b}", b'"a":0,'),
    "many unknown objects": (b"%b", b'{"x":[' + b"[]," * 4000 + b"0]},"),
    "brackets": (b'{"x":%b}', b"["),
    "a long text": (b'{"source_text":"%b"}', b"\\u4f60"),
    "backslashes": (b'{"source_text":"%b', b"\\"),
    "digits": (b'{"confidence":%b}', b"1"),
    "digits in a text": (b'{"confidence":"%b"}', b"1"),
    "long times": (b'{"updated_at":"%b"}', b"2026-01-01T00:00:00"),
    "long names": (b'{"%b":1}', b"\\u4f60"),
    "blanks": (b'{"x":%b}', b" "),
}


@pytest.mark.parametrize("size", [MIB, 10 * MIB])
@pytest.mark.parametrize("name", HOSTILE)
def test_no_step_of_validation_parses_more_than_one_record_of_a_bounded_size(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What costs time is what makes objects: counted, not timed."""
    frame, piece = HOSTILE[name]
    body = b'{"tasks":[' + frame % (piece * (size // len(piece))).removesuffix(b",") + b"]}"
    parsed = 0
    loads = orjson.loads

    def counting(text: bytes) -> Any:
        nonlocal parsed
        parsed += text.count(b"[") + text.count(b"{") + text.count(b",")
        return loads(text)

    monkeypatch.setattr("shared.validation.orjson.loads", counting)
    validator = Validator(TASKS, POLICY)
    assert validator.count(body, 2e9) == 0
    steps = validator.validate(body, 2e9)
    most = 0
    with suppress(InvalidBody, InvalidRecord):
        for _ in steps:
            most, parsed = max(most, parsed), 0
    most = max(most, parsed)
    assert most < 3 * 3 * 4096
