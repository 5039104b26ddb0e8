"""Every record that is refused is counted, by a reason of a fixed set."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import orjson
import pytest

from shared.bodies import InvalidRecord, validate
from shared.records import TASKS
from tests.support.service import task

NOW = datetime(2026, 11, 23, 10, 15, 30, tzinfo=timezone.utc)


def reasons_of(items: list[Any], max_records: int = 1000) -> dict[str, int]:
    with pytest.raises(InvalidRecord) as raised:
        validate(TASKS, orjson.dumps({"tasks": items}), now=NOW, max_clock_skew_s=300, max_records=max_records)
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
