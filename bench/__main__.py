"""`python -m bench`: measures, prints tables, writes every figure as JSON. Started by scripts/bench.sh."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import machine, open_loop, ratios, report
from bench.bench import FAULTS, Bench
from bench.contenders import STATE
from bench.counts import lifecycle, statements
from bench.database import Database
from bench.landing import landing
from bench.latency import flushing, locked
from bench.plan import CELLS_OF, FULL, NAMES, QUICK
from bench.recovery import recovery
from tests.support.mysql import SERVERS
from tests.support.service import processes_of, wait_until

PARTS: dict[str, tuple[set[str], Callable[[Bench], dict[str, Any]]]] = {
    "locked": ({"p99_locked_vs_idle"}, locked),
    "flushing": ({"p99_flushing_vs_idle"}, flushing),
    "landing": ({"landing_vs_load_data", "rss_mb"}, landing),
    "statements": ({"statements_per_1000"}, statements),
    "lifecycle": ({"rows_per_record_lifecycle"}, lifecycle),
    "recovery": ({"recover_records_per_s"}, recovery),
}
"""Where a measurement's raw figures stand, and the keys that are made of them."""


def main() -> None:
    options = _options()
    missing = [program for program in ("wrk", "mariadb-install-db", "g++") if shutil.which(program) is None]
    if missing:
        sys.exit(f"bench.sh: {', '.join(missing)} is missing; ./scripts/bench.sh installs it")
    open_loop.program()  # before anything is measured
    # SIGTERM ends it like Ctrl-C: whatever was started goes with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))
    try:
        raw = run(options, directory)
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing was measured to its end")
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        end(directory)
    print(report.text(raw), flush=True)
    if options.json:
        try:
            options.json.write_text(json.dumps(raw, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            sys.exit(f"bench.sh: --json {options.json}: {error.strerror}")
    sys.exit(1 if raw["problems"] else 0)


def run(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Returns: all raw figures, what is wrong with them, and the ratios."""
    began_at = time.monotonic()
    # Whatever is started has it in its environment, so that end() finds it.
    os.environ["PERSISTENCE_STATE_DIR"] = str(directory)
    (directory / "db").mkdir()
    database = Database(directory / "db", SERVERS[options.database])
    bench = Bench(QUICK if options.quick else FULL, database, directory)
    raw: dict[str, Any] = {"plan": bench.plan.name, "machine": machine.description(directory)}
    database.start()
    raw["machine"]["database"] = database.version()
    raw |= measure(bench, options.only)
    raw["seconds"] = round(time.monotonic() - began_at, 1)
    raw["rss_mb"] = bench.rss_mb
    raw["problems"] = ratios.problems(raw)
    raw["ratios"] = ratios.ratios(raw, options.only)
    return raw


def end(directory: Path) -> None:
    """Kills whatever was started for `directory` or for a state directory in it, whoever is its parent now, and removes
    the directory. An interrupted contender leaves this to it."""

    def none_left() -> bool:
        left = [pid for state in (directory, *directory.glob(f"{STATE}*")) for pid in processes_of(state)]
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return not left

    wait_until(none_left, 40, "all processes have ended")
    shutil.rmtree(directory, ignore_errors=True)


def measure(bench: Bench, only: list[str]) -> dict[str, Any]:
    raw: dict[str, Any] = {"cells": bench.cells([cell for key in CELLS_OF if key in only for cell in CELLS_OF[key]])}
    for part, (keys, measurement) in PARTS.items():
        if keys & set(only):
            raw[part] = guarded(measurement, bench)
    return raw


def guarded(measurement: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    try:
        return measurement(*arguments)
    except FAULTS as error:
        return {"problems": [repr(error)]}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.sh", description="Measures the service beside its limits.")
    parser.add_argument("--quick", action="store_true", help="under 60 s; too short to be judged")
    parser.add_argument("--json", metavar="FILE", type=Path, help="the figures of every round, and the ratios")
    parser.add_argument("--only", metavar="KEY,KEY", help=f"measure only what these need: {', '.join(NAMES)}")
    parser.add_argument("--database", choices=SERVERS, default="mariadb", help="the server that all write to")
    options = parser.parse_args()
    options.only = options.only.split(",") if options.only else list(NAMES)
    for name in options.only:
        if name not in NAMES:
            parser.exit(2, f"{parser.prog}: --only {name}: one of {', '.join(NAMES)}\n")
    if options.json:
        try:
            _make_writable(options.json)
        except OSError as error:
            parser.exit(2, f"{parser.prog}: --json {options.json}: {error.strerror}\n")
    return options


def _make_writable(file: Path) -> None:
    """Raises: OSError: before anything is measured."""
    new = not file.exists()
    file.open("ab").close()
    if new:
        file.unlink()


if __name__ == "__main__":
    main()
