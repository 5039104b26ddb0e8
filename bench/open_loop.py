"""The open-loop sender: requests at fixed times, whatever becomes of earlier ones.

A closed loop stops sending while it waits, so the slow moments of a service are hardly in its figures. Here request i
is due at begin + i/rate, on whichever connection is free, on a new one if none is; its latency counts from the moment
it was due until the answer's last byte has been read. A process of its own, with one thread (open_loop.cpp): it shares
the cores of what it measures, and in Python a request took it half as long again.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from bench import tasks
from bench.figures import summary
from bench.machine import on_cores, realtime

ANSWERS_S = 30.0
"""How long the last answers are waited for."""
PLACE = tasks.NUMBER_BYTES * tasks.MARK
"""Where a request's number goes."""
SOURCE = Path(__file__).with_suffix(".cpp")


@dataclass(frozen=True)
class Job:
    address: tuple[str, int]
    """IPv4, in numbers."""
    path: str
    batch: int
    rate: float
    seconds: float
    begin_at: float
    """On time.monotonic(), which all processes share."""
    run: str
    most_connections: int = 900
    send_late: bool = True
    """When the time is over, requests that were due and found no free connection are still sent, for ANSWERS_S."""
    prompt: bool = True
    """Answers are read as they come, as latencies want it; else with the next request, for half as many wake-ups."""


def _arguments(job: Job) -> list[str]:
    """In the order in which open_loop.cpp reads them."""
    times = (job.rate, job.seconds, job.begin_at, ANSWERS_S)
    how = (job.most_connections, int(job.send_late), int(job.prompt))
    return [str(one) for one in (*job.address, *times, *how, job.run, PLACE)]


def _requests(job: Job) -> bytes:
    """Each behind its length, with PLACE where its number goes."""
    head = f"POST {job.path} HTTP/1.1\r\nHost: {job.address[0]}:{job.address[1]}\r\nContent-Type: application/json\r\n"
    made: list[bytes] = []
    for pieces in _bodies(job.batch):
        body = PLACE.encode().join(pieces)
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        made += (len(request).to_bytes(4, sys.byteorder), request)
    return b"".join(made)


@cache
def _bodies(batch: int) -> list[list[bytes]]:
    return tasks.bodies(tasks.pool(), batch)


@cache
def program() -> Path:
    """The sender, compiled where this version of it has not been yet. Raises: CalledProcessError, FileNotFoundError."""
    command = ("g++", "-std=c++17", "-O2", "-Wall", "-Wextra", str(SOURCE), "-o")
    version = hashlib.sha256(SOURCE.read_bytes() + repr(command).encode()).hexdigest()[:16]
    found = SOURCE.parent / "__pycache__" / f"{SOURCE.stem}-{version}"
    if not found.exists():
        found.parent.mkdir(exist_ok=True)
        made = found.with_suffix(f".{os.getpid()}")  # others may be compiling it too
        subprocess.run([*command, made], check=True)
        made.replace(found)
    return found


class Running:
    """A sender at work in a process of its own; a context manager, after which it is gone."""

    def __init__(self, job: Job, cores: Sequence[int], *, priority: bool) -> None:
        self.job = job
        with on_cores(cores):
            self._process = subprocess.Popen(
                [*(realtime() if priority else ()), program(), *_arguments(job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(_requests(job))
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # result() says why it has ended
        self._process.stdin = None

    def result(self) -> dict[str, Any]:
        """Waits for its end. Returns: a round, with `latencies` as (due at, µs) besides their percentiles."""
        output, errors = self._process.communicate(timeout=START_S + self.job.seconds + 2 * ANSWERS_S + 30)
        if self._process.returncode:
            raise RuntimeError(f"the open-loop sender failed: {errors.decode(errors='replace').strip()}")
        report = json.loads(output)
        return judged({**report, "sent_late_us": summary(report["sent_late_us"])}, self.job)

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
    program(), _bodies(batch)  # the first time they take longer than START_S
    return Job(address, path, batch, rate, seconds, time.monotonic() + START_S, tasks.new_run(), **more)


START_S = 0.7
"""Until all requests are in the sender's memory, and its first connections are there."""
