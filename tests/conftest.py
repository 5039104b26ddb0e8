from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support import mysql
from tests.support.copies import Copy
from tests.support.mariadb import MariaDB
from tests.support.service import Service

hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")  # a busy machine is no failure

OF_A_DATABASE = {"mariadb", "own_mariadb", "new_database"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--database", choices=mysql.SERVERS, default="mariadb", help="runs the tests of a database, on this one"
    )


def pytest_configure(config: pytest.Config) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]  # none is on the way to our own ports
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and their children, ignore it
    config.addinivalue_line("markers", "only(database): the test is about this server alone")
    if config.option.database == "mysql":
        try:
            mysql.program()
        except OSError as error:
            raise pytest.UsageError(str(error)) from error


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Takes out the tests that are about another server; with --database=mysql those that need none, too."""
    chosen, others = [], []
    for item in items:
        only = item.get_closest_marker("only")
        needed = config.option.database == "mariadb" or OF_A_DATABASE & set(getattr(item, "fixturenames", ()))
        right = only is None or only.args == (config.option.database,)
        (chosen if needed and right else others).append(item)
    items[:] = chosen
    config.hook.pytest_deselected(items=others)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A temporary directory whose name leaves room for a socket's 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="ps-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def new_database(request: pytest.FixtureRequest) -> type[MariaDB]:
    """The server that --database names, to be started with options of one's own."""
    return mysql.SERVERS[request.config.option.database]


@pytest.fixture(scope="session")
def mariadb(new_database: type[MariaDB]) -> Iterator[MariaDB]:
    """The server that tests share, a MySQL with --database=mysql; those that stop or reconfigure one take
    own_mariadb."""
    yield from started(new_database)


@pytest.fixture
def own_mariadb(new_database: type[MariaDB]) -> Iterator[MariaDB]:
    yield from started(new_database)


def started(new_database: type[MariaDB]) -> Iterator[MariaDB]:
    """A new server, stopped and removed at the end."""
    directory = Path(tempfile.mkdtemp(prefix="db-", dir="/tmp"))
    server = new_database(directory)
    server.install()
    server.start()
    yield server
    if server.process is not None and server.process.poll() is None:
        server.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def database(mariadb: MariaDB) -> Iterator[str]:
    """The name of a fresh database with our tables."""
    name = mariadb.create_database()
    yield name
    mariadb.drop_database(name)


@pytest.fixture
def start_service(short_path: Path, database: str) -> Iterator[Callable[..., Service]]:
    """start_service(mariadb, database, **settings) -> a running Service, stopped at the end of the test, before its
    database goes."""
    services: list[Service] = []

    def start(mariadb: MariaDB, database: str, **settings: Any) -> Service:
        directory = short_path / str(len(services))
        directory.mkdir()
        service = Service(directory, mariadb, database, **settings)
        services.append(service)
        service.start()
        return service

    yield start
    for service in services:
        try:
            service.stop()
        finally:
            service.kill()


@pytest.fixture
def service(start_service: Callable[..., Service], mariadb: MariaDB, database: str) -> Service:
    return start_service(mariadb, database)


@pytest.fixture
def make_copy(short_path: Path) -> Iterator[Callable[..., Copy]]:
    """make_copy(mariadb=None, **settings) -> a Copy, not started; stopped at the end of the test."""
    copies: list[Copy] = []

    def make(mariadb: MariaDB | None = None, **settings: Any) -> Copy:
        copies.append(Copy(short_path / str(len(copies)), mariadb, **settings))
        copies[-1].environ["LOGGING_FILE"] = settings.get("LOGGING_FILE", str(short_path / f"{len(copies)}.log"))
        return copies[-1]

    yield make
    for copy in copies:
        copy.end()
