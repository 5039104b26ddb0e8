"""The faults of one service with its own database, and how each is done to it."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import MySQLdb

from tests.system.chaos.load import Load
from tests.system.chaos.run import Fault, FaultRun, Kinds, TargetMissing
from tests.system.chaos.service import Service

KINDS: Kinds = {
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
_FILL_S = 5.0


class Faults(FaultRun):
    def __init__(self, service: Service, load: Load) -> None:
        self._service = service
        self._load = load
        self._numbers = itertools.count()
        self._disk = asyncio.Lock()
        self._restarting = asyncio.Lock()
        actions: dict[str, Callable[[Fault], Awaitable[object]]] = {
            "worker killed": lambda fault: self.send_signal(fault, signal.SIGKILL, self._workers),
            "worker stopped for a while": lambda fault: self.stop_for_a_while(fault, self._workers),
            "workers replaced": lambda fault: self.send_signal(fault, signal.SIGHUP, self._program("ingest")),
            "ingest killed": lambda fault: self.send_signal(fault, signal.SIGKILL, self._program("ingest")),
            "ingest restarted": lambda fault: self._restart(fault, "ingest"),
            "flusher killed": lambda fault: self.send_signal(fault, signal.SIGKILL, self._program("flusher")),
            "flusher stopped for a while": lambda fault: self.stop_for_a_while(fault, self._program("flusher")),
            "flusher restarted": lambda fault: self._restart(fault, "flusher"),
            "writer killed": lambda fault: self.send_signal(fault, signal.SIGKILL, self._writers),
            "writer stopped for a while": lambda fault: self.stop_for_a_while(fault, self._writers),
            "database killed": lambda fault: self.send_signal(fault, signal.SIGKILL, self._program("mariadb")),
            "database restarted": lambda fault: self._restart(fault, "mariadb"),
            "database stopped for a while": lambda fault: self.stop_for_a_while(fault, self._program("mariadb")),
            "everything restarted": self._restart_all,
            "tables locked": self._lock_tables,
            "database connections killed": self._kill_database_connections,
            "disk full": self._fill_disk,
            "journal full": self._fill_journal,
            "requests cut": self._cut_requests,
            "client connections dropped": self._drop_connections,
        }
        super().__init__(service.directory / "faults.log", actions)

    def _workers(self, _young: bool) -> list[int]:
        return self._service.children("ingest")

    def _writers(self, _young: bool) -> list[int]:
        return self._service.children("flusher")

    def _program(self, name: str) -> Callable[[bool], list[int]]:
        return lambda young: [pid] if (pid := self._service.pid(name, young=young)) else []

    async def _restart(self, fault: Fault, program: str) -> None:
        async with self._restarting:
            if program == "mariadb":
                await self._database_answers()
            if not await asyncio.to_thread(self._service.restart, program):
                raise TargetMissing(fault.kind)
            self.hit(fault, program)

    async def _restart_all(self, fault: Fault) -> None:
        async with self._restarting:
            await self._database_answers()
            await asyncio.to_thread(self._service.restart_all)
            self.hit(fault)

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
            self.hit(fault)
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
        self.hit(fault, f"{killed} connections")

    async def _fill_disk(self, fault: Fault) -> None:
        async with self._disk:
            filler = self._service.journal / "filler"
            try:
                await asyncio.to_thread(_write_until_full, filler)
                self.hit(fault)
                await asyncio.sleep(fault.duration_s)
            finally:
                filler.unlink(missing_ok=True)

    async def _fill_journal(self, fault: Fault) -> None:
        """More than the database takes: it takes nothing, and much comes."""
        async with self._locked_tables():
            if not await self._load.fill_journal(time.monotonic() + _FILL_S):
                raise TargetMissing(fault.kind)
            self.hit(fault)

    async def _cut_requests(self, fault: Fault) -> None:
        await self._load.cut_requests(next(self._numbers), politely=fault.choice < 0.5)
        self.hit(fault)

    async def _drop_connections(self, fault: Fault) -> None:
        dropped = self._load.drop_connections()
        if not dropped:
            raise TargetMissing(fault.kind)
        self.hit(fault, f"{dropped} connections")


def _write_until_full(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(64 * 1024))
        except OSError as error:
            if error.errno != 28:
                raise
