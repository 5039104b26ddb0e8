"""Disk, descriptors and memory run out under the real service: refused or kept, said in words, and over by itself."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from flusher.dead_letters import FILE_NAME
from tests.support.disks import small_disk
from tests.support.mariadb import MariaDB
from tests.support.service import TASKS, Service, task, wait_until
from tests.system.hostile.beside import GoodClient, worker_of

ACCEPTED = b"HTTP/1.1 202 Accepted"
SMALL = "text"
LARGE = "x" * 60_000


@pytest.fixture
def disk(short_path: Path) -> Iterator[Path]:
    """A file system of its own, of 2 MiB."""
    with small_disk(short_path / "disk", 2) as directory:
        yield directory


@pytest.fixture
def service(disk: Path, mariadb: MariaDB, database: str) -> Iterator[Service]:
    """Its state is on the small disk, its log is not."""
    made = Service(
        disk, mariadb, database, BUFFER_FLUSH_INTERVAL=0.2, LOGGING_FILE=disk.parent / "log", SERVICE_ACK_TIMEOUT=3
    )
    yield made
    made.stop()
    made.kill()


class Sender:
    """Sends tasks, and knows those that were accepted."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.accepted: set[str] = set()
        self._sent = 0

    def send(self, source_text: str = SMALL) -> int:
        self._sent += 1
        key = f"t{self._sent}"
        status = self.service.post(TASKS, {"tasks": [task(key, source_text=source_text)]}).status
        if status == 202:
            self.accepted.add(key)
        return status

    def check(self, mariadb: MariaDB, database: str) -> None:
        """Every accepted task is in the table after a flush."""
        assert self.service.flush().status == 200
        found = {row[0] for row in mariadb.execute("SELECT task_id FROM translation_tasks", (), database)}
        assert self.accepted <= found


def fill(disk: Path) -> Callable[[], None]:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    return filler.unlink


def make_read_only(disk: Path) -> Callable[[], None]:
    # The log's neighbours stay writable: only this mount, although files on it are open.
    subprocess.run(["mount", "--bind", str(disk), str(disk)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(disk)], check=True)
    return lambda: subprocess.run(["umount", "-l", str(disk)], check=True) and None


def move_journal(disk: Path) -> Callable[[], None]:
    moved = (disk / "journal").rename(disk / "moved")
    return lambda: moved.rename(disk / "journal") and None


@pytest.mark.parametrize(
    ("fault", "advice"),
    [(fill, "make room"), (make_read_only, "mount its file system for writing"), (move_journal, "mkdir -p")],
)
def test_a_disk_that_takes_nothing_is_refused_in_words_and_accepting_goes_on_by_itself(
    service: Service, mariadb: MariaDB, database: str, fault: Callable[[Path], Callable[[], None]], advice: str
) -> None:
    disk = service.directory
    service.start()
    sender = Sender(service)
    assert sender.send() == 202
    wait_until(lambda: service.stats()["performance"]["total_flush_count"] == 1)

    mend = fault(disk)
    try:
        wait_until(lambda: sender.send(LARGE) == 503, what="the journal takes no more")
        health = service.get("/health")
        assert (health.status, health.json["status"]) == (503, "unhealthy")
        assert advice in health.json["reason"]
        for _ in range(20):  # whatever is tried meanwhile
            assert service.get("/ready").status == 503
        assert health.json["since"] == service.get("/health").json["since"]
    finally:
        mend()

    wait_until(lambda: service.get("/ready").status == 200, what="nobody has to send for it")
    assert sender.send(LARGE) == 202
    sender.check(mariadb, database)
    assert service.get("/health").json["status"] == "healthy"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (make_read_only, "Read-only file system"),
        (lambda disk: (disk / "journal").write_text("a file") and None, "journal.directory"),
        (lambda disk: (disk / "flusher.lock").mkdir(), "Is a directory"),
        (lambda disk: (disk / "run").write_text("a file") and None, "mv "),
    ],
)
def test_a_start_that_cannot_have_its_files_says_which_in_one_line(
    service: Service, fault: Callable[[Path], Callable[[], None] | None], said: str
) -> None:
    mend = fault(service.directory)
    try:
        command = [sys.executable, "-m", "flusher"]
        started = subprocess.run(command, cwd=service.code, env=service.environ, capture_output=True, timeout=60)
    finally:
        if mend is not None:
            mend()
    assert started.returncode == 1
    assert started.stderr.count(b"\n") == 1, started.stderr.decode()
    line = started.stderr.decode()
    assert said in line
    assert line.startswith("flusher: ")


