"""The wall clock steps by an hour, as NTP or an operator may set it: nothing stops, and the later record still wins."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from datetime import datetime, timedelta, timezone
from http.client import HTTPConnection
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


@pytest.mark.parametrize("seconds", [HOUR_S, -HOUR_S])
def test_a_step_moves_what_is_too_far_in_the_future_and_no_deadline(stopped_service: Service, seconds: int) -> None:
    service = stopped_service
    clock = SteppedClock(service.directory)
    service.environ = {**service.environ, **clock.environ, "SERVICE_ACK_TIMEOUT": "20"}
    service.start()

    def answer_to(ahead_s: int, kept: HTTPConnection) -> int:
        sent = (datetime.now(timezone.utc) + timedelta(seconds=ahead_s)).isoformat()
        return service.post(TASKS, {"tasks": [task("t1", updated_at=sent)]}, connection=kept).status

    with closing(service.connect()) as kept, ThreadPoolExecutor(1) as one:
        assert (answer_to(0, kept), answer_to(1800, kept)) == (202, 422)
        assert service.flusher is not None
        service.flusher.send_signal(signal.SIGSTOP)
        try:
            waiting = one.submit(service.post, TASKS, {"tasks": [task("waits")]})
            # It waits for its ack, or does not yet: neither may end in 503.
            assert wait([waiting], timeout=0.5).not_done
            clock.step(seconds)
            assert wait([waiting], timeout=0.5).not_done
        finally:
            service.flusher.send_signal(signal.SIGCONT)
        assert waiting.result().status == 202
        # The connection that rested meanwhile is there, and records go by the new time.
        for ahead_s, status in ((seconds + 200, 202), (seconds + 1000, 422), (seconds - 10_000, 202)):
            assert answer_to(ahead_s, kept) == status

        def points() -> int:
            found = service.get("/dashboard/history").json["points"]
            return sum(abs(point["at"] - time.time() - seconds) < 30 for point in found)

        wait_until(lambda: points() >= 2, what="the dashboard goes on with the new time")
        clock.step(0)
        assert (answer_to(0, kept), answer_to(1800, kept)) == (202, 422)


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
