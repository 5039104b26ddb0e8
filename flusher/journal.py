"""The journal: the active segment, and the bytes of all segments in the directory.

Rules: one Journal owns the directory (the caller holds the lock); everything but SegmentFile's sync() and leave_cache()
belongs to the loop's thread. A write reaches the file whole or not at all: on a short or failed write the file is cut
back to its last good byte. Nothing here waits for the disk except sync(), recover() and rescue().

A start takes every segment in, whatever its number: one that an operator has restored under a name that this journal
does not give gets one that it does, so that numbers never outgrow their 20 digits.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from flusher import segments
from flusher.segments import BROKEN_SUFFIX, SUFFIX, Entry, advice, entry_header, segment_header, sync_directory

log = logging.getLogger(__name__)

_NAME = re.compile(r"(\d+)\.segment(\.broken)?", re.ASCII)
_REWRITE_NAME = re.compile(r"\d{20}\.rewrite", re.ASCII)
_DIGITS = 20
MAX_SEQUENCE = 10**18
"""Numbers from there on are renamed: a segment a microsecond would take 30,000 years to come to it."""
MAX_ARRIVAL = int(datetime(9900, 1, 1, tzinfo=timezone.utc).timestamp()) * 1_000_000
"""A later arrival that a file speaks of is no time: the ones that follow must still be dates of four digits."""
PROBE_NAME = "probe"
_BUFFERS_AT_ONCE = 1024
"""IOV_MAX, the most buffers that one writev(2) takes."""


class JournalWriteFailed(Exception):
    """Nothing of the append is in the journal; the disk or its operator must act."""


@dataclass(slots=True)
class SegmentFile:
    """A segment open for appending. `size` is its last good byte, `synced` how much of it is on the disk.

    `torn`: nothing may be appended any more. Behind the last good byte may lie what could not be cut off; whoever reads
    the file is told `size`.
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


