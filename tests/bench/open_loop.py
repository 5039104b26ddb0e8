"""The open-loop sender: requests at fixed times, whatever becomes of earlier ones.

A closed loop stops sending while it waits, so the slow moments of a service are hardly in its figures. Here request i
is due at begin + i/rate, on whichever connection is free, on a new one if none is; its latency counts from the moment
it was due until the answer's last byte has been read. A process of its own, with one thread: `python -m
tests.bench.open_loop` takes a Job as JSON on stdin and answers with JSON on stdout.
"""

from __future__ import annotations

import gc
import json
import re
import select
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from tests.bench import tasks
from tests.bench.figures import summary
from tests.bench.machine import on_cores, realtime
from tests.support.service import ROOT

ANSWERS_S = 30.0
"""How long the last answers are waited for."""
CONNECTIONS_AT_FIRST = 32
_SEND_BUFFER_BYTES = 1 << 20
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Job:
    address: tuple[str, int]
    path: str
    batch: int
    rate: float
    seconds: float
    begin_at: float
    """On time.monotonic(), which all processes share."""
    run: str
    most_connections: int = 900
    send_late: bool = True
    """When the time is over, requests that were due and found no free connection are still sent."""
    prompt: bool = True
    """Answers are read as they come, as latencies want it; else with the next request, for half as many wake-ups."""


class Sender:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._total = int(job.rate * job.seconds)
        self._bodies = tasks.bodies(tasks.pool(), job.batch)
        host = f"{job.address[0]}:{job.address[1]}"
        head = f"POST {job.path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: "
        for pieces in self._bodies:
            length = sum(map(len, pieces)) + tasks.NUMBER_BYTES * (len(pieces) - 1)
            pieces[0] = f"{head}{length}\r\n\r\n".encode() + pieces[0]
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._free: deque[socket.socket] = deque()
        self._due: dict[int, tuple[int, float]] = {}
        """By socket: which request it carries, when that was due."""
        self._unsent: dict[int, memoryview] = {}
        self._received: dict[int, bytes] = {}
        self.latencies: list[tuple[float, float]] = []
        """When a request was due, in s after the beginning; its latency in µs."""
        self.sent_late_us: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.broken = 0

    def run(self) -> int:
        """Returns: how many requests could not even be sent."""
        job = self._job
        for _ in range(CONNECTIONS_AT_FIRST):
            self._free.append(self._connect())
        gc.collect()
        gc.disable()
        sent = 0
        end_at = job.begin_at + job.seconds + (ANSWERS_S if job.send_late else 0)
        while sent < self._total:
            due_at = job.begin_at + sent / job.rate
            now = time.monotonic()
            if now >= due_at and (connection := self._take()) is not None:
                self._send(connection, sent, due_at)
                sent += 1
                self._receive(0)
            elif now >= end_at:
                break
            elif now < due_at and not job.prompt:
                time.sleep(due_at - now)  # an answer does not wake it
                self._receive(0)
            else:
                # Without a free connection only an answer helps.
                self._receive((due_at if now < due_at else end_at) - now)
        give_up_at = time.monotonic() + ANSWERS_S
        while self._due and time.monotonic() < give_up_at:
            self._receive(0.1)
        return self._total - sent

    def report(self, unsent: int) -> dict[str, Any]:
        return {
            "answered": len(self.latencies),
            "unsent": unsent,
            "unanswered": len(self._due) + self.broken,
            "statuses": dict(self.statuses),
            "connections": len(self._sockets),
            "sent_late_us": summary(self.sent_late_us),
            "latencies": [(round(at, 4), round(latency, 1)) for at, latency in self.latencies],
        }

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(self._job.address, timeout=10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        connection.setblocking(False)
        self._sockets[connection.fileno()] = connection
        self._epoll.register(connection, select.EPOLLIN)
        return connection

    def _take(self) -> socket.socket | None:
        if self._free:
            return self._free.popleft()
        return self._connect() if len(self._sockets) < self._job.most_connections else None

    def _send(self, connection: socket.socket, number: int, due_at: float) -> None:
        pieces = self._bodies[number % len(self._bodies)]
        fd = connection.fileno()
        self._due[fd] = (number, due_at)
        self.sent_late_us.append(1e6 * (time.monotonic() - due_at))
        self._push(connection, memoryview(tasks.number(self._job.run, number).join(pieces)))

    def _push(self, connection: socket.socket, data: memoryview) -> None:
        fd = connection.fileno()
        try:
            done = connection.send(data)
        except BlockingIOError:
            done = 0
        except OSError:
            self._break(fd)
            return
        if done < len(data):
            self._unsent[fd] = data[done:]
            self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT)
        elif self._unsent.pop(fd, None) is not None:
            self._epoll.modify(fd, select.EPOLLIN)

    def _receive(self, timeout_s: float) -> None:
        if timeout_s > 0:
            # epoll's own timeout is rounded up to milliseconds.
            select.select([self._epoll], [], [], timeout_s)
        for fd, event in self._epoll.poll(0):
            if event & select.EPOLLOUT and fd in self._unsent:
                self._push(self._sockets[fd], self._unsent[fd])
            if event & ~select.EPOLLOUT and fd in self._sockets:
                self._read(fd)

    def _read(self, fd: int) -> None:
        try:
            data = self._sockets[fd].recv(65536)
        except OSError:
            data = b""
        if not data:
            self._break(fd)
            return
        data = self._received.pop(fd, b"") + data
        head, end, body = data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not end or length is None or len(body) < int(length[1]):
            self._received[fd] = data
            return
        _, due_at = self._due.pop(fd)
        self.latencies.append((due_at - self._job.begin_at, 1e6 * (time.monotonic() - due_at)))
        self.statuses[int(head[9:12])] += 1
        self._free.append(self._sockets[fd])

    def _break(self, fd: int) -> None:
        """The other side has closed it; a request that it carried has no answer."""
        connection = self._sockets.pop(fd)
        self._epoll.unregister(fd)
        connection.close()
        self._unsent.pop(fd, None)
        self._received.pop(fd, None)
        if self._due.pop(fd, None) is not None:
            self.broken += 1
        elif connection in self._free:
            self._free.remove(connection)


