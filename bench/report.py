"""The printed tables: cells side by side, what was measured besides, and every ratio with its bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bench.figures import median
from bench.plan import ASGI, KEYS, LOAD_DATA, OURS, SEED, STATEMENTS, Key
from bench.ratios import rounds, verdict

Raw = dict[str, Any]
INVALID = "invalid"


def text(raw: Raw) -> str:
    machine = raw["machine"]
    ran_on = (
        f"{raw['plan']} run, {raw['seconds']:.0f} s, on {machine['cores']} cores of {machine['processor']},"
        f" {machine['memory_gib']:g} GiB, {machine['filesystem']}; {machine['kernel']}; Python {machine['python']}\n"
        f"{machine['database']}; {machine['wrk'].partition(' Copyright')[0]}"
    )
    if not machine["database_gives_way"]:
        why = "This user may not change the database's priority" if machine["pins"] else "There is one core"
        ran_on += f"\n{why}: the database gives way in no cell."
    load = "load at real-time priority" if machine["realtime"] else "load at the usual priority: no other is permitted"
    parts = [
        ran_on,
        _cells(raw, _pinned(raw), pinned=True),
        _cells(raw, "requests/s, not pinned", pinned=False),
        _cells(raw, f"latency in µs, p50 / p99, raw, not pinned, {load}", pinned=False, latency=True),
        _others(raw),
        _ratios(raw),
    ]
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


def _cells(raw: Raw, title: str, *, pinned: bool, latency: bool = False) -> str:
    found = [one for one in raw["cells"] if one["asked_pinned"] == pinned and one["latencies"] == latency]
    if not found:
        return ""
    names = list(dict.fromkeys(one["contender"] for one in found))
    show = _latency if latency else _rate
    loads = sorted({(one["batch"], one["connections"]) for one in found})
    by_place = {(one["contender"], one["batch"], one["connections"]): show(one) for one in found}
    rows = [
        [f"batch {batch}, {connections} conn.", *(by_place.get((name, batch, connections), "") for name in names)]
        for batch, connections in loads
    ]
    return f"{title}\n\n{table(['', *names], rows)}"


def _pinned(raw: Raw) -> str:
    """A title that says what happened, which is not always what was wanted."""
    if not raw["machine"]["pins"]:
        return "requests/s, would be pinned, but there is one core only"
    title = "requests/s, pinned: the contender on one core, load and database on the other"
    peers = {one["contender"] for one in raw["cells"] if one["asked_pinned"] and not one["pinned"]}
    return f"{title}; where it runs already: {', '.join(sorted(peers))}" if peers else title


def _rate(one: Raw) -> str:
    return _median(one["rounds"], "requests_per_s")


def _latency(one: Raw) -> str:
    p50, p99 = (median(one["rounds"], "latency_us", name) for name in ("p50", "p99"))
    return INVALID if p50 is None or p99 is None else f"{p50:,.0f} / {p99:,.0f}"


def _median(rounds: Sequence[Raw], *path: str) -> str:
    value = median(rounds, *path)
    return INVALID if value is None else f"{value:,.0f}"


def _spread(rounds: Sequence[Raw], *path: str) -> str:
    """The median round, and the lowest and the highest where there are several."""
    value = median(rounds, *path)
    if value is None or len(rounds) == 1:
        return _median(rounds, *path)
    each = [median([one], *path) or 0 for one in rounds]
    return f"{value:,.0f} ({min(each):,.0f} to {max(each):,.0f})"


def _others(raw: Raw) -> str:
    """Behind a median of several rounds stand the lowest and the highest."""
    rows = [[what, shown] for what, show in _OTHERS if (shown := show(raw))]
    return table(["measured besides", ""], rows) if rows else ""


def _states(part: str, *states: str, path: tuple[str, ...] = ("latency_us", "p99")) -> Callable[[Raw], str]:
    return lambda raw: (
        " / ".join(_spread(raw[part][state], *path) for state in states) if states[0] in raw.get(part, {}) else ""
    )


def _p50(raw: Raw) -> str:
    """Of the cell of p50_vs_ceiling_asgi."""
    both = [rounds(raw, name, 1, 1, pinned=False, latencies=True) for name in (OURS, ASGI)]
    return " / ".join(_spread(one, "latency_us", "p50") for one in both) if all(both) else ""


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
    (f"p50 in µs, batch 1, 1 connection: {OURS} / {ASGI}", _p50),
    ("p99 in µs, batch 10, 16 connections: idle / locked", _states("locked", "idle", "locked")),
    ("p99 in µs, open loop, batch 100: flushing / database away", _states("flushing", "flushing", "away")),
    ("rows/s landed while flushing", _states("flushing", "flushing", path=("rows_per_s",))),
    *((f"rows/s, {name}", _landed(name)) for name in (STATEMENTS, LOAD_DATA, OURS, SEED)),
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
    return table(["key", "what", "measured", "must be", ""], rows) if rows else ""


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
