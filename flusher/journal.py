"""Segment files: where an acknowledged body lies until its rows are in the database.

Byte grammar, little-endian, version 1. A segment is one buffer generation; its name is its sequence number.

    segment := magic:u8[4]="PSJ\\xff" version:u8 0:u8 0:u16 floor:u64 crc:u32 entry*
    entry   := magic:u16=0xa7ff version:u8 kind:u8 count:u32 arrival:u64 length:u32 crc:u32 body:u8[length]

`floor` is the last arrival given out before the segment was opened, so that arrivals keep rising over a restart even
when the clock steps back. `arrival` counts µs since 1970 UTC. A crc covers everything of its header before it, and
the body; no body is empty, so a page of zeros is no entry. The bytes ff and a7 in this order are never valid UTF-8:
a body cannot contain an entry, and a reader that has lost its place finds the next entry by searching for them.
To change the format: raise VERSION, keep a reader for what earlier versions may have left on the disk.

Rules: one Journal owns the directory (the caller holds the lock); everything but SegmentFile's sync() and leave_cache()
and the functions at the end belongs to the loop's thread. A write reaches the file whole or not at all: on a short or
failed write the file is cut back to its last good byte. Nothing here waits for the disk except sync(), read() and
rewrite().
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

try:
    from isal.isal_zlib import crc32  # the same crc, 13 times as fast (docs/PERFORMANCE.md)
except ImportError:  # it is installed only where there are wheels of it
    from zlib import crc32

VERSION = 1
SUFFIX = ".segment"
BROKEN_SUFFIX = ".broken"
REWRITE_SUFFIX = ".rewrite"
SEGMENT_MAGIC = b"PSJ\xff"
ENTRY_MAGIC = b"\xff\xa7"

_SEGMENT = struct.Struct("<4sBBHQI")
_ENTRY = struct.Struct("<2sBBIQII")
_CRC = struct.Struct("<I")
SEGMENT_HEADER_BYTES = _SEGMENT.size
ENTRY_HEADER_BYTES = _ENTRY.size
_NAME = re.compile(r"\d{20}\.segment")
_REWRITE_NAME = re.compile(r"\d{20}\.rewrite")
_BUFFERS_AT_ONCE = 1024
"""IOV_MAX, the most buffers that one writev(2) takes."""


class JournalWriteFailed(Exception):
    """Nothing of the append is in the journal; the disk or its operator must act."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    kind: int
    count: int
    arrival: int
    body: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Damage:
    """A stretch of a segment that holds no readable entry."""

    offset: int
    length: int


@dataclass(slots=True)
class Contents:
    """What a segment file holds. `version` is None where the header is unreadable."""

    entries: list[Entry]
    damage: list[Damage]
    floor: int
    version: int | None
    size: int

    @property
    def damaged_bytes(self) -> int:
        return sum(part.length for part in self.damage)


