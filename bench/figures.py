"""Percentiles, medians, and what makes a measurement invalid. Pure functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

PERCENTILES = (50, 90, 99, 99.9)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all values do not exceed (nearest rank).

    Args:
        ordered: rising, not empty.
    """
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def summary(latencies_us: Sequence[float]) -> dict[str, float | int]:
    """Raw percentiles in µs; empty where nothing was measured."""
    ordered = sorted(latencies_us)
    if not ordered:
        return {}
    named = {f"p{percent:g}": round(percentile(ordered, percent), 1) for percent in PERCENTILES}
    return {"count": len(ordered), **named, "max": round(ordered[-1], 1)}


def median(rounds: Sequence[Mapping[str, Any]], *path: str) -> float | None:
    """Of one figure over all rounds; None where a round is invalid or has none: one bad round spoils the cell."""
    values = []
    for one in rounds:
        value: Any = None if one["problems"] else one
        for name in path:
            value = value.get(name) if value is not None else None
        if value is None:
            return None
        values.append(value)
    return statistics.median(values) if values else None


def ratio(value: float | None, base: float | None) -> float | None:
    """None where either is missing or there is nothing to divide by."""
    if value is None or not base:
        return None
    return round(value / base, 4)
