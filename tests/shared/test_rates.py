from __future__ import annotations

from typing import Any

import pytest

from shared.rates import rates


def figures(*, tasks: int, rows: int, flushes: int, seconds: float, uptime: float = 100.0) -> dict[str, Any]:
    return {
        "accepted": {"sessions": 0, "tasks": tasks},
        "performance": {
            "total_sessions_written": 0,
            "total_tasks_written": rows,
            "total_flush_count": flushes,
            "uptime_seconds": uptime,
        },
        "coalescing": {"records_in": tasks, "rows_written": rows, "coalesced": tasks - rows},
        "flush_info": {"total_flush_duration_seconds": seconds},
    }


def test_rates_are_rises_of_the_counters_over_the_time_between() -> None:
    before = figures(tasks=100, rows=50, flushes=1, seconds=0.5)
    found = rates(before, figures(tasks=500, rows=150, flushes=5, seconds=0.7, uptime=102.0), 2.0)
    assert found.accepted_per_s == {"sessions": 0, "tasks": 200}
    assert found.rows_per_s == {"sessions": 0, "tasks": 50}
    assert (found.records_per_s, found.flushes_per_s, found.records_per_flush) == (200, 2, 100)
    assert (found.flush_ms, found.rows_per_record, found.coalesced_percent) == (pytest.approx(50), 0.25, 75)


def test_counters_of_a_flusher_started_in_between_count_from_zero() -> None:
    before = figures(tasks=1000, rows=500, flushes=10, seconds=5.0, uptime=100.0)
    found = rates(before, figures(tasks=20, rows=10, flushes=1, seconds=0.1, uptime=1.0), 2.0)
    assert found.accepted_per_s["tasks"] == 10
    assert found.flush_ms == pytest.approx(100)


def test_without_a_flush_there_are_no_means() -> None:
    still = figures(tasks=1, rows=1, flushes=1, seconds=0.1)
    found = rates(still, still, 1.0)
    assert (found.flush_ms, found.records_per_flush, found.rows_per_record) == (None, None, None)
    assert found.coalesced_percent is None
