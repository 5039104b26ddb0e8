"""The last ten minutes of the node, for its dashboard: a point every two seconds, in a file that all workers read.

One worker records, whoever holds the lock; the kernel gives it to the next when that one ends. It takes the flusher's
stats and the request counts that every worker publishes. The file makes every worker answer with the same points, and
outlives workers and restarts. A point is written ready to be sent.

Rules: belongs to the loop's thread. Only the recording worker writes; a line is there whole or not at all.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import orjson

from ingest.exposition import BUCKETS_S
from ingest.forwarder import FlusherUnavailable
from ingest.health import no_flusher
from ingest.metrics import Counts
from shared.rates import rates, restarted
from shared.timers import repeat

log = logging.getLogger(__name__)

INTERVAL_S = 2
WINDOW_S = 600
HISTORY_DIRECTORY = "history"
"""In the state directory."""
_POINTS = WINDOW_S // INTERVAL_S
_PROBLEM_CHARACTERS = 500
_AT = b'{"at":'


@dataclass(frozen=True, slots=True)
class Sample:
    """Counters at one moment: `at` in seconds since 1970, `monotonic` untouched by changes of the clock, `stats` the
    flusher's, or why it does not answer, `durations` of batch requests as Counts.durations_of() gives them, `rejected`
    records by reason."""

    at: float
    monotonic: float
    stats: dict[str, Any] | str
    durations: list[int]
    rejected: dict[str, int] = field(default_factory=dict)


class Point(msgspec.Struct, frozen=True):
    """The node at one moment. `database` is None where its state is not known, `problems` texts by kind, without record
    content; `refused` counts records by reason since the point before. None stands for what nobody knows."""

    at: float
    status: str
    cause: str | None = None
    reason: str | None = None
    since: str | None = None
    database: str | None = None
    problems: dict[str, str] = {}
    refused: dict[str, int] = {}

    backlog: int | None = None
    oldest_s: float | None = None
    flush_interval_s: float | None = None
    unsynced: int | None = None
    journal_percent: float | None = None
    dead_letters: int | None = None
    dead_letter_at: str | None = None
    writers: int | None = None

    accepted: float | None = None
    """records a second since the point before, as are the next two"""
    written: float | None = None
    rows: float | None = None
    flush_ms: float | None = None
    coalesced_percent: float | None = None
    requests: float | None = None
    """batches a second"""
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None


def point(before: Sample | None, after: Sample) -> Point:
    at, stats = round(after.at, 3), after.stats
    since = {} if before is None else {"refused": _refused(before, after), **_latency(before, after)}
    if isinstance(stats, str):
        return Point(at, "unhealthy", "flusher", stats, problems={"flusher": stats}, **since)
    old = before.stats if before is not None and isinstance(before.stats, dict) else None
    if before is not None and old is not None:
        did = rates(old, stats, after.monotonic - before.monotonic)
        since |= {
            "accepted": round(sum(did.accepted_per_s.values()), 2),
            "written": round(did.records_per_s, 2),
            "rows": round(sum(did.rows_per_s.values()), 2),
            "flush_ms": did.flush_ms and round(did.flush_ms, 3),
            "coalesced_percent": did.coalesced_percent and round(did.coalesced_percent, 3),
        }
    state, letters = stats["state"], stats["dead_letters"]
    return Point(
        at,
        status=state["status"],
        cause=state["cause"],
        reason=state["reason"] and state["reason"][:_PROBLEM_CHARACTERS],
        since=state["since"],
        database=None if state["database"] == "unknown" else state["database"],
        problems=_problems(old, stats),
        backlog=stats["buffer"]["total_count"],
        oldest_s=stats["at_risk"]["oldest_uncommitted_seconds"],
        flush_interval_s=stats["flush_info"]["flush_interval_seconds"],
        unsynced=stats["at_risk"]["unsynced_records"],
        journal_percent=stats["buffer"]["usage_percent"],
        dead_letters=letters["count"],
        dead_letter_at=letters["last_at"],
        writers=stats["performance"]["writers"],
        **since,
    )


def _problems(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, str]:
    """What is wrong now, and what went wrong since: the last error stays in the stats when it is long over."""
    state, letters, set_aside = new["state"], new["dead_letters"], new["damage"]["segments_set_aside"]
    found = {}
    if state["reason"] and state["cause"] != "starting":
        found[state["cause"]] = state["reason"]
    failed_before = sum(old["failures"].values()) if old is not None and not restarted(old, new) else 0
    failed = old is not None and sum(new["failures"].values()) > failed_before
    if failed and state["database"] == "up" and state["last_error"] != state["reason"]:
        found["failure"] = state["last_error"]
    if letters["count"]:
        found["dead_letters"] = letters["last_error"] or ""
    if set_aside:
        found["damage"] = str(set_aside)
    return {kind: text[:_PROBLEM_CHARACTERS] for kind, text in found.items()}


def _refused(before: Sample, after: Sample) -> dict[str, int]:
    """How many records were refused since, by reason. Ingest counts from zero where it was started anew."""
    old = before.rejected if sum(before.rejected.values()) <= sum(after.rejected.values()) else {}
    rises = {reason: count - old.get(reason, 0) for reason, count in after.rejected.items()}
    return {reason: count for reason, count in rises.items() if count > 0}


def _latency(before: Sample, after: Sample) -> dict[str, Any]:
    since = [new - old for new, old in zip(after.durations, before.durations, strict=True)]
    if min(since) < 0:
        since = after.durations  # ingest was started anew, and counts from zero
    total = sum(since)
    found = {"requests": round(total / (after.monotonic - before.monotonic), 2)}
    for rank in (50, 95, 99) if total else ():
        found[f"p{rank}_ms"] = round(1000 * percentile(since, rank / 100), 3)
    return found


def percentile(counts: Sequence[int], rank: float) -> float:
    """Seconds that `rank` (0..1) of the requests took at most: taken as spread evenly inside their bucket, as
    Prometheus' histogram_quantile() does, and as the highest bound where they lie above it."""
    wanted = rank * sum(counts)
    lower = 0.0
    for count, upper in zip(counts, BUCKETS_S, strict=False):
        if count and wanted <= count:
            return lower + (upper - lower) * wanted / count
        wanted -= count
        lower = upper
    return lower


