"""The client against the real service, in a backend's layout, with and without a token."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from client import persistence_client as module
from client.persistence_client import Counters, InvalidRequest, NotFound, SyncPersistenceClient
from tests.support import backend
from tests.support.mariadb import MariaDB
from tests.support.service import ROOT, Service, session, task, wait_until

PROGRAM = (ROOT / "tests" / "client" / "backend.py").read_text()
STATES = "SELECT task_id, status, retry_count, target_text FROM translation_tasks"

pytestmark = pytest.mark.parametrize("token", ["", "a-secret"], ids=["without token", "with token"])


@pytest.fixture
def running(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str, token: str, monkeypatch: pytest.MonkeyPatch
) -> Service:
    monkeypatch.delenv("PERSISTENCE_TOKEN", raising=False)
    return start_service(mariadb, database, SERVICE_AUTH_TOKEN=token, BUFFER_FLUSH_INTERVAL=3600)


def url_of(service: Service) -> str:
    return f"http://127.0.0.1:{service.port}"


def warned(process: subprocess.Popen[str], what: str) -> None:
    """Waits for a line of its stderr."""
    assert process.stderr is not None
    for line in process.stderr:
        if what in line:
            return
    raise AssertionError(f"it ended without a warning of {what!r}")


@pytest.mark.timeout(150)
def test_a_backend_of_30_lines_ends_with_every_tasks_last_state_though_the_service_is_killed(
    running: Service, mariadb: MariaDB, database: str, token: str, short_path: Path
) -> None:
    directory = backend.drop_in(short_path / "backend")
    with backend.start(directory, PROGRAM, url_of(running), token) as process:
        try:
            written(mariadb, database, running, token)
            running.kill()
            warned(process, "tasks not sent yet, kept: Connection")
            running.start()
            written(mariadb, database, running, token)
            output, _ = process.communicate("", timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    flushed, last_states, calls_s, counters = json.loads(output)
    counters = Counters(*counters)
    assert flushed["status"] == "flushed", flushed
    assert counters.retried > 0
    assert (counters.dropped, counters.waiting) == (0, 0)
    rows = {row[0]: list(row[1:]) for row in mariadb.execute(STATES, (), database)}
    assert len(rows) > 40
    assert rows == last_states
    calls_s.sort()
    slowest_ms, median_us = calls_s[-1] * 1e3, calls_s[len(calls_s) // 2] * 1e6
    print(f"{len(calls_s)} calls: the slowest took {slowest_ms:.3f} ms, half of them under {median_us:.1f} µs")


def written(mariadb: MariaDB, database: str, service: Service, token: str) -> None:
    """Waits until the running service has written something new."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    before = len(mariadb.execute(STATES, (), database))

    def more() -> bool:
        service.request("POST", "/api/v1/persistence/flush", headers=headers)
        return len(mariadb.execute(STATES, (), database)) > before + 20

    wait_until(more, what="the backend's tasks are written")


def test_flush_all_brings_every_state_into_the_tables(
    running: Service, mariadb: MariaDB, database: str, token: str
) -> None:
    with SyncPersistenceClient(url_of(running), token) as client:
        client.persist_session(session("s1", metadata={"lang": "th", "depth": [1, {"a": None}]}))
        client.persist_tasks(task(f"t{number}", status="pending") for number in range(250))
        client.persist_tasks(task(f"t{number}", status="completed", target_text="สวัสดี 👋") for number in range(250))
        answer = client.flush_all()
        assert (answer["status"], answer["sessions_written"]) == ("flushed", 1)
        rows = mariadb.execute("SELECT DISTINCT status, target_text, count(*) FROM translation_tasks", (), database)
        assert rows == [("completed", "สวัสดี 👋", 250)]
        assert client.counters.sent + client.counters.coalesced == 501


WORKBOOK = """
import os, time
from datetime import datetime
from services.persistence.persistence_client import persistence_client
os.environ["TZ"] = "Asia/Shanghai"
time.tzset()
nan = float("nan")
client = persistence_client.sync
for workbook in ("w1", "w2"):
    client.persist_session({"session_id": workbook, "filename": workbook, "status": "split_complete"})
    client.persist_tasks(
        {"session_id": workbook, "task_id": f"TASK_{number:04}", "source_text": workbook, "batch_id": "",
         "status": "skipped", "start_time": datetime(2026, 11, 23, 10, 15, 30), "target_text": nan,
         "updated_at": datetime.now(), "source_lang": "zh", "cost": 0.25, "reviewer_notes": nan}
        for number in range(120)
    )
answer = client.flush_all()
assert (answer["status"], answer["sessions_written"], answer["tasks_written"]) == ("flushed", 2, 240), answer
assert client.counters == (242, 0, 0, 0, 0), client.counters
"""


