"""When the journal's bytes go to the disk: one thread, one fsync for all waiting acks (group commit).

    always    an ack waits for the sync that covers it
    interval  a sync every second or 16 MiB; acks wait only while the last good sync is over 2 s old (Redis' everysec)
    never     the kernel decides

Rules: belongs to the loop's thread, except the syncing itself. After a failed sync the kernel may have dropped the
pages, and a second fsync would report success (PostgreSQL, 2018). So entries without an ack are cut off, and the rest
is copied to new pages, until that works. Until then `failed` is True and nothing is accepted.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from flusher.journal import Journal, Segment
from flusher.segments import advice, rewrite, sync_directory

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
INTERVAL_BYTES = 16 * 1024 * 1024
"""A sync comes sooner after so much: less is at risk, and freed pages are reused while they are warm."""
LATE_S = 2.0
REWRITE_AGAIN_S = 1.0
CACHED_SEGMENTS = 8
"""The next segments in line for a writer stay in the page cache."""


class Fsync(str, Enum):
    ALWAYS = "always"
    INTERVAL = "interval"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class SyncWaiter:
    """An append whose ack waits for the disk, from `start` to `end` in `segment`."""

    segment: Segment
    start: int
    end: int
    synced: Callable[[], None]
    failed: Callable[[], None]


class Syncer:
    def __init__(self, policy: Fsync, journal: Journal, *, clock: Callable[[], float]) -> None:
        self._policy = policy
        self._journal = journal
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, "syncer")
        self._dirty: dict[int, Segment] = {}
        self._waiters: list[SyncWaiter] = []
        self._running: asyncio.Future[list[int]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._since: float | None = None
        self._due_bytes = 0
        self._covered_since: float | None = None
        self._rewriting = 0
        self._rewritten: dict[int, Path] = {}
        self._last_gone = 0
        self.last_error: str | None = None

    @property
    def failed(self) -> bool:
        return self._rewriting > 0

    @property
    def unsynced_records(self) -> int:
        return sum(segment.unsynced_records for segment in self._journal)

    def holds_acks(self) -> bool:
        """Whether an append made now may be acknowledged only after a sync."""
        if self._policy is Fsync.ALWAYS:
            return True
        if self._policy is Fsync.NEVER:
            return False
        if self._waiters:
            # If their sync fails, everything from the first of them on is cut off.
            return True
        since = self._since if self._covered_since is None else self._covered_since
        return since is not None and self._clock() - since > LATE_S

    def appended(self, segment: Segment, records: int, size: int) -> None:
        """Notes `size` more unsynced bytes at the end of `segment`."""
        segment.unsynced_records += records
        if self._policy is Fsync.NEVER:
            return
        self._dirty[segment.sequence] = segment
        segment.dirty = True
        if self._since is None:
            self._since = self._clock()
        self._due_bytes += size
        if self._policy is Fsync.INTERVAL:
            self._start_in_time()

    def wait(self, waiter: SyncWaiter) -> None:
        self._waiters.append(waiter)
        self._start()

    def forget(self, segment: Segment) -> None:
        """The segment's records are in the database: its pages need not reach the disk."""
        self._last_gone = max(self._last_gone, segment.sequence)
        self._release(lambda waiter: waiter.segment is segment)
        rewritten = self._rewritten.pop(segment.sequence, None)
        if rewritten is not None:
            # Queued behind the rewriting, which may bring back the name that was just removed.
            self._thread.submit(_unlink, rewritten)
        if self._running is None:
            self._clean(segment)

    def _clean(self, segment: Segment) -> None:
        self._dirty.pop(segment.sequence, None)
        segment.dirty = False
        segment.close_if_done()

    async def close(self) -> None:
        """Syncs the dirty segments and ends the thread."""
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
        segments = list(self._dirty.values())
        covered = [segment.unsynced_records for segment in segments]
        loop = asyncio.get_running_loop()
        cached = self._last_gone + CACHED_SEGMENTS
        self._running = loop.run_in_executor(self._thread, _sync_all, segments, cached)
        self._running.add_done_callback(lambda done: self._synced(segments, covered, done))

    def _synced(self, segments: list[Segment], covered: list[int], done: asyncio.Future[list[int]]) -> None:
        self._running = None
        self._covered_since = None
        error = done.exception()
        if error is not None:  # also after a fault of ours nothing is known to be on the disk
            self._sync_failed(segments, error)
        else:
            self._sync_succeeded(segments, covered, done.result())
        if self._waiters:
            self._start()
        elif self._dirty and self._policy is Fsync.INTERVAL:
            self._start_in_time()

    def _sync_succeeded(self, segments: list[Segment], covered: list[int], sizes: list[int]) -> None:
        for segment, records, size in zip(segments, covered, sizes, strict=True):
            segment.synced = size
            segment.unsynced_records -= records
            if size == segment.size:
                segment.unsynced_records = 0  # also records that came before the thread began
                self._clean(segment)
        self._release(lambda waiter: waiter.end <= waiter.segment.synced)

    def _release(self, is_safe: Callable[[SyncWaiter], bool]) -> None:
        waiting, self._waiters = self._waiters, []
        for waiter in waiting:
            if is_safe(waiter):
                waiter.synced()
            else:
                self._waiters.append(waiter)

    def _sync_failed(self, segments: list[Segment], error: BaseException) -> None:
        why = f"{error.strerror}; {advice(error, segments[0].path)}" if isinstance(error, OSError) else repr(error)
        self.last_error = f"a sync of the journal failed: {why}"
        log.error("journal: a sync failed (%s); nothing is accepted until its records are on new pages", why)
        waiting = [waiter for waiter in self._waiters if waiter.segment in segments]
        # The others are in segments opened since; their own sync decides.
        self._waiters = [waiter for waiter in self._waiters if waiter.segment not in segments]
        for segment in segments:
            promised = min((w.start for w in waiting if w.segment is segment), default=segment.size)
            self._journal.cut_off(segment, promised)
            segment.unsynced_records = 0
            self._clean(segment)
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


def _sync_all(segments: list[Segment], cached: float) -> list[int]:
    """Args: cached: sealed segments with a higher number than this leave the page cache.

    During a backlog the newest segments reuse that memory. On a virtual machine fresh memory of the kernel is slow,
    because the host has to find it: up to half of the service's CPU time.
    """
    sizes = [sync(segment) for segment in segments]
    for segment in segments:
        if segment.sealed and segment.sequence > cached:
            leave_cache(segment)
    return sizes


def sync(segment: Segment) -> int:
    """Syncs the file, and its name once. Blocks.

    Returns: the size that is now safe. Raises: OSError; the same file must not be synced again.
    """
    size = segment.size
    segment.fdatasync(segment.fd)
    if not segment.name_synced:
        sync_directory(segment.path.parent)
        segment.name_synced = True
    return size


def leave_cache(segment: Segment) -> None:
    os.posix_fadvise(segment.fd, 0, 0, os.POSIX_FADV_DONTNEED)
