"""Rows committed a second, from HTTP to the table, against what the same database takes from LOAD DATA."""

from __future__ import annotations

import os
import time
from typing import Any

from tests.bench import limits
from tests.bench.bench import Bench, say
from tests.bench.contenders import Ours
from tests.bench.machine import LOAD, SERVICE
from tests.bench.open_loop import Running, job
from tests.bench.plan import LOAD_DATA, OURS, SEED, STATEMENTS

BATCH = 100
FLUSH_ROWS = 1000
"""buffer.max_buffer_size of the service, and of the seed design."""
CONNECTIONS = 64


SLIGHTLY_MORE = 1.1
"""Than landed: a backlog that grows takes the core from the writers, one that is empty leaves them idle."""


def landing(bench: Bench) -> dict[str, Any]:
    """Each contender is sent what LOAD DATA lands, and less, for a short time, twice, since a short time may be a bad
    one; then for the full time at the rate at which most landed, at what landed, and at slightly more."""
    found: dict[str, Any] = {LOAD_DATA: [], STATEMENTS: []}
    _limit(bench, found, FLUSH_ROWS)
    limit = found[LOAD_DATA][0].get("rows_per_s")
    if limit is None:
        return found
    plan = bench.plan
    for name in (OURS, SEED):
        tries, rates = [], [share * limit for share in plan.offered]
        if len(rates) > 1:
            tries = [_land(bench, name, rate, plan.offered_s) for rate in rates * 2]
            best = max(tries, key=lambda one: one["rows_per_s"])
            landed = max(rates[-1], best["rows_per_s"])
            rates = [best["offered_per_s"], landed, SLIGHTLY_MORE * landed]
        found[name] = {"tries": tries, "rounds": [_land(bench, name, rate, plan.landing_s) for rate in rates]}
        if name == OURS:
            # The limit again, in batches as large as the service has made them under this load.
            rows = max(one["rows_per_flush"] for one in found[name]["rounds"])
            _limit(bench, found, max(FLUSH_ROWS, round(rows)))
    return found


def _limit(bench: Bench, found: dict[str, Any], rows: int) -> None:
    for what in (LOAD_DATA, STATEMENTS):
        say(f"{what}, {rows} rows each")
        bench.database.move_to(LOAD)
        bench.database.empty()
        os.sync()
        mariadb = bench.database.mariadb
        found[what].append(
            limits.measure(
                what, mariadb.socket, bench.database.name, rows=rows, seconds=bench.plan.limit_s, cores=SERVICE
            )
        )


def _land(bench: Bench, name: str, records_per_s: float, seconds: float) -> dict[str, Any]:
    """Sends at a fixed rate and counts what is committed at the moment when the time is over."""
    say(f"landing: {name}, {records_per_s:.0f} records/s offered, {seconds:g} s")
    database = bench.database
    with bench.running(name, f"landing, {seconds:g} s", pinned=True, batch=BATCH) as (contender, problems):
        wanted = job(
            contender.address,
            contender.path,
            batch=BATCH,
            rate=records_per_s / BATCH,
            seconds=seconds,
            most_connections=CONNECTIONS,
            send_late=False,
        )
        with Running(wanted, LOAD, priority=False) as sender:
            time.sleep(wanted.begin_at - time.monotonic())
            rows_before, statements_before, began_at = database.tasks(), database.statements(), time.monotonic()
            time.sleep(wanted.begin_at + seconds - time.monotonic())
            statements = database.statements() - statements_before
            took_s = time.monotonic() - began_at
            rows = database.tasks() - rows_before
            measured = sender.result()
        measured.pop("latencies")
        flushes = contender.rows_per_flush() if isinstance(contender, Ours) else None
    problems += measured["problems"]
    if not rows:
        problems.append("no row was committed")
    return {
        **measured,
        "offered_per_s": round(records_per_s, 1),
        "seconds": round(took_s, 3),
        "rows": rows,
        "rows_per_s": round(rows / took_s, 1),
        "rows_per_flush": flushes,
        "rss_mb": contender.rss_mb,
        "statements_per_1000_rows": round(1000 * statements / rows, 3) if rows else None,
        "problems": problems,
    }
