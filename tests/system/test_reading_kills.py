"""The reader is killed again and again under reads and writes: no answer looks whole and is not, writing goes on.

READER_KILLS=100 for the long form.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.support.mariadb import MariaDB, numbers
from tests.support.service import TASKS, Service, task, wait_until

KILLS = int(os.environ.get("READER_KILLS", "8"))
READ = "/api/v1/persistence/sessions"
COUNT = 4000
IDS = [f"T{number:06}" for number in range(COUNT)]


def is_whole_stream(body: bytes) -> bool:
    """A stream that says so has every task, once and in order."""
    *lines, last = body.splitlines() or [b""]
    if not body.endswith(b"\n") or last != b'{"end":true,"count":%d}' % COUNT:
        assert b'{"end"' not in body
        return False
    assert [json.loads(line)["task_id"] for line in lines] == IDS
    return True


def is_whole_page(body: bytes) -> bool:
    tasks = json.loads(body)["tasks"]
    assert [(one["task_id"], len(one["source_text"])) for one in tasks] == [(one, 500) for one in IDS[:200]]
    return True


class Readers:
    """Threads that read one thing over and over. What they saw is in `seen`; what must not be, in `faults`."""

    def __init__(self, service: Service) -> None:
        self.seen = Counter[str]()
        self.faults: list[str] = []
        self._service = service
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._go_on, args=arguments)
            for arguments in (
                (f"{READ}/s/tasks", {"Accept": "application/x-ndjson"}, is_whole_stream),
                (f"{READ}/s/tasks", {"Accept": "application/x-ndjson"}, is_whole_stream),
                (f"{READ}/s/tasks?limit=200", {}, is_whole_page),
            )
        ]

    def __enter__(self) -> Readers:  # noqa: PYI034 -- Self came with Python 3.11
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def _go_on(self, path: str, headers: dict[str, str], is_whole: Callable[[bytes], bool]) -> None:
        while not self._over.is_set():
            try:
                answer = self._service.request("GET", path, headers=headers)
                if answer.status == 200:
                    # A stream without its end, over a connection that ended well, would be taken for a whole one.
                    self.seen["whole" if is_whole(answer.body) else "without its end"] += 1
                else:
                    self.seen[f"{answer.status} {answer.json['error_code']}"] += 1
            except (http.client.IncompleteRead, http.client.RemoteDisconnected, ConnectionResetError):
                self.seen["cut off"] += 1
            except (AssertionError, ValueError, KeyError) as error:
                self.faults.append(f"{path}: {error!r:.500}")


def test_a_reader_that_is_killed_gives_no_wrong_answer_and_does_not_disturb_writing(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, BUFFER_FLUSH_INTERVAL=1)
    mariadb.execute(
        "INSERT INTO translation_tasks"
        " (session_id, task_id, batch_id, sheet_name, column_name, source_text, status, updated_at)"
        f" SELECT 's', CONCAT('T', LPAD({COUNT // 100} * a.n + b.n, 6, '0')), '', '', '', REPEAT('x', 500), 'pending',"
        f" NOW() FROM {numbers(100)} a, {numbers(COUNT // 100)} b",
        (),
        database,
    )
    service.start_reader()
    connection = service.connect()
    posts: list[Any] = []
    with Readers(service) as readers:
        for kill in range(KILLS):
            before = readers.seen["whole"]
            wait_until(lambda: readers.seen["whole"] > before or readers.faults, 60)  # noqa: B023
            time.sleep(random.uniform(0, 0.1))
            assert service.reader is not None
            service.reader.kill()
            for number in range(10):
                began_at = time.monotonic()
                one = task(f"k{kill}-{number}")
                status = service.post(TASKS, {"tasks": [one]}, connection=connection).status
                posts.append((status, time.monotonic() - began_at < 5))
            service.reader.wait(10)
            service.reader = service._start("reader")
    connection.close()
    assert readers.faults == []
    assert readers.seen["without its end"] == 0
    assert readers.seen["503 READER_UNAVAILABLE"] > 0
    assert set(readers.seen) <= {"whole", "cut off", "503 READER_UNAVAILABLE", "without its end"}
    assert posts == [(202, True)] * (10 * KILLS)
    assert service.flush().status == 200
    ((count,),) = mariadb.execute("SELECT COUNT(*) FROM translation_tasks WHERE session_id = 's1'", (), database)
    assert count == 10 * KILLS
