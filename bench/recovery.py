"""A journal that a crash has left: how fast it is read back and decoded, and how fast the service accepts again.

The first is measured in a process of its own, `python -m bench.recovery DIRECTORY`, with what a writer does
before it needs the database: read, decode, coalesce.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import tasks
from bench.bench import Bench, say
from bench.latency import AWAY
from bench.machine import SERVICE, on_cores
from bench.plan import OURS
from flusher import segments
from flusher.batch import Batch, coalesce
from flusher.journal import Journal
from flusher.segments import Entry
from flusher.triggers import FlushPolicy, FlushReason, is_full
from shared.records import TASKS
from tests.support.service import ROOT, wait_until

BATCH = 100


def recovery(bench: Bench) -> dict[str, Any]:
    records = bench.plan.recover_records
    say(f"a journal of {records} records, the database away")
    with tempfile.TemporaryDirectory(dir=bench.directory) as name:
        directory = Path(name)
        size = _write(directory, bench.tasks, records)
        with on_cores(SERVICE):
            done = subprocess.run(
                [sys.executable, "-m", "bench.recovery", name],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=300,
            )
        if done.returncode:
            return {"problems": [done.stderr.strip()[-500:]]}
        measured = json.loads(done.stdout)
        problems = [] if measured["records"] == records else [f"{measured['records']} of {records} records were read"]
        return {**measured, "bytes": size, "start": _start(bench, directory, records), "problems": problems}


def _write(directory: Path, pool: list[dict[str, Any]], records: int) -> int:
    """Segments as the flusher seals them while the database is away. Returns: their bytes."""
    policy = FlushPolicy(max_records=1000, interval_s=30)
    run = tasks.new_run()
    bodies = tasks.bodies(pool, BATCH)
    made = Journal(directory)
    made.open()
    arrival = time.time_ns() // 1000
    in_segment = 0
    for number in range(records // BATCH):
        assert made.active is not None
        if is_full(policy, records=in_segment, size=made.active.size):
            made.last_arrival = arrival + number
            made.seal(FlushReason.SIZE)
            in_segment = 0
        body = tasks.number(run, number).join(bodies[number % len(bodies)])
        made.append([Entry(TASKS.code, BATCH, arrival + number, body)])
        in_segment += BATCH
    assert made.active is not None
    made.active.close()
    return made.bytes


def _start(bench: Bench, directory: Path, records: int) -> dict[str, float]:
    """The service itself, started with that journal: until it accepts, and until it has counted what waits."""
    contender = bench.contender(OURS, DB_SOCKET=AWAY, JOURNAL_DIRECTORY=directory)
    began_at = time.monotonic()
    try:
        contender.start(SERVICE)
        ready_s = time.monotonic() - began_at
        service = contender.service  # type: ignore[attr-defined]
        wait_until(lambda: service.stats()["buffer"]["total_count"] == records, 120, "everything is counted")
        return {"ready_s": round(ready_s, 3), "counted_s": round(time.monotonic() - began_at, 3)}
    finally:
        contender.stop()
        bench.note_memory(contender, "recovery")


def main() -> None:
    paths = sorted(Path(sys.argv[1]).glob(f"*{segments.SUFFIX}"))
    began_at = time.monotonic()
    records = rows = 0
    for path in paths:
        batch = Batch(segments.read(path).entries)
        assert not batch.undecodable
        records += batch.records
        rows += sum(len(coalesce(entries, kind)) for kind, entries in batch.by_kind.items())
    took_s = time.monotonic() - began_at
    figures = {"records": records, "rows": rows, "segments": len(paths), "seconds": round(took_s, 3)}
    print(json.dumps({**figures, "records_per_s": round(records / took_s, 1)}))


if __name__ == "__main__":
    main()
