from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from pathlib import Path

import pytest

from flusher import segments, syncer
from flusher.answers import Answer
from flusher.journal import Segment
from flusher.state import Acceptance
from flusher.syncer import CACHED_SEGMENTS, LATE_S, Fsync
from flusher.triggers import FlushPolicy
from shared.wire import Reason
from tests.support.flusher import WAIT_S, Node, bodies_in, written
from tests.support.segments import opened_journal

FULL = FlushPolicy(max_records=1, interval_s=1.0).segment_max_records


pytestmark = pytest.mark.node(fsync=Fsync.ALWAYS)


async def test_always_acknowledges_only_after_the_sync(node: Node, tmp_path: Path) -> None:
    node.disk.events.clear()
    node.disk.hold_syncs()
    node.submit(b"body")
    await node.disk.sync_has_begun()
    await node.settled()
    assert node.answers == []
    assert bodies_in(tmp_path) == [b"body"]

    node.disk.let_syncs_go()
    await node.until(node.acked)
    assert node.disk.events == ["write", "sync", "ack"]


async def test_one_sync_serves_all_that_wait_for_it(node: Node) -> None:
    node.disk.hold_syncs()
    node.submit(b"first")
    await node.disk.sync_has_begun()
    for number in range(20):
        node.submit(b"%d" % number)
    await node.settled()
    assert node.answers == []

    node.disk.let_syncs_go()
    await node.until(lambda: len(node.acked()) == 21)
    assert len(node.disk.synced_fds) <= 3  # the first, one for the others; the first may have covered some


async def test_bytes_appended_during_a_sync_wait_for_the_next_one(node: Node) -> None:
    node.disk.hold_syncs()
    node.submit(b"first")
    await node.disk.sync_has_begun()
    node.submit(b"second")
    node.disk.let_syncs_go()
    await node.until(lambda: len(node.acked()) == 2)

    events = [event for event in node.disk.events if event in ("sync", "ack")]
    assert events == ["sync", "ack", "sync", "ack"]


async def test_what_came_before_the_thread_began_its_sync_counts_as_synced(node: Node) -> None:
    busy = threading.Event()
    node.syncer._thread.submit(busy.wait)
    node.submit(b"asks for the sync")
    node.submit(b"comes before it begins")
    busy.set()
    await node.until(lambda: len(node.acked()) == 2)
    assert node.syncer.unsynced_records == 0


@pytest.mark.node(fsync=Fsync.INTERVAL)
async def test_interval_acknowledges_at_once_and_syncs_soon(node: Node) -> None:
    node.submit(b"body")
    assert node.acked() == [1]
    assert node.disk.synced_fds == []
    assert node.syncer.unsynced_records == 1

    await node.until(lambda: node.disk.synced_fds and not node.syncer.unsynced_records)


@pytest.mark.node(fsync=Fsync.INTERVAL)
async def test_interval_syncs_at_once_where_much_is_at_risk(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncer, "INTERVAL_S", 3600.0)
    monkeypatch.setattr(syncer, "INTERVAL_BYTES", 10_000)
    body = b"x" * 4000

    node.submit(body)
    node.submit(body)
    await node.settled()
    assert node.disk.synced_fds == []

    node.submit(body)
    await node.until(lambda: not node.syncer.unsynced_records)
    assert node.acked() == [1, 2, 3]

    # As much again, while a sync runs: that is what the next one begins with, and no third follows.
    node.disk.synced_fds.clear()
    node.disk.hold_syncs()
    for _ in range(6):
        node.submit(body)
    await node.disk.sync_has_begun()
    node.submit(body)
    node.submit(body)
    node.submit(body)
    node.disk.let_syncs_go()
    await node.until(lambda: not node.syncer.unsynced_records)
    node.submit(body)
    await node.settled()
    assert len(node.disk.synced_fds) == 2
    assert node.syncer.unsynced_records == 1


@pytest.mark.node(fsync=Fsync.INTERVAL)
async def test_interval_holds_acks_back_while_the_last_good_sync_is_too_old(node: Node) -> None:
    node.disk.hold_syncs()
    node.submit(b"one")
    await node.disk.sync_has_begun()
    node.clock.now += LATE_S + 0.1
    node.submit(b"two")
    assert node.acked() == [1]

    node.disk.let_syncs_go()
    await node.until(lambda: node.acked() == [1, 2])
    node.submit(b"three")
    assert node.acked() == [1, 2, 3]


