from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from flusher import segments, syncer
from flusher.journal import Journal, JournalWriteFailed, Segment
from flusher.segments import SEGMENT_HEADER_BYTES, Entry
from flusher.syncer import sync
from flusher.triggers import FlushReason
from tests.support.segments import ENTRIES, FLOOR, closed, file_size_limit, opened_journal

WriteV = Callable[[int, Sequence["bytes | memoryview"]], int]


def short(fd: int, buffers: Sequence[bytes | memoryview]) -> int:
    data = b"".join(buffers)
    return os.write(fd, data[: len(data) // 2])


def no_space(fd: int, buffers: Sequence[bytes | memoryview]) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def io_error_half_way(fd: int, buffers: Sequence[bytes | memoryview]) -> int:
    short(fd, buffers)
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


WRITE_FAULTS = pytest.mark.parametrize("fault", [short, no_space, io_error_half_way])
MANY = [Entry(2, 1, FLOOR + number, b"{}") for number in range(2000)]
"""More than one writev(2) takes."""


class Disk:
    """writev(2) that does what `fault` says from call number `after` on, while there is one."""

    def __init__(self) -> None:
        self.fault: WriteV | None = None
        self.after = 0
        self.calls = 0

    def writev(self, fd: int, buffers: Sequence[bytes | memoryview]) -> int:
        self.calls += 1
        if self.fault is not None and self.calls > self.after:
            return self.fault(fd, buffers)
        return os.writev(fd, buffers)


def active_of(journal: Journal) -> Segment:
    assert journal.active is not None
    return journal.active


def queue_of(directory: Path, count: int = 3) -> tuple[Journal, list[Segment]]:
    """A journal of that many sealed segments, one task each, and an empty active one."""
    made = opened_journal(directory)
    for number in range(count):
        made.append([Entry(2, 1, FLOOR + number, b"{}")], now=5.0 + number)
        made.seal(FlushReason.SIZE)
    return made, list(made)[:count]


# Appending


@WRITE_FAULTS
def test_a_failed_write_leaves_nothing_behind_and_the_next_one_succeeds(tmp_path: Path, fault: WriteV) -> None:
    disk = Disk()
    opened = opened_journal(tmp_path, writev=disk.writev)
    opened.append(ENTRIES[:1])
    segment = active_of(opened)
    before, size = opened.bytes, segment.size

    disk.fault = fault
    with pytest.raises(JournalWriteFailed):
        opened.append(ENTRIES[1:3])

    assert (opened.bytes, segment.size, segment.torn) == (before, size, False)
    assert segment.records == {1: 1, 2: 0}
    assert segment.path.stat().st_size == size
    disk.fault = None
    opened.append(ENTRIES[3:])
    contents = segments.read(closed(opened))
    assert contents.entries == [ENTRIES[0], ENTRIES[3]]
    assert contents.damage == []
    assert contents.size == opened.bytes


@WRITE_FAULTS
def test_an_append_of_many_entries_is_cut_off_whole_when_a_later_write_fails(tmp_path: Path, fault: WriteV) -> None:
    disk = Disk()
    opened = opened_journal(tmp_path, writev=disk.writev)
    opened.append(MANY)
    size = active_of(opened).size

    disk.fault, disk.after = fault, disk.calls + 2
    with pytest.raises(JournalWriteFailed):
        opened.append(MANY)

    path = closed(opened)
    assert path.stat().st_size == size
    assert segments.read(path).entries == MANY


def test_a_full_file_system_is_noticed_although_write_reports_no_error(tmp_path: Path) -> None:
    opened = opened_journal(tmp_path)
    with file_size_limit(SEGMENT_HEADER_BYTES + 10), pytest.raises(JournalWriteFailed):
        opened.append(ENTRIES)
    assert closed(opened).stat().st_size == SEGMENT_HEADER_BYTES


@WRITE_FAULTS
def test_a_segment_whose_header_cannot_be_written_is_removed(tmp_path: Path, fault: WriteV) -> None:
    disk = Disk()
    disk.fault = fault
    opened = Journal(tmp_path, writev=disk.writev)
    with pytest.raises(JournalWriteFailed):
        opened.open()
    assert (opened.active, opened.bytes, len(list(opened))) == (None, 0, 0)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(JournalWriteFailed):
        opened.append(ENTRIES)

    disk.fault = None
    opened.open()
    opened.append(ENTRIES)
    closed(opened)


def test_a_disk_that_becomes_read_only_while_a_segment_is_opened_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Journal(tmp_path, writev=no_space)
    with monkeypatch.context() as read_only:
        read_only.setattr(Path, "unlink", refuse)
        with pytest.raises(JournalWriteFailed):
            opened.open()
    assert opened.active is None


def test_a_missing_directory_is_used_as_soon_as_it_is_back(tmp_path: Path) -> None:
    opened = Journal(tmp_path / "gone")
    with pytest.raises(JournalWriteFailed, match="No such file"):
        opened.open()
    (tmp_path / "gone").mkdir()
    opened.open()
    closed(opened)


def test_opening_twice_keeps_the_segment_that_is_open(tmp_path: Path) -> None:
    opened = opened_journal(tmp_path)
    first = opened.active
    opened.open()
    assert opened.active is first
    closed(opened)


@WRITE_FAULTS
def test_refused_entries_that_cannot_be_cut_off_are_never_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: WriteV
) -> None:
    disk = Disk()
    opened = opened_journal(tmp_path, writev=disk.writev)
    opened.append(ENTRIES)
    segment = active_of(opened)
    disk.fault, disk.after = fault, disk.calls + 1
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", refuse)
        with pytest.raises(JournalWriteFailed):
            opened.append(MANY)
    disk.fault = None
    with pytest.raises(JournalWriteFailed):
        opened.append(ENTRIES)

    assert opened.writable() is not segment
    assert len(segments.read(segment.path).entries) > len(ENTRIES)
    assert segments.read(segment.path, segment.size).entries == ENTRIES
    opened.cut_again()
    assert segments.read(segment.path).entries == ENTRIES
    assert segment.path.stat().st_size == segment.size
    closed(opened)


def test_a_number_that_somebody_has_used_meanwhile_is_skipped(tmp_path: Path) -> None:
    """An operator restores a segment under a free number while the flusher runs; the next start reads it."""
    (tmp_path / f"{1:020}.segment").write_bytes(b"restored")
    opened = Journal(tmp_path)
    opened.open()
    assert closed(opened).name == f"{2:020}.segment"
    assert (tmp_path / f"{1:020}.segment").read_bytes() == b"restored"


# Sealing and the queue


def test_an_empty_journal_has_nothing_to_write(tmp_path: Path) -> None:
    empty = Journal(tmp_path)
    assert (empty.waiting, list(empty)) == (0, [])
    assert (empty.next(1.0), empty.next_at()) == (None, math.inf)
    assert (empty.records(), empty.oldest_at()) == ({1: 0, 2: 0}, None)
    assert (empty.last_sequence(), empty.holds(10)) == (0, False)


def test_sealed_segments_are_handed_out_oldest_first_and_the_active_one_never(tmp_path: Path) -> None:
    queue, (first, second, third) = queue_of(tmp_path)
    assert [segment.sequence for segment in queue] == [1, 2, 3, 4]
    first.not_before, third.busy = 5.0, True

    assert queue.next(4.9) is second
    assert queue.next(5.0) is first
    second.not_before = 7.0
    assert queue.next_at() == 5.0
    first.busy = second.busy = True
    assert (queue.next(9.0), queue.next_at()) == (None, math.inf)
    closed(queue)


def test_a_failed_segment_goes_behind_the_others(tmp_path: Path) -> None:
    queue, (first, second) = queue_of(tmp_path, 2)
    queue.put_back(first)
    assert list(queue) == [second, first, queue.active]
    closed(queue)


def test_figures_cover_waiting_segments_until_they_are_forgotten(tmp_path: Path) -> None:
    queue, (first, second) = queue_of(tmp_path, 2)
    queue.append([*ENTRIES, Entry(77, 5, FLOOR, b"of another version")])
    assert queue.records() == {1: 1001, 2: 6, 77: 5}
    assert queue.oldest_at() == 5.0
    assert [queue.pending_up_to(sequence) for sequence in (0, 1, 2, 3)] == [0, 1, 2, 1012]
    assert [queue.holds(sequence) for sequence in (0, 1, 3)] == [False, True, True]
    assert queue.last_sequence() == 3

    before = queue.bytes
    queue.forget(first)
    assert (queue.bytes, len(list(queue)), queue.removed) == (before - first.size, 2, 1)
    assert (queue.oldest_at(), queue.holds(1)) == (6.0, False)
    queue.forget(second)
    assert queue.last_sequence() == 3
    closed(queue)


def test_cutting_off_takes_entries_off_the_end_and_out_of_the_count(tmp_path: Path) -> None:
    opened = opened_journal(tmp_path)
    opened.append(ENTRIES[:1])
    segment = active_of(opened)
    segment.dirty = True  # its sync has failed
    size = segment.size
    opened.append(ENTRIES[1:])

    opened.cut_off(segment, size)

    assert opened.active is not segment
    assert (opened.bytes, segment.size) == (size + SEGMENT_HEADER_BYTES, size)
    assert segments.read(segment.path).entries == ENTRIES[:1]
    segment.close()
    closed(opened)


# Files that somebody has touched, and syncs


@pytest.mark.parametrize("replaced", [False, True])
def test_an_open_segment_whose_file_is_removed_gets_another_file(tmp_path: Path, replaced: bool) -> None:
    opened = opened_journal(tmp_path)
    opened.append(ENTRIES)
    segment = active_of(opened)
    opened.check_active_file()
    assert opened.active is segment
    removed = segment.path
    removed.unlink()
    if replaced:
        removed.mkdir()
    segment.dirty = True

    opened.check_active_file()

    assert opened.in_place(segment)
    assert (segment.sealed, segment.path != removed) == (True, True)
    assert segments.read(segment.path).entries == ENTRIES
    assert os.fstat(segment.fd).st_size == segment.size
    segment.close()
    closed(opened)


def test_a_segment_without_a_file_takes_no_more_entries(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    opened = opened_journal(tmp_path / "journal")
    opened.append(ENTRIES)
    active_of(opened).path.unlink()
    (tmp_path / "journal").rmdir()

    assert not opened.seal(FlushReason.SIZE)
    with pytest.raises(JournalWriteFailed, match="mkdir -p"):
        opened.writable()
    with pytest.raises(JournalWriteFailed):
        opened.append(ENTRIES)
    closed(opened)


def test_a_sync_returns_the_size_that_is_safe_and_syncs_the_name_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directories: list[Path] = []
    monkeypatch.setattr(syncer, "sync_directory", directories.append)
    synced: list[int] = []
    opened = opened_journal(tmp_path, fdatasync=synced.append)
    opened.append(ENTRIES)
    segment = active_of(opened)

    assert [sync(segment), sync(segment)] == [segment.size] * 2
    assert synced == [segment.fd] * 2
    assert directories == [tmp_path]
    closed(opened)


def test_a_failed_sync_raises_and_leaves_the_name_unsynced(tmp_path: Path) -> None:
    opened = opened_journal(tmp_path, fdatasync=refuse)
    segment = active_of(opened)
    with pytest.raises(OSError, match="Read-only"):
        sync(segment)
    assert not segment.name_synced
    closed(opened)
