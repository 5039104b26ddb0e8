"""Faults that no retry cures: nothing is dead-lettered, nothing lost, the state is shown, and all heals by itself."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import started
from tests.support.ctl import ctl
from tests.support.mariadb import MariaDB
from tests.support.service import TASKS, Service, task, wait_until
from tests.support.tables import FIRST_USER, VERSION_1

StartService = Callable[..., Service]


@pytest.fixture(scope="module")
def server(new_database: type[MariaDB]) -> Iterator[MariaDB]:
    """With a user of its own: root is above read_only and the limit of connections."""
    for server in started(new_database):
        server.execute("CREATE USER app@localhost")
        yield server


@pytest.fixture
def database_name(server: MariaDB) -> Iterator[str]:
    """A database of the user app; the server's settings are as before after the test."""
    name = server.create_database()
    server.execute(f"GRANT SELECT, INSERT, UPDATE ON {name}.* TO app@localhost")
    settings = ("max_allowed_packet", "read_only", "max_connections")
    before = [server.execute(f"SELECT @@GLOBAL.{setting}")[0][0] for setting in settings]
    yield name
    for setting, value in zip(settings, before, strict=True):
        server.execute(f"SET GLOBAL {setting} = {value}")


def end_connections(server: MariaDB) -> None:
    for number in [row[0] for row in server.execute("SHOW PROCESSLIST") if row[1] == "app"]:
        server.execute(f"KILL {number}")


def degraded_by(service: Service, shown: str) -> bool:
    """A flush that waits no longer may be answered before the try has failed."""
    health = service.get("/health")
    assert health.status == 200
    return health.json["status"] == "degraded" and shown in health.json["reason"]


def check_kept_shown_and_healed(
    service: Service,
    server: MariaDB,
    database: str,
    *,
    break_it: Callable[[], object],
    mend_it: Callable[[], object],
    shown: str,
    source_text: str = "text",
) -> None:
    break_it()
    tasks = [task(f"t{number}", source_text=source_text) for number in range(20)]
    assert service.post(TASKS, {"tasks": tasks}).status == 202

    failed = service.flush(2)

    assert (failed.status, failed.json["pending"]) == (503, 20)
    wait_until(lambda: degraded_by(service, shown), 60, what=f"health says {shown}")
    stats = service.stats()
    assert stats["dead_letters"]["count"] == 0
    assert stats["at_risk"]["uncommitted_records"] == 20
    assert service.post(TASKS, {"tasks": [task("later")]}).status == 202

    mend_it()

    wait_until(
        lambda: service.stats()["at_risk"]["uncommitted_records"] <= 1, 60, "the kept batch is written by itself"
    )
    assert service.flush().status == 200
    assert server.execute("SELECT COUNT(*) FROM translation_tasks", (), database) == [(21,)]
    assert not service.dead_letters.exists()
    assert service.get("/health").json["status"] == "healthy"


@pytest.mark.parametrize("tables", [VERSION_1, FIRST_USER], ids=["version 1", "user"])
def test_tables_of_another_time_get_nothing_until_they_are_upgraded(
    start_service: StartService, server: MariaDB, database_name: str, tables: tuple[str, ...]
) -> None:
    for statement in ("DROP TABLE translation_tasks, translation_sessions", *tables):
        server.execute(statement, (), database_name)
    service = start_service(server, database_name, DB_USER="app")
    wait_until(lambda: degraded_by(service, "./scripts/ctl.sh db upgrade"), what="seen before the first record")
    assert "must be (session_id, task_id)" in ctl(service, "db", "check", DB_USER="root").out
    assert "nothing is written" in service.get("/ready").json["reason"]
    assert service.get("/ready").json["ready"] is True
    status = ctl(service, "status")
    assert status.status == 1
    assert "nothing is written" in status.out
    check_kept_shown_and_healed(
        service,
        server,
        database_name,
        break_it=lambda: None,
        mend_it=lambda: ctl(service, "db", "upgrade", "--yes", DB_USER="root"),
        shown="nothing is written",
    )


