"""`python -m tests.system.hostile [--json FILE]`: what a good client notices of 4,000 bad ones, in under a minute.

Undisturbed, beside the crowd, undisturbed again: the same client, the same pace, one run. Exit status 1 where a request
of the good client failed, its p99 is over 1.5 times the undisturbed, or the worker kept descriptors or memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.support.mariadb import MariaDB
from tests.support.service import Service, wait_until
from tests.system.hostile.good import PACE_S, Crowd, GoodClient, descriptors, memory_bytes, worker_of

CROWD = {
    "header": 1000,
    "body": 600,
    "chunks": 400,
    "idle": 2000,
    "expect": 100,
    "unread": 50,
    "cut": 20,
    "pipeline": 2,
    "garbage": 10,
}
ALONE_S = 8.0
SETTLE_S = 11.0
"""Until the first of the crowd are over their deadlines and come back: from then on it is as it will be for ever."""
BESIDE_S = 20.0
MOST_RATIO = 1.5
MOST_BYTES = 16 * 1024
"""For each connection of the crowd, at its height."""


class Series:
    """Latencies in seconds, and whatever was not a 202."""

    def __init__(self) -> None:
        self.taken_s: list[float] = []
        self.failures: list[str] = []

    def quantile_ms(self, share: float) -> float:
        return sorted(self.taken_s)[int(share * (len(self.taken_s) - 1))] * 1000


def measure(client: GoodClient, seconds: float, kept: Series, fresh: Series) -> None:
    """A request every PACE_S, every fourth on a connection of its own."""
    started_at = time.perf_counter()
    number = 0
    while (due_at := started_at + number * PACE_S) < started_at + seconds:
        time.sleep(max(0.0, due_at - time.perf_counter()))
        keep = number % 4 > 0
        series = kept if keep else fresh
        number += 1
        try:
            line, taken_s = client.post(keep=keep)
        except OSError as error:
            series.failures.append(repr(error))
            continue
        series.taken_s.append(taken_s)
        if line != b"HTTP/1.1 202 Accepted":
            series.failures.append(line.decode())


def run(service: Service) -> dict[str, Any]:
    worker = worker_of(service)
    alone, beside = (Series(), Series()), (Series(), Series())
    with closing(GoodClient(service.port)) as client:
        measure(client, 2.0, Series(), Series())  # warm
        before = (descriptors(worker), memory_bytes(worker))
        measure(client, ALONE_S, *alone)
        with Crowd(service.port, CROWD) as crowd:
            time.sleep(SETTLE_S)
            measure(client, BESIDE_S, *beside)
            height = (descriptors(worker), memory_bytes(worker))
        wait_until(lambda: descriptors(worker) <= before[0], what="descriptors are given back")
        time.sleep(1.0)
        after = (descriptors(worker), memory_bytes(worker))
        measure(client, ALONE_S, *alone)
    rows = {}
    for name, quiet, loud in zip(("kept", "new"), alone, beside, strict=True):
        p99 = (quiet.quantile_ms(0.99), loud.quantile_ms(0.99))
        rows[name] = {
            "requests": (len(quiet.taken_s), len(loud.taken_s)),
            "p50_ms": (quiet.quantile_ms(0.5), loud.quantile_ms(0.5)),
            "p99_ms": p99,
            "p99_ratio": p99[1] / p99[0],
            "failures": quiet.failures + loud.failures,
        }
    return {
        "connections": rows,
        "descriptors": {"before": before[0], "height": height[0], "after": after[0]},
        "memory_bytes": {"before": before[1], "height": height[1], "after": after[1]},
        "crowd": {**CROWD, "done": crowd.done},
    }


def complaints(figures: dict[str, Any]) -> list[str]:
    found = []
    for name, row in figures["connections"].items():
        if row["failures"]:
            found.append(f"{name}: {len(row['failures'])} requests failed, the first: {row['failures'][0]}")
        if row["p99_ratio"] > MOST_RATIO:
            found.append(f"{name}: p99 is {row['p99_ratio']:.2f} times the undisturbed")
    memory, files = figures["memory_bytes"], figures["descriptors"]
    if files["after"] > files["before"]:
        found.append(f"{files['after'] - files['before']} descriptors were kept")
    if memory["height"] - memory["before"] > MOST_BYTES * files["height"]:
        found.append(f"{memory['height'] - memory['before']} bytes for {files['height']} connections")
    return found


def text(figures: dict[str, Any]) -> str:
    lines = [f"{'connection':12}{'requests':>16}{'p50 ms':>18}{'p99 ms':>18}{'ratio':>8}"]
    for name, row in figures["connections"].items():
        requests = "{} / {}".format(*row["requests"])
        p50, p99 = ("{:.2f} / {:.2f}".format(*row[key]) for key in ("p50_ms", "p99_ms"))
        lines.append(f"{name:12}{requests:>16}{p50:>18}{p99:>18}{row['p99_ratio']:>8.2f}")
    memory, files = figures["memory_bytes"], figures["descriptors"]
    lines.append("worker: descriptors {before} -> {height} -> {after}".format(**files))
    lines.append("worker: MB of its own {:.1f} -> {:.1f} -> {:.1f}".format(*(memory[key] / 1e6 for key in memory)))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="ps-", dir="/tmp"))
    mariadb = MariaDB(directory / "db")
    mariadb.directory.mkdir()
    service = None
    try:
        mariadb.install()
        mariadb.start()
        (directory / "state").mkdir()
        service = Service(directory / "state", mariadb, mariadb.create_database())
        service.start()
        try:
            # Or its own wait for a core would be counted as the service's latency.
            os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(10))
        except PermissionError:
            print("without real-time priority: the figures hold waits of the measuring client too", file=sys.stderr)
        figures = run(service)
        service.stop()
    finally:
        if service is not None:
            service.kill()
        if mariadb.process is not None:
            mariadb.stop()
        shutil.rmtree(directory, ignore_errors=True)
    print(text(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))
    wrong = complaints(figures)
    print("\n".join(wrong) or "the good client noticed nothing, and nothing stayed")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
