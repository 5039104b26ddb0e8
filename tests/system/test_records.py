"""What was accepted means the same after a crash, under other settings, and as a dead letter; it comes back as sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import orjson
import pytest

from flusher import dead_letters
from flusher.replay import Round, replay
from shared.records import KINDS, Kind
from shared.wire import SOCKET_NAME
from tests.support.mariadb import MariaDB
from tests.support.service import SESSIONS, TASKS, Service, session, task

NAIVE = task("naive", updated_at="2018-11-04 00:30:00", start_time="2018-11-03T12:00:00", colour="red", extra=[1])
Run = Callable[[str], list[Any]]


@pytest.fixture
def run(mariadb: MariaDB, database: str) -> Run:
    return lambda statement: mariadb.execute(statement, (), database)


@pytest.fixture
def start(short_path: Path, mariadb: MariaDB, database: str) -> Iterator[Callable[..., Service]]:
    """Starts a service in one and the same state directory; the one before it is killed."""
    started: list[Service] = []

    def begin(**settings: object) -> Service:
        for service in started:
            service.kill()
        started.append(Service(short_path, mariadb, database, BUFFER_FLUSH_INTERVAL=3600, **settings))
        started[-1].start()
        return started[-1]

    yield begin
    for service in started:
        service.kill()


def stored(run: Run) -> tuple[datetime, datetime, Any]:
    ((updated_at, start_time, extra),) = run("SELECT updated_at, start_time, extra FROM translation_tasks")
    return updated_at, start_time, orjson.loads(extra) if extra else None


SAO_PAULO = datetime(2018, 11, 4, 3, 30), datetime(2018, 11, 3, 15), {"colour": "red", "extra": [1]}
"""The clocks of that night went from 00:00 to 01:00: 00:30 counts from the offset before, -03:00."""


def test_other_settings_change_nothing_of_what_waits_in_the_journal(start: Callable[..., Service], run: Run) -> None:
    first = start(RECORDS_TIME_ZONE="America/Sao_Paulo", RECORDS_TASK_STATUSES="pending")
    assert first.post(TASKS, {"tasks": [NAIVE]}).status == 202
    second = start(RECORDS_TIME_ZONE="Asia/Shanghai", RECORDS_TASK_STATUSES="done", RECORDS_UNKNOWN_FIELDS="ignore")
    assert second.flush().status == 200
    assert stored(run) == SAO_PAULO


def test_a_replayed_dead_letter_means_what_it_meant_when_it_was_accepted(
    start: Callable[..., Service], run: Run
) -> None:
    run("ALTER TABLE translation_tasks ADD CONSTRAINT no_naive CHECK (task_id <> 'naive')")
    first = start(RECORDS_TIME_ZONE="America/Sao_Paulo")
    assert first.post(f"{TASKS}?ack=committed", {"tasks": [NAIVE]}).json["status"] == "dead_lettered"
    run("ALTER TABLE translation_tasks DROP CONSTRAINT no_naive")
    second = start(RECORDS_TIME_ZONE="+08:00", RECORDS_UNKNOWN_FIELDS="reject")
    letters = list(dead_letters.read(second.dead_letters))
    assert [*replay(second.dead_letters, second.directory / SOCKET_NAME, letters)] == [Round(written=1)]
    assert stored(run) == SAO_PAULO


FULL = {
    "sessions": session(
        status="split_complete",
        game_info={"名": [1, 2.5, None, {"a": "'\"\\\n\x01"}]},
        metadata={},
        total_tasks=5,
        updated_at="2026-11-23T10:15:30.123456Z",
        source_lang="zh",
        extra={"extra": {"nested": True}},
    ),
    "tasks": task(
        source_text="",
        target_text="\x00'\"\\",
        context='{"a":1}',
        confidence=0.9877,
        retry_count=2,
        start_time="2026-11-23T10:00:00Z",
        duration_ms=1234,
        metadata={"a": {"b": [18446744073709551615, -9223372036854775808, 1e-7]}},
        updated_at="2026-11-23T10:15:30Z",
        cost=0.0042,
        is_final=False,
        reviewer_notes=None,
    ),
}


def sent_again(kind: Kind, row: tuple[Any, ...]) -> dict[str, Any]:
    """A row as the record that made it: objects parsed, extra fields at the top again, and created_at."""
    record = dict(zip((*kind.record.__struct_fields__, "extra", "created_at"), row, strict=True))
    for name, value in record.items():
        if isinstance(value, datetime):
            record[name] = value.replace(tzinfo=timezone.utc).isoformat()
    for name in ("game_info", "metadata", "extra"):
        if record.get(name):
            record[name] = orjson.loads(record[name])
    if record.get("confidence") is not None:
        record["confidence"] = float(record["confidence"])
    return {**record, **(record.pop("extra") or {})}


def test_what_is_stored_equals_what_was_sent_and_may_be_sent_again(service: Service, run: Run) -> None:
    for kind, path in zip(KINDS, (SESSIONS, TASKS), strict=True):
        columns = ", ".join((*kind.record.__struct_fields__, "extra", "created_at"))
        rows = []
        document = FULL[kind.name]
        for _ in range(2):
            assert service.post(f"{path}?ack=committed", {kind.name: [document]}).status == 200
            (row,) = run(f"SELECT {columns} FROM {kind.table}")
            rows.append(row)
            document = sent_again(kind, row)
        assert sent_again(kind, rows[0]) == sent_again(kind, rows[1]) == document
        for name, value in FULL[kind.name].items():
            same = datetime.fromisoformat if name.endswith(("_at", "_time")) else lambda x: x
            assert same(document[name]) == same(value), name