@pytest.mark.parametrize("fault", ["dropped table", "revoked rights", "read-only", "no connection", "small packets"])
def test_what_the_server_refuses_is_kept_until_it_is_mended(
    start_service: StartService, server: MariaDB, database_name: str, fault: str
) -> None:
    if fault == "small packets":
        server.execute("SET GLOBAL max_allowed_packet = 65536")
    service = start_service(server, database_name, DB_USER="app")
    wait_until(lambda: service.get("/health").json["database"] == "healthy")
    held = ExitStack()

    def run(statement: str, *, new_connections: bool = False) -> Callable[[], None]:
        def now() -> None:
            server.execute(statement, (), database_name)
            if new_connections:
                end_connections(server)  # one that is open keeps the rights and limits that it had

        return now

    def take_all_connections() -> None:
        run("SET GLOBAL max_connections = 10", new_connections=True)()
        for _ in range(10):  # one more than the limit is kept for root
            held.callback(server.connect().close)

    rights = f"INSERT, UPDATE ON {database_name}.*"
    break_it, mend_it, shown = {
        "dropped table": (
            run("RENAME TABLE translation_tasks TO away"),
            run("RENAME TABLE away TO translation_tasks"),
            "translation_tasks",
        ),
        "revoked rights": (
            run(f"REVOKE {rights} FROM app@localhost", new_connections=True),
            run(f"GRANT {rights} TO app@localhost"),
            "1142",
        ),
        "read-only": (run("SET GLOBAL read_only = 1"), run("SET GLOBAL read_only = 0"), "1290"),
        "no connection": (take_all_connections, held.close, "1040"),
        "small packets": (held.close, run("SET GLOBAL max_allowed_packet = 67108864"), "max_allowed_packet"),
    }[fault]
    text = "字" * 60_000 if fault == "small packets" else "text"
    check_kept_shown_and_healed(
        service, server, database_name, break_it=break_it, mend_it=mend_it, shown=shown, source_text=text
    )


def test_small_records_pass_a_small_packet_limit_in_several_statements(
    start_service: StartService, server: MariaDB, database_name: str
) -> None:
    server.execute("SET GLOBAL max_allowed_packet = 65536")
    service = start_service(server, database_name, DB_USER="app")
    tasks = [task(f"t{number}", source_text="字" * 1000) for number in range(100)]
    assert service.post(TASKS, {"tasks": tasks}).status == 202
    assert service.flush().status == 200
    assert server.execute("SELECT COUNT(*) FROM translation_tasks", (), database_name) == [(100,)]


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 8 MiB for the tasks' table alone: MariaDB itself ends when its own files cannot grow."""
    directory = Path(tempfile.mkdtemp(prefix="disk-", dir="/tmp"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(directory)], check=True)
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)
    directory.rmdir()


@pytest.mark.only("mariadb")  # MySQL takes no DATA DIRECTORY that it was not started with
def test_a_full_disk_of_the_database_keeps_everything_until_there_is_room(
    start_service: StartService, own_mariadb: MariaDB, small_disk: Path
) -> None:
    run = own_mariadb.execute
    database = own_mariadb.create_database()
    definition = run("SHOW CREATE TABLE translation_tasks", (), database)[0][1]
    run("DROP TABLE translation_tasks", (), database)
    run(f"{definition} DATA DIRECTORY='{small_disk}'", (), database)
    filler = small_disk / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(b"x" * 4096)
                except OSError:
                    return

    def mend_it() -> None:
        filler.unlink()
        assert own_mariadb.process is not None
        # InnoDB tries for some seconds, then MariaDB 10.11 ends itself; a supervisor starts it again.
        if own_mariadb.process.poll() is not None:
            own_mariadb.start()

    check_kept_shown_and_healed(
        start_service(own_mariadb, database),
        own_mariadb,
        database,
        break_it=fill,
        mend_it=mend_it,
        shown="error",
        source_text="字" * 30_000,
    )
