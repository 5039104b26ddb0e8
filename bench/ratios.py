"""Raw figures -> `ratios`. Pure functions; a figure that is missing or invalid makes its ratio None."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bench.figures import median, ratio
from bench.plan import ALWAYS, ASGI, FALCON, LOAD_DATA, NAMES, OURS, PROCESSES, SEED, TWO_WORKERS, Key

Raw = dict[str, Any]


def ratios(raw: Raw, only: Sequence[str] = NAMES) -> dict[str, Any]:
    """Every key of `only`, in the order of KEYS."""
    return {name: made(raw) for name, made in _RATIOS.items() if name in only}


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


def rounds(
    raw: Raw, contender: str, batch: int, connections: int, *, pinned: bool = True, latencies: bool = False
) -> Sequence[Raw]:
    """Of one cell; none if it was not measured."""
    for one in raw.get("cells", ()):
        what = (one["contender"], one["batch"], one["connections"], one["latencies"])
        if what == (contender, batch, connections, latencies) and one["asked_pinned"] == pinned:
            return one["rounds"]
    return ()


def _rates(ours: str, theirs: str, batch: int, connections: int, **how: bool) -> Callable[[Raw], float | None]:
    """Requests/s of one contender by another's, in the same cell."""
    return lambda raw: ratio(
        *(median(rounds(raw, name, batch, connections, **how), "requests_per_s") for name in (ours, theirs))
    )


def _p50(raw: Raw) -> float | None:
    both = (rounds(raw, name, 1, 1, pinned=False, latencies=True) for name in (OURS, ASGI))
    return ratio(*(median(one, "latency_us", "p50") for one in both))


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


_RATIOS: dict[str, Callable[[Raw], Any]] = {
    "rps_vs_ceiling_falcon": _rates(OURS, FALCON, 1, 16),
    "rps_vs_seed_design": _rates(OURS, SEED, 1, 16),
    "p50_vs_ceiling_asgi": _p50,
    "records_vs_ceiling_falcon": _rates(OURS, FALCON, 100, 16),
    "p99_locked_vs_idle": _parts("locked", "locked", "idle", "latency_us", "p99"),
    "p99_flushing_vs_idle": _parts("flushing", "flushing", "away", "latency_us", "p99"),
    "landing_vs_load_data": _parts("landing", OURS, LOAD_DATA, "rows_per_s"),
    "landing_vs_seed_design": _parts("landing", OURS, SEED, "rows_per_s"),
    "statements_per_1000": _one("statements", "per_1000"),
    "rows_per_record_lifecycle": _one("lifecycle", "rows_per_record"),
    "workers2_vs_1": _rates(TWO_WORKERS, OURS, 1, 16, pinned=False),
    "rss_mb": _rss,
    "recover_records_per_s": _one("recovery", "records_per_s"),
    "always_vs_interval": _rates(ALWAYS, OURS, 1, 64),
}
