from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.mariadb import MariaDB
from tests.support.service import Service


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A temporary directory whose name leaves room for a socket's 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="ps-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """The server that tests share; those that stop or reconfigure one take own_mariadb."""
    yield from _mariadb()


@pytest.fixture
def own_mariadb() -> Iterator[MariaDB]:
    yield from _mariadb()


def _mariadb() -> Iterator[MariaDB]:
    directory = Path(tempfile.mkdtemp(prefix="db-", dir="/tmp"))
    server = MariaDB(directory)
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
