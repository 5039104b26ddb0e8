"""Hundreds of thousands of records accepted while the database is away: memory stays flat, and all are written.

`python -m tests.system.test_outage` prints the latencies with the database up, away, and up again; docs/RELIABILITY.md
has one run. They are measured and not asserted: timing decides no test.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mariadb import MariaDB
from tests.support.service import TASKS, Service, task

BATCH = 100
CONNECTIONS = 4
RECORDS = 300_000
FLUSHER_MIB = 60
WRITER_MIB = 150

_BODY = json.dumps({"tasks": [task(f"@@-{number}", source_text="你好 hello " * 8) for number in range(BATCH)]}).encode()


async def load(port: int, name: str, records: int, per_s: float | None = None) -> list[float]:
    """Posts distinct records over a few connections, at a fixed rate where one is given. Returns: seconds per POST."""
    latencies: list[float] = []
    requests = iter(range(records // BATCH))
    start = time.perf_counter()

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in requests:
            if per_s is not None:
                await asyncio.sleep(max(0.0, start + number / per_s - time.perf_counter()))
            body = _BODY.replace(b"@@", f"{name}{number}".encode())
            sent = time.perf_counter()
            writer.write(
                b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (TASKS.encode(), len(body), body)
            )
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            latencies.append(time.perf_counter() - sent)
            assert head.startswith(b"HTTP/1.1 202"), head
        writer.close()

    await asyncio.gather(*[connection() for _ in range(CONNECTIONS)])
    return latencies


def rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"process {pid} has ended")


def check_memory(service: Service) -> dict[str, float]:
    """The highest that each process has had up to now."""
    assert service.flusher is not None
    flusher = rss_mib(service.flusher.pid)
    writers = [rss_mib(pid) for pid in service.children(service.flusher)]
    assert flusher < FLUSHER_MIB
    assert writers
    assert max(writers) < WRITER_MIB
    return {"flusher": flusher, "largest writer": max(writers), "writers": len(writers)}


def flush_all(service: Service) -> None:
    give_up_at = time.monotonic() + 300
    while service.flush(60).status != 200:
        assert time.monotonic() < give_up_at


@pytest.mark.timeout(600)
def test_records_wait_on_disk_not_in_memory(start_service: Callable[..., Service], own_mariadb: MariaDB) -> None:
    name = own_mariadb.create_database()
    service = start_service(own_mariadb, name)
    own_mariadb.stop()

    asyncio.run(load(service.port, "away", RECORDS))

    assert service.stats()["at_risk"]["uncommitted_records"] == RECORDS
    check_memory(service)
    own_mariadb.start()
    flush_all(service)
    check_memory(service)
    assert own_mariadb.execute("SELECT COUNT(*) FROM translation_tasks", (), name) == [(RECORDS,)]
    assert service.stats()["dead_letters"]["count"] == 0


def main() -> None:
    per_s = 200.0
    with tempfile.TemporaryDirectory(prefix="out-", dir="/tmp") as directory:
        server = MariaDB(Path(directory, "db"))
        server.directory.mkdir()
        server.install()
        server.start()
        name = server.create_database()
        state = Path(directory, "s")
        state.mkdir()
        service = Service(state, server, name)
        service.start()
        try:

            def measure(what: str, records: int, rate: float | None) -> float:
                latencies = sorted(asyncio.run(load(service.port, what, records, rate)))
                p50, p99 = (latencies[int(len(latencies) * share)] * 1000 for share in (0.5, 0.99))
                print(f"{what:10} {len(latencies):6} POSTs of {BATCH}: p50 {p50:.2f} ms, p99 {p99:.2f} ms")
                return p99

            measure("warm", 20_000, per_s)
            up = measure("up", 200_000, per_s)
            server.stop()
            away = measure("away", 200_000, per_s)
            measure("filling", 800_000, None)
            full = measure("backlog", 200_000, per_s)
            print(f"p99 away / up: {away / up:.2f}; with a backlog of a million, away / up: {full / up:.2f}")
            print({key: round(value, 1) for key, value in check_memory(service).items()})
            server.start()
            started_at = time.monotonic()
            flush_all(service)
            print(f"all written {time.monotonic() - started_at:.1f} s after the database's return")
            print({key: round(value, 1) for key, value in check_memory(service).items()})
            rows = server.execute("SELECT COUNT(*) FROM translation_tasks", (), name)[0][0]
            print(f"{rows} rows of {1_420_000} records")
            service.stop()
        finally:
            service.kill()
            server.stop()


if __name__ == "__main__":
    main()
