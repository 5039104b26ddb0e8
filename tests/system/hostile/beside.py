"""A good client beside bad ones, the service that both are at, and what can be seen of its worker from outside."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.mariadb import MariaDB
from tests.support.service import ROOT, TASKS, Service, task

ACCEPTED = b"HTTP/1.1 202 Accepted"


@contextmanager
def running() -> Iterator[Service]:
    """A service of its own, for the measured runs."""
    directory = Path(tempfile.mkdtemp(prefix="ps-", dir="/tmp"))
    mariadb = MariaDB(directory / "db")
    mariadb.directory.mkdir()
    (directory / "state").mkdir()
    service = None
    try:
        mariadb.install()
        mariadb.start()
        service = Service(directory / "state", mariadb, mariadb.create_database())
        service.start()
        yield service
        service.stop()
    finally:
        if service is not None:
            service.kill()
        if mariadb.process is not None:
            mariadb.stop()
        shutil.rmtree(directory, ignore_errors=True)


class Crowd:
    """The hostile clients' process; `counts` by kind. Use as a context manager."""

    def __init__(self, port: int, counts: dict[str, int]) -> None:
        self._command = [sys.executable, "-m", "tests.system.hostile.clients", str(port)]
        self._command += [f"{kind}={count}" for kind, count in counts.items()]
        self.done: dict[str, int] = {}

    def __enter__(self) -> Crowd:  # noqa: PYI034 -- Self came with Python 3.11
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        # Elsewhere it would run on cores of its own; here it is not to take the service's.
        os.sched_setscheduler(self._process.pid, os.SCHED_IDLE, os.sched_param(0))
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line != "ready\n":
            self._process.kill()
            self._process.wait(10)
            raise AssertionError(f"the crowd says {line!r}")
        return self

    def __exit__(self, *_: object) -> None:
        out, _errors = self._process.communicate(timeout=60)
        self.done = json.loads(out)


class Series:
    """Latencies in seconds, and whatever was not a 202."""

    def __init__(self) -> None:
        self.taken_s: list[float] = []
        self.failures: list[str] = []

    def quantile_s(self, share: float) -> float:
        return sorted(self.taken_s)[int(share * (len(self.taken_s) - 1))]


class GoodClient:
    """Posts batches of ten tasks, on a connection that it keeps or on a new one each time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._number = 0
        self._kept: socket.socket | None = None

    def pace(self, pace_s: float, go_on: Callable[[], bool], keep: Callable[[int], bool], *series: Series) -> None:
        """A request every `pace_s`, each latency from when it was due. Args: series: for those kept, for others."""
        started_at = time.perf_counter()
        number = 0
        while go_on():
            due_at = started_at + number * pace_s
            time.sleep(max(0.0, due_at - time.perf_counter()))
            kept = keep(number)
            into = series[0 if kept else -1]
            number += 1
            try:
                line = self.post(keep=kept)
            except OSError as error:
                into.failures.append(repr(error))
                continue
            into.taken_s.append(time.perf_counter() - due_at)
            if line != ACCEPTED:
                into.failures.append(line.decode())

    def p99_s(self, requests: int, pace_s: float) -> float:
        """Of so many requests. Raises: AssertionError, where one is refused."""
        series = Series()
        left = iter(range(requests))
        self.pace(pace_s, lambda: next(left, None) is not None, lambda number: number % 2 > 0, series)
        assert not series.failures
        return series.quantile_s(0.99)

    def post(self, *, keep: bool) -> bytes:
        """Returns: the status line."""
        self._number += 1
        body = json.dumps({"tasks": [task(f"good-{self._number}-{index}") for index in range(10)]}).encode()
        head = (
            f"POST {TASKS} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection = self._kept if keep and self._kept is not None else self._connect()
        connection.sendall(head.encode() + body)
        answer = connection.recv(65536)
        if keep:
            self._kept = connection
        else:
            connection.close()
        return answer.split(b"\r\n", 1)[0]

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self._port), timeout=30)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def memory_bytes(pid: int) -> int:
    """Of a process, what is in memory and its own."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_"))


def cpu_seconds(pid: int, *, ended_children: bool = False) -> float:
    """User and system time of a process so far (proc(5), /proc/PID/stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return sum(map(int, fields[11 : 15 if ended_children else 13])) / os.sysconf("SC_CLK_TCK")


def worker_of(service: Service) -> int:
    (pid,) = service.workers()
    return pid
