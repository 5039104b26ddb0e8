"""What reaches the database for what was sent: statements for distinct records, rows for records of the same tasks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from random import Random
from typing import Any

import orjson

from bench import tasks
from bench.bench import Bench, say
from bench.contenders import Contender, Ours
from bench.plan import OURS
from tests.support.service import Answer, Service

RECORDS = 1000
BATCH = 100
IN_PROGRESS = 50
"""Tasks that are worked on at the same time."""
REQUESTS_PER_S = 100
SUFFIX = "-life"
STATES = ("pending", "processing", "completed")


def statements(bench: Bench) -> dict[str, Any]:
    """1000 distinct records in 10 requests, on a connection that is already open; the server counts."""
    say("statements for 1000 distinct records")
    database = bench.database
    with bench.running(OURS, "statements", pinned=False, batch=BATCH) as trial:
        contender, problems = trial.contender, trial.problems
        service = _service(contender)
        flushed = service.flush()
        before, rows_before = database.statements(), database.tasks()
        problems.extend(_odd(flushed, 200))
        for body in bench.bodies(BATCH, RECORDS // BATCH):
            answer = service.post(contender.path, body)
            problems.extend(_odd(answer, 202))
        flushed = service.flush()
        problems.extend(_odd(flushed, 200))
        sent = database.statements() - before
        rows = database.tasks() - rows_before
    if rows != RECORDS:
        problems.append(f"{rows} rows for {RECORDS} records")
    return {
        "statements": sent,
        "rows": rows,
        "per_1000": round(1000 * sent / RECORDS, 3),
        "problems": problems,
    }


def lifecycle(bench: Bench) -> dict[str, Any]:
    """Tasks that go through all their states within the flush interval, IN_PROGRESS of them at any time."""
    wanted = bench.plan.lifecycle_tasks
    say(f"{wanted} tasks, each {' -> '.join(STATES)}, {IN_PROGRESS} at a time")
    with bench.running(OURS, "life cycles", pinned=False, batch=BATCH) as trial:
        contender, problems = trial.contender, trial.problems
        service = _service(contender)
        service.flush()
        before = service.stats()
        bodies = list(_lifecycles(bench.tasks, wanted))
        connection = service.connect()
        began_at = time.monotonic()
        for number, body in enumerate(bodies):
            time.sleep(max(0.0, began_at + number / REQUESTS_PER_S - time.monotonic()))
            answer = service.post(contender.path, body, connection=connection)
            problems.extend(_odd(answer, 202))
        took_s = time.monotonic() - began_at
        connection.close()
        flushed = service.flush()
        problems.extend(_odd(flushed, 200))
        after = service.stats()
        stored = bench.database.tasks(f"WHERE status='completed' AND task_id LIKE '%{SUFFIX}'")
    records = after["accepted"]["tasks"] - before["accepted"]["tasks"]
    rows = after["coalescing"]["rows_written"] - before["coalescing"]["rows_written"]
    if stored != wanted or records != wanted * len(STATES):
        problems.append(f"{stored} of {wanted} tasks are stored as completed, {records} records were accepted")
    return {
        "records": records,
        "rows": rows,
        "rows_per_record": round(rows / records, 4),
        "seconds": round(took_s, 3),
        "problems": problems,
    }


def _odd(answer: Answer, wanted: int) -> list[str]:
    return [] if answer.status == wanted else [repr(answer)]


def _service(contender: Contender) -> Service:
    assert isinstance(contender, Ours)
    assert contender.service is not None
    return contender.service


def _lifecycles(pool: list[dict[str, Any]], wanted: int) -> Iterator[bytes]:
    """Bodies of BATCH records: a task begins where there is room, else any of those in progress goes one state on."""
    random = Random(1)
    run = tasks.new_run()
    begin_at = datetime.now(timezone.utc) - timedelta(minutes=1)
    in_progress: list[tuple[int, int]] = []
    started = 0
    records: list[dict[str, Any]] = []
    while started < wanted or in_progress:
        if started < wanted and len(in_progress) < IN_PROGRESS:
            task, state = started, 0
            in_progress.append((task, state))
            started += 1
        else:
            at = random.randrange(len(in_progress))
            task, state = in_progress[at][0], in_progress[at][1] + 1
            if state + 1 < len(STATES):
                in_progress[at] = (task, state)
            else:
                in_progress[at] = in_progress[-1]
                in_progress.pop()
        record = {**pool[task % len(pool)], "status": STATES[state]}
        record["task_id"] = f"{tasks.number(run, task).decode()}{SUFFIX}"
        record["updated_at"] = (begin_at + timedelta(milliseconds=state)).isoformat()
        records.append(record)
        if len(records) == BATCH:
            yield orjson.dumps({"tasks": records})
            records = []
    if records:
        yield orjson.dumps({"tasks": records})
