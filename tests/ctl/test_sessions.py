"""`ctl sessions`: what the database has, for people and scripts, and old sessions deleted."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from flusher import purge
from flusher.purge import Purge
from flusher.store import Store
from tests.support.ctl import Terminal, ctl
from tests.support.mariadb import MariaDB, numbers
from tests.support.service import SESSIONS, TASKS, Service, session, task

NOW = datetime.now(timezone.utc)
OLD = (NOW - timedelta(days=100)).isoformat()
NEW = (NOW - timedelta(days=80)).isoformat()


@pytest.fixture
def reading(start_service: Callable[..., Service], mariadb: MariaDB, database: str) -> Service:
    service = start_service(mariadb, database)
    service.start_reader()
    return service


def send(service: Service, sessions: list[Any], tasks: list[Any]) -> None:
    assert service.post(SESSIONS, {"sessions": sessions}).status == 202
    assert service.post(TASKS, {"tasks": tasks}).status == 202


def left(mariadb: MariaDB, database: str) -> dict[str, int]:
    """Tasks of each session that is there, by its id."""
    rows = mariadb.execute(
        "SELECT s.session_id, COUNT(t.task_id) FROM translation_sessions s LEFT JOIN translation_tasks t"
        " ON t.session_id = s.session_id GROUP BY s.session_id",
        (),
        database,
    )
    return dict(rows)


def test_sessions_are_listed_shown_and_exported(reading: Service) -> None:
    ids = [f"s{number:03}" for number in range(203)] + ["a/b %?", "batch", "..", "会话\x1b[31m"]
    tasks = [task(f"t{n:04}", session_id="batch", status="completed" if n % 2 else "failed") for n in range(800)]
    tasks[0]["error_message"] = "429 \x1b[31mfrom the model"
    send(reading, [session(one, status="running") for one in ids[:203]] + [session(one) for one in ids[203:]], tasks)
    listed = ctl(reading, "sessions", "list", "--json", "--fresh", "--limit", "202", "--status", "running").json
    assert len({one["session_id"] for one in listed["sessions"]}) == 202
    assert listed["pending_records"] == 0
    everything = ctl(reading, "sessions", "list", "--limit", "1000")
    assert len(everything.out.splitlines()) == 208
    assert "会话\\u001b[31m" in everything.out
    assert "\x1b" not in everything.out
    for session_id in ids[203:]:
        assert ctl(reading, "sessions", "show", "--json", session_id).json["session_id"] == session_id
    shown = ctl(reading, "sessions", "show", "batch").out
    assert "800: completed 400, failed 400" in shown
    assert "429 \\u001b[31mfrom the model" in shown
    exported = ctl(reading, "sessions", "export", "batch", "--fields", "task_id,status", "--status", "failed")
    assert exported.json_lines == [{"task_id": f"t{n:04}", "status": "failed"} for n in range(0, 800, 2)]
    missing = ctl(reading, "sessions", "show", "nobody")
    assert (missing.status, "there is no such session" in missing.err) == (2, True)
    assert ctl(reading, "sessions", "export", "s001", "--status", "unheard").status == 2
    assert reading.reader is not None
    reading.reader.kill()
    reading.reader.wait(10)
    for arguments in (("list",), ("export", "batch")):
        away = ctl(reading, "sessions", *arguments)
        assert (away.status, "the reader cannot be reached" in away.err) == (2, True)


PURGE = ("sessions", "purge", "--older-than", "90d", "--status", "completed,failed")


def test_old_sessions_are_purged_with_their_tasks_and_no_others(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, BUFFER_FLUSH_INTERVAL=3600)
    sessions = [
        session("old", status="completed", updated_at=OLD),
        session("o'l\\d", status="failed", updated_at=OLD),
        session("running", status="running", updated_at=OLD),
        session("new", status="completed", updated_at=NEW),
    ]
    send(service, sessions, [task(f"t{n}", session_id=one["session_id"]) for one in sessions for n in range(2)])
    service.flush()
    send(service, sessions[2:], [task("t3", session_id="old")])
    refused = ctl(service, *PURGE)
    assert (refused.status, "1 such session (old): flush" in refused.err) == (1, True)
    service.flush()
    twice = ("--status", "completed,failed,completed")
    assert ctl(service, *PURGE, *twice, "--dry-run", "--json").json == {"sessions": 2, "tasks": 5, "dry_run": True}
    assert len(left(mariadb, database)) == 4
    assert ctl(service, *PURGE, "--json").json == {"sessions": 2, "tasks": 5, "dry_run": False}
    assert left(mariadb, database) == {"new": 2, "running": 2}
    assert ctl(service, *PURGE).out == "0 sessions and 0 tasks deleted\n"
    for wrong in (("--older-than", "0d", "--status", "failed"), ("--older-than", "9d", "--status", "done")):
        assert ctl(service, "sessions", "purge", *wrong).status == 2


def test_a_journal_that_cannot_be_looked_into_is_not_an_empty_one(tmp_path: Path) -> None:
    assert purge.journaled(tmp_path) == set()
    with pytest.raises(FileNotFoundError):
        purge.journaled(tmp_path / "not-mounted")


def test_an_interrupted_purge_goes_on_and_a_user_of_its_own_may_do_it(
    service: Service, mariadb: MariaDB, database: str
) -> None:
    send(service, [session("old", status="completed", updated_at=OLD)], [task()])
    service.flush()
    mariadb.execute(
        "INSERT INTO translation_tasks (session_id, task_id, batch_id, sheet_name, column_name, source_text, status,"
        f" updated_at) SELECT 'old', n, '', '', '', '', 'completed', NOW() FROM {numbers(999)} a"
        " UNION ALL SELECT 'old', 1000 + n, '', '', '', '', 'completed', NOW()"
        f" FROM {numbers(501)} b",
        (),
        database,
    )
    user = f"p{database[-20:]}"
    mariadb.execute(f"CREATE USER '{user}'@'localhost' IDENTIFIED BY 'p'")
    mariadb.execute(f"GRANT SELECT ON {database}.* TO '{user}'@'localhost'")
    denied = ctl(service, *PURGE, "--user", user, MYSQL_PWD="p")
    assert (denied.status, "DELETE" in denied.err) == (1, True), denied
    mariadb.execute(f"GRANT DELETE, UPDATE ON {database}.* TO '{user}'@'localhost'")
    store = Store(mariadb.server(database))
    steps = Purge(("completed",), datetime.now()).delete(store, "old")
    assert next(steps) == (1000, 0)  # and no more: it was interrupted
    terminal = Terminal(service, *PURGE, "--user", user)
    terminal.read_until("Password of")
    terminal.type("p\r")
    assert terminal.end() == 0
    assert "1 session and 500 tasks deleted" in terminal.seen
    assert left(mariadb, database) == {}
    store.close()
    mariadb.execute(f"DROP USER '{user}'@'localhost'")


def test_a_session_that_has_news_since_it_was_chosen_stays(mariadb: MariaDB, database: str) -> None:
    store = Store(mariadb.server(database))
    for table, rest in (("sessions", "filename, file_path, llm_provider"), ("tasks", "task_id, source_text, batch_id")):
        more = ", sheet_name, column_name" if table == "tasks" else ""
        empty = ", ''" * (5 if more else 3)
        mariadb.execute(
            f"INSERT INTO translation_{table} (session_id, status, updated_at, {rest}{more})"
            f" VALUES ('s1', 'completed', '2020-01-01'{empty})",
            (),
            database,
        )
    old = Purge(("failed", "completed"), datetime(2021, 1, 1))
    assert old.sessions(store) == ["s1"]
    mariadb.execute("UPDATE translation_sessions SET updated_at = '2022-01-01'", (), database)
    assert list(old.delete(store, "s1")) == [(0, 0)]
    assert left(mariadb, database) == {"s1": 1}
    mariadb.execute("UPDATE translation_sessions SET updated_at = '2020-01-01', status = 'failed'", (), database)
    assert list(old.delete(store, "s1")) == [(1, 1)]
    store.close()


def test_the_pause_is_as_long_as_a_portion_for_each_statement_that_runs(mariadb: MariaDB, database: str) -> None:
    class Loaded(Store):
        running = "0"

        def select(self, statement: str) -> list[tuple[Any, ...]]:
            assert statement == "SHOW GLOBAL STATUS LIKE 'Threads_running'"
            return [("Threads_running", self.running)]

    store = Loaded(mariadb.server(database))
    for store.running, expected in (("1", 0.1), ("0", 0.1), ("7", 0.7), ("500", 10.0)):
        assert purge.pause_s(store, 0.1) == pytest.approx(expected)
    ((name, count),) = Store(mariadb.server(database)).select("SHOW GLOBAL STATUS LIKE 'Threads_running'")
    assert (name, int(count) > 0) == ("Threads_running", True)