@dataclass(slots=True)
class SegmentFile:
    """A segment open for appending. `size` is its last good byte, `synced` how much of it is on the disk.

    `torn`: behind the last good byte lie bytes that could not be cut off. A reader steps over them, but nothing
    may be appended any more.
    """

    sequence: int
    path: Path
    fd: int
    size: int = 0
    synced: int = 0
    named: bool = False
    sealed: bool = False
    torn: bool = False
    fdatasync: Callable[[int], None] = field(default=os.fdatasync, repr=False)

    def sync(self) -> int:
        """Blocks until what is written is on the disk, the file's name included. For the syncer's thread.

        Returns: the size that is now safe. Raises: OSError; after it the kernel may have dropped the pages, so
        the same file must not be synced again (PostgreSQL's fsync findings of 2018).
        """
        size = self.size
        self.fdatasync(self.fd)
        if not self.named:
            sync_directory(self.path.parent)
            self.named = True
        return size

    def leave_cache(self) -> None:
        """Gives back the memory of what is synced: who reads it, reads the disk. For the syncer's thread."""
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Journal:
    """The active segment and the bytes of all segments."""

    def __init__(
        self,
        directory: Path,
        *,
        writev: Callable[[int, Sequence[bytes | memoryview]], int] = os.writev,
        fdatasync: Callable[[int], None] = os.fdatasync,
    ) -> None:
        self._directory = directory
        self._writev = writev
        self._fdatasync = fdatasync
        self._next = 1
        self.active: SegmentFile | None = None
        self.bytes = 0
        self.segments = 0

    def leftovers(self) -> list[Path]:
        """The segments on the disk, oldest first, counted into `bytes`; for the start. Foreign files are left alone."""
        names = sorted(self._directory.iterdir())
        for path in names:
            if _REWRITE_NAME.fullmatch(path.name):
                path.unlink()  # a copy that was never finished; its original is there
        found = [path for path in names if _NAME.fullmatch(path.name)]
        self.bytes = sum(path.stat().st_size for path in found)
        self.segments = len(found)
        # Also past the files that were set aside: a name is never used twice.
        self._next = max((sequence_of(path) for path in names if path.name[:20].isdecimal()), default=0) + 1
        return found

    def open(self, floor: int) -> None:
        """Opens the next active segment, unless there is one.

        Raises: JournalWriteFailed, and then there is none.
        """
        if self.active is not None:
            return
        sequence, self._next = self._next, self._next + 1
        path = self._directory / f"{sequence:020}{SUFFIX}"
        head = _SEGMENT.pack(SEGMENT_MAGIC, VERSION, 0, 0, floor, 0)[:-4]
        head += _CRC.pack(crc32(head))
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise JournalWriteFailed(f"{path}: {error.strerror}") from error
        segment = SegmentFile(sequence, path, fd, fdatasync=self._fdatasync)
        try:
            self._write(segment, [head])
        except JournalWriteFailed:
            segment.close()
            path.unlink(missing_ok=True)
            raise
        self.active = segment
        self.segments += 1

    def append(self, entries: Sequence[Entry]) -> None:
        """Writes entries behind each other into the active segment: all of them, or none.

        Raises: JournalWriteFailed. Ensures: after it, the file ends where it ended before.
        """
        if self.active is None or self.active.torn:
            raise JournalWriteFailed("no segment is open")
        buffers: list[bytes | memoryview] = []
        for entry in entries:
            buffers += (entry_header(entry), entry.body)
        self._write(self.active, buffers)

    def seal(self) -> SegmentFile:
        """Takes the active segment out. The caller opens the next, and closes this one once it is synced."""
        assert self.active is not None
        segment, self.active = self.active, None
        segment.sealed = True
        return segment

    def truncate(self, segment: SegmentFile, size: int) -> None:
        """Cuts entries off the end that nobody was promised. Raises: OSError."""
        os.ftruncate(segment.fd, size)
        self.bytes -= segment.size - size
        segment.size = size

    def forget(self, size: int) -> None:
        """Counts out a segment that has left the directory."""
        self.bytes -= size
        self.segments -= 1

    def _write(self, segment: SegmentFile, buffers: Sequence[bytes | memoryview]) -> None:
        start = segment.size
        written = 0
        try:
            for at in range(0, len(buffers), _BUFFERS_AT_ONCE):
                part = buffers[at : at + _BUFFERS_AT_ONCE]
                want = sum(map(len, part))
                done = self._writev(segment.fd, part)
                written += done
                if done != want:
                    # A regular file takes less than asked for only where the disk is full (write(2)).
                    raise OSError(28, f"{done} of {want} bytes were taken: no space left on device")
        except OSError as error:
            self._cut_back(segment, start)
            raise JournalWriteFailed(f"{segment.path}: {error.strerror}") from error
        segment.size = start + written
        self.bytes += written

    def _cut_back(self, segment: SegmentFile, size: int) -> None:
        try:
            os.ftruncate(segment.fd, size)
        except OSError:
            segment.torn = True


def entry_header(entry: Entry) -> bytes:
    length = len(entry.body)
    assert length, "no body is empty"
    head = _ENTRY.pack(ENTRY_MAGIC, VERSION, entry.kind, entry.count, entry.arrival, length, 0)[:-4]
    return head + _CRC.pack(crc32(entry.body, crc32(head)))


def read(path: Path) -> Contents:
    """Everything readable in a segment, whatever else is in it. Blocks. Raises: OSError."""
    return parse(path.read_bytes())


