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

LONG_S = 300
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
    items[:] = _long_ones_first(chosen, getattr(config, "workerinput", {}).get("workercount", 1))
    config.hook.pytest_deselected(items=others)


def _long_ones_first(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Each worker begins with an equal part of the items: tests that may take minutes go to the front of every part.
    A worker would otherwise come to them when the others have nothing left to steal."""

    def is_long(item: pytest.Item) -> bool:
        limit = item.get_closest_marker("timeout")
        return limit is not None and limit.args[0] >= LONG_S

    longs = [item for item in items if is_long(item)]
    others = [item for item in items if not is_long(item)]
    return [
        item
        for worker in range(workers)
        for item in longs[worker::workers]
        + others[worker * len(others) // workers : (worker + 1) * len(others) // workers]
    ]


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
