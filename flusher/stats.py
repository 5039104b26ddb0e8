"""What the flusher counts, and the document that GET /stats, /health and /metrics are made from.

Rules: belongs to the loop's thread; counters only rise. Times are given in, never read here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from flusher.answers import Failed, Written
from flusher.backlog import Backlog, no_records
from flusher.journal import Journal
from flusher.state import BACKLOG_DEGRADED_PERCENT, OVERLOADED, Acceptance, Cause, Condition, Database, verdict
from shared.records import KIND_OF_CODE, KINDS

FLUSH_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
FLUSH_RECORDS = (1, 10, 100, 500, 1000, 2000, 3000, 4000, 5000)
"""Bounds of the histograms; a flush takes up to a segment, 5000 records and what the last request brings."""
_RATE_WINDOW_S = 10.0
_GUESSED_RECORD_BYTES = 512


class DrainRate:
    """Bytes of journal freed a second, smoothed over about ten seconds of flushing."""

    def __init__(self) -> None:
        self._rate = 0.0
        self._last_at: float | None = None

    def freed(self, size: int, duration_s: float, now: float) -> None:
        since = max(duration_s if self._last_at is None else now - self._last_at, 1e-3)
        weight = min(1.0, since / _RATE_WINDOW_S)
        current = size / since
        self._rate = current if self._last_at is None else self._rate + weight * (current - self._rate)
        self._last_at = now

    def bytes_per_s(self, now: float) -> float:
        """Falls while nothing is freed: a database that stands still drains nothing."""
        if self._last_at is None:
            return 0.0
        idle = now - self._last_at
        return self._rate if idle < _RATE_WINDOW_S else self._rate * _RATE_WINDOW_S / idle


class Histogram:
    """Values counted by reason, in buckets: the first whose bound is not below the value, or one more."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def observe(self, reason: str, value: float) -> None:
        counts = self._counts.setdefault(reason, [0] * (len(self._bounds) + 1))
        counts[bisect_left(self._bounds, value)] += 1
        self._sums[reason] = self._sums.get(reason, 0) + value

    def document(self) -> dict[str, Any]:
        reasons = {
            reason: {"counts": counts, "sum": round(self._sums[reason], 6)} for reason, counts in self._counts.items()
        }
        return {"bounds": self._bounds, "by_reason": reasons}


@dataclass(slots=True)
class Figures:
    """Lifetime figures of this process."""

    started_at: float
    database: Database
    records_in: dict[int, int] = field(default_factory=no_records)
    bytes_in: int = 0
    rows_written: dict[str, int] = field(default_factory=lambda: {kind.name: 0 for kind in KINDS})
    records_written: int = 0
    coalesced: int = 0
    dead_lettered: int = 0
    dead_letters_waiting: int = 0
    damaged_bytes: int = 0
    vanished: int = 0
    statements: int = 0
    flushes: dict[str, int] = field(default_factory=dict)
    flush_seconds: Histogram = field(default_factory=lambda: Histogram(FLUSH_SECONDS))
    flush_records: Histogram = field(default_factory=lambda: Histogram(FLUSH_RECORDS))
    flushed_today: int = 0
    today: str = ""
    flush_duration_s: float = 0.0
    last_flush_at: float | None = None
    failures: dict[str, int] = field(default_factory=dict)
    failures_by_code: dict[str, int] = field(default_factory=dict)
    last_error: str | None = None
    last_error_at: float | None = None
    last_dead_letter: str | None = None
    last_dead_letter_at: float | None = None
    drain_rate: DrainRate = field(default_factory=DrainRate)

    @property
    def flush_count(self) -> int:
        return sum(self.flushes.values())

    def written(self, answer: Written, reason: str, duration_s: float, wall: float) -> None:
        for name, count in answer.rows.items():
            self.rows_written[name] += count
        self.records_written += answer.records
        self.coalesced += answer.coalesced
        self.dead_lettered += answer.dead_lettered
        self.dead_letters_waiting += answer.dead_lettered  # until the file is counted again
        self.damaged_bytes += answer.damaged_bytes
        self.statements += answer.statements
        if answer.last_error:
            self.last_dead_letter, self.last_dead_letter_at = answer.last_error, wall
        day = _iso(wall)[:10]
        if day != self.today:
            self.today, self.flushed_today = day, 0
        self.flushed_today += 1
        self.flushes[reason] = self.flushes.get(reason, 0) + 1
        self.flush_seconds.observe(reason, duration_s)
        self.flush_records.observe(reason, answer.records)
        self.flush_duration_s += duration_s
        self.last_flush_at = wall

    def error(self, text: str, wall: float) -> None:
        self.last_error, self.last_error_at = text, wall

    def failed(self, answer: Failed, wall: float) -> None:
        name, code = answer.error_class.value, str(answer.number)
        self.failures[name] = self.failures.get(name, 0) + 1
        self.failures_by_code[code] = self.failures_by_code.get(code, 0) + 1
        self.error(answer.message, wall)


