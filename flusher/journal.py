"""The journal: the active segment, the sealed ones in the order of their writing, and their files.

    active -> sealed -> busy (at a writer) -> removed
                 ^------- a failure

Rules: one Journal owns the directory; its caller holds the lock. It belongs to the loop's thread. An append reaches the
file whole or not at all. Memory holds counts, never a body.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from flusher import segments
from flusher.segments import SUFFIX, Entry, advice, entry_header, segment_header, sync_directory
from flusher.state import Condition
from flusher.triggers import FlushReason
from shared.records import KINDS

log = logging.getLogger(__name__)

DIGITS = 20
PROBE_NAME = "probe"
_BUFFERS_AT_ONCE = 1024  # IOV_MAX of writev(2)


class JournalWriteFailed(Exception):
    """Nothing of the append is in the journal; the operator must act on the disk."""


def no_records() -> dict[int, int]:
    return {kind.code: 0 for kind in KINDS}


@dataclass(slots=True, eq=False)
class Segment:
    """One buffer generation: its file, its counts, and the state of its writing.

    `size` is its last good byte: nobody reads further. `torn`: it takes no more entries, because bytes after `size`
    could not be cut off or its file was removed. `dirty`: the syncer needs the open file. `records` by kind's code.
    `opened_at`: arrival of the oldest record, monotonic, 0 while unknown. `alarm`: why it alone waits for an operator.
    """

    sequence: int
    path: Path
    fd: int = -1
    size: int = 0
    synced: int = 0
    name_synced: bool = False
    dirty: bool = False
    torn: bool = False
    sealed: bool = False
    records: dict[int, int] = field(default_factory=no_records)
    unsynced_records: int = 0
    opened_at: float = 0.0
    reason: FlushReason = FlushReason.SIZE
    busy: bool = False
    attempts: int = 0
    not_before: float = 0.0
    alarm: Condition | None = None
    fdatasync: Callable[[int], None] = field(default=os.fdatasync, repr=False)

    @property
    def total(self) -> int:
        return sum(self.records.values())

    @property
    def has_records(self) -> bool:
        """True for a recovered segment, whose records may not be counted yet."""
        return self.total > 0 or self.reason is FlushReason.RECOVERY

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close_if_done(self) -> None:
        if self.sealed and not self.dirty:
            self.close()


class Journal:
    """Iterating gives every segment, the active one last.

    `active` is None only while no segment can be opened. `last_arrival`: the last one given out, µs since 1970.
    `removed` counts segments that have left the directory, `set_aside` damaged ones in it. `fault`: why the last append
    or opening failed, None after a success.
    """

    def __init__(
        self,
        directory: Path,
        *,
        writev: Callable[[int, Sequence[bytes | memoryview]], int] = os.writev,
        fdatasync: Callable[[int], None] = os.fdatasync,
    ) -> None:
        self.directory = directory
        self._writev = writev
        self._fdatasync = fdatasync
        self._sealed: dict[int, Segment] = {}
        self._uncut: dict[Path, int] = {}
        self.next_sequence = 1
        self.active: Segment | None = None
        self.last_arrival = 0
        self.bytes = 0
        self.removed = 0
        self.set_aside = 0
        self.fault: str | None = None

    def writable(self) -> Segment:
        """The segment to append to; opens one if need be. Raises: JournalWriteFailed."""
        if self.active is not None and self.active.torn:
            self.seal(FlushReason.SIZE)
        self.open()
        assert self.active is not None
        if self.active.torn:
            raise JournalWriteFailed(self.fault)  # until its bytes have a new file
        return self.active

    def open(self) -> None:
        """Makes sure that there is an active segment. Raises: JournalWriteFailed."""
        if self.active is not None:
            return
        try:
            fd, path = self._create(os.O_APPEND)
        except OSError as error:
            raise self._failed(self.directory, error) from error
        segment = Segment(int(path.stem), path, fd, fdatasync=self._fdatasync)
        try:
            self._write(segment, [segment_header(self.last_arrival)])
        except JournalWriteFailed:
            segment.close()
            with suppress(OSError):  # the disk may be read-only by now
                path.unlink()
            raise
        self.active = segment

    def try_open(self) -> None:
        try:
            self.open()
        except JournalWriteFailed as error:
            log.error("journal: no new segment can be opened, nothing is accepted: %s", error)

    def append(self, entries: Sequence[Entry], now: float = 0.0) -> None:
        """Writes and counts entries: all, or none. Args: now: monotonic. Raises: JournalWriteFailed."""
        segment = self.active
        if segment is None or segment.torn:
            raise JournalWriteFailed("no segment is open")
        buffers: list[bytes | memoryview] = []
        for entry in entries:
            buffers += (entry_header(entry), entry.body)
        self._write(segment, buffers)
        if not segment.total:
            segment.opened_at = now
        for entry in entries:
            segment.records[entry.kind] = segment.records.get(entry.kind, 0) + entry.count

    def _write(self, segment: Segment, buffers: Sequence[bytes | memoryview]) -> None:
        start = segment.size
        written = 0
        try:
            for at in range(0, len(buffers), _BUFFERS_AT_ONCE):
                part = buffers[at : at + _BUFFERS_AT_ONCE]
                want = sum(map(len, part))
                done = self._writev(segment.fd, part)
                written += done
                if done != want:  # write(2): a regular file takes less only on a full disk
                    raise OSError(28, f"{done} of {want} bytes were taken: no space left on device")
        except OSError as error:
            self._cut_back(segment, start)
            raise self._failed(segment.path, error) from error
        segment.size = start + written
        self.bytes += written
        self.fault = None

    def _cut_back(self, segment: Segment, size: int) -> None:
        try:
            os.ftruncate(segment.fd, size)
        except OSError as error:
            log.error("journal: %s cannot be cut back, tried again: %s", segment.path.name, error.strerror)
            segment.torn = True
            self._uncut[segment.path] = size

    def _failed(self, path: Path, error: OSError) -> JournalWriteFailed:
        path = Path(error.filename or path)
        self.fault = f"{path}: {error.strerror}; {advice(error, path)}"
        return JournalWriteFailed(self.fault)

    def _create(self, flags: int = 0) -> tuple[int, Path]:
        """A new file under the next free number. Raises: OSError."""
        while True:
            path = self.next_path()
            try:
                return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | flags, 0o600), path
            except FileExistsError:
                continue

    def next_path(self) -> Path:
        sequence, self.next_sequence = self.next_sequence, self.next_sequence + 1
        return self.directory / f"{sequence:0{DIGITS}}{SUFFIX}"

    def seal(self, reason: FlushReason, *, without_file: bool = False) -> bool:
        """Queues the active segment for a writer, and opens the next if the disk lets it.

        Returns: False if its file is gone and cannot be rescued yet: it then stays active, unless `without_file`.
        """
        segment = self.active
        assert segment is not None
        if not self.in_place(segment) and not self._rescue(segment) and not without_file:
            return False
        self.active = None
        segment.reason, segment.sealed = reason, True
        self._sealed[segment.sequence] = segment
        segment.close_if_done()
        self.try_open()
        return True

    def cut_off(self, segment: Segment, size: int) -> None:
        """After a failed sync: seals the segment, and cuts it back to the entries that were acknowledged."""
        if segment is self.active:
            self.seal(FlushReason.SIZE, without_file=True)
        if segment.sequence in self._sealed:  # else the database has its records
            self._cut_back(segment, size)
            self.bytes -= segment.size - size
            segment.size = size

    def take_in(self, path: Path) -> None:
        """Queues a segment of an earlier run. Raises: OSError."""
        segment = Segment(int(path.stem), path, size=path.lstat().st_size, sealed=True, reason=FlushReason.RECOVERY)
        self._sealed[segment.sequence] = segment
        self.bytes += segment.size

    def forget(self, segment: Segment) -> None:
        """Counts out a segment that has left the directory."""
        del self._sealed[segment.sequence]
        self.bytes -= segment.size
        self.removed += 1

    def put_back(self, segment: Segment) -> None:
        """Queues a failed segment behind the others, so that it cannot hold them up."""
        del self._sealed[segment.sequence]
        self._sealed[segment.sequence] = segment

    def next(self, now: float) -> Segment | None:
        """The first sealed segment that is due and at no writer."""
        for segment in self._sealed.values():
            if not segment.busy and segment.not_before <= now:
                return segment
        return None

    def next_at(self) -> float:
        """When the next segment is due; infinity if none waits."""
        return min((segment.not_before for segment in self._sealed.values() if not segment.busy), default=math.inf)

    def __iter__(self) -> Iterator[Segment]:
        yield from self._sealed.values()
        if self.active is not None:
            yield self.active

    @property
    def waiting(self) -> int:
        """Count of sealed segments."""
        return len(self._sealed)

    def holds(self, sequence: int) -> bool:
        """Whether records up to and including that segment wait."""
        return any(segment.sequence <= sequence and segment.has_records for segment in self)

    def last_sequence(self) -> int:
        """The newest segment with records; 0 if nothing waits."""
        return max((segment.sequence for segment in self if segment.has_records), default=0)

    def pending_up_to(self, sequence: int) -> int:
        return sum(segment.total for segment in self if segment.sequence <= sequence)

    def records(self) -> dict[int, int]:
        """Waiting records by kind's code."""
        totals = no_records()
        for segment in self:
            for kind, count in segment.records.items():
                totals[kind] = totals.get(kind, 0) + count
        return totals

    def oldest_at(self) -> float | None:
        """Arrival of the oldest waiting record, monotonic; None if nothing waits."""
        return min((segment.opened_at for segment in self if segment.opened_at and segment.total), default=None)

    def alarm(self) -> Condition | None:
        return next((segment.alarm for segment in self if segment.alarm), None)

    def check_active_file(self) -> None:
        """Seals the active segment if its file was removed or replaced."""
        if self.active is not None and not self.in_place(self.active):
            self.seal(FlushReason.SIZE)

    def in_place(self, segment: Segment) -> bool:
        """Whether its name still leads to the open file."""
        try:
            return os.path.samestat(segment.path.stat(), os.fstat(segment.fd))
        except OSError:
            return False

    def _rescue(self, segment: Segment) -> bool:
        """Copies an open segment whose file is gone to a new one, synced. Blocks. Returns: whether that worked."""
        is_first_try = not segment.torn
        segment.torn = True
        try:
            data = Path(f"/proc/self/fd/{segment.fd}").read_bytes()[: segment.size]
            fd, path = self._create()
            try:
                segments.write_all(fd, data)
                self._fdatasync(fd)
                sync_directory(self.directory)
                os.dup2(fd, segment.fd, inheritable=False)
            except OSError:
                path.unlink(missing_ok=True)
                raise
            finally:
                os.close(fd)
        except OSError as error:
            why = self._failed(self.directory, error)
            if is_first_try:
                log.error("journal: %s was removed or replaced, its records cannot be kept yet: %s", segment.path, why)
            return False
        log.error("journal: %s was removed or replaced by somebody; its records are in %s", segment.path, path.name)
        segment.path = path
        return True

    def cut_again(self) -> None:
        """Retries the cuts that failed."""
        for path, size in list(self._uncut.items()):
            with suppress(OSError):
                if path.exists():
                    os.truncate(path, size)
                del self._uncut[path]

    def probe(self, size: int) -> None:
        """Finds out whether the disk takes `size` bytes now. Raises: JournalWriteFailed."""
        path = self.directory / PROBE_NAME
        try:
            segments.probe(path, size)
        except OSError as error:
            raise self._failed(path, error) from error
        self.fault = None
