"""When the journal's bytes go to the disk: one thread, one fsync for all that wait (group commit).

    always    an ack waits for the sync that covers it
    interval  a sync every second while there is something to sync, and sooner where that is much; acks do not wait,
              until the last good sync is over 2 s old, from when they do (as Redis' everysec)
    never     the kernel decides

Rules: belongs to the loop's thread, but for the syncing itself. After a failed sync the kernel may have dropped the
pages and a second fsync would report success (PostgreSQL, 2018): so what nobody was promised is cut off, and the rest
is written to a new file, until that works. Until then `failed` is True and nothing is accepted.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from flusher.journal import SegmentFile
from flusher.segments import advice, rewrite

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
INTERVAL_BYTES = 16 * 1024 * 1024
"""Sooner than that, a sync after so much: less is at risk, and pages that are given back are taken again while they are
warm."""
LATE_S = 2.0
REWRITE_AGAIN_S = 1.0
CACHED_SEGMENTS = 8
"""So many segments that writers come to next stay in memory."""


class Fsync(str, Enum):
    ALWAYS = "always"
    INTERVAL = "interval"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Waiter:
    """An append whose ack waits for the disk: it begins and ends at these offsets of `segment`."""

    segment: SegmentFile
    start: int
    end: int
    synced: Callable[[], None]
    failed: Callable[[], None]


class Syncer:
    def __init__(
        self,
        policy: Fsync,
        *,
        cut_off: Callable[[SegmentFile, int], None],
        clock: Callable[[], float],
    ) -> None:
        """Args: cut_off(segment, size): takes the segment out of use and cuts it back to `size`."""
        self._policy = policy
        self._cut_off = cut_off
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, "syncer")
        self._dirty: dict[int, SegmentFile] = {}
        self._waiters: list[Waiter] = []
        self._running: asyncio.Future[list[int]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._since: float | None = None
        self._due_bytes = 0
        self._covered_since: float | None = None
        self._unsynced: dict[int, int] = {}
        self._rewriting = 0
        self._rewritten: dict[int, Path] = {}
        self._last_gone = 0
        self.last_error: str | None = None

    @property
    def failed(self) -> bool:
        return self._rewriting > 0

    @property
    def unsynced_records(self) -> int:
        return sum(self._unsynced.values())

    def holds_acks(self) -> bool:
        """Whether an append made now may be acknowledged only after a sync."""
        if self._policy is Fsync.ALWAYS:
            return True
        if self._policy is Fsync.NEVER:
            return False
        if self._waiters:
            # Should their sync fail, everything from the first of them on is cut off.
            return True
        since = self._since if self._covered_since is None else self._covered_since
        return since is not None and self._clock() - since > LATE_S

    def appended(self, segment: SegmentFile, records: int, size: int) -> None:
        """Notes that `segment` has `size` more unsynced bytes at its end."""
        self._unsynced[segment.sequence] = self._unsynced.get(segment.sequence, 0) + records
        if self._policy is Fsync.NEVER:
            return
        self._dirty[segment.sequence] = segment
        if self._since is None:
            self._since = self._clock()
        self._due_bytes += size
        if self._policy is Fsync.INTERVAL:
            self._start_in_time()

    def wait(self, waiter: Waiter) -> None:
        self._waiters.append(waiter)
        self._start()

    def sealed(self, segment: SegmentFile) -> None:
        """Closes the file as soon as nothing of it is unsynced."""
        if segment.sequence not in self._dirty:
            segment.close()

    def gone(self, sequence: int) -> None:
        """A segment whose records are in the database needs the disk no longer: its pages need not be written."""
        self._last_gone = max(self._last_gone, sequence)
        self._unsynced.pop(sequence, None)
        self._release(lambda waiter: waiter.segment.sequence == sequence)
        rewritten = self._rewritten.pop(sequence, None)
        if rewritten is not None:
            # Behind its rewriting, which may have given the name back that was just taken away.
            self._thread.submit(_unlink, rewritten)
        if self._running is None:
            segment = self._dirty.pop(sequence, None)
            if segment is not None:
                segment.close()

    async def close(self) -> None:
        """Syncs what the policy wants synced and is not yet, and ends the thread; with `never` that is nothing."""
        while self._running is not None:  # the end of one may start the next
            await asyncio.wait([self._running])
        if self._timer is not None:
            self._timer.cancel()
        segments = list(self._dirty.values())
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, _sync_all, segments, math.inf)
        except OSError as error:
            log.error("journal: the last sync failed: %s", error.strerror)
        for segment in segments:
            segment.close()
        self._thread.shutdown()

    def _start_in_time(self) -> None:
        if self._due_bytes >= INTERVAL_BYTES:
            self._start()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._start()

    def _start(self) -> None:
        if self._running is not None or not self._dirty:
            return
        self._covered_since, self._since = self._since, None
        self._due_bytes = 0
        covered = dict(self._unsynced)
        segments = list(self._dirty.values())
        loop = asyncio.get_running_loop()
        cached = self._last_gone + CACHED_SEGMENTS
        self._running = loop.run_in_executor(self._thread, _sync_all, segments, cached)
        self._running.add_done_callback(lambda done: self._synced(segments, covered, done))

    def _synced(self, segments: list[SegmentFile], covered: dict[int, int], done: asyncio.Future[list[int]]) -> None:
        self._running = None
        self._covered_since = None
        error = done.exception()
        if error is not None:  # a fault of ours, too, proves nothing to be on the disk
            self._sync_failed(segments, error)
        else:
            self._sync_succeeded(segments, covered, done.result())
        if self._waiters:
            self._start()
        elif self._dirty and self._policy is Fsync.INTERVAL:
            self._start_in_time()

    def _sync_succeeded(self, segments: list[SegmentFile], covered: dict[int, int], sizes: list[int]) -> None:
        for sequence, records in covered.items():
            left = self._unsynced.pop(sequence, 0) - records
            if left > 0:
                self._unsynced[sequence] = left
        for segment, size in zip(segments, sizes, strict=True):
            segment.synced = size
            if size == segment.size:
                del self._dirty[segment.sequence]
                # Also what came after the sync was asked for, and before the thread began with it.
                self._unsynced.pop(segment.sequence, None)
                if segment.sealed:
                    segment.close()
        self._release(lambda waiter: waiter.end <= waiter.segment.synced)

    def _release(self, is_safe: Callable[[Waiter], bool]) -> None:
        waiting, self._waiters = self._waiters, []
        for waiter in waiting:
            if is_safe(waiter):
                waiter.synced()
            else:
                self._waiters.append(waiter)

    def _sync_failed(self, segments: list[SegmentFile], error: BaseException) -> None:
        why = f"{error.strerror}; {advice(error, segments[0].path)}" if isinstance(error, OSError) else repr(error)
        self.last_error = f"a sync of the journal failed: {why}"
        log.error("journal: a sync failed (%s); nothing is accepted until its records are on new pages", why)
        covered = {segment.sequence for segment in segments}
        waiting = [waiter for waiter in self._waiters if waiter.segment.sequence in covered]
        # Others wait in segments opened since: their own sync decides.
        self._waiters = [waiter for waiter in self._waiters if waiter.segment.sequence not in covered]
        for segment in segments:
            promised = min((w.start for w in waiting if w.segment is segment), default=segment.size)
            self._cut_off(segment, promised)
            self._dirty.pop(segment.sequence, None)
            self._unsynced.pop(segment.sequence, None)
            segment.close()
            self._rewriting += 1
            self._rewritten[segment.sequence] = segment.path
            self._rewrite(segment.path, segment.size)
        for waiter in waiting:
            waiter.failed()

    def _rewrite(self, path: Path, size: int) -> None:
        loop = asyncio.get_running_loop()

        def done(rewritten: asyncio.Future[None]) -> None:
            error = rewritten.exception()
            if error is None:
                self._rewriting -= 1
                if not self._rewriting:
                    log.warning("journal: the records of the failed sync are on new pages; accepting again")
                return
            log.error("journal: %s cannot be rewritten: %s", path, error)
            loop.call_later(REWRITE_AGAIN_S, self._rewrite, path, size)

        loop.run_in_executor(self._thread, rewrite, path, size).add_done_callback(done)


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.error("journal: %s cannot be removed, and will be written once more: %s", path, error.strerror)


def _sync_all(segments: list[SegmentFile], cached: float) -> list[int]:
    """Args: cached: sealed segments with a higher number than this leave the page cache.

    While writers are behind, that is where the memory for the newest segments comes from: to take it from the kernel's
    free memory costs up to half of the service's work on a virtual machine, whose host has to find it first.
    """
    sizes = [segment.sync() for segment in segments]
    for segment in segments:
        if segment.sealed and segment.sequence > cached:
            segment.leave_cache()
    return sizes
