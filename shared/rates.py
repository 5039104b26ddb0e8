"""What a node did between two of its stats documents: for the dashboard and for `ctl top`."""

from __future__ import annotations

from typing import Any

import msgspec


class Rates(msgspec.Struct, frozen=True):
    """`rows_per_s` and `accepted_per_s` by kind. Means are None where nothing was flushed."""

    seconds: float
    accepted_per_s: dict[str, float]
    rows_per_s: dict[str, float]
    records_per_s: float
    flushes_per_s: float
    flush_ms: float | None
    records_per_flush: float | None
    rows_per_record: float | None
    coalesced_percent: float | None


def restarted(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether the counters are those of another flusher, which began at zero."""
    return bool(new["performance"]["uptime_seconds"] < old["performance"]["uptime_seconds"])


def rates(old: dict[str, Any], new: dict[str, Any], seconds: float) -> Rates:
    """Args: old, new: stats documents; seconds: between them."""
    seconds = max(seconds, 1e-3)
    before: dict[str, Any] = {} if restarted(old, new) else old

    def rise(section: str, name: str) -> float:
        return float(new[section][name] - before.get(section, {}).get(name, 0))

    flushes = rise("performance", "total_flush_count")
    records, rows = rise("coalescing", "records_in"), rise("coalescing", "rows_written")
    return Rates(
        seconds=seconds,
        accepted_per_s={kind: rise("accepted", kind) / seconds for kind in new["accepted"]},
        rows_per_s={kind: rise("performance", f"total_{kind}_written") / seconds for kind in new["accepted"]},
        records_per_s=records / seconds,
        flushes_per_s=flushes / seconds,
        flush_ms=1000 * rise("flush_info", "total_flush_duration_seconds") / flushes if flushes else None,
        records_per_flush=records / flushes if flushes else None,
        rows_per_record=rows / records if records else None,
        coalesced_percent=100 * rise("coalescing", "coalesced") / records if records else None,
    )
