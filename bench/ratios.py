"""Raw figures -> `ratios`. Pure functions; a figure that is missing or invalid makes its ratio None."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from bench.figures import median, ratio
from bench.plan import CELLS_OF, LOAD_DATA, NAMES, OURS, PROCESSES, Cell, Key

Raw = dict[str, Any]


def ratios(raw: Raw, only: Sequence[str] = NAMES) -> dict[str, Any]:
    """Every key of `only`, in the order of KEYS."""
    made: dict[str, Callable[[Raw], Any]] = {**{key: partial(_cells, key=key) for key in CELLS_OF}, **_OTHERS}
    return {name: made[name](raw) for name in NAMES if name in only}


def verdict(key: Key, value: Any) -> bool | None:
    """Whether a ratio is within its bounds; None where it has none, or was not measured."""
    if value is None or (key.at_least is None and key.at_most is None):
        return None
    if isinstance(key.at_most, dict):
        return all(value.get(name) is not None and value[name] <= most for name, most in key.at_most.items())
    return (key.at_least is None or value >= key.at_least) and (key.at_most is None or value <= key.at_most)


def problems(raw: Any, where: str = "") -> list[str]:
    """Everything that a measurement has found wrong, with its place in the raw figures."""
    found: list[str] = []
    if isinstance(raw, dict):
        name = " ".join(str(raw[part]) for part in ("contender", "load") if part in raw)
        here = f"{where} {name}".strip()
        found += [f"{here}: {problem}" for problem in raw.get("problems", ())]
        for part, value in raw.items():
            if part != "problems":
                found += problems(value, f"{here} {part}".strip())
    elif isinstance(raw, list):
        for value in raw:
            found += problems(value, where)
    return found


def rounds(raw: Raw, cell: Cell) -> Sequence[Raw]:
    """Of one cell; none if it was not measured."""
    for one in raw.get("cells", ()):
        if one["contender"] == cell.contender and one["load"].startswith(cell.load):
            found: Sequence[Raw] = one["rounds"]
            return found
    return ()


def _cells(raw: Raw, key: str) -> float | None:
    path = ("latency_us", "p50") if CELLS_OF[key][0].latencies else ("requests_per_s",)
    return ratio(*(median(rounds(raw, cell), *path) for cell in CELLS_OF[key]))


def _parts(part: str, ours: str, theirs: str, *path: str) -> Callable[[Raw], float | None]:
    """A figure of two lists of rounds that one measurement has made."""
    return lambda raw: ratio(*(median(raw.get(part, {}).get(name, ()), *path) for name in (ours, theirs)))


def _one(part: str, name: str) -> Callable[[Raw], Any]:
    """A figure of a measurement that is made once."""
    return lambda raw: None if not raw.get(part) or raw[part]["problems"] else raw[part][name]


def _rss(raw: Raw) -> dict[str, float] | None:
    """While landing; a process that was not seen is not small."""
    landed = raw.get("landing", {}).get(OURS, ())
    if not landed or any(one["problems"] or set(one["rss_mb"]) != set(PROCESSES) for one in landed):
        return None
    return {process: max(one["rss_mb"][process] for one in landed) for process in PROCESSES}


_OTHERS: dict[str, Callable[[Raw], Any]] = {
    "p99_locked_vs_idle": _parts("locked", "locked", "idle", "latency_us", "p99"),
    "p99_flushing_vs_idle": _parts("flushing", "flushing", "away", "latency_us", "p99"),
    "landing_vs_load_data": _parts("landing", OURS, LOAD_DATA, "rows_per_s"),
    "statements_per_1000": _one("statements", "per_1000"),
    "rows_per_record_lifecycle": _one("lifecycle", "rows_per_record"),
    "rss_mb": _rss,
    "recover_records_per_s": _one("recovery", "records_per_s"),
}
