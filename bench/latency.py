"""Latency while something is going on in the database: a lock, flushes without a pause, nothing at all."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

from bench.bench import Bench, Trial, say
from bench.contenders import Contender, Ours
from bench.figures import median, phases
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


def locked_open_loop(bench: Bench, rate: float) -> dict[str, Any]:
    """Latency over time at a fixed rate, before, while, and after the table is locked."""
    before_s, lock_s, after_s = bench.plan.lock_plot_s
    say(f"open loop, batch 10, {rate:.0f} requests/s, locked for {lock_s:g} s")
    with bench.running(OURS, "batch 10, locked, open loop", pinned=False, batch=10) as trial:
        contender = trial.contender
        wanted = job(contender.address, contender.path, batch=10, rate=rate, seconds=before_s + lock_s + after_s)
        with Running(wanted, ALL, priority=True) as sender:
            time.sleep(max(0.0, wanted.begin_at + before_s - time.monotonic()))
            with bench.database.mariadb.locked(bench.database.name):
                locked_at = time.monotonic() - wanted.begin_at
                time.sleep(lock_s)
                unlocked_at = time.monotonic() - wanted.begin_at
            measured = _result(sender, trial)
    return {
        **measured,
        "locked_at_s": round(locked_at, 3),
        "unlocked_at_s": round(unlocked_at, 3),
        "phases": phases(measured["latencies"], locked_at, unlocked_at),
    }


def flushing(bench: Bench) -> dict[str, Any]:
    """p99 at half the highest rate, while flushes run without a pause, the same with a database that does not give way
    (`equal`), and with the database away; in turns."""
    say("batch 100, 16 connections unpinned: the highest rate")
    highest = [bench.round(FLUSHING_CELL, bench.plan.cell_s) for _ in range(bench.plan.rounds)]
    rounds: dict[str, list[dict[str, Any]]] = {"flushing": [], "equal": [], "away": []}
    highest_rate = median(highest, "requests_per_s")
    if highest_rate is None:
        return {"highest": highest, **rounds}
    rate = round(highest_rate / 2, 1)
    for number in range(bench.plan.flushing_rounds):
        for state, measurements in rounds.items():
            if state == "equal" and number >= bench.plan.equal_rounds:
                continue
            say(f"open loop, batch 100, {rate:.0f} requests/s, {state}")
            settings = {"DB_SOCKET": AWAY} if state == "away" else {}
            where = f"batch 100, open loop, {state}"
            with bench.running(OURS, where, pinned=False, batch=100, **settings) as trial:
                contender = trial.contender
                if state == "equal":
                    bench.database.give_way(False)
                wanted = job(contender.address, contender.path, batch=100, rate=rate, seconds=bench.plan.flushing_s)
                with Running(wanted, ALL, priority=True) as sender:
                    time.sleep(max(0.0, wanted.begin_at - time.monotonic()))
                    before_s, rows_before, began_at = _flush_s(contender), bench.database.tasks(), time.monotonic()
                    time.sleep(max(0.0, wanted.begin_at + wanted.seconds - time.monotonic()))
                    flush_s, rows = _flush_s(contender) - before_s, bench.database.tasks() - rows_before
                    took_s = time.monotonic() - began_at
                    measured = _result(sender, trial)
            measured.pop("latencies")
            measured |= {"flushing_share": round(flush_s / took_s, 3), "rows_per_s": round(rows / took_s, 1)}
            if wanted.seconds >= SHORT_S:
                measured["problems"] += not_as_meant(state, measured["flushing_share"], rows)
            measurements.append(measured)
    return {"highest": highest, **rounds}


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


def _result(sender: Running, trial: Trial) -> dict[str, Any]:
    measured = trial.round(sender.result())
    if measured["unsent"]:
        measured["problems"].append(f"{measured['unsent']} requests could not be sent: all connections were waiting")
    if sender.job.seconds >= SHORT_S:
        measured["problems"] += late(measured, sender.job)
    return measured


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
