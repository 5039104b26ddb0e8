"""Which fault comes when, from a seed: pure. And how it is done to the running service.

A fault counts once it has hit something: where its target is not there at the moment (the flusher is just starting,
the database is away) it waits for it; one that waits too long is given up and another is drawn. Faults overlap.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import MySQLdb

from tests.system.chaos.load import Load
from tests.system.chaos.service import Service

KINDS: dict[str, tuple[int, float, float]] = {
    # kind: how many in sixty, shortest and longest duration in seconds
    "worker killed": (4, 0, 0),
    "worker stopped for a while": (4, 0.1, 1.5),
    "workers replaced": (2, 0, 0),
    "ingest killed": (2, 0, 0),
    "ingest restarted": (1, 0, 0),
    "flusher killed": (4, 0, 0),
    "flusher stopped for a while": (3, 0.1, 1.5),
    "flusher restarted": (2, 0, 0),
    "writer killed": (7, 0, 0),
    "writer stopped for a while": (4, 0.1, 2.5),
    "database killed": (2, 0, 0),
    "database restarted": (1, 0, 0),
    "database stopped for a while": (3, 0.1, 2.0),
    "everything restarted": (1, 0, 0),
    "tables locked": (3, 0.3, 2.5),
    "database connections killed": (5, 0, 0),
    "disk full": (3, 0.3, 2.0),
    "journal full": (1, 0, 0),
    "requests cut": (4, 0, 0),
    "client connections dropped": (4, 0, 0),
}
_WAIT_FOR_TARGET_S = 10.0
_FILL_S = 5.0
_LOOK_AGAIN_S = 0.05
_YOUNG_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Fault:
    """`at` seconds after the start; `choice` in 0..1 picks one of several targets."""

    at: float
    kind: str
    duration_s: float
    choice: float


def schedule(seed: int, per_second: float, kinds: dict[str, tuple[int, float, float]] = KINDS) -> Iterator[Fault]:
    """Faults without end. Dealt from a shuffled deck, so that sixty have every kind in its share."""
    random = Random(seed)
    at = 0.0
    while True:
        deck = [kind for kind, (share, _, _) in kinds.items() for _ in range(share)]
        random.shuffle(deck)
        for kind in deck:
            at += random.expovariate(per_second)
            _, shortest_s, longest_s = kinds[kind]
            yield Fault(at, kind, random.uniform(shortest_s, longest_s), random.random())


class TargetMissing(Exception):
    """There is nothing at the moment that this fault could hit."""


class Faults:
    def __init__(self, service: Service, load: Load) -> None:
        self.hits: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self._service = service
        self._load = load
        self._numbers = itertools.count()
        self._disk = asyncio.Lock()
        self._restarting = asyncio.Lock()
        self._log = (service.directory / "faults.log").open("w")
        self._actions: dict[str, Callable[[Fault], Awaitable[None]]] = {
            "worker killed": lambda fault: self._signal(fault, signal.SIGKILL, self._workers),
            "worker stopped for a while": lambda fault: self._stop_for_a_while(fault, self._workers),
            "workers replaced": lambda fault: self._signal(fault, signal.SIGHUP, self._program("ingest")),
            "ingest killed": lambda fault: self._signal(fault, signal.SIGKILL, self._program("ingest")),
            "ingest restarted": lambda fault: self._restart(fault, "ingest"),
            "flusher killed": lambda fault: self._signal(fault, signal.SIGKILL, self._program("flusher")),
            "flusher stopped for a while": lambda fault: self._stop_for_a_while(fault, self._program("flusher")),
            "flusher restarted": lambda fault: self._restart(fault, "flusher"),
            "writer killed": lambda fault: self._signal(fault, signal.SIGKILL, self._writers),
            "writer stopped for a while": lambda fault: self._stop_for_a_while(fault, self._writers),
            "database killed": lambda fault: self._signal(fault, signal.SIGKILL, self._program("mariadb")),
            "database restarted": lambda fault: self._restart(fault, "mariadb"),
            "database stopped for a while": lambda fault: self._stop_for_a_while(fault, self._program("mariadb")),
            "everything restarted": self._restart_all,
            "tables locked": self._lock_tables,
            "database connections killed": self._kill_database_connections,
            "disk full": self._fill_disk,
            "journal full": self._fill_journal,
            "requests cut": self._cut_requests,
            "client connections dropped": self._drop_connections,
        }

    async def run(self, count: int, faults: Iterator[Fault]) -> None:
        """Until `count` have hit, or most of many more have missed."""
        started_at = time.monotonic()
        for _ in range(5):
            tasks = []
            for _ in range(count - self.hits.total()):
                fault = next(faults)
                await asyncio.sleep(started_at + fault.at - time.monotonic())
                tasks.append(asyncio.get_running_loop().create_task(self._do(fault)))
            if not tasks:
                break
            await asyncio.gather(*tasks)
            # Faults that take the place of missed ones come at the pace of the others.
            started_at = time.monotonic() - fault.at
        self._log.close()

    async def _do(self, fault: Fault) -> None:
        give_up_at = time.monotonic() + _WAIT_FOR_TARGET_S
        while True:
            try:
                await self._actions[fault.kind](fault)
                return
            except (TargetMissing, OSError, MySQLdb.Error) as error:
                if time.monotonic() > give_up_at:
                    self._note(fault, f"given up: {error!r}")
                    self.missed[fault.kind] += 1
                    return
            await asyncio.sleep(_LOOK_AGAIN_S)

    def _hit(self, fault: Fault, what: object = "") -> None:
        self.hits[fault.kind] += 1
        self._note(fault, f"{what} for {fault.duration_s:.3f} s" if fault.duration_s else str(what))

    def _note(self, fault: Fault, what: str) -> None:
        self._log.write(f"{time.time():.6f} {fault.kind}: {what}\n")
        self._log.flush()

    def _workers(self, _young: bool) -> list[int]:
        return self._service.children("ingest")

    def _writers(self, _young: bool) -> list[int]:
        return self._service.children("flusher")

    def _program(self, name: str) -> Callable[[bool], list[int]]:
        return lambda young: [pid] if (pid := self._service.pid(name, young=young)) else []

    async def _signal(self, fault: Fault, number: signal.Signals, find: Callable[[bool], list[int]]) -> int:
        # One in five may hit a program while it starts; if all did, supervisord would wait longer before every next
        # start, and the faults would find nothing that works.
        pids = await asyncio.to_thread(find, fault.choice < _YOUNG_SHARE)
        if not pids:
            raise TargetMissing(fault.kind)
        pid = pids[int(fault.choice * len(pids))]
        os.kill(pid, number)  # gone meanwhile: an OSError, and so a target that is missing
        self._hit(fault, f"process {pid}")
        return pid

    async def _stop_for_a_while(self, fault: Fault, find: Callable[[bool], list[int]]) -> None:
        pid = await self._signal(fault, signal.SIGSTOP, find)
        try:
            await asyncio.sleep(fault.duration_s)
        finally:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass  # killed in its sleep

    async def _restart(self, fault: Fault, program: str) -> None:
        async with self._restarting:
            if program == "mariadb":
                await self._database_answers()
            if not await asyncio.to_thread(self._service.restart, program):
                raise TargetMissing(fault.kind)
            self._hit(fault, program)

    async def _restart_all(self, fault: Fault) -> None:
        async with self._restarting:
            await self._database_answers()
            await asyncio.to_thread(self._service.restart_all)
            self._hit(fault)

    async def _database_answers(self) -> None:
        """MariaDB 10.11 that gets SIGTERM while it starts hangs until SIGKILL, a minute later: none of our faults.

        Raises: MySQLdb.Error.
        """
        db = await asyncio.to_thread(self._service.connect)
        db.close()

    @asynccontextmanager
    async def _locked_tables(self) -> AsyncIterator[None]:
        """Raises: MySQLdb.Error."""

        def lock() -> Any:
            db = self._service.connect()
            try:
                db.query("SET lock_wait_timeout=2")
                db.query("LOCK TABLES translation_tasks WRITE, translation_sessions WRITE")
            except MySQLdb.Error:
                db.close()
                raise
            return db

        db = await asyncio.to_thread(lock)
        try:
            yield
        finally:
            await asyncio.to_thread(db.close)

    async def _lock_tables(self, fault: Fault) -> None:
        async with self._locked_tables():
            self._hit(fault)
            await asyncio.sleep(fault.duration_s)

    async def _kill_database_connections(self, fault: Fault) -> None:
        def kill() -> int:
            db = self._service.connect()
            killed = 0
            try:
                cursor = db.cursor()
                cursor.execute(
                    "SELECT id FROM information_schema.processlist"
                    " WHERE user = 'root' AND db = DATABASE() AND id <> CONNECTION_ID()"
                )
                for (number,) in cursor.fetchall():
                    try:
                        cursor.execute(f"KILL {number}")
                        killed += 1
                    except MySQLdb.OperationalError as error:
                        if error.args[0] != 1094:  # it has gone by itself
                            raise
            finally:
                db.close()
            return killed

        killed = await asyncio.to_thread(kill)
        if not killed:
            raise TargetMissing(fault.kind)
        self._hit(fault, f"{killed} connections")

    async def _fill_disk(self, fault: Fault) -> None:
        async with self._disk:
            filler = self._service.journal / "filler"
            try:
                await asyncio.to_thread(_write_until_full, filler)
                self._hit(fault)
                await asyncio.sleep(fault.duration_s)
            finally:
                filler.unlink(missing_ok=True)

    async def _fill_journal(self, fault: Fault) -> None:
        """More than the database takes: it takes nothing, and much comes."""
        async with self._locked_tables():
            if not await self._load.fill_journal(time.monotonic() + _FILL_S):
                raise TargetMissing(fault.kind)
            self._hit(fault)

    async def _cut_requests(self, fault: Fault) -> None:
        await self._load.cut_requests(next(self._numbers), politely=fault.choice < 0.5)
        self._hit(fault)

    async def _drop_connections(self, fault: Fault) -> None:
        dropped = self._load.drop_connections()
        if not dropped:
            raise TargetMissing(fault.kind)
        self._hit(fault, f"{dropped} connections")


def _write_until_full(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(64 * 1024))
        except OSError as error:
            if error.errno != 28:
                raise