def test_two_workbooks_with_the_same_ids_local_times_and_fields_of_their_own_are_all_stored(
    running: Service, mariadb: MariaDB, database: str, token: str, tmp_path: Path
) -> None:
    backend.run(backend.drop_in(tmp_path / "backend"), WORKBOOK, url_of(running), token)
    rows = mariadb.execute(
        "SELECT session_id, source_text, CAST(start_time AS CHAR), target_text, extra, count(*) FROM translation_tasks"
        " GROUP BY 1, 2, 3, 4, 5 ORDER BY 1",
        (),
        database,
    )
    own = {"source_lang": "zh", "cost": 0.25, "reviewer_notes": None}
    assert [(*row[:4], json.loads(row[4]), row[5]) for row in rows] == [
        (workbook, workbook, "2026-11-23 02:15:30.000000", None, own, 120) for workbook in ("w1", "w2")
    ]


def test_a_backend_that_starts_again_reads_what_is_unfinished_and_sends_it_again(running: Service, token: str) -> None:
    running.start_reader()
    own = {"source_lang": "zh", "cost": 0.25, "metadata": {"glossary": [1]}, "confidence": 0.5}
    with SyncPersistenceClient(url_of(running), token) as client:
        client.persist_session([session(one, status="executing") for one in ("a/b", "batch")])
        client.persist_session(session("done", status="completed"))
        client.persist_tasks(task(f"t{n:04}", session_id="a/b", **own) for n in range(1100))
        client.persist_tasks(task(f"f{n}", session_id="a/b", status="completed") for n in range(3))
        assert client.flush_all()["status"] == "flushed"
        unfinished = [one["session_id"] for one in client.sessions(status=("executing", "paused"), fresh=True)]
        assert sorted(unfinished) == ["a/b", "batch"]
        read = list(client.tasks("a/b", status=["pending"]))
        assert [one["task_id"] for one in read] == [f"t{n:04}" for n in range(1100)]
        assert own.items() <= read[0].items()
        client.persist_tasks(one | {"status": "completed"} for one in read)
        client.flush_all()
        assert client.counters.dropped == 0
        assert client.session("a/b")["progress"]["by_status"] == {"completed": 1103}
        assert list(client.tasks("batch")) == []
        with pytest.raises(NotFound):
            client.session("nobody")
        with pytest.raises(InvalidRequest, match="status"):
            list(client.sessions(status="finished"))


def test_the_real_services_422_drops_the_invalid_records_only(
    running: Service, mariadb: MariaDB, database: str, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = [
        task("w1", status="finished"),
        task("w2", row_index=-1),
        task("w3" * 40),
        task(4),
        task("w5", updated_at="tomorrow"),
        task("w6", updated_at="2999-01-01T00:00:00Z"),
        task("w7", sheet_name="x" * 256),
        task("w8", confidence=2),
        task("w9", start_time="0001-01-01T00:00:00", end_time="0001-01-01T00:00:00"),
    ]
    right = [task(f"t{number}") for number in range(60)]
    many = [{"task_id": f"incomplete {number}"} for number in range(150)]
    with SyncPersistenceClient(url_of(running), token) as client:
        client.persist_tasks([*right[:7], *wrong, *right[7:], *many])
        client.persist_session(session("s2", metadata=[]))
        assert client.flush_all()["tasks_written"] == 60
        counters = client.counters
    assert len(mariadb.execute(STATES, (), database)) == 60
    assert (counters.sent, counters.retried, counters.waiting) == (60, 0, 0)
    assert counters.dropped == len(wrong) + len(many) + 1
    assert "1 tasks dropped: HTTP 422 INVALID_RECORD: status (str): must be one of" in caplog.text


def test_a_wrong_token_is_a_warning(
    running: Service, token: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token:
        monkeypatch.setattr(module, "FLUSH_TIMEOUT_S", 2.0)  # it is in vain
    with SyncPersistenceClient(url_of(running), "wrong") as client:
        client.persist_tasks([task("t1")])
        result = client.flush_all()
        counters = client.counters
    if token:
        assert (result["status"], result["pending"], counters.dropped) == ("error", 1, 0)
        for text in (result["detail"], caplog.text):
            assert "HTTP 403 TOKEN_WRONG: " in text
    else:
        assert (result["status"], counters.sent) == ("flushed", 1)


def test_a_stopped_flusher_is_waited_for(running: Service, token: str) -> None:
    """ingest answers 503, or not in time, until the flusher is back."""
    running.kill_flusher()
    with SyncPersistenceClient(url_of(running), token) as client:
        client.persist_tasks([task("t1")])
        wait_until(lambda: client.counters.retried > 0)
        running.start_flusher()
        assert client.flush_all()["tasks_written"] == 1
        assert client.counters[2:] == (0, 0, 0)
