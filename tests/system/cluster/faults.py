"""What is done to service nodes, database nodes and the links between them, and undone.

One node of the database at a time, and the next only when all three agree again that it belongs to them: two of three
must always agree, or nothing can be committed. Everything else overlaps.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import MySQLdb

from scripts.galera import NODES as DATABASE_NODES
from scripts.galera import USER, ClusterFault, Galera
from scripts.galera import host as database_host
from tests.system.chaos.load import Load
from tests.system.chaos.run import Fault, FaultRun, Kinds, TargetMissing
from tests.system.cluster.nodes import Node

KINDS: Kinds = {
    "worker killed": (3, 0, 0),
    "worker stopped for a while": (3, 0.1, 1.5),
    "ingest killed": (2, 0, 0),
    "ingest restarted": (2, 0, 0),
    "flusher killed": (4, 0, 0),
    "flusher stopped for a while": (3, 0.1, 1.5),
    "flusher restarted": (2, 0, 0),
    "writer killed": (5, 0, 0),
    "writer stopped for a while": (3, 0.1, 2.5),
    "service node killed": (4, 0.2, 3.0),
    "service node restarted": (2, 0, 0),
    "service node cut off": (4, 0.3, 4.0),
    "service node cut off from a database node": (4, 0.5, 4.0),
    "database connections killed": (3, 0, 0),
    "requests cut": (2, 0, 0),
    "client connections dropped": (2, 0, 0),
    "database node killed": (3, 0.0, 2.0),
    "database node restarted": (2, 0, 0),
    "database node stopped for a while": (3, 0.3, 4.0),
    "database node cut off": (2, 0.5, 5.0),
    "database node outside the cluster": (1, 2.0, 4.0),
    "database node read-only": (1, 0.5, 3.0),
}
NEED_LINKS = ("service node cut off", "service node cut off from a database node", "database node cut off")
"""Where hosts have no links of their own, these cannot be done."""


class Faults(FaultRun):
    def __init__(self, cluster: Galera, nodes: Sequence[Node], load: Load, log: Path) -> None:
        self._seen: dict[tuple[int, int], int] = {}
        self._cluster = cluster
        self._nodes = nodes
        self._load = load
        self._numbers = itertools.count()
        self._database = asyncio.Lock()
        self._whole = {node: asyncio.Lock() for node in nodes}
        actions: dict[str, Callable[[Fault], Awaitable[object]]] = {
            "worker killed": lambda fault: self.send_signal(fault, signal.SIGKILL, self._children(fault, "ingest")),
            "worker stopped for a while": lambda fault: self.stop_for_a_while(fault, self._children(fault, "ingest")),
            "ingest killed": lambda fault: self.send_signal(fault, signal.SIGKILL, self._program(fault, "ingest")),
            "ingest restarted": lambda fault: self._restart(fault, "ingest"),
            "flusher killed": lambda fault: self.send_signal(fault, signal.SIGKILL, self._program(fault, "flusher")),
            "flusher stopped for a while": lambda fault: self.stop_for_a_while(fault, self._program(fault, "flusher")),
            "flusher restarted": lambda fault: self._restart(fault, "flusher"),
            "writer killed": lambda fault: self.send_signal(fault, signal.SIGKILL, self._children(fault, "flusher")),
            "writer stopped for a while": lambda fault: self.stop_for_a_while(fault, self._children(fault, "flusher")),
            "service node killed": self._kill_node,
            "service node restarted": self._restart_node,
            "service node cut off": self._cut_node,
            "service node cut off from a database node": self._cut_between,
            "database connections killed": self._kill_connections,
            "requests cut": self._cut_requests,
            "client connections dropped": self._drop_connections,
            "database node killed": self._kill_database,
            "database node restarted": self._restart_database,
            "database node stopped for a while": self._stop_database,
            "database node cut off": self._cut_database,
            "database node outside the cluster": self._isolate_database,
            "database node read-only": self._make_read_only,
        }
        super().__init__(log, actions)

    def _node(self, fault: Fault) -> Node:
        return self._nodes[_index(fault, len(self._nodes))]

    def _children(self, fault: Fault, program: str) -> Callable[[bool], list[int]]:
        return lambda _young: self._node(fault).children(program)

    def _program(self, fault: Fault, name: str) -> Callable[[bool], list[int]]:
        return lambda young: [pid] if (pid := self._node(fault).pid(name, young=young)) else []

    async def _restart(self, fault: Fault, program: str) -> None:
        node = self._node(fault)
        async with self._whole[node]:
            if not await asyncio.to_thread(node.restart, program):
                raise TargetMissing(fault.kind)
            self.hit(fault, f"{program} of {node.name}")

    async def _kill_node(self, fault: Fault) -> None:
        node = self._node(fault)
        async with self._whole[node]:
            self.hit(fault, f"{node.name}, {await asyncio.to_thread(node.kill)} processes")
            await asyncio.sleep(fault.duration_s)
            node.start()

    async def _restart_node(self, fault: Fault) -> None:
        node = self._node(fault)
        async with self._whole[node]:
            self.hit(fault, node.name)
            await asyncio.to_thread(node.stop)
            node.start()

    async def _cut_node(self, fault: Fault) -> None:
        node = self._node(fault)
        async with self._whole[node]:
            self._cluster.network.cut(node.name)
            self.hit(fault, node.name)
            try:
                await asyncio.sleep(fault.duration_s)
            finally:
                self._cluster.network.heal(node.name)

    async def _cut_between(self, fault: Fault) -> None:
        """The one that it writes to, most of the time."""
        node = self._node(fault)
        network = self._cluster.network
        async with self._whole[node]:
            network.cut_between(node.name, database_host(node.number))
            self.hit(fault, f"{node.name} from {database_host(node.number)}")
            try:
                await asyncio.sleep(fault.duration_s)
            finally:
                network.heal_between(node.name, database_host(node.number))

    async def _kill_connections(self, fault: Fault) -> None:
        number = DATABASE_NODES[_index(fault, len(DATABASE_NODES))]

        def kill() -> None:
            db = self._cluster.connect(number, read_timeout=5)
            try:
                db.query(f"KILL USER {USER}")
            finally:
                db.close()

        await asyncio.to_thread(kill)
        self.hit(fault, f"of database node {number}")

    async def _cut_requests(self, fault: Fault) -> None:
        await self._load.cut_requests(next(self._numbers), politely=fault.choice < 0.5)
        self.hit(fault)

    async def _drop_connections(self, fault: Fault) -> None:
        dropped = self._load.drop_connections()
        if not dropped:
            raise TargetMissing(fault.kind)
        self.hit(fault, f"{dropped} connections")

    @asynccontextmanager
    async def _database_node(self, fault: Fault) -> AsyncIterator[int]:
        """One node, and no other until this one takes writes again."""
        async with self._database:
            number = DATABASE_NODES[_index(fault, len(DATABASE_NODES))]
            await asyncio.to_thread(self.count_conflicts, number)
            self.hit(fault, f"database node {number}")
            try:
                yield number
            except (ClusterFault, OSError, MySQLdb.Error) as error:
                self.note(fault, f"database node {number}: {error}")
            whole = await asyncio.to_thread(self.make_whole)
            self.note(fault, "the cluster is whole" if whole else "the cluster is NOT whole")

    def make_whole(self) -> bool:
        """As an operator would: a server that has given up (no primary view in time) is started again, and where nobody
        is primary one is told to be. Blocks. Returns: whether all nodes belong to the cluster again."""
        for attempt in range(3):
            try:
                if attempt and not any(
                    self._cluster.status(one).get("cluster_status") == "Primary" for one in DATABASE_NODES
                ):
                    self._cluster.set_global(DATABASE_NODES[0], "wsrep_provider_options='pc.bootstrap=YES'")
                for number in DATABASE_NODES:
                    if not self._cluster.pid(number):
                        self._cluster.start(number)
                self._cluster.wait_whole()
                return True
            except (ClusterFault, OSError, MySQLdb.Error):
                continue
        return False

    async def _kill_database(self, fault: Fault) -> None:
        async with self._database_node(fault) as number:
            self._cluster.signal(number, signal.SIGKILL)
            await asyncio.sleep(fault.duration_s)
            await asyncio.to_thread(self._cluster.start, number)

    async def _restart_database(self, fault: Fault) -> None:
        async with self._database_node(fault) as number:
            await asyncio.to_thread(self._cluster.stop, number)
            await asyncio.to_thread(self._cluster.start, number)

    async def _stop_database(self, fault: Fault) -> None:
        async with self._database_node(fault) as number:
            self._cluster.signal(number, signal.SIGSTOP)
            try:
                await asyncio.sleep(fault.duration_s)
            finally:
                self._cluster.signal(number, signal.SIGCONT)

    async def _cut_database(self, fault: Fault) -> None:
        async with self._database_node(fault) as number:
            self._cluster.network.cut(database_host(number))
            try:
                await asyncio.sleep(fault.duration_s)
            finally:
                self._cluster.network.heal(database_host(number))

    async def _isolate_database(self, fault: Fault) -> None:
        async with self._database_node(fault) as number:
            await asyncio.to_thread(self._cluster.isolate, number, isolated=True)
            try:
                await asyncio.sleep(fault.duration_s)
            finally:
                await asyncio.to_thread(self._cluster.isolate, number, isolated=False)

    async def _make_read_only(self, fault: Fault) -> None:
        async with self._database_node(fault) as number:
            await asyncio.to_thread(self._cluster.set_global, number, "read_only=1")
            try:
                await asyncio.sleep(fault.duration_s)
            finally:
                await asyncio.to_thread(self._cluster.set_global, number, "read_only=0")

    def count_conflicts(self, number: int) -> None:
        """Before the node forgets: how often one of its transactions lost against another node's. Blocks."""
        status = self._cluster.status(number)
        run = (number, self._cluster.pid(number))
        self._seen[run] = sum(int(status.get(name, 0)) for name in ("local_cert_failures", "local_bf_aborts"))

    @property
    def conflicts_seen(self) -> int:
        return sum(self._seen.values())


def _index(fault: Fault, count: int) -> int:
    """The fault's choice among `count`; not the digits that choose among processes."""
    return int(fault.choice * 1000) % count
