"""Connections to the database: hosts in turn, logins, session settings, and a deadline for everything.

Rules: for one thread. All functions block, and raise MySQLdb.Error.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import MySQLdb

from flusher.facts import SESSION
from flusher.mysql_errors import LOGIN_REFUSED, ErrorClass, Flavour, classify
from flusher.sql import Form, form_of
from shared.database import TlsFileUnreadable, connect_options, host_options
from shared.records import KINDS
from shared.settings import Database

LOCK_WAIT_S = 10
RETURN_S = 30.0
"""How often the first host is tried again while another is in use."""
RETURN_CONNECT_S = 1
LOGIN_AGAIN_S, LOGIN_AGAIN_AT_MOST_S = 60.0, 600.0
"""Pauses after a refused login: MySQL's FAILED_LOGIN_ATTEMPTS would lock the account."""
_SESSION = ", ".join(
    (
        *(f"{name}='{value}'" for name, value in SESSION.items()),
        f"innodb_lock_wait_timeout={LOCK_WAIT_S}, lock_wait_timeout={LOCK_WAIT_S}",
        f"completion_type='NO_CHAIN', sql_select_limit={2**64 - 1}, sql_big_selects=1",
    )
)
"""Every server setting that our statements depend on."""


@dataclass(frozen=True, slots=True)
class Connection:
    """`peer`: the TCP port, or the path of the socket."""

    db: Any
    peer: str | int
    opened_at: float
    version: str
    flavour: Flavour
    form: Form
    max_packet_bytes: int


class Hosts:
    """The hosts of the database, one of them in use."""

    def __init__(self, database: Database, connect: Callable[..., Any], clock: Callable[[], float]) -> None:
        self._database = database
        self._addresses = host_options(database)
        self._connect = connect
        self._clock = clock
        self._current = 0
        self.flavour = Flavour.MARIADB
        """Of the server that answered last."""
        self._looked_back_at = 0.0
        self._refused: dict[int, tuple[float, float, tuple[Any, ...]]] = {}
        """Refused logins by host: when to try again, the pause after that, the error."""

    @property
    def host(self) -> str:
        return self._database.socket or self._database.host[self._current]

    @property
    def peer(self) -> str | int:
        return self._peer(self._current)

    def open(self, *, database: bool) -> Connection:
        """Connects to the host in use, or to the next one that takes writes; to the last one in any case."""
        for _ in self._addresses[1:]:
            try:
                connection = self._open(self._current, database=database)
                if takes_writes(connection, self._database.connect_timeout, tables=database):
                    return connection
                connection.db.close()
            except MySQLdb.Error:
                pass
            self.move_on()
        return self._open(self._current, database=database)

    def move_on(self) -> None:
        if len(self._addresses) > 1:
            self._current = (self._current + 1) % len(self._addresses)
            self._looked_back_at = self._clock()

    def first_again(self, *, database: bool) -> Connection | None:
        """While another host is in use: returns to the first one if that takes writes."""
        if not self._current or self._clock() - self._looked_back_at < RETURN_S:
            return None
        try:
            first = self._open(0, database=database, connect_timeout_s=RETURN_CONNECT_S)
        except MySQLdb.Error:
            first = None
        if first is not None:
            if takes_writes(first, RETURN_CONNECT_S):
                self._current = 0
                return first
            first.db.close()
        self._looked_back_at = self._clock()
        return None

    def _peer(self, host: int) -> str | int:
        return self._database.socket or self._addresses[host]["port"]

    def _open(self, host: int, *, database: bool, connect_timeout_s: int | None = None) -> Connection:
        """Connects and sets the session up within twice the connect timeout."""
        again_at, wait_s, said = self._refused.get(host, (0.0, LOGIN_AGAIN_S, ()))
        if said and self._clock() < again_at:
            raise MySQLdb.OperationalError(*said)
        timeout_s = connect_timeout_s or self._database.connect_timeout
        try:
            with hung_up_after(2 * timeout_s, self._peer(host)):
                connection = self._enter(host, timeout_s, database=database)
        except MySQLdb.Error as error:
            if LOGIN_REFUSED.intersection(error.args[:1]):
                self._refused[host] = self._clock() + wait_s, min(2 * wait_s, LOGIN_AGAIN_AT_MOST_S), error.args
            raise
        self._refused.pop(host, None)
        return connection

    def _enter(self, host: int, connect_timeout_s: int, *, database: bool) -> Connection:
        try:
            options = connect_options(self._database)
        except TlsFileUnreadable as error:
            raise MySQLdb.OperationalError(2026, str(error)) from error
        if not database:
            del options["db"]
        db = self._connect(
            **options,
            **self._addresses[host],
            connect_timeout=connect_timeout_s,
            read_timeout=self._database.read_timeout,
            write_timeout=self._database.write_timeout,
        )
        try:
            version = db.get_server_info()
            self.flavour = flavour = Flavour.MARIADB if "mariadb" in version.lower() else Flavour.MYSQL
            db.query(f"SET SESSION {_SESSION}")
            ((packet,),) = select(db, "SELECT @@max_allowed_packet")
            form = form_of(flavour, version)
            return Connection(db, self._peer(host), self._clock(), version, flavour, form, int(packet))
        except BaseException:
            db.close()
            raise


def takes_writes(connection: Connection, timeout_s: float, *, tables: bool = True) -> bool:
    """Whether a host is not read-only, and inside its cluster's majority: else it refuses to read the table.

    A lock on the table, its absence or a missing right is no fault of the host.
    """
    rows = f"(SELECT COUNT(*) FROM {KINDS[0].table} WHERE FALSE)" if tables else "0"  # noqa: S608 -- a constant
    try:
        with hung_up_after(timeout_s, connection.peer):
            connection.db.query(f"SET SESSION lock_wait_timeout={1 if tables else LOCK_WAIT_S}")
            ((read_only, _),) = select(connection.db, f"SELECT @@read_only, {rows}")
            connection.db.rollback()
            connection.db.query(f"SET SESSION lock_wait_timeout={LOCK_WAIT_S}")
    except MySQLdb.Error as error:
        of_table = classify(connection.flavour, error)[0] in (ErrorClass.RETRY, ErrorClass.SCHEMA)
        return tables and of_table and takes_writes(connection, timeout_s, tables=False)
    return str(read_only) in ("0", "OFF")  # MariaDB 12 has words for it


def select(db: Any, statement: str) -> list[tuple[Any, ...]]:
    """All rows. On MySQL 8 information_schema gives some of its texts as bytes; they are decoded."""
    db.query(statement)
    rows: tuple[tuple[Any, ...], ...] = db.store_result().fetch_row(0)
    return [tuple(value.decode() if isinstance(value, bytes) else value for value in row) for row in rows]


@contextmanager
def hung_up_after(seconds: float, peer: str | int) -> Iterator[None]:
    """A deadline for a block: our connections to `peer` are then shut down, as if the server had gone.

    The client library's own timeouts start anew with every byte that arrives.
    """
    timer = threading.Timer(seconds, _hang_up, (peer,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _hang_up(peer: str | int) -> None:
    for entry in Path("/proc/self/fd").iterdir():
        try:
            connection = socket.socket(fileno=int(entry.name))
        except OSError:
            continue  # no socket, or closed meanwhile
        try:
            address = connection.getpeername()
            if peer == (address[1] if isinstance(address, tuple) else address):
                connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # not connected
        finally:
            connection.detach()  # the client library closes it
