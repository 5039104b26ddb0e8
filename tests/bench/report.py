"""The printed table."""

from __future__ import annotations

from typing import Any

from tests.bench.figures import median
from tests.bench.plan import KEYS
from tests.bench.ratios import verdict


def text(raw: dict[str, Any]) -> str:
    lines = []
    for one in raw.get("cells", ()):
        rps = median(one["rounds"], "requests_per_s")
        p50, p99 = (median(one["rounds"], "latency_us", name) for name in ("p50", "p99"))
        lines.append(
            f"{one['contender']:16} {one['batch']:5} {one['connections']:4} {rps} {p50} {p99} {[r.get('requests_per_s') for r in one['rounds']]}"
        )
    for key in KEYS:
        if key.name in raw["ratios"]:
            value = raw["ratios"][key.name]
            lines.append(f"{key.name} {value} {verdict(key, value)}")
    lines += raw["problems"]
    return "\n".join(lines)