def parse(data: bytes) -> Contents:
    """Bytes of a segment -> its entries, as views into `data`, and what lies between them. Fails on no input."""
    version: int | None = None
    floor = 0
    at = 0
    if len(data) >= SEGMENT_HEADER_BYTES:
        magic, found, _, _, stored_floor, crc = _SEGMENT.unpack_from(data)
        if magic == SEGMENT_MAGIC and crc == crc32(data[: SEGMENT_HEADER_BYTES - 4]):
            version, floor, at = found, stored_floor, SEGMENT_HEADER_BYTES
    contents = Contents([], [], floor, version, len(data))
    if version not in (None, VERSION):
        contents.damage.append(Damage(at, len(data) - at))
        return contents
    view = memoryview(data)
    while at < len(data):
        entry = _entry_at(data, view, at)
        if entry is not None:
            contents.entries.append(entry)
            at += ENTRY_HEADER_BYTES + len(entry.body)
            continue
        start = at
        at = data.find(ENTRY_MAGIC, at + 1)
        while at >= 0 and _entry_at(data, view, at) is None:
            at = data.find(ENTRY_MAGIC, at + 1)
        if at < 0:
            at = len(data)
        if version is None and start == 0:
            # Without a good header the first bytes are the header's own.
            contents.damage.append(Damage(0, at))
        else:
            contents.damage.append(Damage(start, at - start))
    return contents


def _entry_at(data: bytes, view: memoryview, at: int) -> Entry | None:
    body_at = at + ENTRY_HEADER_BYTES
    if body_at > len(data):
        return None
    magic, version, kind, count, arrival, length, crc = _ENTRY.unpack_from(data, at)
    if magic != ENTRY_MAGIC or version != VERSION or not 0 < length <= len(data) - body_at:
        return None
    body = view[body_at : body_at + length]
    if crc32(body, crc32(view[at : body_at - 4])) != crc:
        return None
    return Entry(kind, count, arrival, body)


@dataclass(frozen=True, slots=True)
class Survey:
    """What the headers of a segment's entries say, up to the first that is unreadable."""

    records: dict[int, int]
    first_arrival: int
    last_arrival: int


def survey(path: Path) -> Survey:
    """Counts by the headers alone, in constant memory; the writer reads the bodies. Blocks. Raises: OSError."""
    records: dict[int, int] = {}
    first = last = 0
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(SEGMENT_HEADER_BYTES)
        if len(head) == SEGMENT_HEADER_BYTES:
            last = _SEGMENT.unpack(head)[4] if _CRC.unpack(head[-4:])[0] == crc32(head[:-4]) else 0
        while len(head := file.read(ENTRY_HEADER_BYTES)) == ENTRY_HEADER_BYTES:
            magic, version, kind, count, arrival, length, _ = _ENTRY.unpack(head)
            if magic != ENTRY_MAGIC or version != VERSION or not 0 < length <= size - file.tell():
                break
            records[kind] = records.get(kind, 0) + count
            first = min(first or arrival, arrival)
            last = max(last, arrival)
            file.seek(length, os.SEEK_CUR)
    return Survey(records, first, last)


def rewrite(path: Path) -> None:
    """Gives a segment new pages on the disk, synced, under its old name; for one whose fsync has failed. Blocks.

    Raises: OSError; the old file is then as it was. A file that is gone has been written to the database.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    copy = path.with_suffix(REWRITE_SUFFIX)
    fd = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if os.write(fd, data) != len(data):
            raise OSError(28, "no space left on device")
        os.fsync(fd)
        copy.replace(path)
        sync_directory(path.parent)
    finally:
        os.close(fd)
        copy.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Keeps a damaged segment for a human under a name that no start picks up. Blocks. Raises: OSError."""
    kept = path.with_suffix(SUFFIX + BROKEN_SUFFIX)
    path.replace(kept)
    sync_directory(path.parent)
    return kept


def sequence_of(path: Path) -> int:
    return int(path.name[:20])


def sync_directory(directory: Path) -> None:
    """Makes creations, renames and removals in a directory survive a power cut (fsync(2)). Blocks."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
