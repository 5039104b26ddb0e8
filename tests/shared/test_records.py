from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from shared.records import KIND_OF_CODE, KINDS, SESSIONS, TASKS, UTC, V1_RULES, Rules, utc


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


@pytest.mark.parametrize(
    ("rules", "data"),
    [
        (Rules(), b""),
        (Rules("Asia/Shanghai"), b"\0Asia/Shanghai"),
        (Rules("+08:00", "ignore"), b"\1+08:00"),
        (Rules(unknown_fields="ignore"), b"\1UTC"),
    ],
)
def test_rules_are_these_bytes(rules: Rules, data: bytes) -> None:
    assert rules.encode() == data
    assert Rules.decode(data) == rules


def test_version_1_read_times_as_utc_and_dropped_unknown_fields() -> None:
    assert Rules.decode(V1_RULES) == Rules("UTC", "ignore")
