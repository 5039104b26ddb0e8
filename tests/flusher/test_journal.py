from __future__ import annotations

import errno
import os
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flusher import journal
from flusher.journal import (
    ENTRY_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    Contents,
    Entry,
    Journal,
    JournalWriteFailed,
    entry_header,
    parse,
    survey,
)

FLOOR = 1_700_000_000_000_000
ENTRIES = [
    Entry(1, 1, FLOOR + 1, b'{"sessions":[{"session_id":"s1"}]}'),
    Entry(2, 3, FLOOR + 2, '{"tasks":["é","你好","🙂"]}'.encode()),
    Entry(2, 1, FLOOR + 3, b"{}"),
    Entry(1, 1000, FLOOR + 4, b'{"sessions":[]}'),
]


@given(st.binary(max_size=300), st.integers(1, 2000), st.integers(0, 2**32 - 1))
def test_the_crc_is_the_same_with_and_without_isal(piece: bytes, times: int, start: int) -> None:
    data = piece * times
    assert journal.crc32(data, start) == zlib.crc32(data, start)
    assert journal.crc32(memoryview(data)[1:], start) == zlib.crc32(memoryview(data)[1:], start)


def test_without_isal_the_journal_works_as_well() -> None:
    code = "import sys, zlib; sys.modules['isal'] = None; import flusher.journal as j; print(j.crc32 is zlib.crc32)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "True\n"


def segment_header(version: int = 1, floor: int = FLOOR) -> bytes:
    """From the grammar, not from the code."""
    head = b"PSJ\xff" + struct.pack("<BBHQ", version, 0, 0, floor)
    return head + struct.pack("<I", zlib.crc32(head))


def entry_bytes(entry: Entry, version: int = 1) -> bytes:
    head = struct.pack("<HBBIQI", 0xA7FF, version, entry.kind, entry.count, entry.arrival, len(entry.body))
    return head + struct.pack("<I", zlib.crc32(head + entry.body)) + entry.body


def segment_bytes(entries: Sequence[Entry]) -> bytes:
    return segment_header() + b"".join(map(entry_bytes, entries))


def ends_of(entries: Sequence[Entry]) -> list[int]:
    """Where each entry ends in its segment."""
    ends: list[int] = []
    at = SEGMENT_HEADER_BYTES
    for entry in entries:
        at += ENTRY_HEADER_BYTES + len(entry.body)
        ends.append(at)
    return ends


