"""The good client beside the crowd, and what can be seen of the worker from outside."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.support.service import ROOT, TASKS, Service, task

PACE_S = 0.0025


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
        out, _ = self._process.communicate(timeout=60)
        self.done = json.loads(out)


def p99_s(client: GoodClient, requests: int, pace_s: float) -> float:
    """Of so many requests, one each `pace_s`, from when each was due. Raises: AssertionError, where one is refused."""
    taken_s = []
    started_at = time.perf_counter()
    for number in range(requests):
        due_at = started_at + number * pace_s
        time.sleep(max(0.0, due_at - time.perf_counter()))
        line, _ = client.post(keep=number % 2 > 0)
        assert line == b"HTTP/1.1 202 Accepted", line
        taken_s.append(time.perf_counter() - due_at)
    return sorted(taken_s)[int(0.99 * (requests - 1))]


class GoodClient:
    """Posts batches of ten tasks, on a connection that it keeps or on a new one each time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._number = 0
        self._kept: socket.socket | None = None

    def request(self) -> bytes:
        self._number += 1
        tasks = [task(f"good-{self._number}-{index}") for index in range(10)]
        body = json.dumps({"tasks": tasks}).encode()
        return f"POST {TASKS} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n".encode() + (
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )

    def post(self, *, keep: bool) -> tuple[bytes, float]:
        """Returns: the status line, and seconds from connecting (where it does) to the end of the answer."""
        data = self.request()
        started_at = time.perf_counter()
        connection = self._kept if keep and self._kept is not None else self._connect()
        connection.sendall(data)
        answer = connection.recv(65536)
        taken_s = time.perf_counter() - started_at
        if keep:
            self._kept = connection
        else:
            connection.close()
        return answer.split(b"\r\n", 1)[0], taken_s

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


def worker_of(service: Service) -> int:
    (pid,) = service.workers()
    return pid
