"""The first user's day, whole: his backend, the service and the table fail in turn, and both workbooks end right."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from scripts import demo
from tests.support.frames import python_with
from tests.support.mariadb import MariaDB
from tests.support.service import ROOT, Service

TASKS = 150


class Stage:
    """A Service as the demonstration knows one."""

    def __init__(self, service: Service, mariadb: MariaDB, database: str) -> None:
        self.url = f"http://127.0.0.1:{service.port}"
        self._service = service
        self._mariadb = mariadb
        self._database = database

    def kill(self) -> None:
        self._service.kill()
        self._service.start()
        self._service.start_reader()

    def locked(self) -> AbstractContextManager[None]:
        return self._mariadb.locked(self._database)


@pytest.mark.parametrize("frames", [None, "newest"])
@pytest.mark.timeout(300)
def test_a_run_goes_on_where_it_was(
    frames: str | None,
    start_service: Callable[..., Service],
    mariadb: MariaDB,
    database: str,
    tmp_path: Path,
) -> None:
    service = start_service(mariadb, database, BUFFER_FLUSH_INTERVAL=1)
    service.start_reader()
    ledger, said = tmp_path / "ledger", list[str]()
    outcome = demo.play(
        Stage(service, mariadb, database),
        ledger,
        tasks=TASKS,
        seconds=1,
        locked_s=1,
        say=said.append,
        python=python_with(frames) if frames else sys.executable,
    )
    assert (outcome.tasks, outcome.wrong, outcome.again, len(said)) == (2 * TASKS, [], [], 4)
    assert 0 < outcome.known < outcome.tasks  # it was killed in the middle
    rows = mariadb.execute(
        "SELECT session_id, task_id, status, source_text, target_text, extra FROM translation_tasks", (), database
    )
    assert {(session_id, task_id) for session_id, task_id, *_ in rows} == {
        (session_id, f"TASK_{number:04}") for session_id in {row[0] for row in rows} for number in range(TASKS)
    }
    for _, task_id, status, source_text, target_text, extra in rows:
        assert (status, source_text) == ("completed", f"第 {int(task_id[5:])} 把剑")
        assert target_text == f"zh>th: {source_text}"
        assert json.loads(extra) == {"source_lang": "zh", "target_lang": "th", "cost": 0.25}
    sessions = mariadb.execute("SELECT filename, status, completed_tasks FROM translation_sessions", (), database)
    assert sorted(sessions) == [("items.xlsx", "completed", TASKS), ("quests.xlsx", "completed", TASKS)]
    backends = list(dict.fromkeys(line.split()[0] for line in ledger.read_text().splitlines()))
    assert len(backends) == 2
    calls = [line.split(" ", 1) for line in ledger.read_text().splitlines()]
    # Each task that the second has asked for was not completed when the first was killed.
    assert len({key for pid, key in calls if pid == backends[1]}) == outcome.tasks - outcome.known


@pytest.mark.only("mariadb")
def test_the_demonstration_shows_it_and_leaves_nothing_behind() -> None:
    before = set(Path("/tmp").glob("demo-*"))
    done = subprocess.run(
        ["./scripts/demo.sh", "--tasks", "40", "--seconds", "0.8"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "80 of 80 tasks are right" in done.stdout
    assert re.search(r"\b0 of the \d+ that were completed before the crash were translated again", done.stdout)
    assert set(Path("/tmp").glob("demo-*")) <= before
