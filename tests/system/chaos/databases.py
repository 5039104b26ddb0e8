"""The databases under the service, and what they hold. All functions block, and raise MySQLdb.Error."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import MySQLdb
import MySQLdb.cursors

from scripts import cluster
from scripts.network import Network, network_of
from scripts.servers import DATABASE, Servers, set_up_statements
from tests.support import group
from tests.support.mariadb import MariaDB
from tests.support.mysql import SERVERS
from tests.system.chaos.model import COLUMNS, KEYS, TABLES, fetched, select_updated_at

ANSWER_S = 8
"""A server that has just been cut off waits, with a read that must see all, for those that it cannot see."""


class Single(Servers):
    """One server, reached by its socket."""

    numbers = (1,)

    def __init__(self, directory: Path, server: type[MariaDB]) -> None:
        super().__init__(directory, Network("", "127.0.0", {}))
        self.node(1).mkdir(parents=True)
        self._server = server(self.node(1))

    def install(self) -> None:
        self._server.install()

    def form(self) -> None:
        self._server.start()
        self.query(1, *set_up_statements())

    def start(self, number: int) -> None:
        self._server.start()

    def stop(self, number: int) -> None:
        self._server.stop()

    def signal(self, number: int, what: signal.Signals) -> None:
        assert self._server.process is not None
        self._server.process.send_signal(what)
        if what is signal.SIGKILL:
            self._server.process.wait(10)

    def pid(self, number: int) -> int:
        process = self._server.process
        return process.pid if process is not None and process.poll() is None else 0

    def is_whole(self) -> bool:
        return bool(self.pid(1))

    def service_environ(self, preferred: int = 1) -> dict[str, str]:
        return {"DB_SOCKET": self._server.socket, "DB_USER": "root", "DB_DATABASE": DATABASE}


CLUSTERS: dict[str, tuple[Callable[[], str], Callable[[Path], Servers]]] = {
    "galera": (cluster.missing, cluster.at),
    "group": (group.missing, lambda directory: group.Group(directory / "db", network_of(directory, cluster.HOSTS))),
}
"""By name: why it cannot be started here, if so, and how it is made."""
ENGINES = (*SERVERS, *CLUSTERS)


def made(engine: str) -> Servers:
    """A database that takes writes, in a directory of its own. Raises: ClusterFault, OSError where it cannot be had."""
    if engine in CLUSTERS:
        missing, make = CLUSTERS[engine]
        if why := missing():
            raise OSError(f"no {engine} cluster here: {why}")
        return cluster.up(make)
    return cluster.up(lambda directory: Single(directory / "db", SERVERS[engine]))


def stored_at(database: Servers, kind: str, keys: Sequence[str]) -> dict[str, datetime]:
    """The updated_at of those keys that have a row, from the first server that can tell."""
    failed: MySQLdb.Error = MySQLdb.OperationalError(2003, "no server knows what is committed")
    for number in database.readable():
        try:
            db = _reader(database, number, read_timeout=ANSWER_S)
            try:
                cursor = db.cursor()
                cursor.execute(*select_updated_at(kind, keys))
                return dict(cursor.fetchall())
            finally:
                db.close()
        except MySQLdb.Error as error:
            failed = error
    raise failed


def rows(database: Servers, number: int, kind: str) -> Iterator[tuple[Any, ...]]:
    """Every row of a kind's table, by key, in the form of model.row()."""
    return (fetched(kind, values) for values in _raw(database, number, kind))


def digest(database: Servers, number: int) -> str:
    """Of every byte of both tables but created_at."""
    sha = hashlib.sha256()
    for kind in TABLES:
        for values in _raw(database, number, kind):
            sha.update(repr(values).encode())
    return sha.hexdigest()


def clear(database: Servers) -> None:
    """On a server that takes writes."""
    deletes = [f"DELETE FROM {table}" for table in TABLES.values()]
    database.query(database.readable()[0], *deletes, database=DATABASE)


def _reader(database: Servers, number: int, **options: Any) -> Any:
    db = database.connect(number, **options)
    if database.reads_all:
        db.query(database.reads_all)
    return db


def _raw(database: Servers, number: int, kind: str) -> Iterator[tuple[Any, ...]]:
    db = _reader(database, number, read_timeout=60, cursorclass=MySQLdb.cursors.SSCursor)
    try:
        cursor = db.cursor()
        cursor.execute(f"SELECT {','.join(COLUMNS[kind])} FROM {TABLES[kind]} ORDER BY {','.join(KEYS[kind])}")
        yield from cursor
    finally:
        db.close()
