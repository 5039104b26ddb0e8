"""The journal: the active segment, and the bytes of all segments in the directory.

Rules: one Journal owns the directory (the caller holds the lock); everything but SegmentFile's sync() and leave_cache()
belongs to the loop's thread. A write reaches the file whole or not at all: on a short or failed write the file is cut
back to its last good byte. Nothing here waits for the disk except sync().
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flusher.segments import SUFFIX, Entry, advice, entry_header, segment_header, sequence_of, sync_directory

_NAME = re.compile(r"\d{20}\.segment")
_REWRITE_NAME = re.compile(r"\d{20}\.rewrite")
PROBE_NAME = "probe"
_BUFFERS_AT_ONCE = 1024
"""IOV_MAX, the most buffers that one writev(2) takes."""


class JournalWriteFailed(Exception):
    """Nothing of the append is in the journal; the disk or its operator must act."""


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
        self.gone = 0
        """Segments that have left."""
        self.fault: str | None = None
        """Why the last append, or the opening of a segment, failed; None since one has succeeded."""

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
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise self._failed(path, error) from error
        segment = SegmentFile(sequence, path, fd, fdatasync=self._fdatasync)
        try:
            self._write(segment, [segment_header(floor)])
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
        self.gone += 1

    def probe(self, size: int) -> None:
        """Finds out whether the disk would take an append of `size` bytes now. Raises: JournalWriteFailed."""
        path = self._directory / PROBE_NAME
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, size)
            finally:
                os.close(fd)
                path.unlink()
        except OSError as error:
            raise self._failed(path, error) from error
        self.fault = None

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
            raise self._failed(segment.path, error) from error
        segment.size = start + written
        self.bytes += written
        self.fault = None

    def _failed(self, path: Path, error: OSError) -> JournalWriteFailed:
        self.fault = f"{path}: {error.strerror}; {advice(error, path)}"
        return JournalWriteFailed(self.fault)

    def _cut_back(self, segment: SegmentFile, size: int) -> None:
        try:
            os.ftruncate(segment.fd, size)
        except OSError:
            segment.torn = True
