"""Records that the database refuses for good, one JSON object a line. Kept, counted, replayed; never discarded.

    letter := {"time", "kind", "key", "error_code", "error", "column", "arrival", "record", "rules"}

`key` is a list, ["session_id", "task_id"] for a task; version 1 wrote a text. `record` is as received; `rules` say how
to read it (records.Rules; version 1 wrote none); `arrival` is in µs since 1970 UTC. A replay keeps both, so the record
means the same and newer rows win. Writers append and a replay removes: each holds the lock beside the file, writes
whole lines and syncs before it returns, because the segment or letter is removed right after. All functions block.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import orjson

from flusher.segments import sync_directory
from shared.records import V1_RULES, Rules

log = logging.getLogger(__name__)

FILE_NAME = "dead_letters.jsonl"


class DeadLettersFull(Exception):
    """The file is at its cap; the batch stays in the journal until an operator makes room."""


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
    """Adds all letters or none, synced. Raises: DeadLettersFull, OSError."""
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


def read(path: Path, start: int = 0) -> Iterator[tuple[bytes, DeadLetter]]:
    """The letters with their lines, oldest first, from byte `start` on.

    Skips damaged lines, and a line cut off by a crash: its records are still in the journal.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(start)
        for line in file:
            letter = _decoded(line)
            if letter is not None:
                yield line, letter


def _decoded(line: bytes) -> DeadLetter | None:
    try:
        return msgspec.json.decode(line, type=DeadLetter)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def remove(path: Path, lines: Collection[bytes]) -> None:
    """Removes replayed letters by their lines. Raises: OSError."""
    gone = set(lines)
    copy = path.with_suffix(".new")
    with _locked(path):
        try:
            with path.open("rb") as old, copy.open("wb") as new:
                os.fchmod(new.fileno(), 0o600)
                new.writelines(line for line in old if line not in gone)
                new.flush()
                os.fsync(new.fileno())
            copy.replace(path)
        except FileNotFoundError:
            return  # somebody has removed it, and them
        except OSError:
            copy.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


class Count:
    """Counts the letters in the file; reads only the bytes added since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = (0, 0, 0)
        self._end = 0
        self._letters = 0
        self._unended = 0

    def look(self) -> int:
        """Blocks. Raises: OSError."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            if self._letters:
                log.error("%s was removed by somebody, with %d dead letters", self._path, self._letters)
            self.__init__(self._path)  # type: ignore[misc]
            return 0
        with file:
            status = os.fstat(file.fileno())
            inode, size, _ = seen = (status.st_ino, status.st_size, status.st_mtime_ns)
            if seen == self._seen:
                return self._letters + self._unended
            if inode != self._seen[0] or size <= self._seen[1]:  # rewritten, not grown
                self._end = self._letters = 0
            self._seen, self._unended = seen, 0
            file.seek(self._end)
            for line in file:
                if line.endswith(b"\n"):
                    self._end += len(line)
                    self._letters += _decoded(line) is not None
                else:
                    self._unended = _decoded(line) is not None
        return self._letters + self._unended


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Locks a file beside the letters, because remove() replaces the letters' own."""
    fd = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
