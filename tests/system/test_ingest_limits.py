"""Ingest within limits of descriptors and of memory, and beside a clock that is set."""

from __future__ import annotations

import socket
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.support.mariadb import MariaDB
from tests.support.service import TASKS, Service, task, wait_until
from tests.system.hostile.good import GoodClient, worker_of

ACCEPTED = b"HTTP/1.1 202 Accepted"


@pytest.mark.parametrize("descriptors", [64, 256, 1024])
def test_more_connections_than_descriptors_harm_nobody_who_is_connected(
    descriptors: int, short_path: Path, mariadb: MariaDB, database: str
) -> None:
    service = Service(short_path, mariadb, database)
    service.limits["ingest"] = [f"--nofile={descriptors}"]
    try:
        service.start()
        worker = worker_of(service)
        with closing(GoodClient(service.port)) as good, ExitStack() as crowd:
            assert good.post(keep=True)[0] == ACCEPTED
            for _ in range(3 * descriptors):
                crowd.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=30))
            for _ in range(20):
                assert good.post(keep=True)[0] == ACCEPTED
            crowd.close()
            wait_until(lambda: answered(service), what="there is room again")
            assert good.post(keep=True)[0] == ACCEPTED
        assert service.workers() == [worker]
        assert len(service.log.read_text().splitlines()) < 30
        service.stop()
    finally:
        service.kill()


def answered(service: Service) -> bool:
    try:
        return service.post(TASKS, {"tasks": [task("late")]}).status == 202
    except OSError:
        return False


def test_too_few_descriptors_for_a_start_are_said_in_a_line(short_path: Path, mariadb: MariaDB, database: str) -> None:
    service = Service(short_path, mariadb, database)
    service.limits["ingest"] = ["--nofile=40"]
    try:
        service.start_ingest()
        assert service.ingest is not None
        assert service.ingest.wait(30) == 1
        text = (short_path / "ingest.stderr").read_text()
        assert text == "ingest: the limit of open files is 40, and 64 are needed: raise it (ulimit -n)\n"
    finally:
        service.kill()
