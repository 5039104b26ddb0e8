"""The flusher's own parts put together in this process: a real journal on a disk that fails when told, fake writers."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import orjson

from flusher import segments
from flusher.answers import Answer, Failed, Written
from flusher.callers import FlushResult
from flusher.figures import Figures
from flusher.intake import Intake
from flusher.journal import Journal, Segment
from flusher.mysql_errors import ErrorClass
from flusher.recovery import recover
from flusher.scheduler import Scheduler
from flusher.state import Database
from flusher.syncer import Fsync, Syncer
from flusher.triggers import FlushPolicy
from flusher.writers import WriterDied
from shared.wire import Ack, Inbox, Message, Reject, Submit
from tests.support.wire import read

WAIT_S = 10.0


class Disk:
    """writev(2) and fdatasync(2). `full` and `broken` make them fail; a held sync waits in its thread."""

    def __init__(self) -> None:
        self.full = False
        self.broken = False
        self.events: list[str] = []
        self.synced_fds: list[int] = []
        self._held = False
        self._begun = threading.Semaphore(0)
        self._gate = threading.Semaphore(0)

    def hold_syncs(self) -> None:
        self._held = True

    def let_one_sync_go(self) -> None:
        self._gate.release()

    def let_syncs_go(self) -> None:
        self._held = False
        self._gate.release()

    def writev(self, fd: int, buffers: Sequence[bytes | memoryview]) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.events.append("write")
        return os.writev(fd, buffers)

    def fdatasync(self, fd: int) -> None:
        if self._held:
            self._begun.release()
            assert self._gate.acquire(timeout=WAIT_S)
        self.synced_fds.append(fd)
        if self.broken:
            self.events.append("sync failed")
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.events.append("sync")

    async def sync_has_begun(self) -> None:
        """Waits for the next held sync."""
        assert await asyncio.to_thread(self._begun.acquire, timeout=WAIT_S)


class Clock:
    """Seconds that pass only when told."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def written(path: Path, **fields: Any) -> Written:
    """What a writer says of a segment whose every record became a row."""
    contents = segments.read(path)
    records = sum(entry.count for entry in contents.entries)
    said: dict[str, Any] = {
        "rows": {"sessions": 0, "tasks": records},
        "records": records,
        "coalesced": 0,
        "dead_lettered": 0,
        "dead_arrivals": {},
        "damaged_bytes": contents.damaged_bytes,
        "statements": 2,
        "last_error": None,
    }
    return Written(**{**said, **fields})


def failed(error_class: ErrorClass, number: int = 1, *, of_segment: bool = False) -> Failed:
    return Failed(error_class, number, f"error {number} ({error_class.value})", of_segment)


class FakeWriters:
    """Writers without processes: `answer(path)` says what becomes of a segment; `written_bodies` is the database."""

    def __init__(self) -> None:
        self.answer: Callable[[Path], Answer | Awaitable[Answer]] = written
        self.asked: list[str] = []
        self.written_bodies: list[bytes] = []
        self.pings = 0
        self.busy = self.processes = self.connected = 0
        self.ping: Answer = failed(ErrorClass.RECONNECT, 2002)
        self.dies = False

    async def ask(self, command: dict[str, object]) -> Answer:
        if self.dies:
            raise WriterDied("killed")
        if "write" not in command:
            self.pings += 1
            return self.ping
        path = Path(str(command["write"]))
        self.asked.append(path.name)
        answer = self.answer(path)
        if not isinstance(answer, Written | Failed):
            answer = await answer  # type: ignore[misc]
        if isinstance(answer, Written):
            contents = segments.read(path, cast(int, command["size"]))
            self.written_bodies += [bytes(entry.body) for entry in contents.entries]
        return answer

    def shrink(self, keep: int) -> None:
        pass


