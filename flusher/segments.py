"""The bytes of a segment file: format, reader, and the file operations on a whole segment.

Byte grammar, little-endian, version 2:

    segment := magic:u8[4]="PSJ\\xff" version:u8 0:u8 0:u16 floor:u64 crc:u32 entry*
    entry   := magic:u16=0xa7ff version:u8 kind:u8 count:u32 arrival:u64 length:u32 size:u8 0:u8 0:u16 crc:u32
               rules:u8[size] body:u8[length - size]

`floor` is the last arrival given out before the segment was opened: arrivals keep rising over a restart even if the
clock steps back. `arrival` is in µs since 1970 UTC. `rules` (records.Rules) say how to read the body, so a changed
setting does not change an accepted record. A crc covers its header, the rules and the body. A body is never empty, so a
page of zeros is no entry. The bytes ff a7 are never valid UTF-8: no body contains an entry, and a reader that meets
damage finds the next entry by searching for them.

kill -9 or a power cut leaves a torn tail: zeros, or the beginning of a header or of an entry that is longer than the
rest of the file, and nothing readable behind it. The append was never acknowledged (unless acks did not wait for the
disk and power was cut). Everything else that is unreadable is damage.

To change the format: raise VERSION and keep a reader for the earlier versions. Version 1 had no size and no rules.

Rules: no state; for any thread and process. Functions that take a path block.
"""

from __future__ import annotations

import errno
import os
import shlex
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from shared.records import V1_RULES
from shared.wire import MAX_FRAME_BYTES

try:
    from isal.isal_zlib import crc32  # the same crc, 13 times as fast (docs/PERFORMANCE.md)
except ImportError:  # no wheel for this platform
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
"""Size of an entry's header, by version."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    kind: int
    count: int
    arrival: int
    body: bytes | memoryview
    rules: bytes = b""


class Damage(NamedTuple):
    """A stretch of a segment that holds no readable entry."""

    offset: int
    length: int


@dataclass(slots=True)
class Contents:
    """What a segment holds. `version` is None if its header is unreadable; `torn`: bytes of a torn tail."""

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
    """The bytes before the body: header and rules."""
    rules = entry.rules
    size = len(rules)
    assert entry.body, "no body is empty"
    length = size + len(entry.body)
    head = _ENTRY.pack(ENTRY_MAGIC, VERSION, entry.kind, entry.count, entry.arrival, length, size, 0, 0, 0)[:-4]
    return head + _CRC.pack(crc32(entry.body, crc32(rules, crc32(head)))) + rules


def read(path: Path, size: int | None = None) -> Contents:
    """Reads a segment, or its first `size` bytes; bytes missing from those are damage. Raises: OSError."""
    data = path.read_bytes()
    contents = parse(data[:size])
    if size is not None and len(data) < size:
        contents.damage.append(Damage(len(data), size - len(data)))
        contents.torn = 0
    return contents


def parse(data: bytes) -> Contents:
    """Finds the entries, as views into `data`, and the damage between them. Fails on no input."""
    contents = Contents([], [], 0, None, len(data))
    at = 0
    if len(data) >= SEGMENT_HEADER_BYTES:
        magic, version, _, _, floor, crc = _SEGMENT.unpack_from(data)
        if magic == SEGMENT_MAGIC and crc == crc32(data[: SEGMENT_HEADER_BYTES - 4]):
            contents.version, contents.floor, at = version, floor, SEGMENT_HEADER_BYTES
    if contents.version is not None and contents.version not in _HEADER_BYTES:
        contents.damage.append(Damage(at, len(data) - at))
        return contents
    view = memoryview(data)
    while at < len(data):
        found = _entry_at(data, view, at)
        if found is not None:
            contents.entries.append(found[0])
            at = found[1]
            continue
        start = at
        at = data.find(ENTRY_MAGIC, at + 1)
        while at >= 0 and _entry_at(data, view, at) is None:
            at = data.find(ENTRY_MAGIC, at + 1)
        if at < 0:
            at = len(data)
            contents.torn = (at - start) * _is_torn(data, start)
        contents.damage.append(Damage(start, at - start))
    return contents


def _is_torn(data: bytes, at: int) -> bool:
    """Whether the rest of the file looks like an append that was cut off."""
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
    """Returns: the entry at that offset, and its end; None if there is no intact one."""
    if at + _ENTRY_V1.size > len(data):
        return None
    magic, version, kind, count, arrival, length, _ = _ENTRY_V1.unpack_from(data, at)  # every version starts so
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


class Summary(NamedTuple):
    """Record counts by kind's code, and the earliest arrival."""

    records: dict[int, int]
    first_arrival: int


def summarize(path: Path) -> Summary:
    """Counts by the entries' headers alone, up to the first unreadable one, in constant memory. Raises: OSError."""
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
    return Summary(records, first)


def rewrite(path: Path, size: int) -> None:
    """Copies the first `size` bytes of a segment to new pages, synced, under the same name; for a failed fsync.

    Raises: OSError; the old file is then unchanged. A missing file is no error: the database has its records.
    """
    try:
        data = path.read_bytes()[:size]
    except FileNotFoundError:
        return
    copy = path.with_suffix(REWRITE_SUFFIX)
    fd = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, data)
        os.fsync(fd)
        copy.replace(path)
        sync_directory(path.parent)
    finally:
        os.close(fd)
        copy.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Renames a damaged segment so that no start reads it; a human may. Raises: OSError.

    If a power cut undoes the renaming, the next start repeats it.
    """
    kept = path.with_suffix(SUFFIX + BROKEN_SUFFIX)
    path.replace(kept)
    with suppress(OSError):
        sync_directory(path.parent)
    return kept


def remove(path: Path, damaged: bool) -> None:
    """Removes a written segment; sets it aside if parts were unreadable. Raises: OSError."""
    if damaged:
        set_aside(path)
    else:
        path.unlink(missing_ok=True)


def write_all(fd: int, data: bytes) -> None:
    """Raises: OSError, also for a short write, which means a full disk (write(2))."""
    if os.write(fd, data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def probe(path: Path, size: int) -> None:
    """Writes a file of `size` bytes and removes it. Raises: OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, bytes(size))
    finally:
        os.close(fd)
        path.unlink()


def count_broken(directory: Path) -> int:
    """Raises: OSError."""
    return sum(path.name.endswith(SUFFIX + BROKEN_SUFFIX) for path in directory.iterdir())


def sync_directory(directory: Path) -> None:
    """Makes created, renamed and removed names survive a power cut (fsync(2)). Raises: OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def has_vanished(path: Path) -> bool:
    """Whether this file alone was removed; a missing directory may come back with it."""
    return path.parent.is_dir() and not os.path.lexists(path)


_ADVICE = {
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "make room on its disk, or raise the quota",
    errno.EROFS: "mount its file system for writing",
    errno.EIO: "the disk fails: look into the kernel's log (dmesg)",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "allow the machine more open files (sysctl fs.file-max)",
}


def advice(error: OSError, path: Path) -> str:
    """The operator's step after a failed read or write of that file; the service then recovers by itself."""
    where = shlex.quote(str(path))
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"give it to the service's user alone (chown, chmod u+rw {where})"
    if error.errno == errno.ENOENT:
        directory = shlex.quote(str(path.parent))
        return f"put {directory} back, or go on without what was in it: (umask 077; mkdir -p {directory})"
    return _ADVICE.get(error.errno or 0, f"move it away to go on without it (mv {where} /somewhere/else)")
