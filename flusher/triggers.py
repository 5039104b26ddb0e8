"""When to flush, when to retry, how many writers: pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from flusher.mysql_errors import ErrorClass


class FlushReason(str, Enum):
    SIZE = "size"
    AGE = "age"
    MANUAL = "manual"
    """A caller waits: POST /flush, or a batch with ?ack=committed."""
    DRAIN = "drain"
    RECOVERY = "recovery"


@dataclass(frozen=True, slots=True)
class FlushPolicy:
    """`max_records` and `interval_s` trigger a flush; the segment caps bound what one writer reads."""

    max_records: int
    interval_s: float
    segment_max_records: int = 5000
    segment_max_bytes: int = 4 * 1024 * 1024


def flush_reason(policy: FlushPolicy, *, records: int, age_s: float, asked: bool, draining: bool) -> FlushReason | None:
    """Why the active segment is due, or None. An empty one never is."""
    if not records:
        return None
    if draining:
        return FlushReason.DRAIN
    if asked:
        return FlushReason.MANUAL
    if records >= policy.max_records:
        return FlushReason.SIZE
    if age_s >= policy.interval_s:
        return FlushReason.AGE
    return None


def is_full(policy: FlushPolicy, *, records: int, size: int) -> bool:
    """Whether the active segment must be sealed even though nobody can write it yet."""
    return records >= policy.segment_max_records or size >= policy.segment_max_bytes


_DELAYS_S = {
    ErrorClass.RETRY: (0.02, 2.0),
    ErrorClass.RECONNECT: (0.1, 2.0),
    ErrorClass.READ_ONLY: (0.1, 1.0),
    ErrorClass.TOO_BIG: (1.0, 10.0),
    ErrorClass.DATA: (1.0, 10.0),
    ErrorClass.SCHEMA: (1.0, 5.0),
    ErrorClass.STORAGE: (1.0, 10.0),
    ErrorClass.UNKNOWN: (1.0, 10.0),
}
"""First and longest delay. The longest bounds how long the end of a fault goes unnoticed."""


def retry_delay(error_class: ErrorClass, attempt: int, random: float) -> float:
    """Seconds to wait before attempt `attempt` (1 is the first repetition): capped exponential, full jitter.

    Args: random: uniform in 0..1. A tenth of the delay is the floor, so that a fault never becomes a busy loop.
    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    first, longest = _DELAYS_S[error_class]
    ceiling = min(longest, first * 2.0 ** min(attempt - 1, 30))
    return ceiling * (0.1 + 0.9 * random)


def retry_after(missing_bytes: int, drained_bytes_per_s: float, *, longest_s: float = 60.0) -> float:
    """Whole seconds until `missing_bytes` of the journal are free at the current drain rate."""
    if drained_bytes_per_s <= 0:
        return longest_s
    return float(min(longest_s, max(1, math.ceil(missing_bytes / drained_bytes_per_s))))


def segments_at_once(*, waiting: int, writers: int, pool_size: int, each: int, healthy: bool, held_up: bool) -> int:
    """How many segments may be at writers at once, `each` at one writer.

    One writer, and one more, up to `writers`, for every four waiting segments. While a write is held up one more, up to
    `pool_size`, so that one locked row does not block the rest. While the database is down a single segment probes it.
    """
    if not healthy:
        return 1
    return each * min(pool_size, min(writers, 1 + waiting // 4) + held_up)