class Leftover(NamedTuple):
    """A segment of an earlier run, and how much of it may have been promised to somebody."""

    path: Path
    size: int


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
        self.set_aside = 0
        """Damaged ones that are kept."""
        self._uncut: dict[Path, int] = {}
        """Files with refused entries behind this size, which could not be cut off yet."""
        self.fault: str | None = None
        """Why the last append, or the opening of a segment, failed; None since one has succeeded."""

    def recover(self) -> tuple[list[Leftover], int]:
        """What an earlier run left, oldest first, counted into `bytes`; for the start. Blocks.

        The torn tail of the newest is cut off; unfinished copies are removed. Files of others are left alone, and said.

        Returns: the segments, and the last arrival that may have been given out. Raises: OSError.
        """
        found, strangers = self._look_around()
        newest = found[-1:]
        last = found[-2:]  # a crash, or a power cut, may have left the newest without its header
        strangers = [self._take_in(path) for path in strangers]
        found += strangers
        last += strangers
        for path in found:
            if path.is_file() and not path.stat().st_size:
                log.warning("journal: %s is empty: what was in it is lost, by somebody's hand or a power cut", path)
        floor = max((_last_arrival(path, mend=path in newest) for path in last), default=0)
        left = [Leftover(path, path.lstat().st_size) for path in found]
        self.bytes = sum(one.size for one in left)
        self.segments = len(left)
        return left, floor

    def _take_in(self, path: Path) -> Path:
        renamed = self._next_path()
        log.warning("journal: %s is taken in as %s: this service gives no such number", path, renamed.name)
        return path.rename(renamed)

    def _look_around(self) -> tuple[list[Path], list[Path]]:
        """Returns: the segments under numbers of ours, oldest first, and those under others. Raises: OSError."""
        found: list[Path] = []
        strangers: list[Path] = []
        for path in sorted(self._directory.iterdir()):
            named = _NAME.fullmatch(path.name)
            if named is not None:
                number, kept = int(named[1]), named[2] is not None
                if number < MAX_SEQUENCE:
                    # Also past the files that were set aside: a name is never used twice.
                    self._next = max(self._next, number + 1)
                self.set_aside += kept
                if not kept:
                    (found if number < MAX_SEQUENCE and len(named[1]) == _DIGITS else strangers).append(path)
            elif _REWRITE_NAME.fullmatch(path.name) and path.is_file():
                path.unlink()  # a copy that was never finished; its original is there
            elif path.name not in ("lost+found", PROBE_NAME):
                log.warning(
                    "journal: %s is no file of this service and is left alone; if it is a segment, name it"
                    " NUMBER%s and restart the flusher, else move it elsewhere",
                    path,
                    SUFFIX,
                )
        return found, strangers

    def count_set_aside(self) -> int:
        """The damaged segments that are kept for a human. Blocks. Raises: OSError."""
        self.set_aside = sum(path.name.endswith(SUFFIX + BROKEN_SUFFIX) for path in self._directory.iterdir())
        return self.set_aside

    def _next_path(self) -> Path:
        sequence, self._next = self._next, self._next + 1
        return self._directory / f"{sequence:0{_DIGITS}}{SUFFIX}"

    def _create(self, flags: int = 0) -> tuple[int, Path]:
        """A new file under the next number that nobody has used meanwhile. Raises: OSError."""
        while True:
            path = self._next_path()
            try:
                return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | flags, 0o600), path
            except FileExistsError:
                continue

    def open(self, floor: int) -> None:
        """Opens the next active segment, unless there is one.

        Raises: JournalWriteFailed, and then there is none.
        """
        if self.active is not None:
            return
        try:
            fd, path = self._create(os.O_APPEND)
        except OSError as error:
            raise self._failed(self._directory, error) from error
        segment = SegmentFile(int(path.stem), path, fd, fdatasync=self._fdatasync)
        try:
            self._write(segment, [segment_header(floor)])
        except JournalWriteFailed:
            segment.close()
            with suppress(OSError):  # a disk that was made read-only meanwhile
                path.unlink()
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
        """Cuts entries off the end that nobody was promised, as soon as the disk lets us; none is read any more."""
        self._cut_back(segment, size)
        self.bytes -= segment.size - size
        segment.size = size

    def in_place(self, segment: SegmentFile) -> bool:
        """Whether its name still leads to the file that we append to."""
        try:
            return os.path.samestat(segment.path.stat(), os.fstat(segment.fd))
        except OSError:
            return False

    def rescue(self, segment: SegmentFile) -> None:
        """Somebody has removed or replaced an open segment's file: gives its bytes a new one, synced. Blocks.

        Ensures: nothing is appended to it any more. Raises: JournalWriteFailed; the open file then has its bytes still.
        """
        segment.torn = True
        try:
            data = Path(f"/proc/self/fd/{segment.fd}").read_bytes()[: segment.size]
            fd, path = self._create()
            try:
                if os.write(fd, data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._fdatasync(fd)
                sync_directory(self._directory)
                os.dup2(fd, segment.fd, inheritable=False)
            except OSError:
                path.unlink(missing_ok=True)
                raise
            finally:
                os.close(fd)
        except OSError as error:
            raise self._failed(self._directory, error) from error
        log.error("journal: %s was removed or replaced by somebody; its records are in %s", segment.path, path.name)
        segment.path = path

    def cut_again(self) -> None:
        """Takes off what could not be cut off before."""
        for path, size in list(self._uncut.items()):
            try:
                os.truncate(path, size)
            except FileNotFoundError:
                pass
            except OSError:
                continue
            del self._uncut[path]

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
                if os.write(fd, bytes(size)) != size:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
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
        if isinstance(error.filename, str | Path):
            path = Path(error.filename)
        self.fault = f"{path}: {error.strerror}; {advice(error, path)}"
        return JournalWriteFailed(self.fault)

    def _cut_back(self, segment: SegmentFile, size: int) -> None:
        try:
            os.ftruncate(segment.fd, size)
        except OSError as error:
            log.error("journal: %s cannot be cut back, tried again: %s", segment.path.name, error.strerror)
            segment.torn = True
            self._uncut[segment.path] = size


def _last_arrival(path: Path, *, mend: bool) -> int:
    """The last arrival, in µs, that a segment speaks of, or a later time; `mend`: its torn tail is cut off.

    Raises: OSError, where it can't be cut.
    """
    now = time.time_ns() // 1000
    try:
        contents = segments.read(path)
        modified_at = path.stat().st_mtime_ns // 1000
    except OSError as error:
        # The writer meets it too, and its alarm stands; it is no reason to accept nothing.
        log.error("journal: %s cannot be read: %s", path, error.strerror)
        return now
    if mend and contents.torn:
        log.info("journal: %d bytes of an append that had not ended are cut off %s", contents.torn, path.name)
        os.truncate(path, contents.size - contents.torn)
    # Only what a CRC covers: a damaged arrival far in the future would stamp everything that follows.
    given_out = [contents.floor, modified_at, *(entry.arrival for entry in contents.entries)]
    return max(arrival if arrival < MAX_ARRIVAL else 0 for arrival in given_out)
