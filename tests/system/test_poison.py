"""A row that the table refuses costs nobody else anything, is kept, shown, and comes back when the table is mended."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from flusher import dead_letters
from flusher.replay import Round, replay
from shared.wire import SOCKET_NAME
from tests.support.mariadb import MariaDB
from tests.support.service import TASKS, Service, task, wait_until

Run = Callable[[str], list[tuple[object, ...]]]


@pytest.fixture
def run(mariadb: MariaDB, database: str) -> Run:
    return lambda statement: mariadb.execute(statement, (), database)


def test_one_poison_row_of_a_thousand_is_set_aside_within_the_same_flush_and_replayed_later(
    service: Service, mariadb: MariaDB, run: Run
) -> None:
    run("ALTER TABLE translation_tasks ADD CONSTRAINT no_poison CHECK (source_text <> 'poison')")
    tasks = [task(f"t{number:03}", source_text="poison" if number == 617 else "text") for number in range(1000)]
    assert service.post(TASKS, {"tasks": tasks}).status == 202

    flushed = service.flush().json

    assert (flushed["tasks_written"], flushed["dead_lettered"]) == (999, 1)
    assert run("SELECT COUNT(*) FROM translation_tasks") == [(999,)]
    letters = list(dead_letters.read(service.dead_letters))
    assert len(letters) == 1
    letter = letters[0][1]
    assert (letter.kind, letter.key, letter.record) == ("tasks", ("s1", "t617"), tasks[617])
    assert "no_poison" in letter.error
    stats = service.stats()
    assert (stats["dead_letters"]["count"], stats["dead_letters"]["total"]) == (1, 1)
    assert str(mariadb.check_failed) in stats["dead_letters"]["last_error"]
    assert "poison" not in stats["dead_letters"]["last_error"].replace("no_poison", "")
    assert service.stats()["buffer"]["total_count"] == 0
    assert "persistence_dead_letters_waiting 1.0" in service.get("/metrics").body.decode()

    run("ALTER TABLE translation_tasks DROP CONSTRAINT no_poison")
    newer = task("t001", source_text="newer")
    assert service.post(f"{TASKS}?ack=committed", {"tasks": [newer]}).status == 200
    assert [*replay(service.dead_letters, service.directory / SOCKET_NAME, letters)] == [Round(written=1)]

    assert service.flush().status == 200
    assert run("SELECT source_text FROM translation_tasks WHERE task_id = 't617'") == [("poison",)]
    assert run("SELECT COUNT(*) FROM translation_tasks") == [(1000,)]
    assert list(dead_letters.read(service.dead_letters)) == []
    wait_until(lambda: service.stats()["dead_letters"]["count"] == 0, what="the replayed letter is counted out")


def test_letters_that_are_refused_again_come_back_and_hold_up_nothing(service: Service, run: Run) -> None:
    # Of 120 letters the first ten are good once the table takes 20 characters, the others are not.
    run("ALTER TABLE translation_tasks ADD CONSTRAINT shorter CHECK (CHAR_LENGTH(source_text) <= 10)")
    tasks = [task(f"t{number:03}", source_text="x" * (15 if number < 10 else 30)) for number in range(120)]
    for first in range(0, 120, 8):
        assert service.post(TASKS, {"tasks": tasks[first : first + 8]}).status == 202
        assert service.flush().json["dead_lettered"] == 8
    run("ALTER TABLE translation_tasks DROP CONSTRAINT shorter")
    run("ALTER TABLE translation_tasks ADD CONSTRAINT short CHECK (CHAR_LENGTH(source_text) <= 20)")

    letters = list(dead_letters.read(service.dead_letters))
    rounds = [*replay(service.dead_letters, service.directory / SOCKET_NAME, letters)]

    assert (sum(one.written for one in rounds), rounds[-1].held_back + rounds[-2].refused) == (10, 110)
    assert len(list(dead_letters.read(service.dead_letters))) == 110
    assert service.post(TASKS, {"tasks": [task("good")]}).status == 202
    assert service.flush().json["tasks_written"] == 1
    assert service.get("/health").json["status"] == "healthy"


def test_a_segment_that_cannot_be_read_is_an_alarm_and_holds_up_nothing(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, BUFFER_FLUSH_INTERVAL=0.2)
    with mariadb.locked(database):
        assert service.post(TASKS, {"tasks": [task("lost")]}).status == 202
        (segment,) = wait_until(service.segments)
        wait_until(lambda: mariadb.hanging(database))
        kept = segment.rename(segment.with_suffix(".kept"))
        segment.mkdir()
        os.kill(service.writers()[0], signal.SIGKILL)
        wait_until(lambda: service.stats()["state"]["alarm"])

    for number in range(3):
        assert service.post(TASKS, {"tasks": [task(f"t{number}")]}).status == 202
        wait_until(lambda: service.stats()["performance"]["total_tasks_written"] > number)  # noqa: B023 -- called at once
        assert segment.name in service.stats()["state"]["alarm"]
    health = service.get("/health").json
    assert (health["status"], health["database"]) == ("degraded", "healthy")

    segment.rmdir()
    kept.rename(segment)
    assert service.flush().status == 200
    assert mariadb.execute("SELECT COUNT(*) FROM translation_tasks", (), database) == [(4,)]
    assert service.get("/health").json["status"] == "healthy"


def test_a_replay_does_not_undo_a_newer_row(service: Service, run: Run) -> None:
    run("ALTER TABLE translation_tasks ADD CONSTRAINT no_poison CHECK (source_text <> 'poison')")
    answer = service.post(f"{TASKS}?ack=committed", {"tasks": [task("t1", source_text="poison"), task("t2")]})
    assert (answer.status, answer.json["status"], answer.json["dead_lettered"]) == (200, "dead_lettered", 1)
    assert service.post(TASKS, {"tasks": [task("t1", source_text="newer")]}).status == 202
    assert service.flush().json["tasks_written"] == 1
    run("ALTER TABLE translation_tasks DROP CONSTRAINT no_poison")

    letters = list(dead_letters.read(service.dead_letters))
    assert [*replay(service.dead_letters, service.directory / SOCKET_NAME, letters)] == [Round(written=1)]
    assert service.flush().status == 200

    assert run("SELECT source_text FROM translation_tasks WHERE task_id = 't1'") == [("newer",)]
