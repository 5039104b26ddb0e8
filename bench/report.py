"""The printed tables: what was measured, and every ratio with its bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bench.figures import median
from bench.plan import KEYS, LOAD_DATA, OURS, Key
from bench.ratios import verdict

Raw = dict[str, Any]
INVALID = "invalid"


def text(raw: Raw) -> str:
    machine = raw["machine"]
    parts = [
        (
            f"{raw['plan']} run, {raw['seconds']:.0f} s, on {machine['cores']} cores of {machine['processor']},"
            f" {machine['memory_gib']:g} GiB, {machine['filesystem']}; {machine['kernel']};"
            f" Python {machine['python']}\n{machine['database']}; {machine['wrk'].partition(' Copyright')[0]}"
        )
    ]
    if not machine["database_gives_way"]:
        why = "This user may not change the database's priority" if machine["pins"] else "There is one core"
        parts.append(f"{why}: the database gives way in no cell.")
    if not machine["realtime"]:
        parts.append("This user may not use real-time priority: latencies hold the sender's own waits, too.")
    rows = [[f"{one['contender']}: {one['load']}", _cell(one)] for one in raw["cells"]]
    rows += [[what, shown] for what, show in _OTHERS if (shown := show(raw))]
    parts += [table(["measured", "median (lowest to highest)"], rows), _ratios(raw)]
    if raw["problems"]:
        parts.append("NOT VALID:\n" + "\n".join(f"  {problem}" for problem in raw["problems"]))
    return "\n\n".join(part for part in parts if part)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they must be, in Markdown, so that it can be pasted."""
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    lines = [head, ["-" * (width - 1) + ":" if at else "-" * width for at, width in enumerate(widths)], *rows]
    return "\n".join(
        "| " + " | ".join(f"{cell:{'>' if at else '<'}{widths[at]}}" for at, cell in enumerate(line)) + " |"
        for line in lines
    )


def _cell(one: Raw) -> str:
    if one["load"].startswith("requests/s"):
        return _spread(one["rounds"], "requests_per_s")
    return " / ".join(_spread(one["rounds"], "latency_us", name) for name in ("p50", "p99"))


def _spread(rounds: Sequence[Raw], *path: str) -> str:
    """The median round, and the lowest and the highest where there are several."""
    value = median(rounds, *path)
    if value is None:
        return INVALID
    each = [median([one], *path) or 0 for one in rounds]
    return f"{value:,.0f}" + (f" ({min(each):,.0f} to {max(each):,.0f})" if len(each) > 1 else "")


def _states(part: str, *states: str, path: tuple[str, ...] = ("latency_us", "p99")) -> Callable[[Raw], str]:
    return lambda raw: (
        " / ".join(_spread(raw[part][state], *path) for state in states) if states[0] in raw.get(part, {}) else ""
    )


def _landed(name: str) -> Callable[[Raw], str]:
    def how(one: Raw) -> str:
        return f"{one['rows_in_one']} rows each" if "rows_in_one" in one else f"{one['offered_per_s']:,.0f} offered"

    return lambda raw: ", ".join(
        INVALID if one["problems"] else f"{one['rows_per_s']:,.0f} ({how(one)})"
        for one in raw.get("landing", {}).get(name, ())
    )


def _started(raw: Raw) -> str:
    start = raw.get("recovery", {}).get("start")
    return f"{start['ready_s']:.2f}" if start else ""


_OTHERS: tuple[tuple[str, Callable[[Raw], str]], ...] = (
    ("p99 in µs, batch 10, 16 connections: idle / locked", _states("locked", "idle", "locked")),
    ("p99 in µs, open loop, batch 100: flushing / database away", _states("flushing", "flushing", "away")),
    ("rows/s landed while flushing", _states("flushing", "flushing", path=("rows_per_s",))),
    *((f"rows/s, {name}", _landed(name)) for name in (LOAD_DATA, OURS)),
    (
        "most memory in any cell, MB",
        lambda raw: "; ".join(f"{process} {peak['mb']:g} ({peak['where']})" for process, peak in raw["rss_mb"].items()),
    ),
    ("journal read back: seconds until the service accepts, with it", _started),
)
"""What, and how to show it: nothing, where it was not measured."""


def _ratios(raw: Raw) -> str:
    words = {True: "yes", False: "NO", None: ""}
    rows = [
        [f"**{key.name}**", key.says, _value(value), _bound(key), words[verdict(key, value)]]
        for key in KEYS
        for value in (raw["ratios"].get(key.name),)
        if key.name in raw["ratios"]
    ]
    return table(["key", "what", "measured", "must be", ""], rows)


def _value(value: Any) -> str:
    if value is None:
        return INVALID
    if isinstance(value, dict):
        return ", ".join(f"{one:g}" for one in value.values())
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _bound(key: Key) -> str:
    if isinstance(key.at_most, dict):
        return "≤ " + ", ".join(f"{one:g}" for one in key.at_most.values())
    if key.at_most is not None:
        return f"≤ {key.at_most:g}"
    return f"≥ {key.at_least:,g}" if key.at_least is not None else "reported"