def document(
    figures: Figures,
    backlog: Backlog,
    journal: Journal,
    *,
    max_bytes: int,
    flush_interval_s: float,
    unsynced_records: int,
    acceptance: Acceptance,
    refusing: Condition | None,
    writers: int,
    database_connections: int,
    connections: int,
    longest_write_s: float,
    now: float,
    wall: float,
) -> dict[str, Any]:
    """Args: now: monotonic seconds; wall: seconds since 1970; refusing: None while `acceptance` is accepting."""
    waiting = backlog.records()
    total = sum(waiting.values())
    counts = {f"{KIND_OF_CODE[code].name}_count": count for code, count in waiting.items() if code in KIND_OF_CODE}
    records_in = sum(figures.records_in.values())
    record_bytes = figures.bytes_in / records_in if records_in else _GUESSED_RECORD_BYTES
    rows = sum(figures.rows_written.values())
    flushes = figures.flush_count
    oldest_at = backlog.oldest_at()
    oldest_s = 0.0 if oldest_at is None else max(0.0, now - oldest_at)
    active = backlog.active
    next_flush = wall + max(0.0, active.opened_at + flush_interval_s - now) if active and active.total else None
    usage_percent = round(100 * journal.bytes / max_bytes, 2)
    backed_up = None
    if usage_percent > BACKLOG_DEGRADED_PERCENT:
        why = f"the backlog takes over half of journal.max_bytes: {OVERLOADED}"
        backed_up = Condition(why, wall - oldest_s, Cause.BACKLOG)
    database, of_segment = figures.database, backlog.alarm()
    status, wrong = verdict(refusing, database, of_segment, backed_up)
    alarm = database.reason if database.alarming else None if of_segment is None else of_segment.reason
    return {
        "buffer": {
            **counts,
            "total_count": total,
            "capacity": int(max_bytes / record_bytes),
            "usage_percent": usage_percent,
            "journal_bytes": journal.bytes,
            "journal_max_bytes": max_bytes,
            "journal_segments": journal.segments,
        },
        "flush_info": {
            "flush_interval_seconds": flush_interval_s,
            "last_flush_time": _iso_or_none(figures.last_flush_at),
            "next_flush_time": _iso_or_none(next_flush),
            "flush_count_today": figures.flushed_today if figures.today == _iso(wall)[:10] else 0,
            "average_flush_duration_ms": round(1000 * figures.flush_duration_s / flushes, 3) if flushes else 0.0,
            "total_flush_duration_seconds": round(figures.flush_duration_s, 6),
            "flushes_by_reason": figures.flushes,
        },
        "performance": {
            **{f"total_{name}_written": count for name, count in figures.rows_written.items()},
            "total_flush_count": flushes,
            "average_batch_size": round(figures.records_written / flushes, 2) if flushes else 0.0,
            "uptime_seconds": round(now - figures.started_at, 3),
            "statements": figures.statements,
            "writers": writers,
            "database_connections": database_connections,
        },
        "at_risk": {
            "unsynced_records": unsynced_records,
            "uncommitted_records": total,
            "oldest_uncommitted_seconds": round(oldest_s, 3),
        },
        "coalescing": {
            "records_in": figures.records_written,
            "rows_written": rows,
            "coalesced": figures.coalesced,
            "ratio": round(rows / figures.records_written, 4) if figures.records_written else 1.0,
        },
        "dead_letters": {
            "count": figures.dead_letters_waiting,
            "total": figures.dead_lettered,
            "last_error": figures.last_dead_letter,
            "last_at": _iso_or_none(figures.last_dead_letter_at),
        },
        "accepted": {KIND_OF_CODE[code].name: count for code, count in figures.records_in.items()},
        "failures": figures.failures,
        "failures_by_code": figures.failures_by_code,
        "damage": {
            "bytes": figures.damaged_bytes,
            "segments_set_aside": journal.set_aside,
            "segments_vanished": figures.vanished,
        },
        "state": {
            "status": status,
            "reason": None if wrong is None else wrong.reason,
            "cause": None if wrong is None else wrong.cause.value,
            "since": None if wrong is None else _iso(wrong.since),
            "database": database.state.value,
            "acceptance": acceptance.value,
            "alarm": alarm,
            "last_error": figures.last_error,
            "last_error_at": _iso_or_none(figures.last_error_at),
            "longest_write_seconds": round(longest_write_s, 3),
            "connections": connections,
        },
        "histograms": {
            "flush_seconds": figures.flush_seconds.document(),
            "flush_records": figures.flush_records.document(),
        },
    }


def _iso_or_none(wall: float | None) -> str | None:
    return None if wall is None else _iso(wall)


def _iso(wall: float) -> str:
    moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=wall)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
