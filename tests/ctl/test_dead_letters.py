"""`deadletters`: real ones, made by a CHECK constraint that refuses some rows; replayed before and after it is gone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flusher import dead_letters, replay
from flusher.dead_letters import DeadLetter
from tests.support.ctl import Terminal, ctl
from tests.support.mariadb import MariaDB
from tests.support.service import TASKS, Service, task, wait_until

StartService = Callable[..., Service]
POISON = 12


def letter(key: str, *, column: str | None = None, record: object = None, arrival: int = 1) -> DeadLetter:
    return DeadLetter(
        "2026-11-23T10:15:30.000000+00:00", "tasks", ("s1", key), 1406, "too long", column, arrival, record or task(key)
    )


def constrain(mariadb: MariaDB, database: str) -> None:
    mariadb.execute(
        "ALTER TABLE translation_tasks ADD CONSTRAINT no_poison CHECK (source_text <> 'poison')", (), database
    )


def mend(mariadb: MariaDB, database: str) -> None:
    mariadb.execute("ALTER TABLE translation_tasks DROP CONSTRAINT no_poison", (), database)


def count(mariadb: MariaDB, database: str) -> int:
    rows: int = mariadb.execute("SELECT COUNT(*) FROM translation_tasks", (), database)[0][0]
    return rows


@pytest.fixture
def poisoned(service: Service, mariadb: MariaDB, database: str) -> Service:
    """30 rows are written, 12 are dead letters, and what refused them still stands."""
    constrain(mariadb, database)
    tasks = [task(f"good{number}") for number in range(30)]
    tasks += [task(f"bad{number}", source_text="poison") for number in range(POISON)]
    assert service.post(TASKS, {"tasks": tasks}).status == 202
    assert service.flush().json["dead_lettered"] == POISON
    return service


def test_list_tells_how_many_were_refused_for_what_and_shows_no_content(poisoned: Service) -> None:
    document = ctl(poisoned, "deadletters", "list", "--limit", "3", "--json").json
    assert document["count"] == POISON
    assert document["reasons"] == [{"kind": "tasks", "error_code": 4025, "column": None, "count": POISON}]
    assert len(document["letters"]) == 3
    assert all("record" not in found and found["replayable"] for found in document["letters"])
    text = ctl(poisoned, "deadletters", "list")
    assert text.status == 0
    assert "12 tasks refused with error 4025" in text.out
    assert "no_poison" in text.out
    status = ctl(poisoned, "status")
    assert (status.status, "12 dead letters" in status.out) == (1, True)


def test_show_prints_the_record_of_a_key(poisoned: Service) -> None:
    result = ctl(poisoned, "deadletters", "show", "--key", "bad7")
    assert result.status == 0
    assert '"source_text": "poison"' in result.out
    assert "bad8" not in result.out
    (found,) = ctl(poisoned, "deadletters", "show", "--key", "bad7", "--json").json_lines
    assert found["record"] == task("bad7", source_text="poison")
    assert ctl(poisoned, "deadletters", "show", "--key", "none").status == 1


def test_show_and_replay_want_to_know_which(poisoned: Service) -> None:
    for command in ("show", "replay"):
        result = ctl(poisoned, "deadletters", command)
        assert result.status == 2
        assert "--all" in result.err


def test_before_the_cause_is_mended_one_is_tried_and_the_service_goes_on_writing(
    poisoned: Service, mariadb: MariaDB, database: str
) -> None:
    result = ctl(poisoned, "deadletters", "replay", "--all", "--json")

    assert result.status == 1
    assert result.json["refused_again"] == 1
    assert result.json["held_back"] == POISON - 1
    assert ctl(poisoned, "deadletters", "list", "--json").json["count"] == POISON
    assert poisoned.post(TASKS, {"tasks": [task("afterwards")]}).status == 202
    assert poisoned.flush().status == 200
    assert count(mariadb, database) == 31
    assert poisoned.get("/health").json["status"] == "healthy"


def test_after_the_cause_is_mended_all_are_written_under_a_progress_bar(
    poisoned: Service, mariadb: MariaDB, database: str
) -> None:
    mend(mariadb, database)

    terminal = Terminal(poisoned, "deadletters", "replay", "--all")

    assert terminal.end() == 0
    assert f"{POISON}/{POISON}" in terminal.seen
    assert "━" in terminal.seen
    assert "12 dead letters replayed and written" in terminal.seen
    assert count(mariadb, database) == 30 + POISON
    assert ctl(poisoned, "deadletters", "list").out == "no dead letters\n"
    wait_until(lambda: poisoned.stats()["dead_letters"]["count"] == 0)
    assert ctl(poisoned, "status").status == 0


def test_a_key_or_an_error_number_chooses(poisoned: Service, mariadb: MariaDB, database: str) -> None:
    mend(mariadb, database)
    two = ctl(poisoned, "deadletters", "replay", "--key", "bad1", "--key", "bad2", "--json")
    assert two.json["written"] == two.json["chosen"] == 2
    assert ctl(poisoned, "deadletters", "replay", "--error", "1406", "--json").json["chosen"] == 0
    assert ctl(poisoned, "deadletters", "replay", "--error", "4025", "--json").json["written"] == POISON - 2
    assert count(mariadb, database) == 30 + POISON


def test_without_the_flusher_every_letter_stays(poisoned: Service) -> None:
    poisoned.stop()
    before = poisoned.dead_letters.read_bytes()
    result = ctl(poisoned, "deadletters", "replay", "--all")
    assert result.status == 2
    assert "not reachable" in result.err
    assert poisoned.dead_letters.read_bytes() == before
    assert ctl(poisoned, "deadletters", "list", "--json").json["count"] == POISON


def test_without_the_database_what_was_sent_waits_in_the_journal_and_the_others_stay(
    start_service: StartService, mariadb: MariaDB, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "TIMEOUT_S", 0.5)
    service = start_service(mariadb, database, DB_SOCKET="/tmp/there-is-none")
    letters = [letter(f"t{number}") for number in range(5)]
    dead_letters.append(service.dead_letters, letters, 10**6)
    socket_path = service.directory / "run" / "flusher.sock"
    with pytest.raises(replay.NotReplayed, match="1 more wait in the journal"):
        list(replay.replay(service.dead_letters, socket_path, list(dead_letters.read(service.dead_letters))))
    assert dead_letters.Count(service.dead_letters).look() == 4
    assert service.stats()["at_risk"]["uncommitted_records"] == 1


def test_many_go_in_growing_rounds_and_all_arrive(service: Service, mariadb: MariaDB, database: str) -> None:
    letters = [letter(f"t{number}", arrival=number + 1) for number in range(250)]
    dead_letters.append(service.dead_letters, letters, 10**6)
    result = ctl(service, "deadletters", "replay", "--all", "--json")
    assert result.status == 0
    assert result.json["written"] == 250
    assert count(mariadb, database) == 250
    assert service.stats()["performance"]["total_flush_count"] == 5  # 1, 9, 100, 100, 40


def test_one_reason_that_is_not_mended_does_not_hold_another_back(
    service: Service, mariadb: MariaDB, database: str
) -> None:
    constrain(mariadb, database)
    letters = [letter(f"bad{n}", record=task(f"bad{n}", source_text="poison")) for n in range(20)]
    letters += [letter(f"good{n}", column="context") for n in range(20)]
    dead_letters.append(service.dead_letters, letters, 10**6)
    document = ctl(service, "deadletters", "replay", "--all", "--json").json
    assert document["written"] == 20
    assert document["refused_again"] == 1
    assert document["held_back"] == 19
    assert count(mariadb, database) == 20


def test_a_letter_that_did_not_decode_stays_for_a_person(service: Service) -> None:
    dead_letters.append(service.dead_letters, [letter("", record="{half")], 10**6)
    result = ctl(service, "deadletters", "replay", "--all")
    assert result.status == 1
    assert "cannot be replayed" in result.out
    assert dead_letters.Count(service.dead_letters).look() == 1
