"""`python -m tests.system.measure cost|outage`: measures what docs/SCALING.md and scripts/simulate.py reckon with.

cost: CPU and bytes a record, in every process, over a fixed number of records: new tasks, then later states of the same
tasks, a hundred in a request; then one in a request. With --galera the database is a cluster of three, written to
through one node.

outage: what waits in the journal, four times a second, while the tables are locked for 8 s, which shows how fast a
backlog goes, and later the database is killed and is away for 15 s.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts import cluster
from scripts.servers import DATABASE, Servers
from tests.support.mariadb import MariaDB
from tests.support.service import TASKS, Service
from tests.system.chaos import databases
from tests.system.hostile.beside import cpu_seconds

BATCH = 100
LOOK_S = 0.25
SENDERS = 2
COUNTERS = ("Bytes_received", "Innodb_os_log_written", "wsrep_replicated_bytes")


def body(first: int, count: int, version: int) -> bytes:
    """Tasks as a translation run has them: two sentences, a context, times."""
    tasks = [
        {
            "task_id": f"{number:08x}-6f1c-4d3e-9b1a-2c7f00000000",
            "batch_id": f"batch-{number // 50}",
            "session_id": f"{number // 5000:08x}-1111-4222-8333-444455556666",
            "sheet_name": "Dialogue",
            "column_name": "C",
            "row_index": number % 100_000,
            "source_text": f"The gate opens only at night, traveller {number}. Bring a lantern and do not come alone.",
            "status": ("pending", "processing", "completed")[version % 3],
            "target_text": f"ประตูเปิดเฉพาะตอนกลางคืน {number}" if version else None,
            "context": "Chapter 3, the gatekeeper speaks to the player.",
            "confidence": 0.97,
            "start_time": "2026-11-23T10:15:30Z",
            "duration_ms": 1840,
            "updated_at": f"2026-11-23T10:15:{30 + version}Z",
        }
        for number in range(first, first + count)
    ]
    return json.dumps({"tasks": tasks}, ensure_ascii=False, separators=(",", ":")).encode()


def send(service: Service, bodies: Sequence[bytes]) -> None:
    def run(part: Sequence[bytes]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
        for one in part:
            connection.request("POST", TASKS, one, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 202:
                raise RuntimeError(f"{answer.status}: {text!r}")

    threads = [threading.Thread(target=run, args=(bodies[index::SENDERS],)) for index in range(SENDERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def database(engine: str) -> Iterator[Servers]:
    made = databases.made(engine)
    try:
        if engine in databases.CLUSTERS:
            made.network.join()
        else:
            made.query(1, "SET GLOBAL innodb_flush_log_at_trx_commit=1")
        yield made
    finally:
        cluster.down(made)


@contextmanager
def service_on(servers: Servers) -> Iterator[Service]:
    directory = Path(tempfile.mkdtemp(prefix="ps-", dir="/tmp"))
    nowhere = MariaDB(directory / "none")
    service = Service(directory, nowhere, DATABASE, **{"DB_SOCKET": "", **servers.service_environ()})
    try:
        service.start()
        yield service
        service.stop()
    finally:
        service.kill()
        shutil.rmtree(directory)


def counts(servers: Servers) -> dict[str, int]:
    """What the first server has counted, and the bytes of its tables."""
    names = ", ".join(f"'{name}'" for name in COUNTERS)
    found = servers.query(1, f"SHOW GLOBAL STATUS WHERE variable_name IN ({names})")
    tables = servers.node(1) / "data" / DATABASE
    size = sum(path.stat().st_size for path in tables.iterdir())
    return {**{name: int(value) for name, value in found}, "table growth": size}


def cost(servers: Servers, service: Service, what: str, bodies: Sequence[bytes], records: int) -> dict[str, Any]:
    """Sends the bodies, waits until all is written. Returns: µs of CPU and bytes a record."""
    assert service.ingest is not None
    assert service.flusher is not None
    ingest, flusher = service.ingest, service.flusher

    def cpu() -> dict[str, float]:
        own = cpu_seconds(flusher.pid)
        return {
            "ingest": cpu_seconds(ingest.pid, ended_children=True) + sum(map(cpu_seconds, service.workers())),
            "flusher": own,
            "writer": cpu_seconds(flusher.pid, ended_children=True) - own + sum(map(cpu_seconds, service.writers())),
            **{f"database node {number}": cpu_seconds(servers.pid(number)) for number in servers.numbers},
        }

    cpu_before, counts_before = cpu(), counts(servers)
    started_at = time.monotonic()
    send(service, bodies)
    accepted_s = time.monotonic() - started_at
    answer = service.flush(60)
    if answer.status != 200:
        raise RuntimeError(repr(answer))
    written_s = time.monotonic() - started_at
    cpu_after, counts_after = cpu(), counts(servers)
    return {
        "what": what,
        "records": records,
        "accepted in s": round(accepted_s, 2),
        "written in s": round(written_s, 2),
        "cpu us": {name: round(1e6 * (cpu_after[name] - cpu_before[name]) / records, 2) for name in cpu_after},
        "bytes": {
            "body": round(sum(map(len, bodies)) / records),
            **{name: round((counts_after[name] - counts_before[name]) / records) for name in counts_after},
        },
    }


def costs(records: int, engine: str) -> list[dict[str, Any]]:
    with database(engine) as servers, service_on(servers) as service:
        many = [
            (what, [body(first, BATCH, version) for first in range(0, records, BATCH)], records)
            for version, what in enumerate(("new, 100 a request", "later state, 100 a request"))
        ]
        few = records // 10
        ones = [body(records + number, 1, 0) for number in range(few)]
        send(service, [body(10 * records + number, 1, 0) for number in range(2000)])  # warm
        service.flush()
        return [cost(servers, service, *one) for one in (*many, ("new, 1 a request", ones, few))]


def outage(rate: float, locked_s: float, away_s: float, between_s: float) -> dict[str, Any]:
    """A steady stream; the table is locked for a while, then the database is killed.

    Returns: from when to when it took nothing, and samples (seconds, records waiting, age of the oldest).
    """
    with database("mariadb") as servers, service_on(servers) as service:
        samples: list[tuple[float, int, float]] = []
        stopped = threading.Event()
        began_at = time.monotonic()

        def now() -> float:
            return round(time.monotonic() - began_at, 2)

        def look() -> None:
            while not stopped.wait(LOOK_S):
                stats = service.stats()
                waiting = stats["buffer"]["total_count"]
                samples.append((now(), waiting, stats["at_risk"]["oldest_uncommitted_seconds"]))

        def stream() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
            number = 0
            while not stopped.is_set():
                connection.request("POST", TASKS, body(number, BATCH, 0), {"Content-Type": "application/json"})
                answer = connection.getresponse()
                if answer.status != 202:
                    raise RuntimeError(repr(answer.read()))
                answer.read()
                number += BATCH
                time.sleep(max(0.0, began_at + number / rate - time.monotonic()))

        threads = [threading.Thread(target=run) for run in (look, stream)]
        for thread in threads:
            thread.start()
        time.sleep(between_s)
        lock = servers.connect(1)
        lock.query("LOCK TABLES translation_tasks WRITE")
        locked_at = now()
        time.sleep(locked_s)
        lock.close()
        locked = (locked_at, now())
        time.sleep(between_s)
        servers.signal(1, signal.SIGKILL)
        gone_at = now()
        time.sleep(away_s)
        servers.start(1)
        away = (gone_at, now())
        time.sleep(between_s)
        stopped.set()
        for thread in threads:
            thread.join()
        return {"rate": rate, "locked": locked, "away": away, "samples": samples}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.system.measure", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    of_cost = commands.add_parser("cost")
    of_cost.add_argument("--records", type=int, default=100_000)
    of_cost.add_argument("--galera", action="store_true")
    of_outage = commands.add_parser("outage")
    of_outage.add_argument("--rate", type=float, default=10_000, help="records a second (10000)")
    options = parser.parse_args()
    # A polite end takes with it what was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found: Any
    if options.command == "cost":
        found = costs(options.records, "galera" if options.galera else "mariadb")
    else:
        found = outage(options.rate, 8.0, 15.0, 8.0)
    print(json.dumps(found, ensure_ascii=False))


if __name__ == "__main__":
    main()
