"""Records that the database refuses for good, one JSON object a line. Kept, counted, replayed; never discarded.

    letter := {"time", "kind", "key", "error_code", "error", "column", "arrival", "record"}

`record` is what was received, `arrival` when (µs since 1970 UTC): a replay keeps it, so that the merge rule protects
rows that are newer. Several writers append: each holds the lock on the file, writes whole lines in append mode and
syncs before it returns, since the segment goes right after. All functions block.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import orjson

FILE_NAME = "dead_letters.jsonl"


class DeadLettersFull(Exception):
    """The file is at its cap: the batch is kept in the journal until an operator makes room."""


class DeadLetter(msgspec.Struct, frozen=True):
    time: str
    kind: str
    key: str
    error_code: int
    error: str
    column: str | None
    arrival: int
    record: Any


def append(path: Path, letters: Sequence[DeadLetter], max_bytes: int) -> None:
    """Adds letters, all or none, synced. Raises: DeadLettersFull, OSError."""
    data = b"".join(orjson.dumps(msgspec.to_builtins(letter)) + b"\n" for letter in letters)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            data = b"\n" + data  # a crash has cut the last line off; ours must not become part of it
        if size + len(data) > max_bytes:
            raise DeadLettersFull(f"{path} has {size} bytes, {len(data)} more are over its {max_bytes}")
        try:
            if os.write(fd, data) != len(data):
                raise OSError(28, "no space left on device")
            os.fsync(fd)
        except OSError:
            os.ftruncate(fd, size)
            raise
    finally:
        os.close(fd)


def read(path: Path) -> Iterator[DeadLetter]:
    """The letters, oldest first; a line cut off by a crash is passed over, its records are still in the journal."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            try:
                yield msgspec.json.decode(line, type=DeadLetter)
            except msgspec.DecodeError:
                continue


def count(path: Path) -> int:
    return sum(1 for _ in read(path))
