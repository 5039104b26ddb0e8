from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from flusher.batch import EPOCH, coalesce
from shared.records import SESSIONS, TASKS, UTC, Record, Session, Task

NOON = datetime(2026, 1, 1, 12)
ARRIVAL = int((NOON.replace(tzinfo=UTC) - EPOCH) / timedelta(microseconds=1))

Entries = list[tuple[int, int, Sequence[Record]]]


def task(task_id: str, updated_at: datetime | None = None, text: str = "text", session_id: str = "s") -> Task:
    return Task(session_id=session_id, task_id=task_id, source_text=text, status="pending", updated_at=updated_at)


def test_the_later_updated_at_wins_whatever_the_order_of_arrival() -> None:
    older, newer = task("t", NOON), task("t", NOON + timedelta(microseconds=1))

    for records in ([older, newer], [newer, older]):
        (row,) = coalesce([(0, ARRIVAL, records)], TASKS)
        assert row.record is newer


def test_on_a_tie_the_later_arrival_wins_within_a_request_and_across_requests() -> None:
    first, second = task("t", NOON, "first"), task("t", NOON, "second")

    (within,) = coalesce([(0, ARRIVAL, [first, second])], TASKS)
    (across,) = coalesce([(0, ARRIVAL, [second]), (1, ARRIVAL, [first])], TASKS)

    assert within.record is second
    assert across.record is first


def test_a_record_without_a_time_of_its_own_has_that_of_its_arrival() -> None:
    silent = task("t")
    (row,) = coalesce([(0, ARRIVAL, [silent]), (1, ARRIVAL + 1, [task("t", NOON)])], TASKS)
    assert row.record.updated_at == NOON

    (row,) = coalesce([(0, ARRIVAL, [task("t", NOON)]), (1, ARRIVAL + 1, [silent])], TASKS)
    assert row.record is silent
    assert row.updated_at == NOON.replace(tzinfo=UTC) + timedelta(microseconds=1)


def test_times_with_different_offsets_are_compared_as_moments() -> None:
    east = NOON.replace(tzinfo=timezone(timedelta(hours=8)))
    (row,) = coalesce([(0, ARRIVAL, [task("t", NOON), task("t", east)])], TASKS)

    assert row.record.updated_at == NOON
    assert row.updated_at.tzinfo is UTC


def test_keys_are_told_apart_by_case_and_trailing_spaces() -> None:
    rows = coalesce([(0, ARRIVAL, [task("a"), task("A"), task("a "), task("ä"), task("a")])], TASKS)

    assert [getattr(row.record, "task_id") for row in rows] == ["A", "a", "a ", "ä"]  # noqa: B009 -- a union


def test_rows_are_sorted_as_the_primary_key_is_so_that_writers_do_not_deadlock() -> None:
    keys = ["b", "a", "\U0001f642", "ä", "￿", "Z", "1"]  # utf-8 order is code point order
    rows = coalesce([(0, ARRIVAL, [task(key, session_id=other) for key in keys for other in keys])], TASKS)

    in_order = sorted(keys, key=str.encode)
    assert list(map(TASKS.key_of, (row.record for row in rows))) == list(itertools.product(in_order, in_order))


def test_a_row_says_where_in_the_segment_its_record_stands() -> None:
    (row,) = coalesce([(0, ARRIVAL, [task("t", NOON)]), (4, ARRIVAL, [task("u"), task("t")])], TASKS)[:1]

    assert (row.entry, row.index) == (4, 1)


def test_a_refused_record_leaves_its_place_to_an_older_state_of_its_key() -> None:
    entries: Entries = [(0, ARRIVAL, [task("t", NOON, "old")]), (3, ARRIVAL, [task("t", NOON, "new")])]

    (row,) = coalesce(entries, TASKS, {(3, 0)})
    assert row.record == task("t", NOON, "old")
    assert coalesce(entries, TASKS, {(3, 0), (0, 0)}) == []


def test_sessions_are_merged_by_their_own_key() -> None:
    one = Session(session_id="s", filename="f", status="pending", updated_at=NOON)
    two = Session(session_id="s", filename="f", status="completed", updated_at=NOON)

    assert [row.record for row in coalesce([(0, ARRIVAL, [one, two])], SESSIONS)] == [two]


times = st.one_of(
    st.none(),
    st.integers(-3, 3).map(lambda offset: NOON + timedelta(microseconds=offset)),
    st.integers(-3, 3).map(lambda offset: (NOON + timedelta(microseconds=offset)).replace(tzinfo=timezone.utc)),
)
tasks = st.builds(
    task, st.sampled_from("abc"), times, st.text("xyz", min_size=1, max_size=2), st.sampled_from(["s", "t"])
)


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(tasks, max_size=4)), max_size=6))
def test_the_merge_is_that_of_a_model_of_a_few_lines(bodies: list[tuple[int, list[Task]]]) -> None:
    entries: Entries = []
    arrival = ARRIVAL - 5
    model: dict[tuple[str, ...], tuple[datetime, Task]] = {}
    for number, (pause, records) in enumerate(bodies):
        arrival += 1 + pause
        entries.append((number, arrival, records))
        for one in records:
            at = EPOCH + timedelta(microseconds=arrival) if one.updated_at is None else one.updated_at
            at = at.replace(tzinfo=UTC)
            key = (one.session_id, one.task_id)
            if key not in model or at >= model[key][0]:
                model[key] = (at, one)

    rows = coalesce(entries, TASKS)

    assert [(row.updated_at, row.record) for row in rows] == [model[key] for key in sorted(model)]
    assert all(entries[row.entry][2][row.index] is row.record for row in rows)
