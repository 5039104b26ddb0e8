from __future__ import annotations

import json

from tests.support.mariadb import MariaDB
from tests.support.service import SESSIONS, TASKS, Service, session, task


def test_posted_sessions_and_tasks_stand_in_the_tables_after_a_flush(
    service: Service, mariadb: MariaDB, database: str
) -> None:
    assert service.post(SESSIONS, {"sessions": [session("s1", metadata={"a": [1, None]})]}).status == 202
    accepted = service.post(TASKS, {"tasks": [task("t1"), task("t2", status="completed", target_text="hello")]})
    assert accepted.status == 202
    assert accepted.json["count"] == 2

    flushed = service.flush()

    assert flushed.status == 200
    assert flushed.json["sessions_written"] == 1
    assert flushed.json["tasks_written"] == 2
    rows = mariadb.execute("SELECT task_id, status, target_text FROM translation_tasks ORDER BY 1", (), database)
    assert rows == [("t1", "pending", None), ("t2", "completed", "hello")]
    ((key, metadata),) = mariadb.execute("SELECT session_id, metadata FROM translation_sessions", (), database)
    assert (key, json.loads(metadata)) == ("s1", {"a": [1, None]})
