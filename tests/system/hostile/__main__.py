"""`python -m tests.system.hostile crowd|heavy`: what a good client notices of bad ones, in under three minutes.

crowd: 4,000 slow and broken connections. Undisturbed, beside them, undisturbed again: the same client, the same pace.
heavy: requests that cost the service much, by four connections each.
Exit status 1 where a request of the good client failed or its p99 is over the bound, or where the worker kept
descriptors or memory.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing

from tests.support.service import Service, wait_until
from tests.system.hostile.beside import Crowd, GoodClient, Series, descriptors, memory_bytes, running, worker_of
from tests.system.hostile.heavy import ATTACKS, Beside

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
PACE_S = 0.0025
ALONE_S = 8.0
SETTLE_S = 11.0
"""Until the first of the crowd are over their deadlines and come back: from then on it is as it will be for ever."""
BESIDE_S = 20.0
MOST_RATIO = 1.5
MOST_P99_S = 0.1
MOST_BYTES = 16 * 1024
"""For each connection of the crowd, at its height."""
HEAVY_S = 10.0


def crowd(service: Service) -> list[str]:
    """Prints the figures. Returns: what is wrong with them."""
    worker = worker_of(service)

    def held() -> tuple[int, int]:
        return descriptors(worker), memory_bytes(worker)

    quiet, loud = (Series(), Series()), (Series(), Series())  # on the kept connection, on new ones
    with closing(GoodClient(service.port)) as client:

        def measure(seconds: float, *series: Series) -> None:
            client.pace(PACE_S, _for(seconds), lambda number: number % 4 > 0, *series)

        measure(2.0, Series(), Series())  # warm
        before = held()
        measure(ALONE_S, *quiet)
        with Crowd(service.port, CROWD):
            time.sleep(SETTLE_S)
            measure(BESIDE_S, *loud)
            height = held()
        wait_until(lambda: descriptors(worker) <= before[0], what="descriptors are given back")
        after = held()
        measure(ALONE_S, *quiet)
    wrong = []
    for name, alone, beside in zip(("kept", "new"), quiet, loud, strict=True):
        p99_s = (alone.quantile_s(0.99), beside.quantile_s(0.99))
        figures = ", ".join(
            f"p{100 * share:g} {1000 * alone.quantile_s(share):.2f} / {1000 * beside.quantile_s(share):.2f} ms"
            for share in (0.5, 0.99)
        )
        print(f"{name}: {len(alone.taken_s)} / {len(beside.taken_s)} requests, {figures}")
        wrong += [f"{name}: failed: {failure}" for failure in (alone.failures + beside.failures)[:3]]
        if p99_s[1] > MOST_RATIO * p99_s[0]:
            wrong.append(f"{name}: p99 is {p99_s[1] / p99_s[0]:.2f} times the undisturbed")
    print(f"worker: descriptors {before[0]} -> {height[0]} -> {after[0]}")
    print(f"worker: MB of its own {before[1] / 1e6:.1f} -> {height[1] / 1e6:.1f} -> {after[1] / 1e6:.1f}")
    if height[1] - before[1] > MOST_BYTES * height[0]:
        wrong.append(f"{height[1] - before[1]} bytes for {height[0]} connections")
    return wrong


def heavy(service: Service) -> list[str]:
    """Prints the figures. Returns: what is wrong with them."""
    wrong = []
    for name, request in ATTACKS.items():
        beside = Beside(service, request, seconds=HEAVY_S, most=1_000_000)
        good, count = beside.good, len(beside.answers)
        p99_s = good.quantile_s(0.99)
        if p99_s > MOST_P99_S or good.failures:
            wrong.append(f"{name}: p99 {1000 * p99_s:.0f} ms, {len(good.failures)} failed")
        print(
            f"{name:24}{len(request):>9} bytes {count:6} answers {sorted(set(beside.answers))}"
            f" {1000 * beside.cpu_s / max(1, count):8.2f} ms CPU each; good: {len(good.taken_s)} requests, p99"
            f" {1000 * p99_s:.1f} ms, longest {1000 * max(good.taken_s):.1f} ms, {len(good.failures)} failed",
            flush=True,
        )
    return wrong


def _for(seconds: float) -> Callable[[], bool]:
    until = time.monotonic() + seconds
    return lambda: time.monotonic() < until


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("what", choices=("crowd", "heavy"))
    what = parser.parse_args().what
    with running() as service:
        try:
            # Or its own wait for a core would be counted as the service's latency.
            os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(10))
        except PermissionError:
            print("without real-time priority: the figures hold waits of the measuring client too", file=sys.stderr)
        wrong = crowd(service) if what == "crowd" else heavy(service)
    print("\n".join(wrong) or "the good client noticed nothing, and nothing stayed")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
