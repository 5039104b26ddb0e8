from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from flusher import segments, state
from flusher.callers import MAX_FLUSH_CALLERS
from flusher.mysql_errors import ErrorClass
from flusher.segments import ENTRY_HEADER_BYTES, SEGMENT_HEADER_BYTES, Entry
from flusher.state import Acceptance
from flusher.stats import Stats
from flusher.syncer import Fsync
from flusher.triggers import FlushPolicy
from shared.wire import Committed, Reason, Submit
from tests.support.flusher import Node, bodies_in, failed, running, written
from tests.support.segments import recovered


@pytest.mark.parametrize("fsync", [Fsync.INTERVAL, Fsync.NEVER])
async def test_a_body_is_in_the_journal_file_before_it_is_acknowledged(
    node: Node, tmp_path: Path, fsync: Fsync
) -> None:
    seen: list[list[bytes]] = []
    original = node.reply
    node.reply = lambda frames: (seen.append(bodies_in(tmp_path)), original(frames))  # type: ignore[method-assign,assign,func-returns-value]
    node.submit(b"one", b"two")

    assert node.acked() == [1, 2]
    assert seen == [[b"one", b"two"]]


async def test_submits_that_came_together_cost_one_write_and_one_ack(node: Node) -> None:
    node.disk.events.clear()
    node.submit(*[b"body"] * 50)

    assert node.disk.events == ["write", "ack"]
    assert node.acked() == list(range(1, 51))


async def test_a_body_that_cannot_be_written_is_rejected_and_later_ones_are_accepted_again(
    node: Node, tmp_path: Path
) -> None:
    node.submit(b"kept")
    node.disk.full = True
    node.submit(b"lost", b"lost too", count=7)

    assert node.acked() == [1]
    assert [(one.seq, one.reason) for one in node.rejected()] == [
        (2, Reason.JOURNAL_NOT_WRITABLE),
        (3, Reason.JOURNAL_NOT_WRITABLE),
    ]
    assert all(one.retry_after_s > 0 for one in node.rejected())
    assert bodies_in(tmp_path) == [b"kept"]
    assert sum(node.journal.records().values()) == 1
    assert node.intake.acceptance is Acceptance.NOT_WRITABLE

    node.disk.full = False
    node.submit(b"next")
    assert node.acked() == [1, 4]
    assert node.intake.refusing is None
    assert bodies_in(tmp_path) == [b"kept", b"next"]


async def test_without_an_open_segment_bodies_are_rejected_until_one_can_be_opened(node: Node, tmp_path: Path) -> None:
    node.submit(b"kept")
    node.disk.full = True
    result = await node.ask_flush()  # seals the segment; the next one has no room for its header

    assert result.pending == 0
    assert node.journal.active is None
    node.submit(b"lost")
    assert [one.seq for one in node.rejected()] == [2]

    node.disk.full = False
    node.submit(b"next")
    assert node.acked() == [1, 3]
    assert bodies_in(tmp_path) == [b"next"]


async def test_a_full_journal_rejects_before_anything_is_appended_and_says_when_to_come_back(
    node: Node, tmp_path: Path
) -> None:
    body = b"x" * 100
    room = SEGMENT_HEADER_BYTES + 2 * (ENTRY_HEADER_BYTES + len(body))
    node.intake.max_bytes = room
    node.submit(body, body, body, b"small" * 30)
    size = node.journal.bytes

    assert node.acked() == [1, 2]
    assert [(one.seq, one.reason) for one in node.rejected()] == [
        (3, Reason.JOURNAL_FULL),
        (4, Reason.JOURNAL_FULL),
    ]
    assert all(1 <= one.retry_after_s <= 60 for one in node.rejected())
    assert size == room
    assert bodies_in(tmp_path) == [body, body]
    assert node.intake.acceptance is Acceptance.FULL

    node.submit(body)
    assert bodies_in(tmp_path) == [body, body]
    await node.ask_flush()
    node.submit(body)
    assert node.acked() == [1, 2, 6]
    assert node.intake.refusing is None


async def test_what_still_fits_into_a_nearly_full_journal_is_accepted(node: Node) -> None:
    node.intake.max_bytes = SEGMENT_HEADER_BYTES + ENTRY_HEADER_BYTES + 10
    node.submit(b"x" * 11, b"x" * 10)

    assert [one.seq for one in node.rejected()] == [1]
    assert node.acked() == [2]


