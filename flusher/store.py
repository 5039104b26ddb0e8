"""Transactions on the database, and what a failure means.

Rules: a Store belongs to one thread (mysqlclient refuses a connection used from two). Every failure is raised as a
StoreError with its class; the transaction is then rolled back, and a doubtful connection closed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import MySQLdb

from flusher import tables
from flusher.connection import Connection, Hosts, hung_up_after, select, takes_writes
from flusher.facts import Facts, gather
from flusher.mysql_errors import NAMES_ONLY, OF_THE_SESSION, ErrorClass, Flavour, classify, unreached
from flusher.sql import MAX_STATEMENT_BYTES, Insert, Rows, inserts
from shared.settings import Database

MIN_PACKET_BYTES = 16 * 1024 * 1024
"""Every accepted record fits into it."""
REFUSED_BY_HOOK = 3100
"""Group Replication refuses a commit: a member that leaves its group is read-only by then; on one that takes writes the
transaction is over group_replication_transaction_size_limit."""
_KEEPS_CONNECTION = {ErrorClass.RETRY, ErrorClass.DATA}
"""After any other error a new connection is made: corrected rights and settings show only there."""
OUTSIDE_CLUSTER = 1047
"""A Galera node without its majority accepts logins and refuses everything else."""
UNREACHED = {2002, 2003, 2005}
"""The client library's messages name the host, but not the port."""
TABLES_NOT_OURS = -2
"""The number of an error that comes from no server."""
LOOK_AGAIN_S = 30.0
"""How often the tables are checked during a connection: somebody may alter them."""
AS_BYTES = "SET SESSION session_track_system_variables='', character_set_client=binary, character_set_connection=binary"
"""Sends texts as the bytes that the columns hold. Of utf8mb4 MariaDB converts each literal to give it a name: an eighth
of an upsert. Not for MySQL, whose JSON takes no bytes. The client library is not told (session_track): Python has no
encoding "binary"."""


class StoreError(Exception):
    """A write did not happen. `public` has no record content and may be logged; `detail` may have."""

    def __init__(self, error_class: ErrorClass, number: int, detail: str) -> None:
        super().__init__(detail)
        self.error_class = error_class
        self.number = number
        self.detail = detail

    @property
    def public(self) -> str:
        # Messages about rows and syntax quote the statement.
        if (self.error_class is ErrorClass.DATA and self.number not in NAMES_ONLY) or self.number == 1064:
            return f"error {self.number} ({self.error_class.value})"
        return f"error {self.number} ({self.error_class.value}): {self.detail}"


class TablesNotOurs(StoreError):
    """The tables would store a wrong or merged value; the operator must act before anything is written."""

    def __init__(self, faults: Sequence[tables.Fault]) -> None:
        super().__init__(ErrorClass.SCHEMA, TABLES_NOT_OURS, f"nothing is written: {tables.summary(faults)}")

    @property
    def public(self) -> str:
        return self.detail


