"""Ingest within limits of descriptors and of memory, and while the wall clock is set."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import datetime, timedelta, timezone
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


# ---- the wall clock


SET_CLOCK = """
import os, sys, time
if any(word.startswith("ingest") for word in sys.orig_argv):
    real, real_ns, path = time.time, time.time_ns, os.environ["CLOCK"]
    def ahead():
        try:
            return int(open(path).read() or 0)
        except FileNotFoundError:
            return 0
    time.time = lambda: real() + ahead()
    time.time_ns = lambda: real_ns() + ahead() * 10**9
"""


class Clocked(Service):
    """Ingest's wall clock can be set; flusher and writer keep the machine's."""

    def set_clock(self, ahead_s: int) -> None:
        fresh = self.directory.parent / "clock.new"
        fresh.write_text(str(ahead_s))
        fresh.rename(self.environ["CLOCK"])


@pytest.fixture
def clocked(short_path: Path, mariadb: MariaDB, database: str) -> Iterator[Clocked]:
    (short_path / "sitecustomize.py").write_text(SET_CLOCK)
    state = short_path / "state"
    state.mkdir()
    service = Clocked(
        state, mariadb, database, PYTHONPATH=short_path, CLOCK=short_path / "clock", SERVICE_ACK_TIMEOUT=20
    )
    try:
        service.start()
        yield service
        service.stop()
    finally:
        service.kill()


def at(ahead_s: int) -> str:
    return (datetime.now(timezone.utc) + timedelta(seconds=ahead_s)).isoformat()


@pytest.mark.parametrize("ahead_s", [3600, -3600])
def test_a_step_of_the_clock_moves_what_is_too_far_in_the_future_and_no_deadline(
    clocked: Clocked, ahead_s: int
) -> None:
    with closing(clocked.connect()) as kept:
        assert clocked.post(TASKS, {"tasks": [task("before", updated_at=at(0))]}, connection=kept).status == 202
        assert clocked.flusher is not None
        with ThreadPoolExecutor(1) as one:
            os.kill(clocked.flusher.pid, signal.SIGSTOP)
            try:
                waiting = one.submit(clocked.post, TASKS, {"tasks": [task("waits")]})
                time.sleep(0.3)  # it waits for its ack, or does not yet: neither may end in 503
                clocked.set_clock(ahead_s)
                time.sleep(0.5)
            finally:
                os.kill(clocked.flusher.pid, signal.SIGCONT)
            assert waiting.result().status == 202
        # The connection that rested meanwhile is there, and records go by the new time.
        for of_record, status in ((ahead_s, 202), (ahead_s + 200, 202), (ahead_s + 1000, 422), (ahead_s - 10_000, 202)):
            answer = clocked.post(TASKS, {"tasks": [task("after", updated_at=at(of_record))]}, connection=kept)
            assert answer.status == status
        assert clocked.post(TASKS, {"tasks": [task("none")]}, connection=kept).status == 202
        assert clocked.get("/health").json["status"] == "healthy"
        assert clocked.get("/metrics").status == 200

        def points() -> int:
            now = json.loads(clocked.get("/dashboard/history").body)
            return sum(abs(point["at"] - time.time() - ahead_s) < 30 for point in now["points"])

        wait_until(lambda: points() >= 2, what="the dashboard goes on with the new time")
        assert clocked.flush().status == 200


# ---- memory


def test_a_worker_without_memory_for_large_bodies_goes_on_with_small_ones(
    short_path: Path, mariadb: MariaDB, database: str
) -> None:
    """Its address space is closed 48 MiB above what it has; twenty bodies of 9 MiB come at once."""
    service = Service(short_path, mariadb, database, SERVICE_ACK_TIMEOUT=5)
    try:
        service.start()
        worker = worker_of(service)
        size = int(Path(f"/proc/{worker}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.prlimit(worker, resource.RLIMIT_AS, (size + 48 * 2**20, size + 48 * 2**20))
        tasks = [task(f"large-{number}", source_text="x" * 60_000) for number in range(150)]
        body = json.dumps({"tasks": tasks}).encode()

        def post(_number: int) -> int:
            try:
                return service.post(TASKS, body).status
            except OSError:
                return 0

        with ThreadPoolExecutor(20) as callers:
            statuses = set(callers.map(post, range(20)))
        assert statuses - {202} <= {0, 500, 503}
        assert len(statuses - {202}) > 0
        wait_until(lambda: answered(service), what="small ones are accepted")
        assert len(service.workers()) == 1
        wait_until(lambda: service.get("/health").json["status"] == "healthy", what="the database keeps up again")
        service.stop()
    finally:
        service.kill()