@pytest.mark.node(fsync=Fsync.INTERVAL)
async def test_interval_acknowledges_nothing_past_a_body_that_still_waits(node: Node, tmp_path: Path) -> None:
    """A sync that fails cuts off what waits for it; an acknowledged body behind that would go with it."""
    node.disk.hold_syncs()
    node.writers.dies = True
    node.submit(b"one")
    await node.disk.sync_has_begun()
    node.clock.now += LATE_S + 0.1
    node.submit(b"two")
    node.disk.let_one_sync_go()
    await node.disk.sync_has_begun()  # the one that "two" waits for
    node.submit(b"three")
    node.disk.broken = True
    node.disk.let_syncs_go()
    await node.until(lambda: len(node.answers) == 3)

    assert node.acked() == [1]
    assert [one.seq for one in node.rejected()] == [2, 3]
    await node.until(lambda: not node.syncer.failed)
    assert bodies_in(tmp_path) == [b"one"]


@pytest.mark.node(fsync=Fsync.NEVER)
async def test_never_leaves_the_disk_to_the_kernel(node: Node) -> None:
    node.submit(b"body")
    await node.ask_flush()
    assert node.acked() == [1]
    assert node.disk.synced_fds == []


async def test_after_a_failed_sync_what_nobody_was_promised_is_cut_off_and_refused(node: Node, tmp_path: Path) -> None:
    node.writers.dies = True  # nothing leaves the journal meanwhile
    node.submit(b"kept")
    await node.until(node.acked)
    node.disk.broken = True
    node.submit(b"lost", b"lost too")
    await node.until(node.rejected)

    assert [(one.seq, one.reason) for one in node.rejected()] == [
        (2, Reason.JOURNAL_NOT_WRITABLE),
        (3, Reason.JOURNAL_NOT_WRITABLE),
    ]
    assert bodies_in(tmp_path) == [b"kept"]
    assert sum(node.journal.records().values()) == 1
    assert sum(node.figures.records_in.values()) == 1


async def test_what_a_failed_sync_cuts_off_while_a_writer_has_the_segment_is_no_damage(
    node: Node, tmp_path: Path
) -> None:
    cut = asyncio.Event()
    size = 0

    async def late(path: Path) -> Answer:
        await cut.wait()
        return written(path, damaged_bytes=segments.read(path, size).damaged_bytes)

    node.writers.answer = late
    node.disk.hold_syncs()
    node.submit(b"refused")
    await node.disk.sync_has_begun()
    size = node.active.size
    node.ask_flush()
    await node.until(lambda: node.writers.asked)
    node.disk.broken = True
    node.disk.let_syncs_go()
    await node.until(node.rejected)
    cut.set()
    await node.until(lambda: not node.journal.waiting)
    assert (node.figures.damaged_bytes, node.journal.set_aside) == (0, 0)
    assert not list(tmp_path.glob("*.broken"))


