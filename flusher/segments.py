"""Segments: the files where an acknowledged body lies until its rows are in the database, and the bytes in them.

Byte grammar, little-endian, version 2. A segment is one buffer generation; its name is its sequence number.

    segment := magic:u8[4]="PSJ\\xff" version:u8 0:u8 0:u16 floor:u64 crc:u32 entry*
    entry   := magic:u16=0xa7ff version:u8 kind:u8 count:u32 arrival:u64 length:u32 size:u8 0:u8 0:u16 crc:u32
               rules:u8[size] body:u8[length - size]

`floor` is the last arrival given out before the segment was opened, so that arrivals keep rising over a restart even
when the clock steps back. `arrival` counts µs since 1970 UTC. `rules` decide what the body means (records.Rules), so
that a changed setting does not change what was accepted. A crc covers everything of its header before it, the rules and
the body; no body is empty, so a page of zeros is no entry. The bytes ff and a7 in this order are never valid UTF-8:
a body cannot contain an entry, and a reader that has lost its place finds the next entry by searching for them.
An append that was cut off by kill -9 or a power cut leaves a torn tail: the beginning of a header or of an entry that
is longer than the rest of the file, or zeros, and nothing readable behind it. In the newest segment nobody was promised
these bytes, unless power was cut and acks did not wait for the disk; anything else that is unreadable is damage. (An
entry whose length the disk has spoilt may look the same.)

To change the format: raise VERSION, keep a reader for what earlier versions may have left on the disk.

Version 1, which is still read, had no `size`, no zeros behind it, and no rules: V1_RULES say what its bodies mean.

Rules: no state and no loop: for any thread and any process. What opens a file blocks. A segment is one that nobody
appends to any more, or is read as far as it has come.
"""

from __future__ import annotations

import errno
import os
import shlex
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from shared.records import V1_RULES
from shared.wire import MAX_FRAME_BYTES

try:
    from isal.isal_zlib import crc32  # the same crc, 13 times as fast (docs/PERFORMANCE.md)
except ImportError:  # it is installed only where there are wheels of it
    from zlib import crc32

VERSION = 2
SUFFIX = ".segment"
BROKEN_SUFFIX = ".broken"
REWRITE_SUFFIX = ".rewrite"
SEGMENT_MAGIC = b"PSJ\xff"
ENTRY_MAGIC = b"\xff\xa7"

_SEGMENT = struct.Struct("<4sBBHQI")
_ENTRY = struct.Struct("<2sBBIQIBBHI")
_ENTRY_V1 = struct.Struct("<2sBBIQII")
_CRC = struct.Struct("<I")
SEGMENT_HEADER_BYTES = _SEGMENT.size
ENTRY_HEADER_BYTES = _ENTRY.size
_HEADER_BYTES = {1: _ENTRY_V1.size, VERSION: ENTRY_HEADER_BYTES}
"""Of an entry, by version."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    kind: int
    count: int
    arrival: int
    body: bytes | memoryview
    rules: bytes = b""


@dataclass(frozen=True, slots=True)
class Damage:
    """A stretch of a segment that holds no readable entry."""

    offset: int
    length: int


@dataclass(slots=True)
class Contents:
    """What a segment file holds. `version` is None where the header is unreadable; `torn` counts the bytes of the last
    damage if that looks like a torn tail."""

    entries: list[Entry]
    damage: list[Damage]
    floor: int
    version: int | None
    size: int
    torn: int = 0

    @property
    def damaged_bytes(self) -> int:
        return sum(part.length for part in self.damage)


def segment_header(floor: int) -> bytes:
    head = _SEGMENT.pack(SEGMENT_MAGIC, VERSION, 0, 0, floor, 0)[:-4]
    return head + _CRC.pack(crc32(head))


def entry_header(entry: Entry) -> bytes:
    """What stands before the body: the header and the rules."""
    rules = entry.rules
    size = len(rules)
    assert entry.body, "no body is empty"
    length = size + len(entry.body)
    head = _ENTRY.pack(ENTRY_MAGIC, VERSION, entry.kind, entry.count, entry.arrival, length, size, 0, 0, 0)[:-4]
    return head + _CRC.pack(crc32(entry.body, crc32(rules, crc32(head)))) + rules


def read(path: Path, size: int | None = None) -> Contents:
    """Everything readable in a segment, or in its first `size` bytes: more were never promised to anybody, and what is
    missing of them is damage. Blocks. Raises: OSError."""
    data = path.read_bytes()
    if size is None:
        return parse(data)
    contents = parse(data[:size])
    if len(data) < size:
        contents.damage.append(Damage(len(data), size - len(data)))
        contents.torn = 0
    return contents


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
    if version is not None and version not in _HEADER_BYTES:
        contents.damage.append(Damage(at, len(data) - at))
        return contents
    view = memoryview(data)
    while at < len(data):
        found = _entry_at(data, view, at)
        if found is not None:
            entry, at = found
            contents.entries.append(entry)
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
    if contents.damage and contents.damage[-1].offset + contents.damage[-1].length == len(data):
        contents.torn = contents.damage[-1].length * _is_torn(data, contents.damage[-1].offset)
    return contents


def _is_torn(data: bytes, at: int) -> bool:
    """Whether the rest from there looks like an append that had not ended."""
    rest = len(data) - at
    if data.count(0, at) == rest:
        return True
    if not at and rest < SEGMENT_HEADER_BYTES and SEGMENT_MAGIC.startswith(data[:4]):
        return True
    if rest < _ENTRY_V1.size:
        return ENTRY_MAGIC.startswith(data[at : at + 2]) and (rest < 3 or data[at + 2] in _HEADER_BYTES)
    magic, version, _, _, _, length, _ = _ENTRY_V1.unpack_from(data, at)
    return bool(magic == ENTRY_MAGIC and rest - _HEADER_BYTES.get(version, rest) < length <= MAX_FRAME_BYTES)


def _entry_at(data: bytes, view: memoryview, at: int) -> tuple[Entry, int] | None:
    """The entry that starts there, and where it ends."""
    if at + _ENTRY_V1.size > len(data):
        return None
    magic, version, kind, count, arrival, length, _ = _ENTRY_V1.unpack_from(data, at)  # as it starts in every version
    payload_at = at + _HEADER_BYTES.get(version, 0)
    end = payload_at + length
    if magic != ENTRY_MAGIC or payload_at == at or not length or end > len(data):
        return None
    rules, body_at = V1_RULES, payload_at
    if version == VERSION:
        body_at += data[at + _ENTRY_V1.size - 4]
        rules = data[payload_at:body_at]
    (crc,) = _CRC.unpack_from(data, payload_at - 4)
    if body_at >= end or crc32(view[payload_at:end], crc32(view[at : payload_at - 4])) != crc:
        return None
    return Entry(kind, count, arrival, view[body_at:end], rules), end


@dataclass(frozen=True, slots=True)
class Survey:
    """What the headers of a segment's entries say, up to the first that is unreadable."""

    records: dict[int, int]
    first_arrival: int


