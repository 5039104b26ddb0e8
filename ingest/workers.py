"""The worker processes of ingest: as many as configured, replaced without a moment in which none accepts.

Rules: belongs to the parent's only thread; nothing blocks but terminate(). A worker is

    STARTING   until it writes READY to its stdout: it accepts connections
    SERVING    until it ends or is asked to
    LEAVING    asked to finish its current requests; not counted any more

A replacement starts a new generation. The older ones leave when all of the new one serve; if one of them ends or takes
over START_S before, the new generation leaves, and the old ones stay.
"""

from __future__ import annotations

import logging
import select
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

log = logging.getLogger(__name__)

READY = b"ready\n"
START_S = 30.0
RESPAWN_S = 0.5
"""Between two workers that end sooner than this after their start, and between two attempts to start one."""
POLL_S = 0.02


class State(Enum):
    STARTING = auto()
    SERVING = auto()
    LEAVING = auto()


@dataclass(slots=True)
class Worker:
    process: subprocess.Popen[bytes]
    generation: int
    started_at: float
    state: State = State.STARTING


class Workers:
    def __init__(
        self, start: Callable[[], subprocess.Popen[bytes]], ended: Callable[[int], None], *, wanted: int
    ) -> None:
        """Args: start(): a new process, its stdin and stdout pipes, raises OSError; ended(process id): told of every
        worker that has ended."""
        self._start = start
        self._ended = ended
        self._wanted = wanted
        self._workers: list[Worker] = []
        self._generation = 0
        self._replacing = False
        self._start_at = 0.0
        """When a missing worker may be started."""

    def __len__(self) -> int:
        return sum(worker.state is not State.LEAVING for worker in self._workers)

    @property
    def wait_s(self) -> float | None:
        """When step() wants to be called again though no signal comes; None: not at all."""
        if any(worker.state is State.STARTING for worker in self._workers):
            return POLL_S
        return RESPAWN_S if len(self) < self._wanted else None

    def step(self) -> None:
        """Reaps workers that have ended, goes on replacing, starts missing ones."""
        now = time.monotonic()
        self._reap()
        for worker in self._workers:
            if worker.state is State.STARTING and _is_ready(worker):
                worker.state = State.SERVING
        if self._replacing:
            self._go_on_replacing(now)
        if not self._replacing and len(self) < self._wanted and now >= self._start_at:
            self._start_workers(self._wanted - len(self))

    def replace(self) -> None:
        """Starts a new generation; step() does the rest. One that is not complete yet leaves."""
        if self._replacing:
            self._dismiss([worker for worker in self._workers if worker.generation == self._generation])
        self._generation += 1
        self._replacing = True
        self._start_workers(self._wanted)

    def announce_leaving(self) -> None:
        """/ready turns 503."""
        for worker in self._workers:
            assert worker.process.stdin is not None
            try:
                worker.process.stdin.write(b"\n")
                worker.process.stdin.flush()
            except OSError:
                continue  # it has just ended

    def terminate(self, timeout_s: float) -> None:
        """Asks all to finish, and kills the others after `timeout_s`. Blocks."""
        for worker in self._workers:
            worker.process.terminate()
        give_up_at = time.monotonic() + timeout_s
        for worker in self._workers:
            try:
                worker.process.wait(max(0.0, give_up_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("worker %d does not end: killed", worker.process.pid)
                worker.process.kill()
                worker.process.wait()

    def _start_workers(self, count: int) -> None:
        for _ in range(count):
            now = time.monotonic()
            try:
                process = self._start()
            except (OSError, subprocess.SubprocessError) as error:
                log.error("a worker cannot be started: %s", error)
                self._start_at = now + RESPAWN_S
                return
            self._workers.append(Worker(process, self._generation, now))

    def _reap(self) -> None:
        for worker in list(self._workers):
            process = worker.process
            if process.poll() is None:
                continue
            self._workers.remove(worker)
            if worker.state is not State.LEAVING:
                self._start_at = max(self._start_at, worker.started_at + RESPAWN_S)
            log.warning("worker %d ended, status %s", process.pid, process.returncode)
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()
            self._ended(process.pid)

    def _go_on_replacing(self, now: float) -> None:
        new = [worker for worker in self._workers if worker.generation == self._generation]
        if len(new) < self._wanted or any(
            worker.state is State.STARTING and now - worker.started_at > START_S for worker in new
        ):
            log.error("the new workers do not start; the old ones stay")
            self._replacing = False
            self._dismiss(new)
        elif all(worker.state is State.SERVING for worker in new):
            self._replacing = False
            self._dismiss([worker for worker in self._workers if worker.generation < self._generation])

    def _dismiss(self, workers: list[Worker]) -> None:
        for worker in workers:
            if worker.state is not State.LEAVING:
                worker.state = State.LEAVING
                worker.process.terminate()


def _is_ready(worker: Worker) -> bool:
    """Its stdout is at its end where it has died: that is for the reaper."""
    stdout = worker.process.stdout
    assert stdout is not None
    return bool(select.select([stdout], [], [], 0)[0]) and stdout.readline() == READY
