"""The practical limit of landing rows: LOAD DATA of files that are made beforehand, a transaction each.

A process of its own, as the writers are: `python -m bench.limits` takes a Job as JSON on stdin.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import MySQLdb

from bench import tasks
from bench.machine import on_cores
from tests.support.service import ROOT

MOST_ROWS_PER_S = 120_000
"""As many are prepared; a server that takes more is measured for a shorter time."""


@dataclass(frozen=True)
class Job:
    socket: str
    database: str
    rows: int
    """In one file."""
    seconds: float
    run: str
    directory: str
    """For the files, up to some GB: the caller's, since this process may be killed."""


def load_data(
    socket: str, database: str, *, rows: int, seconds: float, cores: Sequence[int], directory: Path
) -> dict[str, Any]:
    """Blocks. Returns: a round with rows_per_s."""
    job = Job(socket, database, rows, seconds, tasks.new_run(), str(directory))
    with on_cores(cores):
        done = subprocess.run(
            [sys.executable, "-m", "bench.limits"],
            input=json.dumps(asdict(job)),
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=10 * seconds + 120,
        )
    if done.returncode:
        return {"rows_in_one": rows, "problems": [done.stderr.strip()[-500:]]}
    measured = json.loads(done.stdout)
    problems = [] if measured["stored"] == measured["rows"] else [f"{measured['stored']} of {measured['rows']} stored"]
    return {**measured, "rows_in_one": rows, "problems": problems}


def _run(job: Job) -> dict[str, Any]:
    db = MySQLdb.connect(unix_socket=job.socket, user="root", db=job.database, charset="utf8mb4", local_infile=1)
    db.query("SET SESSION time_zone='+00:00'")
    count = max(3, int(MOST_ROWS_PER_S * job.seconds / job.rows))
    pieces = tasks.files(tasks.pool(max(tasks.POOL, job.rows)), job.rows, min(count, tasks.BODIES))
    with tempfile.TemporaryDirectory(dir=job.directory) as directory:
        paths = [Path(directory, str(number)) for number in range(count)]
        for number, path in enumerate(paths):
            path.write_bytes(tasks.number(job.run, number).join(pieces[number % len(pieces)]))
        os.sync()  # the files are not written back while the database wants the disk
        began_at = time.monotonic()
        done = 0
        while done < count and time.monotonic() < began_at + job.seconds:
            db.query(
                f"LOAD DATA LOCAL INFILE '{paths[done]}' REPLACE INTO TABLE translation_tasks CHARACTER SET utf8mb4"
                f" ({','.join(tasks.COLUMNS)})"
            )
            db.commit()
            done += 1
        took_s = time.monotonic() - began_at
    db.query("SELECT COUNT(*) FROM translation_tasks")
    stored = int(db.store_result().fetch_row()[0][0])
    rows = done * job.rows
    return {"rows": rows, "stored": stored, "seconds": round(took_s, 3), "rows_per_s": round(rows / took_s, 1)}


if __name__ == "__main__":
    print(json.dumps(_run(Job(**json.load(sys.stdin)))))