def check_every_byte_is_accounted_for(contents: Contents) -> None:
    entries = sum(ENTRY_HEADER_BYTES + len(entry.body) for entry in contents.entries)
    header = 0 if contents.version is None else SEGMENT_HEADER_BYTES
    assert header + entries + contents.damaged_bytes == contents.size


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """A file system that has no room: files of this process end at `size` bytes (setrlimit(2))."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def filled(directory: Path, entries: Sequence[Entry] = ENTRIES) -> Path:
    opened = Journal(directory)
    opened.open(FLOOR)
    opened.append(entries)
    segment = opened.seal()
    segment.close()
    return segment.path


def test_appended_entries_are_read_back_in_order(tmp_path: Path) -> None:
    contents = journal.read(filled(tmp_path))

    assert contents.entries == ENTRIES
    assert contents.damage == []
    assert contents.floor == FLOOR
    assert contents.version == 1


def test_the_bytes_on_the_disk_are_those_of_the_grammar(tmp_path: Path) -> None:
    assert filled(tmp_path).read_bytes() == segment_bytes(ENTRIES)


def test_every_field_holds_its_largest_value(tmp_path: Path) -> None:
    largest = Entry(255, 2**32 - 1, 2**64 - 1, b"x")

    assert journal.read(filled(tmp_path, [largest])).entries == [largest]


def test_an_entry_without_a_body_is_refused_since_zeros_would_read_as_one() -> None:
    with pytest.raises(AssertionError):
        entry_header(Entry(1, 1, 1, b""))


@pytest.mark.parametrize("cut", range(len(segment_bytes(ENTRIES)) + 1))
def test_a_segment_cut_anywhere_keeps_every_whole_entry_before_the_cut(cut: int) -> None:
    contents = parse(segment_bytes(ENTRIES)[:cut])

    whole = [entry for entry, end in zip(ENTRIES, ends_of(ENTRIES), strict=True) if end <= cut]
    assert contents.entries == whole
    assert (contents.version is None) == (cut < SEGMENT_HEADER_BYTES)
    check_every_byte_is_accounted_for(contents)


@pytest.mark.parametrize("position", range(len(segment_bytes(ENTRIES))))
def test_a_changed_byte_costs_no_entry_but_its_own(position: int) -> None:
    intact = segment_bytes(ENTRIES)
    ends = ends_of(ENTRIES)
    damaged_one = next(
        (number for number, end in enumerate(ends) if SEGMENT_HEADER_BYTES <= position < end),
        None,
    )
    for value in range(256):
        if value == intact[position]:
            continue
        data = bytearray(intact)
        data[position] = value

        contents = parse(bytes(data))

        assert contents.entries == [entry for number, entry in enumerate(ENTRIES) if number != damaged_one]
        assert contents.damaged_bytes > 0
        check_every_byte_is_accounted_for(contents)


def test_several_damaged_entries_are_told_apart_from_the_intact_ones_between_them() -> None:
    data = bytearray(segment_bytes(ENTRIES))
    ends = ends_of(ENTRIES)
    data[ends[0] - 1] ^= 1
    data[ends[2] - 1] ^= 1

    contents = parse(bytes(data))

    assert contents.entries == [ENTRIES[1], ENTRIES[3]]
    assert [(part.offset, part.length) for part in contents.damage] == [
        (SEGMENT_HEADER_BYTES, ends[0] - SEGMENT_HEADER_BYTES),
        (ends[1], ends[2] - ends[1]),
    ]


@pytest.mark.parametrize("start", range(0, len(segment_bytes(ENTRIES)), 7))
@pytest.mark.parametrize("length", [1, 16, 64])
def test_zeroed_pages_cost_only_the_entries_they_touch(start: int, length: int) -> None:
    intact = segment_bytes(ENTRIES)
    data = intact[:start] + bytes(length) + intact[start + length :]
    data = data[: len(intact)]
    ends = ends_of(ENTRIES)
    starts = [SEGMENT_HEADER_BYTES, *ends[:-1]]

    untouched = [
        entry for entry, begin, end in zip(ENTRIES, starts, ends, strict=True) if data[begin:end] == intact[begin:end]
    ]
    assert parse(data).entries == untouched


@pytest.mark.parametrize("size", [1, SEGMENT_HEADER_BYTES, ENTRY_HEADER_BYTES, 4096])
def test_a_page_of_zeros_holds_no_entry(size: int) -> None:
    contents = parse(bytes(size))

    assert contents.entries == []
    assert contents.damaged_bytes == size


def test_zeros_behind_the_last_entry_as_after_a_power_cut_are_stepped_over() -> None:
    contents = parse(segment_bytes(ENTRIES) + bytes(4096))

    assert contents.entries == ENTRIES
    assert contents.damaged_bytes == 4096


def test_entries_behind_garbage_of_any_length_are_found_again() -> None:
    for length in range(1, 64):
        garbage = b"\xff\xa7" * 2 + b"\x00" * length
        data = segment_header() + entry_bytes(ENTRIES[0]) + garbage + entry_bytes(ENTRIES[1])

        contents = parse(data)

        assert contents.entries == ENTRIES[:2]
        assert contents.damaged_bytes == len(garbage)


def test_a_length_that_reaches_beyond_the_following_entries_does_not_hide_them() -> None:
    head = bytearray(entry_bytes(ENTRIES[0]))
    struct.pack_into("<I", head, 16, len(ENTRIES[0].body) + ENTRY_HEADER_BYTES + len(ENTRIES[1].body))

    contents = parse(segment_header() + bytes(head) + entry_bytes(ENTRIES[1]) + entry_bytes(ENTRIES[2]))

    assert contents.entries == ENTRIES[1:3]


def test_an_empty_file_holds_nothing_and_no_damage() -> None:
    contents = parse(b"")

    assert (contents.entries, contents.damage, contents.version, contents.size) == ([], [], None, 0)


def test_a_segment_without_entries_is_undamaged() -> None:
    contents = parse(segment_header())

    assert (contents.entries, contents.damage, contents.version) == ([], [], 1)


def test_entries_are_rescued_although_the_whole_header_is_gone() -> None:
    contents = parse(b"".join(map(entry_bytes, ENTRIES)))

    assert contents.entries == ENTRIES
    assert contents.version is None
    assert contents.damage == []


def test_a_segment_of_another_version_is_left_whole_for_a_version_that_reads_it() -> None:
    data = segment_header(version=2) + b"".join(map(entry_bytes, ENTRIES))

    contents = parse(data)

    assert contents.version == 2
    assert contents.entries == []
    assert contents.damaged_bytes == len(data) - SEGMENT_HEADER_BYTES


def test_an_entry_of_another_version_does_not_hide_its_neighbours() -> None:
    data = segment_header() + entry_bytes(ENTRIES[0]) + entry_bytes(ENTRIES[1], version=2) + entry_bytes(ENTRIES[2])

    contents = parse(data)

    assert contents.entries == [ENTRIES[0], ENTRIES[2]]
    assert contents.damaged_bytes == len(entry_bytes(ENTRIES[1]))


@given(st.binary(max_size=200))
def test_parse_fails_on_no_input(data: bytes) -> None:
    check_every_byte_is_accounted_for(parse(data))


@given(
    st.lists(
        st.one_of(
            st.sampled_from(ENTRIES),
            st.binary(min_size=1, max_size=40).filter(lambda noise: b"\xff" not in noise),
        ),
        max_size=12,
    )
)
def test_every_intact_entry_is_found_among_any_noise(parts: list[Entry | bytes]) -> None:
    data = segment_header() + b"".join(part if isinstance(part, bytes) else entry_bytes(part) for part in parts)

    contents = parse(data)

    assert contents.entries == [part for part in parts if isinstance(part, Entry)]
    check_every_byte_is_accounted_for(contents)


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
    contents = journal.read(segment.path)
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
    assert journal.read(opened.active.path).entries == many
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

    def refuse(fd: int, size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

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
    contents = journal.read(segment.path)
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
    assert journal.read(segment.path).entries == ENTRIES[:1]


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

    assert second.leftovers() == paths
    assert (second.bytes, second.segments) == (first.bytes, 3)
    second.open(FLOOR)
    assert second.active is not None
    assert second.active.path > paths[-1]
    second.active.close()
    second.forget(paths[0].stat().st_size)
    assert second.segments == 3


def test_foreign_files_in_the_directory_are_left_alone(tmp_path: Path) -> None:
    kept = filled(tmp_path)
    foreign = ["notes.txt", "1.segment", f"{2:020}.segment.broken", f"x{3:020}.segment"]
    for name in foreign:
        (tmp_path / name).write_bytes(b"not ours")

    opened = Journal(tmp_path)

    assert opened.leftovers() == [kept]
    assert opened.bytes == kept.stat().st_size
    assert all((tmp_path / name).read_bytes() == b"not ours" for name in foreign)


def test_a_copy_that_was_never_finished_is_removed(tmp_path: Path) -> None:
    kept = filled(tmp_path)
    copy = tmp_path / f"{1:020}.rewrite"
    copy.write_bytes(b"half")

    assert Journal(tmp_path).leftovers() == [kept]
    assert not copy.exists()


def test_a_number_under_which_damage_was_set_aside_is_not_given_again(tmp_path: Path) -> None:
    kept = journal.set_aside(filled(tmp_path))
    again = Journal(tmp_path)
    assert again.leftovers() == []
    again.open(FLOOR)
    assert again.active is not None
    again.active.close()

    journal.set_aside(again.active.path)

    assert journal.read(kept).entries == ENTRIES


def test_set_aside_keeps_the_bytes_under_a_name_that_no_start_picks_up(tmp_path: Path) -> None:
    path = filled(tmp_path)
    data = path.read_bytes()

    kept = journal.set_aside(path)

    assert not path.exists()
    assert kept.read_bytes() == data
    assert Journal(tmp_path).leftovers() == []


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


def test_rewrite_puts_the_same_bytes_on_new_pages_under_the_old_name(tmp_path: Path) -> None:
    path = filled(tmp_path)
    before, data = path.stat().st_ino, path.read_bytes()

    journal.rewrite(path)

    assert path.stat().st_ino != before
    assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_pages_are_on_the_disk_before_they_take_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(tmp_path)
    before = path.stat()
    events: list[tuple[str, bool]] = []
    fsync = os.fsync

    def watched(fd: int) -> None:
        fsync(fd)
        synced = os.fstat(fd)
        is_copy = synced.st_size == before.st_size and synced.st_ino != before.st_ino
        events.append(("copy" if is_copy else "directory", path.stat().st_ino == before.st_ino))

    monkeypatch.setattr(os, "fsync", watched)
    journal.rewrite(path)

    # (what was synced, whether the name still belonged to the old pages)
    assert events == [("copy", True), ("directory", False)]


def test_rewrite_of_a_segment_that_has_been_written_to_the_database_does_nothing(tmp_path: Path) -> None:
    journal.rewrite(tmp_path / f"{1:020}.segment")

    assert list(tmp_path.iterdir()) == []


def test_rewrite_on_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    path = filled(tmp_path)
    before, data = path.stat().st_ino, path.read_bytes()

    with file_size_limit(len(data) - 1), pytest.raises(OSError, match="no space"):
        journal.rewrite(path)

    assert (path.stat().st_ino, path.read_bytes()) == (before, data)
    assert list(tmp_path.iterdir()) == [path]


def test_survey_counts_by_the_headers_alone(tmp_path: Path) -> None:
    found = survey(filled(tmp_path))

    assert found.records == {1: 1001, 2: 4}
    assert (found.first_arrival, found.last_arrival) == (FLOOR + 1, FLOOR + 4)


def test_survey_of_an_empty_segment_knows_the_last_arrival_before_it(tmp_path: Path) -> None:
    found = survey(filled(tmp_path, []))

    assert found.records == {}
    assert (found.first_arrival, found.last_arrival) == (0, FLOOR)


def test_survey_fails_on_no_cut_and_on_no_changed_byte(tmp_path: Path) -> None:
    intact = segment_bytes(ENTRIES)
    path = tmp_path / "segment"
    for cut in range(len(intact)):
        path.write_bytes(intact[:cut])
        whole = [entry for entry, end in zip(ENTRIES, ends_of(ENTRIES), strict=True) if end <= cut]
        assert sum(survey(path).records.values()) == sum(entry.count for entry in whole)
    for position in range(len(intact)):
        data = bytearray(intact)
        data[position] ^= 0xFF
        path.write_bytes(data)
        survey(path)