class Store:
    """One connection, made when needed. All public methods block."""

    def __init__(
        self,
        database: Database,
        *,
        connect: Callable[..., Any] = MySQLdb.connect,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._clock = clock
        self._hosts = Hosts(database, connect, clock)
        self._connection: Connection | None = None
        self._checked_at: float | None = None
        """When the tables were last found to be ours, on this connection."""
        self._asked_at = 0.0
        self._losses = 0
        """Connections lost since the host last took a write."""
        self.statements = 0

    @property
    def host(self) -> str:
        return self._hosts.host

    @property
    def version(self) -> str:
        return self._connection.version if self._connection else ""

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def write(self, rows: Rows, ready: Sequence[Insert] | None = None, *, rehearse: bool = False) -> None:
        """Upserts rows in one transaction, sessions before tasks. A rehearsal is rolled back.

        Args: ready: the rows' inserts, if they are made already.
        Raises: StoreError; then nothing is in the database, unless the connection was lost at COMMIT. Writing again is
        harmless either way.
        """
        connection = self._reach()
        db = connection.db
        try:
            with hung_up_after(self._database.read_timeout, connection.peer):
                self._check_tables(connection)
            fitting = self._fitting(connection, rows, ready)
            with hung_up_after(self._database.read_timeout * (len(fitting) + 1), connection.peer):
                for insert in fitting:
                    self._query(db, insert.statement(connection.form))
                self._asked_at = self._clock()
                self.statements += 1
                if rehearse:
                    db.rollback()
                else:
                    db.commit()
            self._losses = 0
        except StoreError:
            self.close()  # a limit that was raised shows only in a new connection
            raise
        except (MySQLdb.Error, ValueError, TypeError, OverflowError) as error:
            raise self._failed(error) from error

    def ping(self) -> None:
        """Checks that the database answers and its tables are ours. Raises: StoreError."""
        connection = self._reach()
        try:
            self._asked_at = self._clock()
            connection.db.ping()
            self._check_tables(connection)
        except MySQLdb.Error as error:
            raise self._failed(error) from error

    def execute(self, statements: Sequence[str], *, database: bool = True) -> None:
        """Runs statements of the schema. Args: database: whether it exists; else they create and USE it.

        Raises: StoreError.
        """
        db = self._reach(database=database).db
        try:
            for statement in statements:
                self._query(db, statement.encode())
        except MySQLdb.Error as error:
            raise self._failed(error) from error

    def change(self, statements: Sequence[str]) -> list[int]:
        """Runs statements in one transaction. Returns: how many rows each has changed.

        Raises: StoreError; nothing is changed then.
        """
        db = self._reach().db
        try:
            changed = []
            for statement in statements:
                self._query(db, statement.encode())
                changed.append(int(db.affected_rows()))
            db.commit()
        except MySQLdb.Error as error:
            raise self._failed(error) from error
        return changed

    def select(self, statement: str) -> list[tuple[Any, ...]]:
        """Raises: StoreError."""
        db = self._reach().db
        try:
            found = select(db, statement)
            db.rollback()
        except MySQLdb.Error as error:
            raise self._failed(error) from error
        return found

    def describe(self) -> Facts:
        """The server and our tables, as far as our user may see them. Raises: StoreError."""
        connection = self._reach()
        try:
            return self._facts(connection)
        except MySQLdb.Error as error:
            raise self._failed(error) from error

    def close(self) -> None:
        connection, self._connection, self._checked_at = self._connection, None, None
        if connection is not None:
            try:
                connection.db.close()
            except MySQLdb.Error:
                pass  # it is gone already

    def _facts(self, connection: Connection) -> Facts:
        found = gather(partial(select, connection.db), self.host, connection.flavour, connection.version)
        connection.db.rollback()
        return found

    def _check_tables(self, connection: Connection) -> None:
        """Invariant 8. Raises: TablesNotOurs, MySQLdb.Error."""
        now = self._clock()
        if self._checked_at is not None and now - self._checked_at < LOOK_AGAIN_S:
            return
        faults = tables.faults(self._facts(connection))
        if not all(fault.harmless for fault in faults):
            self.close()
            raise TablesNotOurs(faults)
        if self._checked_at is None and connection.flavour is Flavour.MARIADB:
            connection.db.query(AS_BYTES)
        self._checked_at = now

    def _reach(self, *, database: bool = True) -> Connection:
        """The connection; a new one if need be. Raises: StoreError, whose cause is never a row."""
        try:
            return self._connected(database=database)
        except MySQLdb.Error as error:
            failed = self._failed(error)
            if failed.error_class in (ErrorClass.DATA, ErrorClass.TOO_BIG):
                failed.error_class = ErrorClass.STORAGE
            raise failed from error
        except (ValueError, TypeError, OverflowError) as error:
            self.close()
            raise StoreError(ErrorClass.UNKNOWN, -1, f"no connection can be made: {error}") from error

    def _connected(self, *, database: bool) -> Connection:
        new = self._hosts.first_again(database=database)
        held = self._connection
        if new is None and held is not None and self._clock() - held.opened_at < self._database.pool_recycle:
            return held
        self.close()
        host = self.host
        self._connection = new or self._hosts.open(database=database)
        if host != self.host:
            self._losses = 0
        return self._connection

    def _query(self, db: Any, statement: bytes) -> None:
        self.statements += 1
        self._asked_at = self._clock()
        db.query(statement)

    @staticmethod
    def _fitting(connection: Connection, rows: Rows, ready: Sequence[Insert] | None) -> Sequence[Insert]:
        """The rows' inserts, each within the server's packet. Raises: StoreError for a row that does not fit."""
        # The packet holds the statement and one byte of command; leave some room for either.
        packet = connection.max_packet_bytes - 1024
        if ready is None or max((insert.size for insert in ready), default=0) > packet:
            ready = inserts(rows, min(packet, MAX_STATEMENT_BYTES))
        longest = max((insert.size for insert in ready), default=0)
        if longest > packet:
            raise StoreError(
                ErrorClass.TOO_BIG,
                1153,
                f"a row makes a statement of {longest} bytes, over the server's max_allowed_packet of"
                f" {connection.max_packet_bytes} bytes; set it to {max(MIN_PACKET_BYTES, 2 * longest)} or more",
            )
        return ready

    def _failed(self, error: Exception) -> StoreError:
        """Classifies an error; rolls back or closes the connection, and moves on to the next host if need be."""
        error_class, number = classify(self._connection.flavour if self._connection else self._hosts.flavour, error)
        if number == REFUSED_BY_HOOK:
            self._rollback()
            if self._connection and takes_writes(self._connection, self._database.connect_timeout):
                error_class = ErrorClass.TOO_BIG
        detail = str(error.args[-1]) if error.args else repr(error)
        if number in UNREACHED:
            detail = unreached(detail, "" if self._database.socket else f", port {self._hosts.peer}")
        silent = self.connected and self._clock() - self._asked_at >= self._database.read_timeout
        if error_class in _KEEPS_CONNECTION and number not in OF_THE_SESSION:
            self._rollback()
        else:
            self.close()
        refuses = error_class is ErrorClass.READ_ONLY or number == OUTSIDE_CLUSTER
        lost = error_class is ErrorClass.RECONNECT
        self._losses += lost
        if refuses or (lost and (silent or self._losses > 1)):
            self._losses = 0
            self._hosts.move_on()
        return StoreError(error_class, number, detail)

    def _rollback(self) -> None:
        if self._connection is not None:
            try:
                self._connection.db.rollback()
            except MySQLdb.Error:
                self.close()


def schema_statements(text: str, database: str) -> list[str]:
    """sql/schema.sql as single statements, its database's name replaced by the configured one."""
    lines = [line for line in text.splitlines() if not line.startswith("--")]
    name = "`" + database.replace("`", "``") + "`"
    statements = "\n".join(lines).replace("ai_terminal", name).split(";")
    return [statement.strip() for statement in statements if statement.strip()]
