"""`python -m bench.client`: what a call of the client costs its caller; a figure of docs/CLIENT.md. Nothing is judged.

Takes about 30 s; measure on a machine that does nothing else.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client.persistence_client import PersistenceClient
from tests.support.mariadb import MariaDB
from tests.support.service import Service, free_port, task

ROUNDS = 300
PER_ROUND = 100


@contextmanager
def running() -> Iterator[Service]:
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))
    mariadb = MariaDB(directory)
    mariadb.install()
    mariadb.start()
    service = Service(directory, mariadb, mariadb.create_database(), BUFFER_FLUSH_INTERVAL=1)
    try:
        service.start()
        yield service
    finally:
        service.stop()
        mariadb.stop()
        shutil.rmtree(directory)


async def cost(name: str, url: str, text: str) -> None:
    """Calls of one record each, as a backend makes them: bursts, and time to send in between."""
    calls_s: list[float] = []
    async with PersistenceClient(url) as client:
        for number in range(ROUNDS):
            tasks = [
                task(f"t{number}-{n}", source_text=text, target_text=text, status="completed", confidence=0.98)
                for n in range(PER_ROUND)
            ]
            for one in tasks:
                started_at = time.perf_counter()
                await client.persist_tasks([one])
                calls_s.append(time.perf_counter() - started_at)
            await asyncio.sleep(0.02)
        counters = client.counters
    calls_s.sort()
    mean_us = statistics.fmean(calls_s) * 1e6
    at = {percent: calls_s[int(len(calls_s) * percent / 100)] * 1e6 for percent in (50, 99, 99.9)}
    figures = " ".join(f"p{percent} {value:.1f}" for percent, value in at.items())
    print(f"{name}: µs a call: mean {mean_us:.1f} {figures} slowest {calls_s[-1] * 1e6:.0f}; {counters}")


def main() -> None:
    with running() as service:
        url = f"http://127.0.0.1:{service.port}"
        asyncio.run(cost("service there, 0.6 kB", url, "Start the game, hero! " * 7))
        asyncio.run(cost("service there, 4 kB", url, "开始游戏，英雄！" * 85))
        asyncio.run(cost("service away, 0.6 kB", f"http://127.0.0.1:{free_port()}", "Start the game, hero! " * 7))


if __name__ == "__main__":
    main()