@contextmanager
def limited(pid: int, what: int, value: int) -> Iterator[None]:
    before = resource.prlimit(
        pid, what, (value, resource.RLIM_INFINITY if value < 0 else resource.prlimit(pid, what)[1])
    )
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # it was killed meanwhile
            resource.prlimit(pid, what, before)


def test_without_descriptors_nothing_is_lost_and_all_goes_on_with_them(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    """EMFILE in the open of the next segment and in the start of a writer."""
    service = start_service(mariadb, database, BUFFER_FLUSH_INTERVAL=0.1)
    sender = Sender(service)
    assert sender.send() == 202
    wait_until(lambda: service.stats()["performance"]["total_flush_count"] == 1)
    assert service.flusher is not None
    with limited(service.flusher.pid, resource.RLIMIT_NOFILE, 3):
        sender.send()
        wait_until(lambda: sender.send() == 503, what="no next segment")
        assert "ulimit -n" in service.get("/health").json["reason"]
        for writer in service.writers():
            os.kill(writer, signal.SIGKILL)
        wait_until(lambda: not service.writers())
    wait_until(lambda: service.get("/ready").status == 200)
    assert sender.send() == 202
    sender.check(mariadb, database)


def virtual_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.partition("VmSize:")[2].split()[0])


def test_a_backlog_takes_no_more_memory_than_a_limit_allows_and_the_oom_killer_costs_nothing(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, BUFFER_FLUSH_INTERVAL=0.1)
    sender = Sender(service)
    assert sender.send(LARGE) == 202
    wait_until(lambda: service.stats()["performance"]["total_flush_count"] == 1)
    assert service.flusher is not None
    with ExitStack() as limits, mariadb.locked(database):
        writers = service.writers()
        for pid, more in ((service.flusher.pid, 64 << 20), *((writer, 128 << 20) for writer in writers)):
            limits.enter_context(limited(pid, resource.RLIMIT_AS, virtual_bytes(pid) + more))
        for _ in range(600):  # 36 MB
            assert sender.send(LARGE) == 202
        for writer in writers:
            with suppress(ProcessLookupError):
                os.kill(writer, signal.SIGKILL)
    service.kill_flusher()
    service.start_flusher()
    wait_until(lambda: sender.send() == 202)
    sender.check(mariadb, database)
    assert not (service.directory / FILE_NAME).exists()


# Ingest


@pytest.mark.parametrize("descriptors", [64, 1024])
def test_more_connections_than_descriptors_harm_nobody_who_is_connected(
    descriptors: int, short_path: Path, mariadb: MariaDB, database: str
) -> None:
    service = Service(short_path, mariadb, database)
    service.limits["ingest"] = [f"--nofile={descriptors}"]
    try:
        service.start()
        worker = worker_of(service)
        with closing(GoodClient(service.port)) as good, ExitStack() as crowd:
            assert good.post(keep=True) == ACCEPTED
            for _ in range(3 * descriptors):
                crowd.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=30))
            for _ in range(20):
                assert good.post(keep=True) == ACCEPTED
            crowd.close()
            wait_until(lambda: answered(service), what="there is room again")
            assert good.post(keep=True) == ACCEPTED
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
