"""Records that the database refuses for good, one JSON object a line. Kept, counted, replayed; never discarded.

    letter := {"time", "kind", "key", "error_code", "error", "column", "arrival", "record", "rules"}

`key` is a list, ["session_id", "task_id"] for a task; version 1 wrote a text. `record` is what was received, `rules`
what it means (records.Rules; version 1 wrote none), `arrival` when (µs since 1970 UTC): a replay keeps both, so that
the record means the same and the merge rule protects rows that are newer. Several writers append and a replay removes:
each holds the lock beside the file, writes whole lines and syncs before it returns, since the segment, or the letter,
goes right after. All functions block.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import orjson

from flusher.segments import sync_directory
from shared.records import V1_RULES, Rules

FILE_NAME = "dead_letters.jsonl"


class DeadLettersFull(Exception):
    """The file is at its cap: the batch is kept in the journal until an operator makes room."""


class DeadLetter(msgspec.Struct, frozen=True):
    time: str
    kind: str
    key: tuple[str, ...] | str
    error_code: int
    error: str
    column: str | None
    arrival: int
    record: Any
    rules: Rules = Rules.decode(V1_RULES)

    @property
    def ids(self) -> tuple[str, ...]:
        return (self.key,) if isinstance(self.key, str) else self.key


def append(path: Path, letters: Sequence[DeadLetter], max_bytes: int) -> None:
    """Adds letters, all or none, synced. Raises: DeadLettersFull, OSError."""
    data = b"".join(orjson.dumps(msgspec.to_builtins(letter)) + b"\n" for letter in letters)
    with _locked(path):
        created = not path.exists()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                data = b"\n" + data  # a crash has cut the last line off; ours must not become part of it
            if size + len(data) > max_bytes:
                raise DeadLettersFull(
                    f"{path.name} has {size} bytes, {len(data)} more are over dead_letters.max_bytes = {max_bytes}"
                )
            try:
                if os.write(fd, data) != len(data):
                    raise OSError(28, "no space left on device", str(path))
                os.fsync(fd)
            except OSError:
                os.ftruncate(fd, size)
                raise
        finally:
            os.close(fd)
        if created:
            sync_directory(path.parent)


def read(path: Path) -> Iterator[tuple[bytes, DeadLetter]]:
    """The letters with their lines, oldest first. A line cut off by a crash is passed over, its records are still in
    the journal, since the segment goes only after the sync; so is one that the disk has spoilt."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            try:
                yield line, msgspec.json.decode(line, type=DeadLetter)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue


def remove(path: Path, lines: Collection[bytes]) -> None:
    """Takes out letters that were replayed, by their lines; the others, and new ones, stay. Raises: OSError."""
    gone = set(lines)
    copy = path.with_suffix(".new")
    with _locked(path):
        with path.open("rb") as old, copy.open("wb") as new:
            os.fchmod(new.fileno(), 0o600)
            new.writelines(line for line in old if line not in gone)
            new.flush()
            os.fsync(new.fileno())
        copy.replace(path)
        sync_directory(path.parent)


def count(path: Path) -> int:
    return sum(1 for _ in read(path))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """A lock file of its own: a lock on the letters would be lost when remove() replaces the file."""
    fd = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
