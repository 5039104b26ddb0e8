from __future__ import annotations

import math
from pathlib import Path

from flusher.backlog import Backlog, Segment


def segment(sequence: int, *, tasks: int = 0, opened_at: float = 0.0, recovered: bool = False) -> Segment:
    made = Segment(sequence, Path(f"{sequence:020}.segment"), opened_at=opened_at, recovered=recovered)
    if tasks:
        made.add(2, tasks)
    return made


def test_an_empty_backlog_has_nothing_to_say() -> None:
    backlog = Backlog()

    assert (len(backlog), list(backlog)) == (0, [])
    assert backlog.next(1.0) is None
    assert backlog.next_at() == math.inf
    assert backlog.records() == {1: 0, 2: 0}
    assert backlog.oldest_at() is None
    assert backlog.last_sequence() == 0
    assert not backlog.holds(10)


def test_sealed_segments_are_handed_out_oldest_first_and_the_active_one_never() -> None:
    backlog = Backlog()
    first, second = segment(1, tasks=1), segment(2, tasks=1)
    backlog.seal(first)
    backlog.seal(second)
    backlog.active = segment(3, tasks=1)

    assert backlog.next(0.0) is first
    first.busy = True
    assert backlog.next(0.0) is second
    second.busy = True
    assert backlog.next(0.0) is None
    assert [one.sequence for one in backlog] == [1, 2, 3]


def test_a_segment_whose_time_has_not_come_lets_the_next_one_pass() -> None:
    backlog = Backlog()
    first, second = segment(1, tasks=1), segment(2, tasks=1)
    backlog.seal(first)
    backlog.seal(second)
    first.not_before = 5.0

    assert backlog.next(4.9) is second
    assert backlog.next(5.0) is first


def test_next_at_is_the_earliest_time_of_a_segment_that_nobody_writes() -> None:
    backlog = Backlog()
    for sequence, not_before in ((1, 7.0), (2, 3.0), (3, 1.0)):
        one = segment(sequence)
        one.not_before = not_before
        one.busy = sequence == 3
        backlog.seal(one)

    assert backlog.next_at() == 3.0


def test_a_failed_segment_goes_behind_the_others() -> None:
    backlog = Backlog()
    first, second = segment(1), segment(2)
    backlog.seal(first)
    backlog.seal(second)

    backlog.put_back(first)

    assert list(backlog) == [second, first]
    assert backlog.next(0.0) is second


def test_records_are_counted_by_kind_over_sealed_and_active_segments() -> None:
    backlog = Backlog()
    sealed = segment(1, tasks=3)
    sealed.add(1, 2)
    backlog.seal(sealed)
    backlog.active = segment(2, tasks=4)

    assert backlog.records() == {1: 2, 2: 7}
    assert backlog.pending_up_to(1) == 5
    assert backlog.pending_up_to(2) == 9

    backlog.done(sealed)
    assert backlog.records() == {1: 0, 2: 4}


def test_records_of_a_kind_that_only_another_version_knows_are_counted_too() -> None:
    backlog = Backlog()
    recovered = segment(1, recovered=True)
    recovered.records.update({9: 5})
    backlog.seal(recovered)

    assert backlog.records() == {1: 0, 2: 0, 9: 5}


def test_the_oldest_record_is_that_of_any_segment_that_has_one() -> None:
    backlog = Backlog()
    for sequence, opened_at in ((1, 0.0), (2, 7.0), (3, 5.0)):
        backlog.seal(segment(sequence, tasks=1, opened_at=opened_at))
    backlog.active = segment(4, opened_at=1.0)

    assert backlog.oldest_at() == 5.0


def test_a_flush_has_to_wait_for_records_up_to_its_segment_and_for_no_later_ones() -> None:
    backlog = Backlog()
    backlog.seal(segment(2, tasks=1))
    backlog.active = segment(3)

    assert not backlog.holds(1)
    assert backlog.holds(2)
    assert backlog.last_sequence() == 2

    backlog.active.add(2, 1)
    assert backlog.last_sequence() == 3


def test_a_recovered_segment_is_waited_for_before_its_records_are_counted() -> None:
    backlog = Backlog()
    backlog.seal(segment(1, recovered=True))

    assert backlog.holds(1)
    assert backlog.last_sequence() == 1
