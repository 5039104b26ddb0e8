"""Latency while something is going on in the database: a lock, flushes without a pause, nothing at all."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

from bench.bench import Bench, say
from bench.contenders import Contender, Ours
from bench.figures import median
from bench.machine import ALL
from bench.open_loop import Job, Running, job
from bench.plan import OURS, Cell

LOCKED_CELL = Cell(OURS, 10, 16, pinned=False, latencies=True)
FLUSHING_CELL = Cell(OURS, 100, 16, pinned=False)
AWAY = "/nonexistent/mysqld.sock"
LEAST_SHARE = 0.9
"""Of the time, that flushes run where they should run without a pause."""
LATE_US = 50_000.0
"""A sender that is later itself, in the p99 of what it sends, does not measure the service."""
SHORT_S = 3.0
"""Rounds of a quick run are shorter, and may be shorter than a flush: how they went is not judged."""


def locked(bench: Bench) -> dict[str, Any]:
    """p99 with the table locked for as long as wrk runs, and not locked; in turns."""
    rounds: dict[str, list[dict[str, Any]]] = {"idle": [], "locked": []}
    for _ in range(bench.plan.lock_rounds):
        for state, measurements in rounds.items():
            say(f"batch 10, 16 connections, {state}")
            with bench.running(OURS, f"batch 10, {state}", pinned=False, batch=10) as trial:
                lock = bench.database.mariadb.locked(bench.database.name) if state == "locked" else nullcontext()
                with lock:
                    measured = bench.load(trial.contender, LOCKED_CELL, bench.plan.lock_s)
                measurements.append(trial.round(measured))
    return rounds


def flushing(bench: Bench) -> dict[str, Any]:
    """p99 at half the highest rate, while flushes run without a pause, and with the database away; in turns."""
    say("batch 100, 16 connections unpinned: the highest rate")
    highest = [bench.round(FLUSHING_CELL, bench.plan.cell_s) for _ in range(bench.plan.rounds)]
    rounds: dict[str, list[dict[str, Any]]] = {"flushing": [], "away": []}
    highest_rate = median(highest, "requests_per_s")
    if highest_rate is not None:
        for _ in range(bench.plan.flushing_rounds):
            for state, measurements in rounds.items():
                measurements.append(_open_loop(bench, state, round(highest_rate / 2, 1)))
    return {"highest": highest, **rounds}


def _open_loop(bench: Bench, state: str, rate: float) -> dict[str, Any]:
    say(f"open loop, batch 100, {rate:.0f} requests/s, {state}")
    settings = {"DB_SOCKET": AWAY} if state == "away" else {}
    database = bench.database
    with bench.running(OURS, f"batch 100, open loop, {state}", pinned=False, batch=100, **settings) as trial:
        contender = trial.contender
        wanted = job(contender.address, contender.path, batch=100, rate=rate, seconds=bench.plan.flushing_s)
        with Running(wanted, ALL, priority=True) as sender:
            time.sleep(max(0.0, wanted.begin_at - time.monotonic()))
            before_s, rows_before, began_at = _flush_s(contender), database.tasks(), time.monotonic()
            time.sleep(max(0.0, wanted.begin_at + wanted.seconds - time.monotonic()))
            flush_s, rows = _flush_s(contender) - before_s, database.tasks() - rows_before
            took_s = time.monotonic() - began_at
            measured = trial.round(sender.result())
    del measured["latencies"]
    share = round(flush_s / took_s, 3)
    problems = measured["problems"]
    if measured["unsent"]:
        problems.append(f"{measured['unsent']} requests could not be sent: all connections were waiting")
    if wanted.seconds >= SHORT_S:
        problems += [*late(measured, wanted), *not_as_meant(state, share, rows)]
    return {**measured, "flushing_share": share, "rows_per_s": round(rows / took_s, 1)}


def not_as_meant(state: str, flushing_share: float, rows: int) -> list[str]:
    """Whether a round was what it is called.

    Args:
        flushing_share: time in writers by wall time; a writer holds two commands, and each is timed whole, so that one
            writer always at work gives up to 2.
        rows: that landed meanwhile.
    """
    if state == "away":
        return [f"{rows} rows landed while the database was away"] if rows else []
    if not rows:
        return ["no row landed while flushes should have run"]
    return [f"flushes ran for {flushing_share:.0%} of the time only"] if flushing_share < LEAST_SHARE else []


def late(measured: dict[str, Any], job: Job) -> list[str]:
    """Whether the sender itself was late. With all connections in use it has waited for the service."""
    late_us = measured["sent_late_us"].get("p99", 0)
    if late_us <= LATE_US or measured["connections"] >= job.most_connections:
        return []
    return [f"the sender itself was late: {late_us / 1000:.0f} ms in its p99"]


def _flush_s(contender: Contender) -> float:
    """Time that writers have spent on finished flushes."""
    assert isinstance(contender, Ours)
    assert contender.service is not None
    return float(contender.service.stats()["flush_info"]["total_flush_duration_seconds"])
