from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from flusher import journal, segments
from flusher.journal import Journal, JournalWriteFailed
from flusher.segments import SEGMENT_HEADER_BYTES, Entry
from tests.support.segments import (
    ENTRIES,
    FLOOR,
    file_size_limit,
    filled,
)


def short(fd: int, buffers: Sequence[bytes | memoryview]) -> int:
    data = b"".join(buffers)
    return os.write(fd, data[: len(data) // 2])


def no_space(fd: int, buffers: Sequence[bytes | memoryview]) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def io_error_half_way(fd: int, buffers: Sequence[bytes | memoryview]) -> int:
    short(fd, buffers)
    raise OSError(errno.EIO, os.strerror(errno.EIO))


WriteV = Callable[[int, Sequence["bytes | memoryview"]], int]
WRITE_FAULTS = [short, no_space, io_error_half_way]


class Disk:
    """writev(2) that does what `fault` says from call number `after` on, for as long as there is one."""

    def __init__(self) -> None:
        self.fault: WriteV | None = None
        self.after = 0
        self.calls = 0

    def writev(self, fd: int, buffers: Sequence[bytes | memoryview]) -> int:
        self.calls += 1
        if self.fault is not None and self.calls > self.after:
            return self.fault(fd, buffers)
        return os.writev(fd, buffers)


@pytest.mark.parametrize("fault", WRITE_FAULTS)
def test_a_failed_write_leaves_nothing_behind_and_the_next_one_succeeds(tmp_path: Path, fault: WriteV) -> None:
    disk = Disk()
    opened = Journal(tmp_path, writev=disk.writev)
    opened.open(FLOOR)
    opened.append(ENTRIES[:1])
    assert opened.active is not None
    before, size = opened.bytes, opened.active.size

    disk.fault = fault
    with pytest.raises(JournalWriteFailed):
        opened.append(ENTRIES[1:3])

    assert (opened.bytes, opened.active.size, opened.active.torn) == (before, size, False)
    assert opened.active.path.stat().st_size == size
    disk.fault = None
    opened.append(ENTRIES[3:])
    segment = opened.seal()
    segment.close()
    contents = segments.read(segment.path)
    assert contents.entries == [ENTRIES[0], ENTRIES[3]]
    assert contents.damage == []
    assert contents.size == opened.bytes


@pytest.mark.parametrize("fault", WRITE_FAULTS)
def test_an_append_of_many_entries_is_cut_off_whole_when_a_later_write_fails(tmp_path: Path, fault: WriteV) -> None:
    many = [Entry(2, 1, FLOOR + number, b"{}") for number in range(2000)]
    disk = Disk()
    opened = Journal(tmp_path, writev=disk.writev)
    opened.open(FLOOR)
    opened.append(many)
    assert opened.active is not None
    size = opened.active.size

    disk.fault, disk.after = fault, disk.calls + 2
    with pytest.raises(JournalWriteFailed):
        opened.append(many)

    assert opened.active.path.stat().st_size == size
    assert segments.read(opened.active.path).entries == many
    opened.active.close()


def test_a_full_file_system_is_noticed_although_write_reports_no_error(tmp_path: Path) -> None:
    opened = Journal(tmp_path)
    opened.open(FLOOR)
    assert opened.active is not None
    with file_size_limit(SEGMENT_HEADER_BYTES + 10), pytest.raises(JournalWriteFailed):
        opened.append(ENTRIES)
    assert opened.active.path.stat().st_size == SEGMENT_HEADER_BYTES
    opened.active.close()


@pytest.mark.parametrize("fault", WRITE_FAULTS)
def test_a_segment_whose_header_cannot_be_written_is_not_left_over(tmp_path: Path, fault: WriteV) -> None:
    disk = Disk()
    disk.fault = fault
    opened = Journal(tmp_path, writev=disk.writev)

    with pytest.raises(JournalWriteFailed):
        opened.open(FLOOR)

    assert opened.active is None
    assert (opened.bytes, opened.segments) == (0, 0)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(JournalWriteFailed):
        opened.append(ENTRIES)
    disk.fault = None
    opened.open(FLOOR)
    opened.append(ENTRIES)
    assert opened.active is not None
    opened.active.close()


def test_a_disk_that_becomes_read_only_while_a_segment_is_opened_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    opened = Journal(tmp_path, writev=no_space)
    with monkeypatch.context() as read_only:
        read_only.setattr(Path, "unlink", refuse)
        with pytest.raises(JournalWriteFailed):
            opened.open(FLOOR)
    assert opened.active is None


def test_a_directory_that_is_gone_refuses_to_open_and_is_used_again_when_it_is_back(tmp_path: Path) -> None:
    directory = tmp_path / "gone"
    opened = Journal(directory)
    with pytest.raises(JournalWriteFailed, match="No such file"):
        opened.open(FLOOR)

    directory.mkdir()
    opened.open(FLOOR)

    assert opened.active is not None
    opened.active.close()


def test_bytes_that_cannot_be_cut_off_close_the_segment_and_are_stepped_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk()
    opened = Journal(tmp_path, writev=disk.writev)
    opened.open(FLOOR)
    opened.append(ENTRIES[:2])

    disk.fault = short
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", refuse)
        with pytest.raises(JournalWriteFailed):
            opened.append(ENTRIES[2:3])
    disk.fault = None

    assert opened.active is not None
    assert opened.active.torn
    with pytest.raises(JournalWriteFailed):
        opened.append(ENTRIES[3:])
    segment = opened.seal()
    segment.close()
    contents = segments.read(segment.path)
    assert contents.entries == ENTRIES[:2]
    assert contents.damaged_bytes > 0


def test_opening_twice_keeps_the_segment_that_is_open(tmp_path: Path) -> None:
    opened = Journal(tmp_path)
    opened.open(FLOOR)
    first = opened.active
    opened.open(FLOOR + 1)

    assert opened.active is first
    assert first is not None
    first.close()


def test_truncate_takes_entries_off_the_end_and_out_of_the_count(tmp_path: Path) -> None:
    opened = Journal(tmp_path)
    opened.open(FLOOR)
    opened.append(ENTRIES[:1])
    assert opened.active is not None
    size = opened.active.size
    opened.append(ENTRIES[1:])
    segment = opened.seal()

    opened.truncate(segment, size)

    assert (opened.bytes, segment.size) == (size, size)
    segment.close()
    assert segments.read(segment.path).entries == ENTRIES[:1]


def test_leftovers_are_counted_oldest_first_and_new_segments_come_after_them(tmp_path: Path) -> None:
    paths = []
    first = Journal(tmp_path)
    for _ in range(3):
        first.open(FLOOR)
        first.append(ENTRIES)
        segment = first.seal()
        segment.close()
        paths.append(segment.path)

    second = Journal(tmp_path)

    assert [one.path for one in second.recover()[0]] == paths
    assert (second.bytes, second.segments) == (first.bytes, 3)
    second.open(FLOOR)
    assert second.active is not None
    assert second.active.path > paths[-1]
    second.active.close()
    second.forget(paths[0].stat().st_size)
    assert second.segments == 3


def test_foreign_files_in_the_directory_are_left_alone_and_each_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = filled(tmp_path)
    foreign = ["notes.txt", "1.segment.bak", f"x{3:020}.segment", "１.segment"]
    ours = [f"{2:020}.segment.broken", "lost+found"]
    for name in foreign + ours:
        (tmp_path / name).write_bytes(b"not ours")
    (tmp_path / f"{9:020}.rewrite").mkdir()

    opened = Journal(tmp_path)

    assert opened.recover()[0] == [(kept, kept.stat().st_size)]
    assert (opened.bytes, opened.set_aside) == (kept.stat().st_size, 1)
    assert all((tmp_path / name).read_bytes() == b"not ours" for name in foreign)
    said = sorted(Path(str(record.args[0])).name for record in caplog.records if record.args)
    assert said == sorted([*foreign, f"{9:020}.rewrite"])


@pytest.mark.parametrize("name", ["9" * 20, "1" + "0" * 20, "7", str(10**18), "0" * 21 + "3", "9" * 60])
def test_a_segment_under_any_number_is_taken_in_and_numbers_never_outgrow_their_form(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """An operator restores one under a free name; version 1 then wrote numbers of 21 digits, which no start read."""
    filled(tmp_path)
    (tmp_path / f"{name}.segment").write_bytes((tmp_path / f"{1:020}.segment").read_bytes())

    opened = Journal(tmp_path)
    left, floor = opened.recover()
    opened.open(floor)

    assert opened.active is not None
    names = [*(path.name for path, _ in left), opened.active.path.name]
    assert names == sorted(names)
    assert [len(one) for one in names] == [len(f"{1:020}.segment")] * 3
    assert all(segments.read(path).entries == ENTRIES for path, _ in left)
    assert f"{name}.segment" in caplog.text
    opened.active.close()
    assert [path for path, _ in Journal(tmp_path).recover()[0]] == sorted(tmp_path.glob("*.segment"))


@pytest.mark.parametrize("arrival", [2**64 - 1, 2**63, journal.MAX_ARRIVAL])
@pytest.mark.parametrize("where", ["entry", "floor"])
def test_an_arrival_at_the_end_of_its_range_is_not_followed(tmp_path: Path, arrival: int, where: str) -> None:
    """The next ones would be none that the journal, or the database, can hold."""
    first = Journal(tmp_path)
    first.open(arrival if where == "floor" else FLOOR)
    first.append([Entry(2, 1, arrival if where == "entry" else FLOOR, b"{}")])
    segment = first.seal()
    segment.close()
    os.utime(segment.path, (0, 0))

    assert Journal(tmp_path).recover()[1] == FLOOR


def test_an_unread_name_far_in_time_does_not_push_the_clock(tmp_path: Path) -> None:
    path = filled(tmp_path)
    os.utime(path, ns=(0, 2**62))
    assert Journal(tmp_path).recover()[1] == 2**62 // 1000
    os.utime(path, (0, 2**40))  # the year 36812, which tmpfs and xfs keep
    if path.stat().st_mtime == 2**40:
        assert Journal(tmp_path).recover()[1] == ENTRIES[-1].arrival


def test_a_torn_tail_of_the_newest_segment_is_cut_off_and_is_no_alarm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = filled(tmp_path).rename(tmp_path / f"{0:020}.segment")
    path = filled(tmp_path)
    whole = path.stat().st_size
    for torn in (older, path):
        with torn.open("ab") as file:
            file.write(segments.entry_header(ENTRIES[0]) + b"{")
    caplog.set_level(logging.INFO)

    assert [size for _, size in Journal(tmp_path).recover()[0]] == [older.stat().st_size, whole]
    assert segments.read(path).damage == []
    assert segments.read(older).damaged_bytes > 0
    assert [(record.levelname, record.args) for record in caplog.records] == [
        ("INFO", (segments.ENTRY_HEADER_BYTES + 1, path.name))
    ]


@pytest.mark.parametrize("fault", WRITE_FAULTS)
def test_entries_that_were_refused_are_never_written_although_they_could_not_be_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: WriteV
) -> None:
    many = [Entry(2, 1, FLOOR + number, b"{}") for number in range(2000)]
    disk = Disk()
    opened = Journal(tmp_path, writev=disk.writev)
    opened.open(FLOOR)
    opened.append(ENTRIES)
    disk.fault, disk.after = fault, disk.calls + 1
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", refuse)
        with pytest.raises(JournalWriteFailed):
            opened.append(many)
    segment = opened.seal()

    assert len(segments.read(segment.path).entries) > len(ENTRIES)  # whole ones of callers who got a 503
    assert segments.read(segment.path, segment.size).entries == ENTRIES
    opened.cut_again()
    assert segments.read(segment.path).entries == ENTRIES
    assert segment.path.stat().st_size == segment.size
    segment.close()


def test_a_number_that_somebody_has_used_meanwhile_is_stepped_over(tmp_path: Path) -> None:
    """A segment that is restored under a free number while the flusher runs is read by the next start."""
    restored = filled(tmp_path)
    opened = Journal(tmp_path)
    opened.open(FLOOR)
    assert opened.active is not None
    assert opened.active.path.name == f"{2:020}.segment"
    assert segments.read(restored).entries == ENTRIES
    opened.active.close()


def refuse(fd: int, size: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("replaced", [False, True])
def test_an_open_segment_whose_file_is_taken_away_is_rescued_under_another_name(tmp_path: Path, replaced: bool) -> None:
    opened = Journal(tmp_path)
    opened.open(FLOOR)
    opened.append(ENTRIES)
    segment = opened.active
    assert segment is not None
    assert opened.in_place(segment)
    taken = segment.path
    taken.unlink()
    if replaced:
        taken.mkdir()
    assert not opened.in_place(segment)

    opened.rescue(segment)

    assert opened.in_place(segment)
    assert segment.path != taken
    assert segments.read(segment.path).entries == ENTRIES
    assert os.fstat(segment.fd).st_size == segment.size
    segment.close()


def test_a_file_that_cannot_be_rescued_takes_nothing_more(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    directory.mkdir()
    opened = Journal(directory)
    opened.open(FLOOR)
    opened.append(ENTRIES)
    segment = opened.active
    assert segment is not None
    segment.path.unlink()
    directory.rmdir()

    with pytest.raises(JournalWriteFailed, match="mkdir -p"):
        opened.rescue(segment)
    with pytest.raises(JournalWriteFailed):
        opened.append(ENTRIES)
    segment.close()


def test_a_copy_that_was_never_finished_is_removed(tmp_path: Path) -> None:
    kept = filled(tmp_path)
    copy = tmp_path / f"{1:020}.rewrite"
    copy.write_bytes(b"half")

    assert Journal(tmp_path).recover()[0] == [(kept, kept.stat().st_size)]
    assert not copy.exists()


def test_a_number_under_which_damage_was_set_aside_is_not_given_again(tmp_path: Path) -> None:
    kept = segments.set_aside(filled(tmp_path))
    again = Journal(tmp_path)
    assert again.recover() == ([], 0)
    again.open(FLOOR)
    assert again.active is not None
    again.active.close()

    segments.set_aside(again.active.path)

    assert segments.read(kept).entries == ENTRIES


def test_sync_reports_the_size_that_is_safe_and_syncs_the_name_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directories: list[Path] = []
    monkeypatch.setattr(journal, "sync_directory", directories.append)
    synced: list[int] = []
    opened = Journal(tmp_path, fdatasync=synced.append)
    opened.open(FLOOR)
    opened.append(ENTRIES)
    segment = opened.seal()

    assert segment.sync() == segment.size
    assert segment.sync() == segment.size

    assert synced == [segment.fd, segment.fd]
    assert directories == [tmp_path]
    segment.close()


def test_a_failed_sync_raises_and_leaves_the_name_unsynced(tmp_path: Path) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    opened = Journal(tmp_path, fdatasync=fail)
    opened.open(FLOOR)
    segment = opened.seal()

    with pytest.raises(OSError, match="Input/output"):
        segment.sync()

    assert not segment.named
    segment.close()
