"""The printed tables: cells side by side, what was measured besides, and every ratio with its bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bench.figures import median
from bench.plan import ASGI, KEYS, LOAD_DATA, OURS, SEED, SEED_NO_LOG, STATEMENTS, Key
from bench.ratios import rounds, verdict

Raw = dict[str, Any]
INVALID = "invalid"


def text(raw: Raw) -> str:
    machine = raw["machine"]
    ran_on = (
        f"{raw['plan']} run, {raw['seconds']:.0f} s, on {machine['cores']} cores of {machine['processor']},"
        f" {machine['memory_gib']:g} GiB, {machine['filesystem']}; {machine['kernel']}; Python {machine['python']}\n"
        f"{machine['mariadb']}; {machine['wrk'].partition(' Copyright')[0]}"
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


def _others(raw: Raw) -> str:
    rows = [
        [what, shown]
        for what, needs, show in _OTHERS
        if all(_get(raw, path) for path in needs) and (shown := show(raw))
    ]
    return table(["measured besides", ""], rows) if rows else ""


def _get(raw: Raw, path: str) -> Any:
    value: Any = raw
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


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


def _p99(raw: Raw, part: str, *states: str) -> str:
    return " / ".join(_spread(raw[part][state], "latency_us", "p99") for state in states)


def _p50(raw: Raw) -> str:
    """Of the cell of p50_vs_ceiling_asgi."""
    both = [rounds(raw, name, 1, 1, pinned=False, latencies=True) for name in (OURS, ASGI)]
    return " / ".join(_spread(one, "latency_us", "p50") for one in both) if all(both) else ""


def _open_loop(raw: Raw) -> str:
    measured = raw["locked_open_loop"]
    if measured["problems"]:
        return INVALID
    phases = [f"{one['p50']:,.0f} / {one['p99']:,.0f}" if one else INVALID for one in measured["phases"].values()]
    return f"{measured['rate']:,.0f}; {', '.join(phases)}"


def _limit(raw: Raw, name: str) -> str:
    measured = raw["landing"][name]
    return _each(
        [*measured["tries"], *measured["rounds"]],
        lambda one: f"{one['rows_in_one']} rows each, {one['seconds']:.0f} s",
    )


def _landed(raw: Raw, name: str) -> str:
    return _each(raw["landing"][name]["rounds"], lambda one: f"{one['offered_per_s']:,.0f} offered")


def _each(rounds: Sequence[Raw], how: Callable[[Raw], str]) -> str:
    """rows/s of every round, and how it was made."""
    return ", ".join(INVALID if one["problems"] else f"{one['rows_per_s']:,.0f} ({how(one)})" for one in rounds)


_OTHERS: tuple[tuple[str, tuple[str, ...], Callable[[Raw], str]], ...] = (
    (
        f"rps_vs_seed_design without uvicorn's access log: requests/s of {OURS} by those of {SEED_NO_LOG}",
        ("rps_vs_seed_design_no_log",),
        lambda raw: _value(raw["rps_vs_seed_design_no_log"]),
    ),
    (f"p50 in µs, batch 1, 1 connection: {OURS} / {ASGI}", ("cells",), _p50),
    (
        "p99 in µs, batch 10, 16 connections: idle / locked",
        ("locked.idle",),
        lambda raw: _p99(raw, "locked", "idle", "locked"),
    ),
    (
        "p99 in µs, open loop, batch 100: flushing / with a database that does not give way / database away",
        ("flushing.flushing",),
        lambda raw: _p99(raw, "flushing", "flushing", "equal", "away"),
    ),
    (
        "rows/s landed in these rounds",
        ("flushing.flushing",),
        lambda raw: " / ".join(
            _median(raw["flushing"][state], "rows_per_s") for state in ("flushing", "equal", "away")
        ),
    ),
    (
        "open loop, batch 10: requests/s; p50 / p99 in µs before, while, and after the table is locked",
        ("locked_open_loop.phases",),
        _open_loop,
    ),
    (f"rows/s, {LOAD_DATA}", (f"landing.{LOAD_DATA}",), lambda raw: _limit(raw, LOAD_DATA)),
    (f"rows/s, {STATEMENTS}", (f"landing.{STATEMENTS}",), lambda raw: _limit(raw, STATEMENTS)),
    (f"rows/s landed, {OURS}", (f"landing.{OURS}",), lambda raw: _landed(raw, OURS)),
    (f"rows/s landed, {SEED}", (f"landing.{SEED}",), lambda raw: _landed(raw, SEED)),
    (
        "landing_vs_load_data, by the best of each instead of the median, LOAD DATA's short try included",
        ("landing_by_best",),
        lambda raw: _value(raw["landing_by_best"]),
    ),
    (
        "most memory in any cell, MB",
        ("rss_mb",),
        lambda raw: "; ".join(f"{process} {peak['mb']:g} ({peak['where']})" for process, peak in raw["rss_mb"].items()),
    ),
    (
        "journal read back: seconds until the service accepts, with it",
        ("recovery.start",),
        lambda raw: f"{raw['recovery']['start']['ready_s']:.2f}",
    ),
)
"""What, the paths in the raw figures that must be there, how to show it: nothing, where it was not measured. Behind a
median of several rounds stand the lowest and the highest."""


def _ratios(raw: Raw) -> str:
    rows = [
        [f"**{key.name}**", key.says, _value(raw["ratios"][key.name]), _bound(key), _verdict(key, raw)]
        for key in KEYS
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


def _verdict(key: Key, raw: Raw) -> str:
    return {True: "yes", False: "NO", None: ""}[verdict(key, raw["ratios"][key.name])]
