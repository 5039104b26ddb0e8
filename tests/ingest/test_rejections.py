"""Every record that is refused is counted, by a reason of a fixed set."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from ingest.rejections import Rejections
from ingest.responses import ErrorResponse
from shared.records import TASKS
from shared.validation import InvalidRecord
from tests.support.bodies import body_of, policy, validate
from tests.support.guarded import BATCH, OTHER, STRANGER, Guarded, part
from tests.support.service import task


def reasons_of(items: list[Any], max_records: int = 1000) -> dict[str, int]:
    with pytest.raises(InvalidRecord) as raised:
        validate(TASKS, body_of(TASKS, *items), policy(max_records=max_records))
    return raised.value.reasons()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (task(status="no such"), "tasks.status"),
        ({**task(), "row_index": "x" * 1000}, "tasks.row_index"),
        (task(updated_at="2026-11-23T10:25:30Z"), "tasks.updated_at in the future"),
        (task(updated_at="0001-01-01T00:00:00Z"), "tasks.updated_at"),
        ({name: value for name, value in task().items() if name != "session_id"}, "tasks.session_id"),
        ("no record", "tasks"),
        (None, "tasks"),
    ],
)
def test_an_invalid_record_is_counted_by_its_first_fault_and_the_rest_of_its_request_beside_it(
    wrong: Any, reason: str
) -> None:
    assert reasons_of([wrong]) == {reason: 1}
    assert reasons_of([task(), wrong, task(), wrong]) == {reason: 2, "tasks beside an invalid one": 2}


def test_records_behind_the_last_that_is_named_are_counted_too() -> None:
    assert sum(reasons_of([task(status="no such")] * 150).values()) == 150


def test_a_wrong_number_of_records_is_counted_whole_and_an_empty_list_as_one_request() -> None:
    assert reasons_of([task()] * 4, max_records=3) == {"tasks of a wrong number": 4}
    assert reasons_of([]) == {"tasks of a wrong number": 1}


HOSTILE = "x" * 5000


@pytest.mark.parametrize(
    "item",
    [
        {**task(), HOSTILE: 1},
        {**task(), "context": {HOSTILE: {HOSTILE: 2**70}}},
        {**task(), "status": HOSTILE},
        {**task(), "confidence": HOSTILE},
        {**task(), "start_time": HOSTILE},
        {**task(), "task_id": HOSTILE, "row_index": [HOSTILE]},
        {HOSTILE: HOSTILE},
        [HOSTILE],
    ],
)
def test_nothing_that_a_caller_chooses_stands_in_a_reason(item: Any) -> None:
    """A reason is a label of a metric: there are only so many."""
    body = json.dumps({"tasks": [item, task(status=HOSTILE)]}).encode()
    with pytest.raises(InvalidRecord) as raised:
        validate(TASKS, body, policy(max_records=10))
    fields = "|".join(TASKS.record.__struct_fields__)
    for reason in raised.value.reasons():
        assert re.fullmatch(rf"tasks(\.({fields}|extra))?( [a-z ]{{1,30}})?", reason), reason


# ---- who counts


class Rejected(Counter[str]):
    """A guard's own count of what it refuses."""

    def __call__(self, records: Mapping[str, int]) -> None:
        self.update(records)


def guarded(**settings: Any) -> tuple[Guarded, Rejected]:
    rejected = Rejected()
    return Guarded(reject=rejected, **settings), rejected


@pytest.mark.parametrize(
    ("code", "messages", "headers", "settings"),
    [
        ("PROTECTED_MODE", [], {"client": STRANGER}, {}),
        ("HOST_NOT_ALLOWED", [], {"host": "rebound.example"}, {}),
        ("CROSS_SITE", [], {"origin": "null"}, {}),
        ("TOKEN_MISSING", [], {}, {"auth_token": "t"}),
        ("TOKEN_WRONG", [], {"authorization": "Bearer x"}, {"auth_token": "t"}),
        ("INVALID_HTTP", [], {"transfer_encoding": "gzip"}, {}),
        ("BODY_TOO_LARGE", [part(b"x" * 101)], {}, {}),
        ("BODY_CUT_SHORT", [part(b"x")], {"content_length": "2"}, {}),
        ("INVALID_GZIP", [part(b"no gzip")], {"content_encoding": "gzip"}, {}),
        ("UNSUPPORTED_MEDIA_TYPE", [], {"content_type": "text/csv"}, {}),
        ("UNSUPPORTED_ENCODING", [], {"content_encoding": "br"}, {}),
    ],
)
def test_a_request_that_is_refused_before_its_records_are_counted_is_one(
    code: str, messages: list[dict[str, Any]], headers: dict[str, Any], settings: dict[str, Any]
) -> None:
    keeper, rejected = guarded(**settings)
    assert keeper.post(*messages, **headers).code == code
    assert rejected == {code: 1}


def test_a_batch_under_a_wrong_path_or_method_is_counted_and_what_can_hold_no_record_is_not() -> None:
    routes = {BATCH: frozenset(["POST"]), "/flush": frozenset(["POST"]), OTHER: frozenset(["GET"])}
    keeper, rejected = guarded(routes=routes)
    for path, method in (("/bacth", "POST"), (OTHER, "POST"), (BATCH, "PUT")):
        assert keeper.ask(path, method).status in (404, 405)
    for path, method in (("/flush", "POST"), ("/nowhere", "GET"), (BATCH, "HEAD")):
        assert keeper.ask(path, method, host="rebound.example").status == 403
    assert rejected == {"NOT_FOUND": 1, "METHOD_NOT_ALLOWED": 2}


def test_what_the_application_refuses_is_counted_as_it_says() -> None:
    async def refuses(_scope: Any, _receive: Any, _send: Any) -> None:
        raise ErrorResponse(
            422, "INVALID_RECORD", "invalid", records={"tasks.status": 2, "tasks beside an invalid one": 3}
        )

    keeper, rejected = guarded()
    keeper.guard._app = refuses
    assert keeper.post(part(b"{}")).status == 422
    assert rejected == {"tasks.status": 2, "tasks beside an invalid one": 3}


# ---- the log


def test_a_reason_is_told_at_its_first_and_then_once_a_minute_with_its_count(caplog: pytest.LogCaptureFixture) -> None:
    rejections = Rejections()
    counts = {0: 2, 1: 3, 59: 40, 60: 41, 61: 42, 119: 42, 120: 43, 500: 43, 501: 44, math.inf: 45}
    for at, count in counts.items():
        rejections.tell({"tasks.status": count}, at)
    rejections.tell({"tasks.status": 45, "TOKEN_WRONG": 1}, 502)
    told = [f"records refused, tasks.status: {count}" for count in (2, 39, 2, 1, 1)]
    assert [record.getMessage() for record in caplog.records] == [*told, "records refused, TOKEN_WRONG: 1"]
    assert {record.levelname for record in caplog.records} == {"WARNING"}
