"""`python -m tests.system.chaos`: starts the service, loads it, breaks it, heals it, compares, and says the verdict."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

import orjson
import uvloop

from tests.support.mysql import SERVERS
from tests.support.service import wait_until
from tests.system.chaos import report as reports
from tests.system.chaos.faults import KINDS, Faults
from tests.system.chaos.load import Figures, Load, percentiles
from tests.system.chaos.model import TABLES, Differences, Model, compare
from tests.system.chaos.run import FaultRun, Kinds, schedule
from tests.system.chaos.service import Service

QUIET_S = 3.0
"""Before the faults, and after them."""
HEAL_S = 60.0
FLUSH_S = 60.0


async def run(service: Service, options: argparse.Namespace) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(64))
    say(f"seed {options.seed}, state in {service.directory}")
    kinds = dict(KINDS)
    if not service.mount_journal():
        say("no small disk can be mounted for the journal: no disk gets full, more often its quota is reached")
        share, _, _ = kinds.pop("disk full")
        kinds["journal full"] = (kinds["journal full"][0] + share, 0, 0)
    await asyncio.to_thread(service.start)
    say("service started")

    model = Model(datetime.now(timezone.utc).replace(microsecond=0, tzinfo=None) - timedelta(hours=1))
    load = Load(
        model,
        (service.host, service.port),
        options.seed,
        service.directory,
        clients=options.clients,
        rate=options.rate,
        stored_at=service.stored_at,
    )
    faults = Faults(service, load)
    figures = load.figures
    load.start()
    await asyncio.sleep(QUIET_S)

    faults_s = await run_faults(options, faults, kinds, model, figures)
    healed = await asyncio.to_thread(until, service.is_healthy, HEAL_S)
    figures.phase = "quiet"
    say("healthy again" if healed else "NOT healthy again")
    await asyncio.sleep(QUIET_S)
    undelivered = await load.stop(HEAL_S)

    flushed = await asyncio.to_thread(service.flush, FLUSH_S)
    say("flushed" if flushed else "NOT flushed")
    differences = Differences()

    def compare_tables() -> None:
        for kind in TABLES:
            compare(model, kind, service.rows(kind), differences)

    await asyncio.to_thread(compare_tables)
    say(f"{differences.rows} rows compared")
    await asyncio.to_thread(service.stop)
    say("stopped")
    await asyncio.to_thread(until, lambda: not service.processes(), 10.0)
    report = what_happened(
        options,
        faults,
        model,
        figures,
        differences,
        services=[service],
        fsync=options.fsync,
        faults_s=faults_s,
        undelivered=undelivered,
        healed=healed,
        flushed=flushed,
    )
    report["problems"] = reports.problems(report)
    return report


def what_happened(
    options: argparse.Namespace,
    faults: FaultRun,
    model: Model,
    figures: Figures,
    differences: Differences,
    *,
    services: Sequence[Service],
    fsync: str,
    faults_s: float,
    undelivered: int,
    healed: bool,
    flushed: bool,
) -> dict[str, Any]:
    """The report of a run, before its verdict. The services have been stopped."""
    return {
        "seed": options.seed,
        "fsync": fsync,
        "clients": options.clients,
        "seconds": {"faults": round(faults_s, 1)},
        "faults": {
            "asked": options.faults,
            "hit": faults.hits.total(),
            "missed": faults.missed.total(),
            "by_kind": dict(faults.hits),
        },
        "records": {
            "acknowledged": model.records_acknowledged,
            "keys": sum(model.keys(kind) for kind in TABLES),
            "rows": differences.rows,
        },
        "requests": {
            "sent": figures.requests,
            "refused": dict(figures.refused),
            "unanswered": figures.unanswered,
            "committed": figures.committed,
            "wrong": dict(figures.wrong),
        },
        "longest_gap_ms": round(1000 * figures.longest_gap_s),
        "latency_ms": {
            "POST answered 202": {phase: percentiles(values) for phase, values in figures.posts.items()},
            "batch with its repetitions": {phase: percentiles(values) for phase, values in figures.accepted.items()},
        },
        "must_be_zero": {
            "lost": differences.lost,
            "stale": differences.stale,
            "duplicated": differences.duplicated,
            "unexpected": differences.unexpected,
            "committed_but_not_stored": figures.committed_not_stored,
            "dead_letters": sum(service.dead_letters() for service in services),
            "journaled_entries_left": sum(service.journaled_entries() for service in services),
            "processes_left": sum(len(service.processes()) for service in services),
            "requests_never_acknowledged": undelivered,
            "wrong_answers": sum(figures.wrong.values()),
            "tracebacks": sum(service.tracebacks() for service in services),
        },
        "segments_set_aside": sum(service.set_aside() for service in services),
        "healed": healed,
        "flushed": flushed,
        "examples": differences.examples,
    }


async def run_faults(
    options: argparse.Namespace, faults: FaultRun, kinds: Kinds, model: Model, figures: Figures
) -> float:
    """All that were asked for. Returns: how many seconds they took."""
    say("faults begin")
    figures.phase = "faults"
    began_at = time.monotonic()
    progress = asyncio.get_running_loop().create_task(say_progress(faults, model, options.faults))
    await faults.run(options.faults, schedule(options.seed, options.per_second, kinds))
    progress.cancel()
    say("faults have ended")
    return time.monotonic() - began_at


async def say_progress(faults: FaultRun, model: Model, asked: int) -> None:
    while True:
        await asyncio.sleep(15)
        say(f"{faults.hits.total()} of {asked} faults, {model.records_acknowledged} records acknowledged")


def until(condition: Any, timeout_s: float) -> bool:
    try:
        wait_until(condition, timeout_s)
    except AssertionError:
        return False
    return True


_started_at = time.monotonic()


def say(what: str) -> None:
    print(f"{time.monotonic() - _started_at:6.1f} s  {what}", file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos.sh", description="breaks the running service, then looks for losses")
    parser.add_argument("--faults", type=int, default=60, metavar="N", help="how many (60)")
    parser.add_argument("--seed", type=int, default=None, metavar="S", help="repeats a schedule (random)")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="writes the report there too")
    parser.add_argument("--per-second", type=float, default=2.2, help="faults a second (2.2)")
    parser.add_argument("--rate", type=float, default=800, help="records a second (800)")
    parser.add_argument("--clients", type=int, default=6, help="clients (6)")
    parser.add_argument("--fsync", choices=("always", "interval", "never"), help="journal.fsync (by the seed)")
    parser.add_argument("--database", choices=SERVERS, default="mariadb", help="the server under the service")
    parser.add_argument("--keep", action="store_true", help="keeps the state directory, as a bad verdict does")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = SystemRandom().randrange(1_000_000)
    if options.fsync is None:
        options.fsync = Random(options.seed).choice(("always", "interval"))
    return options


def main() -> int:
    options = arguments()
    directory = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    service = Service(directory, fsync=options.fsync)
    if options.database == "mysql":
        service.use_mysql()
    keep = True
    # A polite end of the harness takes everything that it has started with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        report = uvloop.run(run(service, options))
        if options.json is not None:
            options.json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
        print(reports.text(report))
        keep = options.keep or bool(report["problems"])
        return 1 if report["problems"] else 0
    finally:
        end_processes(service)
        if keep:
            say(f"kept: {directory}")
            if service.mounted:
                shutil.copytree(service.journal, directory / "journal.kept")
        service.unmount_journal()
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


def end_processes(service: Service) -> None:
    for _ in range(3):
        for pid in service.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if until(lambda: not service.processes(), 2.0):
            return


if __name__ == "__main__":
    sys.exit(main())