async def test_what_was_refused_is_neither_read_nor_copied_although_it_cannot_be_cut_off(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    node.submit(b"kept")
    await node.until(node.acked)
    node.disk.broken = True
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", refuse)
        patch.setattr("flusher.syncer.rewrite", refuse)
        node.submit(b"refused")
        await node.until(node.rejected)
        assert bodies_in(tmp_path) == [b"kept", b"refused"]
        assert (await node.ask_flush()).pending == 0
    assert node.writers.written_bodies == [b"kept"]
    assert node.journal.bytes == sum(path.stat().st_size for path in tmp_path.glob("*.segment"))


async def test_a_file_whose_sync_failed_is_never_synced_again_and_its_records_get_new_pages(node: Node) -> None:
    node.writers.dies = True
    node.submit(b"kept")
    await node.until(node.acked)
    failed = node.active
    pages = failed.path.stat().st_ino
    node.disk.broken = True
    before = len(node.disk.synced_fds)
    node.submit(b"lost")
    await node.until(node.rejected)
    await node.until(lambda: not node.syncer.failed)

    assert len(node.disk.synced_fds) == before + 1
    assert failed.fd == -1
    assert node.journal.active is not failed
    assert failed.path.stat().st_ino != pages
    assert [bytes(entry.body) for entry in segments.read(failed.path).entries] == [b"kept"]


@pytest.mark.parametrize("rewritten_first", [False, True])
async def test_a_segment_that_was_written_while_it_got_new_pages_does_not_come_back(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rewritten_first: bool
) -> None:
    read, removed = threading.Event(), threading.Event()

    def rewrite(path: Path, size: int) -> None:
        data = path.read_bytes()[:size]
        read.set()
        assert removed.wait(WAIT_S)
        path.write_bytes(data)

    def remove(path: Path, damaged: bool) -> None:
        assert read.wait(WAIT_S)
        path.unlink()
        removed.set()
        while rewritten_first and not path.exists():
            time.sleep(0.001)

    monkeypatch.setattr("flusher.syncer.rewrite", rewrite)
    monkeypatch.setattr(segments, "remove", remove)

    node.submit(b"kept")
    await node.until(node.acked)
    path = node.active.path
    node.disk.broken = True
    node.submit(b"lost")
    await node.until(node.rejected)
    node.scheduler.schedule()
    await node.until(lambda: node.writers.written_bodies == [b"kept"])
    await node.until(lambda: not node.syncer.failed)
    await node.until(lambda: not path.exists())
    assert bodies_in(tmp_path) == []


async def test_nothing_is_accepted_between_a_failed_sync_and_new_pages_and_then_it_is_again(
    node: Node, tmp_path: Path
) -> None:
    node.writers.dies = True
    node.submit(b"kept")
    await node.until(node.acked)
    # The copy cannot be made while something else has its name.
    blocker = node.active.path.with_suffix(".rewrite")
    blocker.mkdir()
    node.disk.broken = True
    node.submit(b"lost")
    await node.until(node.rejected)
    node.disk.broken = False

    node.submit(b"refused")
    assert [one.seq for one in node.rejected()] == [2, 3]
    assert node.syncer.failed
    node.intake.look()
    assert node.intake.acceptance is Acceptance.NOT_WRITABLE
    assert bodies_in(tmp_path) == [b"kept"]

    blocker.rmdir()
    await node.until(lambda: not node.syncer.failed)
    node.submit(b"again")
    await node.until(lambda: node.acked() == [1, 4])
    assert bodies_in(tmp_path) == [b"kept", b"again"]
    assert -1 not in node.disk.synced_fds  # the closed file whose sync has failed


@pytest.mark.node(fsync=Fsync.INTERVAL)
async def test_what_interval_has_acknowledged_survives_a_failed_sync_whole(node: Node, tmp_path: Path) -> None:
    node.writers.dies = True
    node.disk.broken = True
    node.submit(b"one")
    node.submit(b"two")
    assert node.acked() == [1, 2]
    await node.until(lambda: node.syncer.last_error is not None)
    node.disk.broken = False
    await node.until(lambda: not node.syncer.failed)

    assert bodies_in(tmp_path) == [b"one", b"two"]
    assert sum(node.journal.records().values()) == 2


async def test_bodies_in_a_segment_that_the_failed_sync_did_not_cover_keep_waiting_for_their_own(
    node: Node, tmp_path: Path
) -> None:
    node.writers.dies = True
    node.disk.hold_syncs()
    node.disk.broken = True
    node.submit(b"lost")
    await node.disk.sync_has_begun()
    node.ask_flush()  # seals; the next body goes into a segment that this sync does not cover
    node.submit(b"later")
    node.disk.let_syncs_go()
    await node.until(node.rejected)
    node.disk.broken = False
    await node.until(lambda: len(node.answers) == 2)

    # Rejected and stored, or acknowledged and lost, are both wrong.
    stored = bodies_in(tmp_path)
    assert (2 in node.acked()) == (b"later" in stored)
    assert [one.seq for one in node.rejected() if one.seq == 1] == [1]
    assert b"lost" not in stored


@pytest.mark.node(fsync=Fsync.INTERVAL)
async def test_what_interval_took_into_the_next_segment_during_a_sync_that_fails_is_synced_after_it(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syncer, "INTERVAL_S", 0.05)
    monkeypatch.setattr(syncer, "INTERVAL_BYTES", 10_000)

    node.writers.dies = True
    node.disk.hold_syncs()
    node.submit(b"first")
    await node.disk.sync_has_begun()
    node.ask_flush()  # seals
    node.submit(b"x" * 20_000)  # as much as starts a sync, but for the one that runs
    node.disk.broken = True
    node.disk.let_one_sync_go()
    await node.until(lambda: node.syncer.last_error)
    node.disk.broken = False
    node.disk.let_syncs_go()
    await node.until(lambda: not node.syncer.unsynced_records and not node.syncer.failed)


async def test_a_segment_that_was_written_to_the_database_before_its_sync_failed_is_not_counted_out_twice(
    node: Node, tmp_path: Path
) -> None:
    node.disk.hold_syncs()
    node.disk.broken = True
    node.submit(b"body")
    await node.disk.sync_has_begun()
    await node.ask_flush()
    node.disk.let_syncs_go()
    await node.until(lambda: node.answers)
    await node.until(lambda: not node.syncer.failed)

    assert node.journal.bytes == sum(path.stat().st_size for path in tmp_path.glob("*.segment"))


async def test_a_sealed_file_is_closed_once_it_is_synced_and_not_before(node: Node) -> None:
    node.disk.hold_syncs()
    node.submit(b"body")
    await node.disk.sync_has_begun()
    segment = node.active
    node.ask_flush()
    assert node.journal.active is not segment
    assert segment.fd >= 0

    node.disk.let_syncs_go()
    await node.until(lambda: segment.fd == -1)


async def test_while_writers_are_behind_segments_that_they_come_to_late_leave_the_cache_once_synced(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[tuple[int, bool]] = []

    def leave_cache(segment: Segment) -> None:
        left.append((segment.sequence, segment.fd in node.disk.synced_fds))

    monkeypatch.setattr(syncer, "leave_cache", leave_cache)
    node.submit(b"body")
    await node.ask_flush()
    written_up_to = node.active.sequence - 1

    behind = asyncio.Event()

    async def answer_late(path: Path) -> Answer:
        await behind.wait()
        return written(path)

    node.writers.answer = answer_late
    node.disk.hold_syncs()
    for _ in range(CACHED_SEGMENTS + 4):
        node.submit(b"body", count=FULL)
    node.submit(b"body")
    active = node.active.sequence
    node.disk.synced_fds.clear()
    node.disk.let_syncs_go()
    await node.until(lambda: not node.syncer.unsynced_records)
    behind.set()

    assert left == [(sequence, True) for sequence in range(written_up_to + CACHED_SEGMENTS + 1, active)]


def test_what_has_left_the_cache_is_still_on_the_disk(tmp_path: Path) -> None:
    opened = opened_journal(tmp_path)
    opened.append([segments.Entry(2, 1, 2, b"synced" * 10_000)])
    assert opened.active is not None
    syncer.sync(opened.active)
    opened.append([segments.Entry(2, 1, 3, b"not synced")])
    syncer.leave_cache(opened.active)
    assert [bytes(entry.body) for entry in segments.read(opened.active.path).entries] == [
        b"synced" * 10_000,
        b"not synced",
    ]
    opened.active.close()


@pytest.mark.parametrize(("fsync", "syncs"), [(Fsync.INTERVAL, 1), (Fsync.NEVER, 0)])
async def test_close_syncs_what_the_policy_wants_and_closes_the_files(tmp_path: Path, fsync: Fsync, syncs: int) -> None:
    node = Node(tmp_path, fsync=fsync)
    node.submit(b"body")
    fd = node.active.fd
    await node.close()

    assert node.disk.synced_fds == [fd] * syncs
    assert node.active.fd == -1


async def test_no_file_stays_open_over_many_segments(node: Node) -> None:
    node.submit(b"body")
    await node.ask_flush()
    await node.until(lambda: len(node.acked()) == 1)
    await node.settled()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(20):
        node.submit(b"body")
        await node.until(lambda number=number: len(node.acked()) == number + 2)
        await node.ask_flush()
    await node.until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before)
