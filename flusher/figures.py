"""What the flusher counts.

Rules: belongs to the loop's thread; counters only rise. Times are passed in, never read here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from flusher.answers import Failed, Written
from flusher.journal import no_records
from flusher.state import Database, date_of
from shared.records import KINDS

FLUSH_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
FLUSH_RECORDS = (1, 10, 100, 500, 1000, 2000, 3000, 4000, 5000)
"""Bounds of the histograms; a flush takes up to a segment, 5000 records and what the last request brings."""
_RATE_WINDOW_S = 10.0


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
        """Falls while nothing is freed."""
        if self._last_at is None:
            return 0.0
        idle = now - self._last_at
        return self._rate if idle < _RATE_WINDOW_S else self._rate * _RATE_WINDOW_S / idle


class Histogram:
    """Counts values by reason in buckets: the first bucket whose bound is not below the value, or one more."""

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
        day = date_of(wall)
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
