from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flusher.mysql_errors import ErrorClass
from flusher.triggers import (
    FlushPolicy,
    FlushReason,
    flush_reason,
    is_full,
    retry_after,
    retry_delay,
    segments_at_once,
)

POLICY = FlushPolicy(max_records=1000, interval_s=30.0, segment_max_records=5000, segment_max_bytes=4096)


def reason(**given: Any) -> FlushReason | None:
    state: dict[str, Any] = {"records": 1, "age_s": 0.0, "asked": False, "draining": False}
    return flush_reason(POLICY, **{**state, **given})


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({}, None),
        ({"records": 999}, None),
        ({"records": 1000}, FlushReason.SIZE),
        ({"records": 1001}, FlushReason.SIZE),
        ({"age_s": 29.999}, None),
        ({"age_s": 30.0}, FlushReason.AGE),
        ({"asked": True}, FlushReason.MANUAL),
        ({"draining": True}, FlushReason.DRAIN),
        ({"draining": True, "asked": True, "records": 1000, "age_s": 30.0}, FlushReason.DRAIN),
        ({"asked": True, "records": 1000, "age_s": 30.0}, FlushReason.MANUAL),
        ({"records": 1000, "age_s": 30.0}, FlushReason.SIZE),
    ],
)
def test_the_active_segment_is_due_by_size_age_wish_and_drain(
    state: dict[str, Any], expected: FlushReason | None
) -> None:
    assert reason(**state) is expected


def test_an_empty_segment_is_never_due() -> None:
    assert reason(records=0, age_s=1e9, asked=True, draining=True) is None


@pytest.mark.parametrize(
    ("records", "size", "full"), [(4999, 4095, False), (5000, 0, True), (0, 4096, True), (5001, 4097, True)]
)
def test_a_segment_is_full_at_either_cap(records: int, size: int, full: bool) -> None:
    assert is_full(POLICY, records=records, size=size) is full


@given(st.sampled_from(ErrorClass), st.integers(1, 10_000), st.floats(0, 1))
def test_a_retry_waits_neither_nothing_nor_longer_than_a_cured_fault_may_go_unnoticed(
    error_class: ErrorClass, attempt: int, random: float
) -> None:
    assert 0 < retry_delay(error_class, attempt, random) <= 10.0


@pytest.mark.parametrize("error_class", ErrorClass)
def test_retries_grow_by_doubling_up_to_their_cap(error_class: ErrorClass) -> None:
    delays = [retry_delay(error_class, attempt, 1.0) for attempt in range(1, 40)]

    assert all(
        later == pytest.approx(2 * earlier) or later == delays[-1] for earlier, later in itertools.pairwise(delays)
    )
    assert delays[0] < delays[-1] == delays[-2]


@pytest.mark.parametrize("error_class", ErrorClass)
def test_retries_are_spread_over_the_whole_delay_so_that_nodes_do_not_march_in_step(error_class: ErrorClass) -> None:
    longest = retry_delay(error_class, 5, 1.0)

    assert retry_delay(error_class, 5, 0.0) == pytest.approx(0.1 * longest)
    assert retry_delay(error_class, 5, 0.5) == pytest.approx(0.55 * longest)


@pytest.mark.parametrize(
    ("missing", "rate", "seconds"),
    [(0, 1000.0, 1), (1, 1000.0, 1), (1000, 1000.0, 1), (1001, 1000.0, 2), (59_001, 1000.0, 60), (10**9, 1000.0, 60)],
)
def test_retry_after_is_how_long_the_missing_room_takes_to_drain(missing: int, rate: float, seconds: int) -> None:
    assert retry_after(missing, rate) == seconds


def test_retry_after_is_the_longest_while_nothing_drains() -> None:
    assert retry_after(1, 0.0) == 60.0


def at_once(**state: Any) -> int:
    normal = {"waiting": 0, "writers": 4, "pool_size": 10, "each": 2, "healthy": True, "held_up": False}
    return segments_at_once(**{**normal, **state})


@pytest.mark.parametrize(
    ("waiting", "writers", "expected"), [(0, 4, 2), (3, 4, 2), (4, 4, 4), (12, 4, 8), (400, 4, 8), (400, 1, 2)]
)
def test_more_writers_join_while_segments_wait(waiting: int, writers: int, expected: int) -> None:
    assert at_once(waiting=waiting, writers=writers) == expected


def test_a_write_that_is_held_up_does_not_hold_up_the_others_unless_the_pool_is_used_up() -> None:
    assert at_once(held_up=True) == at_once() + 2
    assert at_once(held_up=True, waiting=400) == at_once(waiting=400) + 2
    assert at_once(held_up=True, writers=1, pool_size=1) == at_once(writers=1, pool_size=1)


def test_one_segment_is_enough_to_notice_that_the_database_is_back() -> None:
    assert at_once(waiting=400, healthy=False) == 1
    assert at_once(waiting=400, healthy=False, held_up=True) == 1
