"""Faults that no retry cures: nothing is dead-lettered, nothing lost, the state is shown, and all heals by itself."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.ctl import ctl
from tests.support.mariadb import MariaDB
from tests.support.service import TASKS, Service, task, wait_until
from tests.support.tables import FIRST_USER, VERSION_1

StartService = Callable[..., Service]


@pytest.fixture
def database_name(own_mariadb: MariaDB) -> str:
    """A database with a user of its own: root is above read_only and the limit of connections."""
    name = own_mariadb.create_database()
    own_mariadb.execute("CREATE USER app@localhost")
    own_mariadb.execute(f"GRANT SELECT, INSERT, UPDATE ON {name}.* TO app@localhost")
    return name


def end_connections(mariadb: MariaDB) -> None:
    for number in [row[0] for row in mariadb.execute("SHOW PROCESSLIST") if row[1] == "app"]:
        mariadb.execute(f"KILL {number}")


def degraded_by(service: Service, shown: str) -> bool:
    """A flush that waits no longer may be answered before the try has failed."""
    health = service.get("/health")
    assert health.status == 200
    return health.json["status"] == "degraded" and shown in health.json["reason"]


def check_kept_shown_and_healed(
    service: Service,
    mariadb: MariaDB,
    database: str,
    *,
    break_it: Callable[[], object],
    mend_it: Callable[[], object],
    shown: str,
    source_text: str = "text",
    flush_s: float = 2,
) -> None:
    break_it()
    tasks = [task(f"t{number}", source_text=source_text) for number in range(20)]
    assert service.post(TASKS, {"tasks": tasks}).status == 202

    failed = service.flush(flush_s)

    assert failed.status == 503
    assert failed.json["pending"] == 20
    wait_until(lambda: degraded_by(service, shown), what=f"health says {shown}")
    stats = service.stats()
    assert stats["dead_letters"]["count"] == 0
    assert stats["at_risk"]["uncommitted_records"] == 20
    assert service.post(TASKS, {"tasks": [task("later")]}).status == 202

    mend_it()

    wait_until(
        lambda: service.stats()["at_risk"]["uncommitted_records"] <= 1, 60, "the kept batch is written by itself"
    )
    assert service.flush().status == 200
    assert mariadb.execute("SELECT COUNT(*) FROM translation_tasks", (), database) == [(21,)]
    assert not service.dead_letters.exists()
    assert service.get("/health").json["status"] == "healthy"


def test_a_dropped_table_stops_writing_until_it_is_back(
    start_service: StartService, own_mariadb: MariaDB, database_name: str
) -> None:
    service = start_service(own_mariadb, database_name, DB_USER="app")
    run = own_mariadb.execute
    check_kept_shown_and_healed(
        service,
        own_mariadb,
        database_name,
        break_it=lambda: run("RENAME TABLE translation_tasks TO away", (), database_name),
        mend_it=lambda: run("RENAME TABLE away TO translation_tasks", (), database_name),
        shown="translation_tasks",
    )


@pytest.mark.parametrize("tables", [VERSION_1, FIRST_USER], ids=["version 1", "user"])
def test_tables_of_another_time_get_nothing_until_they_are_upgraded(
    start_service: StartService, own_mariadb: MariaDB, database_name: str, tables: tuple[str, ...]
) -> None:
    for statement in ("DROP TABLE translation_tasks, translation_sessions", *tables):
        own_mariadb.execute(statement, (), database_name)
    service = start_service(own_mariadb, database_name, DB_USER="app")
    wait_until(lambda: degraded_by(service, "./scripts/ctl.sh db upgrade"), what="seen before the first record")
    assert "must be (session_id, task_id)" in ctl(service, "db", "check", DB_USER="root").out
    assert "nothing is written" in service.get("/ready").json["reason"]
    assert service.get("/ready").json["ready"] is True
    status = ctl(service, "status")
    assert status.status == 1
    assert "nothing is written" in status.out
    check_kept_shown_and_healed(
        service,
        own_mariadb,
        database_name,
        break_it=lambda: None,
        mend_it=lambda: ctl(service, "db", "upgrade", "--yes", DB_USER="root"),
        shown="nothing is written",
    )


def test_revoked_rights_stop_writing_until_they_are_granted_again(
    start_service: StartService, own_mariadb: MariaDB, database_name: str
) -> None:
    service = start_service(own_mariadb, database_name, DB_USER="app")

    def break_it() -> None:
        own_mariadb.execute(f"REVOKE INSERT, UPDATE ON {database_name}.* FROM app@localhost")
        end_connections(own_mariadb)  # one that is open keeps the rights it had

    check_kept_shown_and_healed(
        service,
        own_mariadb,
        database_name,
        break_it=break_it,
        mend_it=lambda: own_mariadb.execute(f"GRANT INSERT, UPDATE ON {database_name}.* TO app@localhost"),
        shown="1142",
    )


def test_a_packet_limit_below_what_a_record_may_have_is_the_servers_fault(
    start_service: StartService, own_mariadb: MariaDB, database_name: str
) -> None:
    own_mariadb.execute("SET GLOBAL max_allowed_packet = 65536")
    service = start_service(own_mariadb, database_name, DB_USER="app", DB_POOL_RECYCLE=1)
    check_kept_shown_and_healed(
        service,
        own_mariadb,
        database_name,
        break_it=lambda: None,
        mend_it=lambda: own_mariadb.execute("SET GLOBAL max_allowed_packet = 67108864"),
        shown="max_allowed_packet",
        source_text="字" * 60_000,
    )


def test_small_records_pass_a_small_packet_limit_in_several_statements(
    start_service: StartService, own_mariadb: MariaDB, database_name: str
) -> None:
    own_mariadb.execute("SET GLOBAL max_allowed_packet = 65536")
    service = start_service(own_mariadb, database_name, DB_USER="app")
    tasks = [task(f"t{number}", source_text="字" * 1000) for number in range(100)]
    assert service.post(TASKS, {"tasks": tasks}).status == 202
    assert service.flush().status == 200
    assert own_mariadb.execute("SELECT COUNT(*) FROM translation_tasks", (), database_name) == [(100,)]


def test_a_read_only_server_keeps_everything_until_it_takes_writes(
    start_service: StartService, own_mariadb: MariaDB, database_name: str
) -> None:
    service = start_service(own_mariadb, database_name, DB_USER="app")
    check_kept_shown_and_healed(
        service,
        own_mariadb,
        database_name,
        break_it=lambda: own_mariadb.execute("SET GLOBAL read_only = 1"),
        mend_it=lambda: own_mariadb.execute("SET GLOBAL read_only = 0"),
        shown="1290",
    )


def test_exhausted_connections_keep_everything_until_one_is_free(
    start_service: StartService, own_mariadb: MariaDB, database_name: str
) -> None:
    service = start_service(own_mariadb, database_name, DB_USER="app", DB_POOL_RECYCLE=1)
    wait_until(lambda: service.get("/health").json["database"] == "healthy")
    held = []

    def break_it() -> None:
        own_mariadb.execute("SET GLOBAL max_connections = 10")
        end_connections(own_mariadb)
        # One more than the limit is kept for root.
        held.extend(own_mariadb.connect() for _ in range(10))

    def mend_it() -> None:
        for connection in held:
            connection.close()

    check_kept_shown_and_healed(service, own_mariadb, database_name, break_it=break_it, mend_it=mend_it, shown="1040")


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
    start_service: StartService, own_mariadb: MariaDB, database_name: str, small_disk: Path
) -> None:
    run = own_mariadb.execute
    definition = run("SHOW CREATE TABLE translation_tasks", (), database_name)[0][1]
    run("DROP TABLE translation_tasks", (), database_name)
    run(f"{definition} DATA DIRECTORY='{small_disk}'", (), database_name)
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

    service = start_service(own_mariadb, database_name, DB_USER="app")
    check_kept_shown_and_healed(
        service,
        own_mariadb,
        database_name,
        break_it=fill,
        mend_it=mend_it,
        shown="error",
        source_text="字" * 30_000,
        flush_s=45,
    )
