"""TLS to the database, against a MariaDB with certificates made here: who answers is known before anything is sent.

127.2 and 127.0.2 are two names of one loopback address (inet_aton(3)) that are no address to anybody who compares: so
one server has a right name and a wrong one, and counts as another machine.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flusher.mysql_errors import ErrorClass, Flavour
from flusher.store import Store, StoreError
from shared.config import load
from shared.records import TASKS as KIND
from shared.settings import Database
from tests.support.certificates import Authority
from tests.support.mariadb import MariaDB
from tests.support.service import TASKS, Service, free_port, task, wait_until

NAME, OTHER_NAME = "127.2", "127.0.2"
PASSWORD = "hush-hush"


@dataclass
class Databases:
    """A server with a certificate for NAME, and one without TLS."""

    encrypted: MariaDB
    port: int
    plain_port: int
    ca: Path
    other_ca: Path


@pytest.fixture(scope="module")
def databases(new_database: type[MariaDB]) -> Iterator[Databases]:
    directory = Path(tempfile.mkdtemp(prefix="tls-", dir="/tmp"))
    authority = Authority(directory)
    certificate, key = authority.issue("server", f"DNS:{NAME}")
    without_tls = ("--skip-ssl",) if new_database.flavour is Flavour.MARIADB else ("--tls-version=",)
    servers = []
    ports = []
    for name, options in (("t", (f"--ssl-cert={certificate}", f"--ssl-key={key}")), ("p", without_tls)):
        ports.append(free_port())
        (directory / name).mkdir()
        server = new_database(directory / name, *options)
        server.install()
        server.start("--skip-networking=0", "--bind-address=127.0.0.2", f"--port={ports[-1]}")
        server.execute(f"CREATE USER persistence@'%' IDENTIFIED BY '{PASSWORD}'")
        server.execute("GRANT ALL ON *.* TO persistence@'%'")
        servers.append(server)
    yield Databases(servers[0], *ports, authority.certificate, Authority(directory, "other").certificate)
    for server in servers:
        server.stop()
    shutil.rmtree(directory, ignore_errors=True)


def configured(databases: Databases, **variables: object) -> Database:
    environ = {
        "DB_HOST": NAME,
        "DB_PORT": databases.port,
        "DB_USER": "persistence",
        "DB_PASSWORD": PASSWORD,
        "DB_DATABASE": "mysql",
        **variables,
    }
    return load("/dev/null", {name: str(value) for name, value in environ.items()}).database


def cipher(database: Database) -> str:
    """Connects as the writers do. Returns: what the connection is encrypted with, "" for nothing."""
    store = Store(database)
    try:
        db = store._reach().db
        db.query("SHOW SESSION STATUS LIKE 'Ssl_cipher'")
        ((_, value),) = db.store_result().fetch_row(0)
        return value.decode() if isinstance(value, bytes) else str(value)
    finally:
        store.close()


def test_a_ca_is_enough_to_know_who_answers_and_to_encrypt(databases: Databases) -> None:
    database = configured(databases, DB_SSL_CA=databases.ca)
    assert database.ssl_mode == "VERIFY_IDENTITY"
    assert cipher(database)


@pytest.mark.parametrize("case", ["wrong host name", "wrong authority", "no TLS"])
def test_whoever_cannot_prove_its_name_gets_nothing_and_everything_is_kept(databases: Databases, case: str) -> None:
    wrong: dict[str, object] = {
        "wrong host name": {"DB_HOST": OTHER_NAME},
        "wrong authority": {"DB_SSL_CA": databases.other_ca},
        "no TLS": {"DB_PORT": databases.plain_port},
    }[case]  # type: ignore[assignment]
    database = configured(databases, **{"DB_SSL_CA": databases.ca, **wrong})  # type: ignore[dict-item]
    with pytest.raises(StoreError) as refused:
        ping(database)
    assert (refused.value.error_class, refused.value.number) == (ErrorClass.SCHEMA, 2026)
    assert PASSWORD not in refused.value.public


def ping(database: Database) -> None:
    store = Store(database)
    try:
        store.ping()
    finally:
        store.close()


def test_only_an_explicit_setting_takes_less(databases: Databases) -> None:
    """What the documents say of the other modes, so that nobody trusts them for more."""
    assert cipher(configured(databases, DB_HOST=OTHER_NAME, DB_SSL_MODE="REQUIRED"))
    assert cipher(configured(databases)) == ""


def test_records_wait_in_the_journal_while_the_database_is_not_the_right_one(
    databases: Databases, start_service: Callable[..., Service], mariadb: MariaDB, database: str, short_path: Path
) -> None:
    name = databases.encrypted.create_database()
    ca = short_path / "ca.pem"
    shutil.copy(databases.other_ca, ca)
    remote = {"DB_SOCKET": "", "DB_HOST": NAME, "DB_PORT": databases.port, "DB_DATABASE": name, "DB_SSL_CA": ca}
    service = start_service(mariadb, database, **remote, DB_USER="persistence", DB_PASSWORD=PASSWORD)
    assert service.post(TASKS, {"tasks": [task()]}).status == 202
    assert service.flush(timeout_s=2).status == 503
    wait_until(lambda: "2026" in str(service.get("/health").json["reason"]), what="the try has failed")
    assert service.get("/health").json["status"] == "degraded"
    assert service.journaled(KIND) == {"t1"}
    shutil.copy(databases.ca, ca)  # mended: the next connection reads it
    wait_until(lambda: databases.encrypted.execute("SELECT task_id FROM translation_tasks", (), name), 60)
    assert PASSWORD not in service.log.read_text()


def test_an_unencrypted_way_to_another_machine_is_named_at_the_start(
    databases: Databases, start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    remote = {"DB_SOCKET": "", "DB_HOST": NAME, "DB_PORT": databases.plain_port}
    service = start_service(mariadb, database, **remote)
    assert f"database.host = {NAME} is another machine, and the connection is not encrypted" in (
        service.log.read_text()
    )


@pytest.mark.parametrize("setting", ["DB_SSL_CA", "DB_SSL_CERT", "DB_SSL_KEY"])
def test_a_file_that_is_missing_is_named(databases: Databases, setting: str) -> None:
    database = configured(databases, **{"DB_SSL_CA": databases.ca, setting: "/nowhere/file.pem"})  # type: ignore[dict-item]
    with pytest.raises(StoreError) as refused:
        ping(database)
    key = setting.lower().replace("db_", "database.")
    assert refused.value.public == f"error 2026 (schema): {key} = /nowhere/file.pem: No such file or directory"


@pytest.mark.only("mysql")
@pytest.mark.parametrize("tls", [True, False])
def test_a_password_of_mysql_8_is_taken_with_tls_and_by_the_servers_public_key(databases: Databases, tls: bool) -> None:
    """caching_sha2_password asks for the password itself from whoever logs in for the first time."""
    databases.encrypted.execute("FLUSH PRIVILEGES")  # as after a start of the server
    assert bool(cipher(configured(databases, **({"DB_SSL_CA": databases.ca} if tls else {})))) is tls


def test_a_server_that_wants_tls_says_so(databases: Databases) -> None:
    databases.encrypted.execute("SET GLOBAL require_secure_transport = 1")
    try:
        with pytest.raises(StoreError) as refused:
            ping(configured(databases))
        assert cipher(configured(databases, DB_SSL_CA=databases.ca))
    finally:
        databases.encrypted.execute("SET GLOBAL require_secure_transport = 0")
    number = 3159 if databases.encrypted.flavour is Flavour.MYSQL else 1045
    assert (refused.value.error_class, refused.value.number) == (ErrorClass.SCHEMA, number)