def survey(path: Path) -> Survey:
    """Counts by the headers alone, in constant memory; the writer reads the bodies. Blocks. Raises: OSError."""
    records: dict[int, int] = {}
    first = 0
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(SEGMENT_HEADER_BYTES)
        while len(head := file.read(_ENTRY_V1.size)) == _ENTRY_V1.size:
            magic, version, kind, count, arrival, length, _ = _ENTRY_V1.unpack(head)
            length += _HEADER_BYTES.get(version, 0) - len(head)
            if magic != ENTRY_MAGIC or version not in _HEADER_BYTES or not 0 < length <= size - file.tell():
                break
            records[kind] = records.get(kind, 0) + count
            first = min(first or arrival, arrival)
            file.seek(length, os.SEEK_CUR)
    return Survey(records, first)


def rewrite(path: Path, size: int) -> None:
    """Gives the first `size` bytes of a segment new pages on the disk, synced, under its old name. Blocks.

    For one whose fsync has failed.

    Raises: OSError; the old file is then as it was. A file that is gone has been written to the database.
    """
    try:
        data = path.read_bytes()[:size]
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
    """Keeps a damaged segment for a human under a name that no start picks up. Blocks. Raises: OSError.

    Where the new name does not survive a power cut, the next start does it again.
    """
    kept = path.with_suffix(SUFFIX + BROKEN_SUFFIX)
    path.replace(kept)
    with suppress(OSError):
        sync_directory(path.parent)
    return kept


def remove(path: Path, damaged: bool) -> None:
    """Takes a written segment away; one with unreadable parts is kept for a human. Blocks. Raises: OSError."""
    if damaged:
        set_aside(path)
    else:
        path.unlink(missing_ok=True)


_ADVICE = {
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "make room on its disk, or raise the quota",
    errno.EROFS: "mount its file system for writing",
    errno.EIO: "the disk fails: look into the kernel's log (dmesg)",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "allow the machine more open files (sysctl fs.file-max)",
}
"""What an operator does about it, after which all goes on by itself."""


def advice(error: OSError, path: Path) -> str:
    """The command, or the step, that ends a failure to read or write a file of ours."""
    where = shlex.quote(str(path))
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"give it to the service's user alone (chown, chmod u+rw {where})"
    if error.errno == errno.ENOENT:
        directory = shlex.quote(str(path.parent))
        return f"put {directory} back, or go on without what was in it: (umask 077; mkdir -p {directory})"
    return _ADVICE.get(error.errno or 0, f"move it away to go on without it (mv {where} /somewhere/else)")


def has_vanished(path: Path) -> bool:
    """Whether somebody has taken this file away, rather than all of its directory, which may come back."""
    return path.parent.is_dir() and not os.path.lexists(path)


def sync_directory(directory: Path) -> None:
    """Makes creations, renames and removals in a directory survive a power cut (fsync(2)). Blocks."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
