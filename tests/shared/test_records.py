from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from shared.records import KIND_OF_CODE, KINDS, SESSIONS, TASKS, UTC, utc


def test_codes_of_kinds_never_change() -> None:
    assert {kind.name: kind.code for kind in KINDS} == {"sessions": 1, "tasks": 2}
    assert {1: SESSIONS, 2: TASKS} == KIND_OF_CODE
    assert KINDS == (SESSIONS, TASKS)  # the order in a transaction
    assert [kind.path for kind in KINDS] == [
        "/api/v1/persistence/sessions/batch",
        "/api/v1/persistence/tasks/batch",
    ]


@pytest.mark.parametrize(
    ("given_time", "expected"),
    [
        (datetime(2026, 1, 1, 12), datetime(2026, 1, 1, 12)),
        (datetime(2026, 1, 1, 12, tzinfo=UTC), datetime(2026, 1, 1, 12)),
        (datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=2))), datetime(2025, 12, 31, 23)),
    ],
)
def test_utc_gives_the_naive_time_that_a_column_holds(given_time: datetime, expected: datetime) -> None:
    assert utc(given_time) == expected
    assert utc(given_time).tzinfo is None
