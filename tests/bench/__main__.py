"""`python -m tests.bench`: measures, prints a table, writes every figure as JSON. Started by scripts/bench.sh."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench import machine, ratios, report
from tests.bench.bench import Bench, cells, say
from tests.bench.database import Database
from tests.bench.plan import CELLS_OF, FULL, MATRIX, NAMES, QUICK, Cell


def main() -> None:
    options = _options()
    # SIGTERM ends it like Ctrl-C: whatever was started goes with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))
    (directory / "db").mkdir()
    database = Database(directory / "db")
    bench = Bench(QUICK if options.quick else FULL, database, directory, options.bench_python, options.peer)
    began_at = time.monotonic()
    raw: dict[str, Any] = {"plan": bench.plan.name, "machine": machine.description()}
    try:
        database.start()
        raw |= measure(bench, options.only)
    finally:
        database.stop()
        shutil.rmtree(directory, ignore_errors=True)
    raw["seconds"] = round(time.monotonic() - began_at, 1)
    raw["rss_mb"] = bench.rss_mb
    raw["problems"] = ratios.problems(raw)
    raw["ratios"] = ratios.ratios(raw, options.only)
    if options.json:
        Path(options.json).write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(report.text(raw))
    sys.exit(1 if raw["problems"] else 0)


def measure(bench: Bench, only: list[str]) -> dict[str, Any]:
    plan = bench.plan
    wanted: list[tuple[Cell, int, int]] = []
    for key, its_cells in CELLS_OF.items():
        if key in only:
            wanted += [(cell, plan.rounds, plan.cell_s) for cell in its_cells]
    if MATRIX in only:
        wanted += [(cell, 1, plan.matrix_s) for cell in plan.matrix(bench.peers)]
    return {"cells": cells(bench, wanted)}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.sh", description="Measures the service beside its limits.")
    parser.add_argument("--quick", action="store_true", help="under 60 s; too short to be judged")
    parser.add_argument("--json", metavar="FILE", help="every raw figure, and the ratios")
    parser.add_argument(
        "--peer", metavar="NAME=URL", action="append", default=[], help="a running service with the same API, measured too"
    )
    parser.add_argument(
        "--only",
        metavar="KEY,KEY",
        help=f"measure only what these need: {', '.join((*NAMES, MATRIX))}",
    )
    parser.add_argument("--bench-python", required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = (*NAMES, MATRIX)
    options.only = options.only.split(",") if options.only else list(names)
    for name in options.only:
        if name not in names:
            parser.error(f"--only {name}: one of {', '.join(names)}")
    peers = {}
    for peer in options.peer:
        name, _, url = peer.partition("=")
        if not name or not url.startswith("http://"):
            parser.error(f"--peer {peer}: NAME=http://HOST:PORT is wanted")
        peers[name] = url
    options.peer = peers
    options.bench_python = str(Path(options.bench_python).absolute())
    return options


if __name__ == "__main__":
    main()