class History:
    """The file: append() by whoever lead() lets, read() by everybody. Both block for well under a millisecond."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / "points"
        self._appended = 0
        self._lock: int | None = None

    def lead(self) -> bool:
        """Whether this process records: for as long as it lives, once it was let. Raises: OSError."""
        if self._lock is not None:
            return True
        self._directory.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(self._directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return False
        self._lock = lock
        return True

    def append(self, new: Point) -> None:
        """Also drops the points that have left the window, once in a window's time. Raises: OSError."""
        if self._appended % _POINTS == 0:
            copy = self._file.with_suffix(".new")
            copy.touch(mode=0o600)
            copy.write_bytes(b"".join(line + b"\n" for line in self.read(0, new.at)))
            copy.replace(self._file)
        self._appended += 1
        line = msgspec.json.encode(new) + b"\n"
        file = os.open(self._file, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(file).st_size
            if os.write(file, line) != len(line):
                os.ftruncate(file, size)  # the disk is full; the next line must not join a half one
        finally:
            os.close(file)

    def read(self, after: float, now: float) -> list[bytes]:
        """The points of the window that are younger than `after`, oldest first, as JSON; none of a file that cannot be
        read, of which the recorder tells."""
        after = max(after, now - WINDOW_S)
        try:
            lines = self._file.read_bytes().split(b"\n")[:-1]
        except OSError:
            return []
        return [line for line in lines if after < _at(line) <= now]

    def close(self) -> None:
        """Lets the next record."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _at(line: bytes) -> float:
    """When a point was recorded; 0 for a line that is none, as a power cut may leave it."""
    if not line.startswith(_AT) or not line.endswith(b"}") or b"\0" in line:
        return 0.0
    try:
        return float(line[len(_AT) : line.index(b",")])
    except ValueError:
        return 0.0


@dataclass
class Recorder:
    """Looks at the node every `interval_s`, and appends a point where this process leads."""

    history: History
    stats: Callable[[], Awaitable[bytes]]
    counts: Callable[[], Counts]
    paths: Sequence[str]
    interval_s: float = INTERVAL_S
    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    _before: Sample | None = None
    _failing: bool = False
    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        record = repeat("dashboard: a look at the node", self.interval_s, self._record)
        self._task = asyncio.get_running_loop().create_task(record)

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self.history.close()

    async def _record(self) -> None:
        try:
            await self.step()
            self._failing = False
        except Exception as error:
            # The next look begins anew, by whichever worker takes the lock first.
            self.history.close()
            self._before = None
            if not isinstance(error, OSError):
                raise
            if not self._failing:
                log.error("dashboard: nothing is recorded: %s", error)
            self._failing = True

    async def step(self) -> None:
        """One look. Raises: OSError."""
        if not self.history.lead():
            return
        stats: dict[str, Any] | str
        try:
            stats = orjson.loads(await self.stats())
        except FlusherUnavailable as error:
            stats = no_flusher(error)
        counts = self.counts()
        durations = counts.durations_of(self.paths)
        sample = Sample(self.wall(), self.monotonic(), stats, durations, counts.rejected)
        before, self._before = self._before, sample
        if before is not None:
            self.history.append(point(before, sample))
