"""Rows committed a second, from HTTP to the table, against what the same database takes from LOAD DATA."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from bench import limits
from bench.bench import Bench, say
from bench.contenders import Ours
from bench.machine import LOAD, SERVICE
from bench.open_loop import Running, job
from bench.plan import LOAD_DATA, OURS

BATCH = 100
FLUSH_ROWS = 1000
"""buffer.max_buffer_size of the service."""
CONNECTIONS = 64
HIGHEST_SHARE = 1.1
"""Of LOAD DATA's rate: nobody is taken to keep up more."""
KEPT_UP = 0.97
UNDER_WAY = 2 * FLUSH_ROWS
"""A rate is kept up where so much of what was offered has landed when the time is over, but for two flushes."""


def landing(bench: Bench) -> dict[str, Any]:
    """In each round the highest rate that our service keeps up, then LOAD DATA for as long, in batches as large as the
    service made, on the same machine in the same minute."""
    plan = bench.plan
    found: dict[str, list[dict[str, Any]]] = {OURS: [], LOAD_DATA: []}
    first = _load_data(bench, FLUSH_ROWS)
    if first["problems"]:
        return {**found, LOAD_DATA: [first]}
    limit = first["rows_per_s"]
    for _ in range(plan.landing_rounds):
        best = highest_kept_up(
            lambda rate: _land(bench, rate, plan.landing_s), limit, plan.first_share, plan.landing_steps
        )
        found[OURS].append(best)
        rows = max(FLUSH_ROWS, round(best.get("rows_per_flush") or 0))
        found[LOAD_DATA].append(_load_data(bench, rows))
        limit = found[LOAD_DATA][-1].get("rows_per_s", limit)
    return found


def highest_kept_up(
    land: Callable[[float], dict[str, Any]], limit: float, first_share: float, steps: int
) -> dict[str, Any]:
    """Narrows the rates up to `limit`; a single step is taken as it is, which a quick run does.

    Returns: the try at the highest rate that was kept up, with all `tries`.
    """
    low, high, rate = 0.0, HIGHEST_SHARE * limit, first_share * limit
    best: dict[str, Any] | None = None
    tries = []
    for _ in range(steps):
        tried = land(rate)
        wanted = max(1.0, KEPT_UP * rate * tried["seconds"] - UNDER_WAY)
        kept_up = not tried["problems"] and (tried["rows"] >= wanted or steps == 1)
        tries.append({name: tried.get(name) for name in ("offered_per_s", "rows_per_s")} | {"kept_up": kept_up})
        if tried["problems"]:
            return {**tried, "tries": tries}
        if kept_up:
            low, best = rate, tried
        else:
            high = rate
        # What landed of too much is a better guess than the middle.
        landed = tried["rows_per_s"]
        rate = landed if not kept_up and low < landed < high else (low + high) / 2
    if best is None:
        return {"tries": tries, "problems": ["no rate was kept up"]}
    return {**best, "tries": tries}


def _load_data(bench: Bench, rows: int) -> dict[str, Any]:
    seconds, database = bench.plan.landing_s, bench.database
    say(f"LOAD DATA, {rows} rows each, {seconds:g} s")
    database.move_to(LOAD)
    database.empty()
    return limits.load_data(
        database.mariadb.socket,
        database.name,
        rows=rows,
        seconds=seconds,
        cores=SERVICE,
        directory=bench.directory,
    )


def _land(bench: Bench, records_per_s: float, seconds: float) -> dict[str, Any]:
    """Sends at a fixed rate and counts what is committed at the moment when the time is over."""
    say(f"landing: {records_per_s:.0f} records/s offered, {seconds:g} s")
    database = bench.database
    with bench.running(OURS, "landing", pinned=True, batch=BATCH) as trial:
        contender = trial.contender
        wanted = job(
            contender.address,
            contender.path,
            batch=BATCH,
            rate=records_per_s / BATCH,
            seconds=seconds,
            most_connections=CONNECTIONS,
            send_late=False,
            prompt=False,
        )
        with Running(wanted, LOAD, priority=False) as sender:
            time.sleep(max(0.0, wanted.begin_at - time.monotonic()))
            rows_before, began_at = database.tasks(), time.monotonic()
            time.sleep(max(0.0, wanted.begin_at + seconds - time.monotonic()))
            took_s = time.monotonic() - began_at
            rows = database.tasks() - rows_before
            measured = trial.round(sender.result())
        del measured["latencies"], measured["latency_us"]  # the sender is not prompt
        flushes = contender.rows_per_flush() if isinstance(contender, Ours) else None
    return {
        **measured,
        "offered_per_s": round(records_per_s, 1),
        "seconds": round(took_s, 3),
        "rows": rows,
        "rows_per_s": round(rows / took_s, 1),
        "rows_per_flush": flushes,
        "rss_mb": contender.rss_mb,
    }
