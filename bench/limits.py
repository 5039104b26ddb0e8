"""The practical limits of landing rows: LOAD DATA, and ready multi-row statements sent from a loop.

A process of its own, as the writers are: `python -m bench.limits` takes a Job as JSON on stdin. All that is sent
is prepared beforehand. Every file and every statement is a transaction.
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
from bench.plan import STATEMENTS
from flusher.mysql_errors import Flavour
from flusher.sql import HEADS, UPDATES, Form, form_of
from flusher.store import AS_BYTES
from shared.records import TASKS
from tests.support.service import ROOT

MOST_ROWS_PER_S = 120_000
"""As many are prepared; a server that takes more is measured for a shorter time."""


@dataclass(frozen=True)
class Job:
    what: str
    socket: str
    database: str
    rows: int
    """In one file or statement."""
    seconds: float
    run: str
    directory: str
    """For what is prepared, up to some GB: the caller's, since this process may be killed."""


def measure(
    what: str, socket: str, database: str, *, rows: int, seconds: float, cores: Sequence[int], directory: Path
) -> dict[str, Any]:
    """Blocks. Returns: a round with rows_per_s."""
    job = Job(what, socket, database, rows, seconds, tasks.new_run(), str(directory))
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
    flavour = Flavour.MARIADB if "MariaDB" in db.get_server_info() else Flavour.MYSQL
    if job.what == STATEMENTS and flavour is Flavour.MARIADB:
        db.query(AS_BYTES)
    form = form_of(flavour, db.get_server_info())
    count = max(3, int(MOST_ROWS_PER_S * job.seconds / job.rows))
    with tempfile.TemporaryDirectory(dir=job.directory) as directory:
        prepared = list(_prepare(job, count, Path(directory), form))
        os.sync()  # the files are not written back while the database wants the disk
        began_at = time.monotonic()
        end_at = began_at + job.seconds
        done = 0
        for statement in prepared:
            db.query(statement)
            db.commit()
            done += 1
            if time.monotonic() >= end_at:
                break
        took_s = time.monotonic() - began_at
    db.query("SELECT COUNT(*) FROM translation_tasks")
    stored = int(db.store_result().fetch_row()[0][0])
    rows = done * job.rows
    return {"rows": rows, "stored": stored, "seconds": round(took_s, 3), "rows_per_s": round(rows / took_s, 1)}


def _prepare(job: Job, count: int, directory: Path, form: Form) -> Any:
    pool = tasks.pool(max(tasks.POOL, job.rows))
    if job.what == STATEMENTS:
        head, tail = HEADS[TASKS].removesuffix(b"("), UPDATES[form][TASKS]
        pieces = tasks.statements(pool, job.rows, min(count, tasks.BODIES), head, tail)
    else:
        pieces = tasks.files(pool, job.rows, min(count, tasks.BODIES))
    for number in range(count):
        made = tasks.number(job.run, number).join(pieces[number % len(pieces)])
        if job.what == STATEMENTS:
            yield made
            continue
        path = directory / str(number)
        path.write_bytes(made)
        yield (
            f"LOAD DATA LOCAL INFILE '{path}' REPLACE INTO TABLE translation_tasks CHARACTER SET utf8mb4"
            f" ({','.join(tasks.COLUMNS)})"
        ).encode()


if __name__ == "__main__":
    print(json.dumps(_run(Job(**json.load(sys.stdin)))))
