"""Health, readiness, metrics, command line and page say the same of each trouble, for as long as it lasts."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import expect

from tests.conftest import started
from tests.dashboard.pages import Pages, expect_figure, tile, url_of
from tests.ingest.test_metrics import samples
from tests.support.ctl import ctl
from tests.support.disks import small_disk
from tests.support.load import Load
from tests.support.mariadb import MariaDB
from tests.support.service import TASKS, Service, task, wait_until

STEADY_LOOKS = 15
POISONED = "ALTER TABLE translation_tasks ADD CONSTRAINT no_poison CHECK (source_text <> 'poison')"


@pytest.fixture(scope="module")
def server(new_database: type[MariaDB]) -> Iterator[MariaDB]:
    """Of our own: it is stopped and set read-only."""
    yield from started(new_database)


@pytest.fixture
def database(server: MariaDB) -> Iterator[str]:
    """With a user of its own: root is above read_only."""
    name = server.create_database()
    server.execute("DROP USER IF EXISTS app@localhost")
    server.execute("CREATE USER app@localhost")
    server.execute(f"GRANT SELECT, INSERT, UPDATE ON {name}.* TO app@localhost")
    yield name
    server.drop_database(name)


def end_connections(server: MariaDB) -> None:
    """One that is open keeps the rights it had."""
    for number in [row[0] for row in server.execute("SHOW PROCESSLIST") if row[1] == "app"]:
        server.execute(f"KILL {number}")


@contextmanager
def broken(mend: Callable[[], object]) -> Iterator[None]:
    try:
        yield
    finally:
        mend()


def down(server: MariaDB, _database: str, _journal: Path) -> AbstractContextManager[None]:
    server.stop()
    return broken(server.start)


def locked(server: MariaDB, database: str, _journal: Path) -> AbstractContextManager[None]:
    return server.locked(database)


def read_only(server: MariaDB, _database: str, _journal: Path) -> AbstractContextManager[None]:
    server.execute("SET GLOBAL read_only = 1")
    return broken(lambda: server.execute("SET GLOBAL read_only = 0"))


def without_right(server: MariaDB, database: str, _journal: Path) -> AbstractContextManager[None]:
    server.execute(f"REVOKE INSERT ON {database}.* FROM app@localhost")
    end_connections(server)
    return broken(lambda: server.execute(f"GRANT INSERT ON {database}.* TO app@localhost"))


def disk_full(server: MariaDB, _database: str, journal: Path) -> AbstractContextManager[None]:
    """Without its database too: each segment that is written makes room again."""
    server.stop()
    filler = journal / "filler"
    subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4k"], capture_output=True, check=False)

    def mend() -> None:
        filler.unlink()
        server.start()

    return broken(mend)


class State(NamedTuple):
    """What a trouble must look like; `title` and `said` on the page."""

    fault: Callable[[MariaDB, str, Path], AbstractContextManager[None]]
    cause: str
    database: str
    title: str
    said: str
    ready: bool = True
    journal_max_bytes: int = 2**30


FULL = 1024 * 1024
LARGE = {"tasks": [task(target_text="x" * 60_000)] * 4}
STATES = [
    State(down, "unreachable", "down", "Database down", "ctl.sh db check"),
    State(locked, "locked", "not_writable", "Tables locked, or the database hangs", "SHOW FULL PROCESSLIST"),
    State(read_only, "read_only", "not_writable", "Database read-only", "ctl.sh db check"),
    State(without_right, "rights", "not_writable", "A right or the login is missing", "ctl.sh db check"),
    State(disk_full, "journal_not_writable", "down", "The journal cannot be written", "make room", ready=False),
    State(down, "journal_full", "down", "Journal full, records are refused", "ctl.sh db check", False, FULL),
]


@pytest.fixture
def journal(short_path: Path) -> Iterator[Path]:
    """A directory on a disk of its own."""
    with small_disk(short_path / "journal", 4) as directory:
        yield directory


@pytest.mark.parametrize("state", STATES, ids=[state.cause for state in STATES])
def test_every_place_shows_the_same_state_from_its_beginning_to_its_end(
    start_service: Callable[..., Service], journal: Path, database: str, state: State, request: pytest.FixtureRequest
) -> None:
    server, pages = request.getfixturevalue("server"), request.getfixturevalue("pages")
    service = start_service(
        server,
        database,
        DB_USER="app",
        BUFFER_FLUSH_INTERVAL=1,
        JOURNAL_DIRECTORY=journal,
        JOURNAL_MAX_BYTES=state.journal_max_bytes,
        SERVICE_MAX_BODY_BYTES=FULL // 2,
    )
    page = pages.open(url_of(service))
    with Load(service, clients=1, batch=5, pause_s=0.05) as load:
        with state.fault(server, database, journal):
            while state.journal_max_bytes == FULL and service.post(TASKS, LARGE).status == 202:
                pass
            wait_until(lambda: seen(service) == (state.cause, state.database), 60, f"health says {state.cause}")
            health = service.get("/health").json
            # Then silence: nobody sends, and nothing changes for it.
            for look in range(STEADY_LOOKS):
                if look == STEADY_LOOKS // 2:
                    load.stop()
                check_same(service, health, state)
                page.wait_for_timeout(200)
            status = ctl(service, "status")
            assert status.status == 1
            assert service.get("/health").json["reason"] in " ".join(status.out.split())
            lines = page.locator("#problems li")
            expect(lines.filter(has_text=state.title)).to_contain_text(state.said)
            expect(lines.filter(has_text=state.title)).to_contain_text(re.compile(r"^since [\d:]{8}"))
            expect(page.locator("#database")).to_have_text(f"Database {state.database.replace('_', ' ')}")
            assert lines.count() <= 2
            points = service.get("/dashboard/history").json["points"]
            causes = [point["cause"] for point in points]
            assert set(causes[causes.index(state.cause) :]) == {state.cause}
        wait_until(lambda: service.get("/health").json["status"] == "healthy", 60, "it goes on by itself")
        assert service.get("/ready").status == 200
        expect(page.locator("#problems li")).to_have_count(0)
        expect(page.locator("#over")).to_contain_text(state.title)
        expect(page).to_have_title("✓ healthy · Persistence Service")


def seen(service: Service) -> tuple[str, str]:
    health = service.get("/health").json
    return health["cause"], health["database_state"]


def check_same(service: Service, first: dict[str, Any], state: State) -> None:
    health, ready = service.get("/health").json, service.get("/ready")
    shown = ("status", "cause", "since", "database_state")
    assert [health[name] for name in shown] == [first[name] for name in shown]
    assert (ready.status == 200, state.said in ready.json["reason"]) == (state.ready, True)
    metrics = samples(service.get("/metrics").body)
    assert metrics["persistence_trouble", (("cause", state.cause),)] == 1
    assert metrics["persistence_database_up", ()] == (state.database == "up")
    assert metrics["persistence_accepting", ()] == state.ready


def test_dead_letters_are_shown_with_message_time_and_command(
    start_service: Callable[..., Service], server: MariaDB, database: str, pages: Pages
) -> None:
    service = start_service(server, database)
    server.execute(POISONED, (), database)
    page = pages.open(url_of(service))
    expect_figure(page, "Dead letters", "0")
    tasks = [task(f"t{number}", source_text="poison" if number == 7 else "text") for number in range(10)]
    assert service.post(TASKS, {"tasks": tasks}).status == 202
    assert service.flush().json["dead_lettered"] == 1
    expect_figure(page, "Dead letters", "1")
    expect(tile(page, "Dead letters")).to_have_class("tile bad")
    line = page.locator("#problems li")
    expect(line).to_have_text(
        re.compile(rf"^[\d:]{{8}}Dead letters \(1\): .*{server.check_failed}.*no_poison.*ctl\.sh deadletters list")
    )
    assert ctl(service, "status").status == 1


def test_invalid_records_are_a_rate_and_a_line_for_each_reason(
    start_service: Callable[..., Service], server: MariaDB, database: str, pages: Pages
) -> None:
    service = start_service(server, database)
    page = pages.open(url_of(service))
    expect_figure(page, "Refused", "0 /s")
    assert service.post(TASKS, {"tasks": [task(), task(status="no such")]}).status == 422
    expect_figure(page, "Refused", re.compile(r"^0\.\d+ /s$"))
    expect(tile(page, "Refused")).to_have_class("tile bad")
    for reason in ("tasks beside an invalid one", "tasks.status"):
        expect(page.locator("#refused li", has_text=f"{reason} 1 record")).to_have_count(1)
    expect(page.locator("#problems li")).to_have_count(0)
    expect(page.locator("#service")).to_have_text("Service healthy")
    assert "tasks.status 1" in ctl(service, "status").out
