"""Rows committed a second, from HTTP to the table, against what the same database takes from LOAD DATA."""

from __future__ import annotations

import time
from typing import Any

from bench import limits
from bench.bench import Bench, say
from bench.contenders import Ours
from bench.machine import LOAD, SERVICE
from bench.open_loop import Running, job
from bench.plan import LOAD_DATA, OURS, SEED, STATEMENTS

BATCH = 100
FLUSH_ROWS = 1000
"""buffer.max_buffer_size of the service, and of the seed design."""
CONNECTIONS = 64


ALL = 0.97
MORE, SLIGHTLY_MORE = 1.15, 1.05
"""Than landed. A backlog that grows takes the core from the writers, one that is empty leaves them idle: where nearly
all that was offered has landed, clearly more is offered next, else slightly more than landed."""


def landing(bench: Bench) -> dict[str, Any]:
    """Each contender is sent what LOAD DATA lands, and less, for a short time, twice, since a short time may be a bad
    one; then for the full time, at first slightly more than the best try has landed. After each of our sustained runs
    LOAD DATA has its turn for as long, in batches as large as the service made, on the same machine in the same minute.
    """
    plan = bench.plan
    found: dict[str, Any] = {
        what: {"tries": [_limit(bench, what, FLUSH_ROWS, plan.limit_s)], "rounds": []}
        for what in (STATEMENTS, LOAD_DATA)
    }
    first = found[LOAD_DATA]["tries"][0]
    if first["problems"]:
        return found
    limit = first["rows_per_s"]
    for name in (OURS, SEED):
        rates = [share * limit for share in plan.offered]
        tries = [_land(bench, name, rate, plan.offered_s) for rate in rates * 2] if len(rates) > 1 else []
        found[name] = {"tries": tries, "rounds": []}
        # In a short try too much does little harm: what was offered in the best may be far more than lands for long.
        rate = max(one["rows_per_s"] for one in tries) * SLIGHTLY_MORE if tries else rates[0]
        for _ in range(plan.landing_rounds):
            measured = _land(bench, name, rate, plan.landing_s)
            found[name]["rounds"].append(measured)
            landed = max(measured["rows_per_s"], rates[-1])
            rate = landed * (MORE if landed >= ALL * rate else SLIGHTLY_MORE)
            if name == OURS:
                rows = max(FLUSH_ROWS, round(measured["rows_per_flush"]))
                found[LOAD_DATA]["rounds"].append(_limit(bench, LOAD_DATA, rows, plan.landing_s))
    return found


def _limit(bench: Bench, what: str, rows: int, seconds: float) -> dict[str, Any]:
    say(f"{what}, {rows} rows each, {seconds:g} s")
    bench.database.move_to(LOAD)
    bench.database.empty()
    return limits.measure(
        what,
        bench.database.mariadb.socket,
        bench.database.name,
        rows=rows,
        seconds=seconds,
        cores=SERVICE,
        directory=bench.directory,
    )


def _land(bench: Bench, name: str, records_per_s: float, seconds: float) -> dict[str, Any]:
    """Sends at a fixed rate and counts what is committed at the moment when the time is over."""
    say(f"landing: {name}, {records_per_s:.0f} records/s offered, {seconds:g} s")
    database = bench.database
    with bench.running(name, f"landing, {seconds:g} s", pinned=True, batch=BATCH) as trial:
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
            rows_before, statements_before, began_at = database.tasks(), database.statements(), time.monotonic()
            time.sleep(max(0.0, wanted.begin_at + seconds - time.monotonic()))
            statements = database.statements() - statements_before
            took_s = time.monotonic() - began_at
            rows = database.tasks() - rows_before
            measured = trial.round(sender.result())
        del measured["latencies"], measured["latency_us"]  # the sender is not prompt
        flushes = contender.rows_per_flush() if isinstance(contender, Ours) else None
    problems = measured["problems"] if rows else [*measured["problems"], "no row was committed"]
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
