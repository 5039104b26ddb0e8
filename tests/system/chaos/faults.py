"""The faults by name, and how each is done to service nodes, database nodes and the links between them, and undone.

One node of the database at a time, and the next only when all agree again that it belongs to them: two of three must
always agree, or nothing can be committed. Everything else overlaps.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from errno import ENOSPC
from functools import partial
from pathlib import Path
from typing import Any

import MySQLdb

from scripts.galera import Galera
from scripts.servers import DATABASE, FAULTS, Servers, host
from tests.support.group import Group
from tests.system.chaos.load import Load
from tests.system.chaos.nodes import Node
from tests.system.chaos.run import Deck, Fault, FaultRun, TargetMissing

_FILL_S = 5.0


class Faults(FaultRun):
    def __init__(self, database: Servers, nodes: Sequence[Node], load: Load, log: Path) -> None:
        super().__init__(log)
        self.database = database
        self.fail_overs: list[tuple[float, float]] = []
        """Of primaries killed: seconds until the group has its next, and from then until every node writes to it."""
        self._nodes = nodes
        self._load = load
        self._numbers = itertools.count()
        self._one_database_node = asyncio.Lock()
        self._disk = asyncio.Lock()
        self._whole = {node.number: asyncio.Lock() for node in nodes}

    async def do(self, fault: Fault) -> None:
        await KINDS[fault.kind].do(self, fault)

    def node(self, fault: Fault) -> Node:
        return self._nodes[fault.index(len(self._nodes))]

    # Processes of a service node

    def find(self, fault: Fault, program: str, *, children: bool) -> Callable[[bool], list[int]]:
        node = self.node(fault)
        if children:
            return lambda _young: node.children_of(program)
        return lambda young: [pid] if (pid := node.pid(program, young=young)) else []

    async def restart_program(self, fault: Fault, program: str) -> None:
        async with self._whole_node(fault) as node:
            if not await asyncio.to_thread(node.restart, program):
                raise TargetMissing(fault.kind)
            self.hit(fault, f"{program} of {node.name}")

    # Service nodes and their links

    @asynccontextmanager
    async def _whole_node(self, fault: Fault) -> AsyncIterator[Node]:
        """A node to which nothing of the kind is done at the same time."""
        node = self.node(fault)
        async with self._whole[node.number]:
            yield node

    async def kill_node(self, fault: Fault) -> None:
        async with self._whole_node(fault) as node:
            self.hit(fault, f"{node.name}, {await asyncio.to_thread(node.kill_all)} processes")
            await asyncio.sleep(fault.duration_s)
            node.start()

    async def restart_node(self, fault: Fault) -> None:
        async with self._whole_node(fault) as node:
            self.hit(fault, node.name)
            await asyncio.to_thread(node.stop)
            node.start()

    async def cut_node(self, fault: Fault) -> None:
        async with self._whole_node(fault) as node:
            network = self.database.network
            await self._for_a_while(fault, node.name, partial(network.cut, node.name), partial(network.heal, node.name))

    async def cut_between(self, fault: Fault) -> None:
        """From the database node that it prefers."""
        async with self._whole_node(fault) as node:
            network, ends = self.database.network, (node.name, host(node.number))
            cut, heal = partial(network.cut_between, *ends), partial(network.heal_between, *ends)
            await self._for_a_while(fault, " from ".join(ends), cut, heal)

    async def _for_a_while(self, fault: Fault, what: str, do: Callable[[], object], undo: Callable[[], object]) -> None:
        await asyncio.to_thread(do)
        try:
            self.hit(fault, what)
            await asyncio.sleep(fault.duration_s)
        finally:
            await asyncio.to_thread(undo)

    # Clients and the journal's disk

    async def cut_requests(self, fault: Fault) -> None:
        await self._load.cut_requests(next(self._numbers), politely=fault.choice < 0.5)
        self.hit(fault)

    async def drop_connections(self, fault: Fault) -> None:
        dropped = self._load.drop_connections()
        if not dropped:
            raise TargetMissing(fault.kind)
        self.hit(fault, f"{dropped} connections")

    async def fill_disk(self, fault: Fault) -> None:
        filler = self.node(fault).journal / "filler"
        async with self._disk:
            await self._for_a_while(fault, "", partial(_write_until_full, filler), partial(filler.unlink, True))

    async def fill_journal(self, fault: Fault) -> None:
        """More than the database takes: it takes nothing, and much comes."""
        async with self._locked_tables():
            if not await self._load.fill_journal(time.monotonic() + _FILL_S):
                raise TargetMissing(fault.kind)
            self.hit(fault)

    # The database's sessions and nodes

    @asynccontextmanager
    async def _locked_tables(self) -> AsyncIterator[None]:
        """Raises: MySQLdb.Error."""

        def lock() -> Any:
            db = self.database.connect(1)
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

    async def lock_tables(self, fault: Fault) -> None:
        async with self._locked_tables():
            self.hit(fault)
            await asyncio.sleep(fault.duration_s)

    async def kill_connections(self, fault: Fault) -> None:
        numbers = self.database.numbers
        number = numbers[fault.index(len(numbers))]

        def kill() -> int:
            found = self.database.query(
                number,
                f"SELECT id FROM information_schema.processlist WHERE db = '{DATABASE}' AND user <> 'system user'",
            )
            for (connection,) in found:
                try:
                    self.database.query(number, f"KILL {connection}")
                except MySQLdb.OperationalError as error:
                    if error.args[0] != 1094:  # it has gone by itself
                        raise
            return len(found)

        killed = await asyncio.to_thread(kill)
        if not killed:
            raise TargetMissing(fault.kind)
        self.hit(fault, f"{killed} connections to database node {number}")

    @asynccontextmanager
    async def _database_node(self, fault: Fault, find: Callable[[], int] | None = None) -> AsyncIterator[int]:
        """One node, and no other until this one takes writes again. Args: find: chooses it; 0 where there is none."""
        async with self._one_database_node:
            numbers = self.database.numbers
            number = await asyncio.to_thread(find) if find else numbers[fault.index(len(numbers))]
            if not number:
                raise TargetMissing(fault.kind)
            self.hit(fault, f"database node {number}")
            try:
                yield number
            except FAULTS as error:
                self.note(fault, f"database node {number}: {error}")
            whole = await asyncio.to_thread(self.database.make_whole)
            self.note(fault, "the database is whole" if whole else "the database is NOT whole")

    async def kill_database(self, fault: Fault) -> None:
        async with self._database_node(fault) as number:
            self.database.signal(number, signal.SIGKILL)
            await asyncio.sleep(fault.duration_s)
            await asyncio.to_thread(self.database.start, number)

    async def kill_primary(self, fault: Fault) -> None:
        """Measures how long the group takes for its next primary, and how long then every node for its next row."""
        database = self.database
        assert isinstance(database, Group)
        async with self._database_node(fault, database.primary) as number:
            killed_at = time.monotonic()
            database.signal(number, signal.SIGKILL)
            elected_at, written_at = await asyncio.to_thread(self._writes_again, database)
            self.fail_overs.append((elected_at - killed_at, written_at - elected_at))
            await asyncio.to_thread(database.start, number)

    def _writes_again(self, database: Group) -> tuple[float, float]:
        give_up_at = time.monotonic() + 60
        while not database.primary() and time.monotonic() < give_up_at:
            time.sleep(0.02)
        elected_at = time.monotonic()
        before = {node: node.rows_written() for node in self._nodes}
        while before and time.monotonic() < give_up_at:
            before = {node: rows for node, rows in before.items() if node.rows_written() <= rows}
            time.sleep(0.02)
        return elected_at, time.monotonic()

    async def restart_database(self, fault: Fault) -> None:
        async with self._database_node(fault) as number:
            await asyncio.to_thread(self.database.stop, number)
            await asyncio.to_thread(self.database.start, number)

    async def _database_for_a_while(
        self, fault: Fault, do: Callable[[int], object], undo: Callable[[int], object]
    ) -> None:
        async with self._database_node(fault) as number:
            await asyncio.to_thread(do, number)
            try:
                await asyncio.sleep(fault.duration_s)
            finally:
                await asyncio.to_thread(undo, number)

    async def stop_database(self, fault: Fault) -> None:
        send = self.database.signal
        await self._database_for_a_while(
            fault, lambda number: send(number, signal.SIGSTOP), lambda number: send(number, signal.SIGCONT)
        )

    async def cut_database(self, fault: Fault) -> None:
        network = self.database.network
        await self._database_for_a_while(
            fault, lambda number: network.cut(host(number)), lambda number: network.heal(host(number))
        )

    async def isolate_database(self, fault: Fault) -> None:
        galera = self.database
        assert isinstance(galera, Galera)
        await self._database_for_a_while(
            fault, partial(galera.isolate, isolated=True), partial(galera.isolate, isolated=False)
        )

    async def make_read_only(self, fault: Fault) -> None:
        def to(state: int) -> Callable[[int], object]:
            return lambda number: self.database.query(number, f"SET GLOBAL read_only={state}")

        await self._database_for_a_while(fault, to(1), to(0))


def _write_until_full(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(64 * 1024))
        except OSError as error:
            if error.errno != ENOSPC:
                raise


@dataclass(frozen=True, slots=True)
class Kind:
    """In a full deck `alone`, with one node and one server, or `among` three of each; from so long to so long."""

    do: Callable[[Faults, Fault], Awaitable[object]]
    alone: int
    among: int
    shortest_s: float = 0
    longest_s: float = 0
    needs: str = ""
    """`links`: hosts with links of their own; `galera`: that cluster; `disk`: a small one for the journal."""


def _signal(number: signal.Signals, program: str, *, children: bool) -> Callable[[Faults, Fault], Awaitable[object]]:
    if number is signal.SIGSTOP:
        return lambda faults, fault: faults.stop_for_a_while(fault, faults.find(fault, program, children=children))
    return lambda faults, fault: faults.send_signal(fault, number, faults.find(fault, program, children=children))


def _restart(program: str) -> Callable[[Faults, Fault], Awaitable[object]]:
    return lambda faults, fault: faults.restart_program(fault, program)


_KILL, _STOP, _HUP = signal.SIGKILL, signal.SIGSTOP, signal.SIGHUP
KINDS = {
    "worker killed": Kind(_signal(_KILL, "ingest", children=True), 4, 3),
    "worker stopped for a while": Kind(_signal(_STOP, "ingest", children=True), 4, 3, 0.1, 1.5),
    "workers replaced": Kind(_signal(_HUP, "ingest", children=False), 2, 0),
    "ingest killed": Kind(_signal(_KILL, "ingest", children=False), 2, 2),
    "ingest restarted": Kind(_restart("ingest"), 1, 2),
    "flusher killed": Kind(_signal(_KILL, "flusher", children=False), 4, 4),
    "flusher stopped for a while": Kind(_signal(_STOP, "flusher", children=False), 3, 3, 0.1, 1.5),
    "flusher restarted": Kind(_restart("flusher"), 2, 2),
    "writer killed": Kind(_signal(_KILL, "flusher", children=True), 7, 5),
    "writer stopped for a while": Kind(_signal(_STOP, "flusher", children=True), 4, 3, 0.1, 2.5),
    "service node killed": Kind(Faults.kill_node, 1, 4, 0.2, 3.0),
    "service node restarted": Kind(Faults.restart_node, 1, 2),
    "service node cut off": Kind(Faults.cut_node, 0, 4, 0.3, 4.0, needs="links"),
    "service node cut off from a database node": Kind(Faults.cut_between, 0, 4, 0.5, 4.0, needs="links"),
    "tables locked": Kind(Faults.lock_tables, 3, 0, 0.3, 2.5),
    "database connections killed": Kind(Faults.kill_connections, 5, 3),
    "disk full": Kind(Faults.fill_disk, 3, 0, 0.3, 2.0, needs="disk"),
    "journal full": Kind(Faults.fill_journal, 1, 0),
    "requests cut": Kind(Faults.cut_requests, 4, 2),
    "client connections dropped": Kind(Faults.drop_connections, 4, 2),
    "database node killed": Kind(Faults.kill_database, 2, 3, 0.0, 2.0),
    "database node restarted": Kind(Faults.restart_database, 1, 2),
    "database node stopped for a while": Kind(Faults.stop_database, 2, 3, 0.3, 4.0),
    "database node cut off": Kind(Faults.cut_database, 0, 2, 0.5, 5.0, needs="links"),
    "database node outside the cluster": Kind(Faults.isolate_database, 0, 1, 2.0, 4.0, needs="galera"),
    "database node read-only": Kind(Faults.make_read_only, 0, 1, 0.5, 3.0, needs="galera"),
    "primary killed": Kind(Faults.kill_primary, 0, 3, needs="group"),
}


def deck(*, alone: bool, has: set[str], only: str | None = None) -> Deck:
    """Args: has: what kinds may need; only: the one kind wanted."""
    return {
        name: (kind.alone if alone else kind.among, kind.shortest_s, kind.longest_s)
        for name, kind in KINDS.items()
        if (not kind.needs or kind.needs in has) and only in (None, name)
    }