class Node:
    """One flusher without its socket and processes. Must be made where a loop runs; close() it."""

    def __init__(
        self,
        directory: Path,
        *,
        fsync: Fsync = Fsync.NEVER,
        max_bytes: int = 1 << 20,
        policy: FlushPolicy | None = None,
        last_arrival: int = 0,
        writers_at_once: int = 1,
        pool_size: int = 1,
        writers: FakeWriters | None = None,
        ping: Answer | None = None,
    ) -> None:
        self.disk = Disk()
        self.clock = Clock()
        self.wall_us = 1_700_000_000_000_000
        self.writers = writers or FakeWriters()
        self.writers.ping = ping or self.writers.ping
        self.figures = Figures(0.0, Database(since=0.0))
        self.journal = Journal(directory, writev=self.disk.writev, fdatasync=self.disk.fdatasync)
        recover(self.journal)
        self.journal.last_arrival = last_arrival
        self.syncer = Syncer(fsync, self.journal, clock=self.clock)
        self.scheduler = Scheduler(
            self.journal,
            self.writers,  # type: ignore[arg-type]
            self.syncer,
            self.figures,
            policy=policy or FlushPolicy(max_records=1000, interval_s=3600.0),
            writers_at_once=writers_at_once,
            pool_size=pool_size,
            random=lambda: 1.0,
            clock=self.clock,
            wall=lambda: self.wall_us / 1e6,
        )
        self.intake = Intake(
            self.journal,
            self.syncer,
            self.scheduler,
            self.figures,
            max_bytes=max_bytes,
            clock=self.clock,
            wall_ns=lambda: self.wall_us * 1000,
        )
        self.journal.try_open()
        self.scheduler.start()
        self.answers: list[Message] = []
        self._answered = asyncio.Event()
        self._inbox = Inbox()
        self._seq = 0

    def reply(self, frames: bytes) -> None:
        answers = read(self._inbox, frames)
        self.disk.events += [type(answer).__name__.lower() for answer in answers]
        self.answers += answers
        self._answered.set()

    def submit(self, *bodies: bytes, want_commit: bool = False, arrival: int = 0, count: int = 1) -> list[int]:
        """Bodies that one read from a socket brings. Returns: their seqs."""
        submits = []
        for body in bodies:
            self._seq += 1
            submits.append(Submit(self._seq, 2, count, body, arrival, want_commit))
        self.intake.accept(submits, self.reply)
        return [one.seq for one in submits]

    async def until(self, condition: Callable[[], Any]) -> None:
        """Waits for what answers, tasks and threads of this loop bring about."""
        give_up_at = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < give_up_at, "did not happen"
            await asyncio.sleep(0.001)

    @property
    def active(self) -> Segment:
        assert self.journal.active is not None
        return self.journal.active

    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        self.scheduler.schedule()

    @property
    def alarm(self) -> str | None:
        database, segment = self.figures.database, self.journal.alarm()
        return database.reason if database.alarming else None if segment is None else segment.reason

    async def settled(self) -> None:
        """Lets everything run that is ready to run."""
        for _ in range(20):
            await asyncio.sleep(0)

    def acked(self) -> list[int]:
        return [answer.seq + at for answer in self.answers if isinstance(answer, Ack) for at in range(answer.count)]

    def rejected(self) -> list[Reject]:
        return [answer for answer in self.answers if isinstance(answer, Reject)]

    def arrivals(self) -> list[int]:
        return [answer.arrival + at for answer in self.answers if isinstance(answer, Ack) for at in range(answer.count)]

    def ask_flush(self, timeout_s: float = WAIT_S) -> asyncio.Future[FlushResult]:
        result: asyncio.Future[FlushResult] = asyncio.get_running_loop().create_future()
        self.scheduler.flush(timeout_s, result.set_result)
        return result

    async def close(self) -> None:
        self.disk.let_syncs_go()
        self.disk.broken = self.disk.full = False
        self.scheduler.stop()
        await self.until(lambda: not self.scheduler._under_way)
        await self.until(lambda: not self.syncer.failed)
        await self.syncer.close()
        if self.journal.active is not None:
            self.journal.active.close()


@asynccontextmanager
async def running(directory: Path, **settings: Any) -> AsyncIterator[Node]:
    """A Node, closed at the end."""
    node = Node(directory, **settings)
    try:
        yield node
    finally:
        await node.close()


def bodies_in(directory: Path) -> list[bytes]:
    """Every body in the journal's segments, oldest first."""
    bodies: list[bytes] = []
    for path in sorted(directory.glob("*.segment")):
        try:
            bodies += [bytes(entry.body) for entry in segments.read(path).entries]
        except FileNotFoundError:
            continue  # it is written and was unlinked just now, in a thread
    return bodies


def task_body(*tasks: dict[str, Any]) -> bytes:
    return orjson.dumps({"tasks": list(tasks)})


def sessions_body(*sessions: dict[str, Any]) -> bytes:
    return orjson.dumps({"sessions": list(sessions)})