class Running:
    """A sender at work in a process of its own; a context manager, after which it is gone."""

    def __init__(self, job: Job, cores: Sequence[int], *, priority: bool) -> None:
        self.job = job
        with on_cores(cores):
            self._process = subprocess.Popen(
                [*(realtime() if priority else ()), sys.executable, "-m", "tests.bench.open_loop"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(job)).encode())
        self._process.stdin.close()
        self._process.stdin = None

    def result(self) -> dict[str, Any]:
        """Waits for its end. Returns: a round, with `latencies` as (due at, µs) besides their percentiles."""
        output, errors = self._process.communicate(timeout=self.job.seconds + ANSWERS_S + 30)
        if self._process.returncode:
            raise RuntimeError(f"the open-loop sender failed: {errors.decode(errors='replace')[-2000:]}")
        return judged(json.loads(output), self.job)

    def __enter__(self) -> Running:  # noqa: PYI034 -- Self came with Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def judged(report: dict[str, Any], job: Job) -> dict[str, Any]:
    """A sender's report with what is wrong with it."""
    problems = [
        f"{count} answers with status {status}" for status, count in report["statuses"].items() if status[0] != "2"
    ]
    if report["unanswered"]:
        problems.append(f"{report['unanswered']} requests without an answer")
    if not report["answered"]:
        problems.append("no request was answered")
    return {
        **report,
        "rate": job.rate,
        "batch": job.batch,
        "latency_us": summary([latency for _, latency in report["latencies"]]),
        "problems": problems,
    }


def job(address: tuple[str, int], path: str, *, batch: int, rate: float, seconds: float, **more: Any) -> Job:
    """One that begins as soon as its process can be ready."""
    return Job(address, path, batch, rate, seconds, time.monotonic() + START_S, tasks.new_run(), **more)


START_S = 0.7
"""Python's start, the bodies, and the first connections."""


def main() -> None:
    fields = json.loads(sys.stdin.buffer.read())
    sender = Sender(Job(**{**fields, "address": tuple(fields["address"])}))
    unsent = sender.run()
    json.dump(sender.report(unsent), sys.stdout)


if __name__ == "__main__":
    main()
