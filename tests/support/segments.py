"""Segments for tests: their bytes from the grammar, not from the code, and one that a Journal has written."""

from __future__ import annotations

import resource
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flusher.journal import Journal
from flusher.recovery import recover
from flusher.segments import ENTRY_HEADER_BYTES, SEGMENT_HEADER_BYTES, Entry

FLOOR = 1_700_000_000_000_000
ENTRIES = [
    Entry(1, 1, FLOOR + 1, b'{"sessions":[{"session_id":"s1"}]}'),
    Entry(2, 3, FLOOR + 2, '{"tasks":["é","你好","🙂"]}'.encode()),
    Entry(2, 1, FLOOR + 3, b"{}", b"\1Asia/Shanghai"),
    Entry(1, 1000, FLOOR + 4, b'{"sessions":[]}'),
]


def segment_header(version: int = 2, floor: int = FLOOR) -> bytes:
    head = b"PSJ\xff" + struct.pack("<BBHQ", version, 0, 0, floor)
    return head + struct.pack("<I", zlib.crc32(head))


def entry_bytes(entry: Entry, version: int = 2) -> bytes:
    payload = entry.rules + entry.body
    head = struct.pack("<HBBIQI", 0xA7FF, version, entry.kind, entry.count, entry.arrival, len(payload))
    if version > 1:
        head += struct.pack("<BBH", len(entry.rules), 0, 0)
    return head + struct.pack("<I", zlib.crc32(head + payload)) + payload


def segment_bytes(entries: Sequence[Entry]) -> bytes:
    return segment_header() + b"".join(map(entry_bytes, entries))


def ends_of(entries: Sequence[Entry]) -> list[int]:
    """Where each entry ends in its segment."""
    ends: list[int] = []
    at = SEGMENT_HEADER_BYTES
    for entry in entries:
        at += ENTRY_HEADER_BYTES + len(entry.rules) + len(entry.body)
        ends.append(at)
    return ends


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """A file system that has no room: files of this process end at `size` bytes (setrlimit(2))."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def filled(directory: Path, entries: Sequence[Entry] = ENTRIES, floor: int = FLOOR) -> Path:
    """A further segment. Returns: its file."""
    opened = opened_journal(directory, floor)
    opened.append(entries)
    return closed(opened)


def opened_journal(directory: Path, floor: int = FLOOR, **disk: Any) -> Journal:
    """One that goes on after an earlier run's segments."""
    journal = Journal(directory, **disk)
    recover(journal)
    journal.last_arrival = floor
    journal.open()
    return journal


def closed(journal: Journal) -> Path:
    """Ends a journal as a crash does. Returns: its active segment's file."""
    assert journal.active is not None
    journal.active.close()
    return journal.active.path


def recovered(directory: Path) -> Journal:
    journal = Journal(directory)
    recover(journal)
    return journal