@pytest.mark.node(max_bytes=1500)
async def test_retry_after_follows_the_measured_drain_rate(node: Node) -> None:
    node.submit(b"x" * 900)
    node.figures.drain_rate.freed(1000, 10.0, node.clock.now)  # 100 bytes a second
    node.submit(b"y" * 900)

    (reject,) = node.rejected()
    assert reject.retry_after_s == -(-(ENTRY_HEADER_BYTES + 900 + SEGMENT_HEADER_BYTES) // 100)


async def test_arrivals_rise_strictly_while_the_clock_stands_and_when_it_steps_back(node: Node) -> None:
    start = node.wall_us
    node.submit(b"a", b"b")
    node.wall_us -= 3_600_000_000
    node.submit(b"c")
    node.wall_us = start + 10
    node.submit(b"d")

    assert node.arrivals() == [start, start + 1, start + 2, start + 10]


@pytest.mark.parametrize("step_us", [3_600_000_000, -3_600_000_000])
async def test_a_step_of_the_wall_clock_makes_no_record_older_or_younger(node: Node, step_us: int) -> None:
    parts = (node.figures, node.journal, node.syncer, node.scheduler, node.intake, node.writers, [])
    document = Stats(*parts, node.clock, lambda: node.wall_us / 1e6).document  # type: ignore[arg-type]

    node.submit(b"a")
    node.clock.now += 5
    node.wall_us += step_us
    found = document()
    assert found["at_risk"]["oldest_uncommitted_seconds"] == 5
    assert found["flush_info"]["next_flush_time"] == state.iso(node.wall_us / 1e6 + 3595)
    node.submit(b"b")
    first, second = node.arrivals()
    assert second > first
    await node.settled()
    assert node.writers.asked == []  # nor is it due sooner


async def test_arrivals_rise_over_a_restart_with_a_clock_that_stepped_back(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        node.wall_us = 4_000_000_000_000_000  # far beyond the files' own times
        node.submit(b"a", b"b")
        await node.ask_flush()
        last = node.arrivals()[-1]
    assert bodies_in(tmp_path) == []
    async with running(tmp_path, last_arrival=recovered(tmp_path).last_arrival) as node:
        node.submit(b"c")
        assert node.arrivals() == [last + 1]


async def test_a_dead_letter_whose_file_names_an_arrival_to_come_arrives_now(node: Node) -> None:
    """It would win every merge, and at the next start move the clock of everything that follows."""
    node.submit(b"edited", arrival=2**63)
    assert node.arrivals() == [node.wall_us]


async def test_a_replayed_dead_letter_keeps_its_first_arrival_and_does_not_move_the_clock(node: Node) -> None:
    node.submit(b"old", arrival=77)
    node.submit(b"new")

    assert node.arrivals() == [77, node.wall_us]


async def test_an_acknowledged_body_is_counted_by_kind_and_records(node: Node) -> None:
    node.submit(b"four", count=10)

    assert node.journal.records() == {1: 0, 2: 10}
    assert node.figures.records_in == {1: 0, 2: 10}
    assert node.figures.bytes_in == 4


async def test_a_caller_that_wants_the_commit_hears_of_it_after_the_ack(node: Node, tmp_path: Path) -> None:
    node.submit(b"body", want_commit=True)
    assert node.acked() == [1]
    await node.until(lambda: Committed(node.wall_us, node.wall_us) in node.answers)

    assert bodies_in(tmp_path) == []


async def test_one_frame_tells_all_callers_of_a_segment_which_of_their_records_are_dead_letters(node: Node) -> None:
    node.writers.answer = lambda path: written(path, dead_lettered=3, dead_arrivals={node.wall_us: 3})
    node.submit(b"bad", b"good", want_commit=True)
    await node.until(lambda: len(node.answers) == 2)

    assert node.answers[1] == Committed(node.wall_us, node.wall_us + 1, {node.wall_us: 3})


@pytest.mark.node(max_bytes=1 << 30)
async def test_callers_who_wait_for_a_commit_cost_nothing_over_an_outage(node: Node) -> None:
    """A hundred thousand of them: a segment keeps their two peers, and none that has left."""
    node.writers.answer = lambda path: failed(ErrorClass.RECONNECT, 2002)
    other: list[bytes] = []
    for _ in range(1000):
        node.submit(*[b"body"] * 100, want_commit=True)
        node.intake.accept([Submit(1, 2, 1, b"body", 0, want_commit=True)], other.append)
    await node.settled()
    kept = node.scheduler._callers._of_commits
    assert len(kept) <= node.journal.waiting + 1
    assert all(len(wanted.replies) <= 2 for wanted in kept.values())

    node.scheduler.forget(node.reply)
    assert kept
    assert all(wanted.replies == {other.append} for wanted in kept.values())
    node.scheduler.forget(other.append)
    assert kept == {}


async def test_callers_of_a_flush_over_the_bound_are_told_at_once(node: Node) -> None:
    node.writers.answer = lambda path: failed(ErrorClass.RECONNECT, 2002)
    node.submit(b"body")
    waiting = [node.ask_flush() for _ in range(MAX_FLUSH_CALLERS)]
    assert (await node.ask_flush()).pending == 1
    assert len(node.scheduler._callers._of_flushes) == MAX_FLUSH_CALLERS
    node.writers.answer = written
    assert (await node.ask_flush()).pending == 1
    node.pass_time(60)
    await asyncio.gather(*waiting)


@pytest.mark.node(policy=FlushPolicy(max_records=2, interval_s=3600.0, segment_max_records=4))
async def test_accepting_goes_on_while_the_database_refuses_everything(node: Node, tmp_path: Path) -> None:
    node.writers.answer = lambda path: failed(ErrorClass.RECONNECT, 2002)
    for _ in range(50):
        node.submit(b"body")
        await node.settled()

    assert len(node.acked()) == 50
    assert bodies_in(tmp_path) == [b"body"] * 50


async def test_a_torn_segment_is_put_out_of_use_and_the_next_body_goes_into_a_new_one(
    node: Node, tmp_path: Path
) -> None:
    node.submit(b"one")
    torn = node.active
    torn.torn = True
    node.submit(b"two")

    assert node.acked() == [1, 2]
    assert node.journal.active is not torn
    assert bodies_in(tmp_path) == [b"one", b"two"]


async def test_entries_in_the_journal_carry_what_the_ack_said(node: Node) -> None:
    node.submit(b"one", count=3)
    (entry,) = segments.read(node.active.path).entries
    assert entry == Entry(2, 3, node.arrivals()[0], b"one")
