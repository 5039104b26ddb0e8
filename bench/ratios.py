"""Raw figures -> `ratios`. Pure functions; a figure that is missing or invalid makes its ratio None."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bench.figures import median, ratio
from bench.plan import (
    ALWAYS,
    ASGI,
    FALCON,
    LOAD_DATA,
    NAMES,
    OURS,
    PROCESSES,
    SEED,
    SEED_NO_LOG,
    TWO_WORKERS,
    Key,
)

Raw = dict[str, Any]


def ratios(raw: Raw, only: Sequence[str] = NAMES) -> dict[str, Any]:
    """Every key of `only`, in the order of KEYS."""
    return {name: made(raw) for name, made in _RATIOS.items() if name in only}


def rps_vs_seed_design_no_log(raw: Raw) -> float | None:
    """What rps_vs_seed_design would be without uvicorn's access log. Not a key: its users leave the log as it is."""
    return ratio(_rps(raw, OURS, 1, 16), _rps(raw, SEED_NO_LOG, 1, 16))


def landing_by_best(raw: Raw) -> float | None:
    """What landing_vs_load_data would be if the best of each counted, LOAD DATA's short try included."""
    tries = raw.get("landing", {}).get(LOAD_DATA, {}).get("tries", ())
    return ratio(_best(_sustained(raw, OURS)), _best([*tries, *_sustained(raw, LOAD_DATA)]))


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
        name = " ".join(str(raw[part]) for part in ("contender", "batch", "connections") if part in raw)
        here = f"{where} {name}".strip()
        found += [f"{here}: {problem}" for problem in raw.get("problems", ())]
        for part, value in raw.items():
            if part != "problems":
                found += problems(value, f"{here} {part}".strip())
    elif isinstance(raw, list):
        for value in raw:
            found += problems(value, where)
    return found


def cell(raw: Raw, contender: str, batch: int, connections: int, *path: str, pinned: bool = True) -> float | None:
    """The median of one figure of one cell; None if it was not measured, or is invalid."""
    latencies = path[0] == "latency_us"
    return median(rounds(raw, contender, batch, connections, pinned=pinned, latencies=latencies), *path)


def rounds(
    raw: Raw, contender: str, batch: int, connections: int, *, pinned: bool = True, latencies: bool = False
) -> Sequence[Raw]:
    """Of one cell; none if it was not measured."""
    for one in raw.get("cells", ()):
        what = (one["contender"], one["batch"], one["connections"], one["latencies"])
        if what == (contender, batch, connections, latencies) and one["asked_pinned"] == pinned:
            return one["rounds"]
    return ()


def _rps(raw: Raw, contender: str, batch: int, connections: int, **how: bool) -> float | None:
    return cell(raw, contender, batch, connections, "requests_per_s", **how)


def _rounds(raw: Raw, part: str, name: str, *path: str) -> float | None:
    return median(raw.get(part, {}).get(name, ()), *path)


def _sustained(raw: Raw, name: str) -> Sequence[Raw]:
    found: Sequence[Raw] = raw.get("landing", {}).get(name, {}).get("rounds", ())
    return found


def _landed(raw: Raw, name: str) -> float | None:
    return median(_sustained(raw, name), "rows_per_s")


def _best(rounds: Sequence[Raw]) -> float | None:
    if not rounds or any(one["problems"] for one in rounds):
        return None
    return max(one["rows_per_s"] for one in rounds)


def _one(raw: Raw, part: str, name: str) -> Any:
    """A figure of a measurement that is made once."""
    measured = raw.get(part)
    return None if not measured or measured["problems"] else measured[name]


def _rss(raw: Raw) -> dict[str, float] | None:
    """In the sustained runs; a process that was not seen is not small."""
    rounds = _sustained(raw, OURS)
    if not rounds or any(one["problems"] or set(one["rss_mb"]) != set(PROCESSES) for one in rounds):
        return None
    return {process: max(one["rss_mb"][process] for one in rounds) for process in PROCESSES}


_RATIOS: dict[str, Callable[[Raw], Any]] = {
    "rps_vs_ceiling_falcon": lambda raw: ratio(_rps(raw, OURS, 1, 16), _rps(raw, FALCON, 1, 16)),
    "rps_vs_seed_design": lambda raw: ratio(_rps(raw, OURS, 1, 16), _rps(raw, SEED, 1, 16)),
    "p50_vs_ceiling_asgi": lambda raw: ratio(
        cell(raw, OURS, 1, 1, "latency_us", "p50", pinned=False),
        cell(raw, ASGI, 1, 1, "latency_us", "p50", pinned=False),
    ),
    "records_vs_ceiling_falcon": lambda raw: ratio(_rps(raw, OURS, 100, 16), _rps(raw, FALCON, 100, 16)),
    "p99_locked_vs_idle": lambda raw: ratio(
        _rounds(raw, "locked", "locked", "latency_us", "p99"), _rounds(raw, "locked", "idle", "latency_us", "p99")
    ),
    "p99_flushing_vs_idle": lambda raw: ratio(
        _rounds(raw, "flushing", "flushing", "latency_us", "p99"), _rounds(raw, "flushing", "away", "latency_us", "p99")
    ),
    "landing_vs_load_data": lambda raw: ratio(_landed(raw, OURS), _landed(raw, LOAD_DATA)),
    "landing_vs_seed_design": lambda raw: ratio(_landed(raw, OURS), _landed(raw, SEED)),
    "statements_per_1000": lambda raw: _one(raw, "statements", "per_1000"),
    "rows_per_record_lifecycle": lambda raw: _one(raw, "lifecycle", "rows_per_record"),
    "workers2_vs_1": lambda raw: ratio(
        _rps(raw, TWO_WORKERS, 1, 16, pinned=False), _rps(raw, OURS, 1, 16, pinned=False)
    ),
    "rss_mb": _rss,
    "recover_records_per_s": lambda raw: _one(raw, "recovery", "records_per_s"),
    "always_vs_interval": lambda raw: ratio(_rps(raw, ALWAYS, 1, 64), _rps(raw, OURS, 1, 64)),
}
