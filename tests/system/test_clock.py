"""The wall clock steps by an hour, as NTP or an operator may set it: nothing stops, and the later record still wins."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from tests.support.mariadb import MariaDB
from tests.support.service import TASKS, Service, task, wait_until
from tests.support.stepped_clock import SteppedClock

HOUR_S = 3600


def status_of(mariadb: MariaDB, database: str) -> str | None:
    rows = mariadb.execute("SELECT status FROM translation_tasks WHERE task_id = 't1'", (), database)
    return rows[0][0] if rows else None


def post_and_see(service: Service, mariadb: MariaDB, database: str, status: str) -> None:
    """The state of a record without updated_at stands in its row after the next flush by age."""
    assert service.post(TASKS, {"tasks": [task("t1", status=status)]}).status == 202
    wait_until(lambda: status_of(mariadb, database) == status, what=f"the row says {status}")


@pytest.fixture
def stopped_service(short_path: Path, mariadb: MariaDB, database: str) -> Iterator[Service]:
    service = Service(short_path, mariadb, database, BUFFER_FLUSH_INTERVAL=0.1)
    yield service
    service.stop()
    service.kill()


@pytest.mark.parametrize("seconds", [HOUR_S, -HOUR_S])
@pytest.mark.parametrize("stepped", ["flusher", "ingest"])
def test_the_later_record_wins_whatever_the_clock_shows(
    stopped_service: Service, mariadb: MariaDB, database: str, stepped: str, seconds: int
) -> None:
    service = stopped_service
    clock = SteppedClock(service.directory)
    plain = service.environ
    for name, start in (("flusher", service.start_flusher), ("ingest", service.start_ingest)):
        service.environ = {**plain, **(clock.environ if name == stepped else {})}
        start()
    service.wait_ready()
    service.environ = {**plain, **(clock.environ if stepped == "flusher" else {})}

    post_and_see(service, mariadb, database, "pending")
    clock.step(seconds)
    post_and_see(service, mariadb, database, "processing")
    clock.step(-seconds)
    post_and_see(service, mariadb, database, "failed")
    service.kill_flusher()
    service.start_flusher()
    post_and_see(service, mariadb, database, "completed")

    wait_until(lambda: service.get("/health").json["status"] == "healthy")  # the flusher hears of a commit after it
    assert service.stats()["at_risk"]["oldest_uncommitted_seconds"] < 60


def test_a_record_from_the_future_is_refused_by_the_clock_as_it_is_now(
    stopped_service: Service, mariadb: MariaDB, database: str
) -> None:
    service = stopped_service
    clock = SteppedClock(service.directory)
    service.environ = {**service.environ, **clock.environ}
    service.start()
    clock.step(HOUR_S)
    sent = task("t1", updated_at=(datetime.now(timezone.utc) + timedelta(minutes=30)).isoformat())
    assert service.post(TASKS, {"tasks": [sent]}).status == 202
    clock.step(-HOUR_S)
    assert service.post(TASKS, {"tasks": [sent]}).status == 422
    clock.step(0)
    assert service.post(TASKS, {"tasks": [sent]}).status == 422


def test_a_database_with_another_clock_gets_the_same_rows(
    short_path: Path, own_mariadb: MariaDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only created_at is the database's."""
    clock = SteppedClock(short_path)
    own_mariadb.stop()
    for name, value in clock.environ.items():
        monkeypatch.setenv(name, value)
    clock.step(-HOUR_S)
    own_mariadb.start()
    for name in clock.environ:
        monkeypatch.delenv(name)
    database = own_mariadb.create_database()
    ahead = own_mariadb.execute("SELECT UNIX_TIMESTAMP() - %s", (int(time.time()),), database)
    assert -HOUR_S - 60 < ahead[0][0] < -HOUR_S + 60
    state = short_path / "state"
    state.mkdir()
    service = Service(state, own_mariadb, database, BUFFER_FLUSH_INTERVAL=0.1)
    try:
        service.start()
        post_and_see(service, own_mariadb, database, "pending")
        clock.step(HOUR_S)
        post_and_see(service, own_mariadb, database, "completed")
        ((behind_s,),) = own_mariadb.execute(
            "SELECT TIMESTAMPDIFF(SECOND, created_at, updated_at) FROM translation_tasks", (), database
        )
        assert behind_s > HOUR_S - 60
    finally:
        service.stop()
        service.kill()
