"""The only place that talks to MySQL: connection, transaction, and what a failure means.

Rules: a Store belongs to one thread (mysqlclient refuses a connection used from two). Every failure comes out as a
StoreError with its class; the transaction is then rolled back and, where the connection is in doubt, closed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import MySQLdb

from flusher import tables
from flusher.facts import SESSION, Facts, gather
from flusher.hanging import hung_up_after
from flusher.mysql_errors import LOGIN_REFUSED, NAMES_ONLY, OF_THE_SESSION, ErrorClass, Flavour, classify
from flusher.rows import Rows
from flusher.upsert import MAX_STATEMENT_BYTES, Form, Insert, form_of, inserts
from shared.config import address
from shared.records import KINDS

LOCK_WAIT_S = 10
MIN_PACKET_BYTES = 16 * 1024 * 1024
"""What every accepted record fits in."""

REFUSED_BY_HOOK = 3100
"""Group Replication lets nothing be committed: a member that is leaving its group is read-only by then, one that takes
writes has met a transaction over group_replication_transaction_size_limit."""
_KEEPS_CONNECTION = {ErrorClass.RETRY, ErrorClass.DATA}
"""After anything else a new connection is made: rights and settings that were mended show only there."""

OUTSIDE_CLUSTER = 1047
"""A Galera node without its majority: it lets us in, and refuses everything."""
RETURN_S = 30.0
"""How often a store that had to move on looks whether the first host takes writes again."""
RETURN_CONNECT_S = 1
LOGIN_AGAIN_S, LOGIN_AGAIN_AT_MOST_S = 60.0, 600.0
"""After a refused login: MySQL's FAILED_LOGIN_ATTEMPTS would lock the account, and the right password out with it."""

UNREACHED = {2002, 2003, 2005}
"""The client library says which host it cannot reach, not at which port."""
TABLES_NOT_OURS = -2
"""The number of an error that is no server's."""
LOOK_AGAIN_S = 30.0
"""How often the tables are compared with sql/schema.sql while a connection lasts: somebody may alter them."""

_SESSION = ", ".join(
    (
        *(f"{name}='{value}'" for name, value in SESSION.items()),
        f"innodb_lock_wait_timeout={LOCK_WAIT_S}, lock_wait_timeout={LOCK_WAIT_S}",
        f"completion_type='NO_CHAIN', sql_select_limit={2**64 - 1}, sql_big_selects=1",
    )
)
"""Whatever settings of the server our statements depend on."""
AS_BYTES = "SET SESSION session_track_system_variables='', character_set_client=binary, character_set_connection=binary"
"""Texts are sent as the bytes that the columns hold, and are checked when they are stored. MariaDB converts each text
that it is told to be utf8mb4, to give it a name: an eighth of an upsert. Not for MySQL, whose JSON takes no bytes. The
client library is not told (session_track), since Python knows no encoding "binary"."""


@dataclass(frozen=True, slots=True)
class Server:
    """How to reach and enter the database; `hosts` are tried in turn, the first preferred. Timeouts in seconds."""

    hosts: tuple[str, ...]
    port: int
    socket: str | None
    user: str
    password: str
    database: str
    connect_timeout_s: int
    read_timeout_s: int
    write_timeout_s: int
    recycle_s: float
    ssl_mode: str | None = None
    ssl_ca: str | None = None
    ssl_cert: str | None = None
    ssl_key: str | None = None


class StoreError(Exception):
    """A write did not happen. `public` has no record content and may be logged; `detail` may have."""

    def __init__(self, error_class: ErrorClass, number: int, detail: str) -> None:
        super().__init__(detail)
        self.error_class = error_class
        self.number = number
        self.detail = detail

    @property
    def public(self) -> str:
        # Messages about rows and syntax quote what was sent.
        if (self.error_class is ErrorClass.DATA and self.number not in NAMES_ONLY) or self.number == 1064:
            return f"error {self.number} ({self.error_class.value})"
        return f"error {self.number} ({self.error_class.value}): {self.detail}"


class TablesNotOurs(StoreError):
    """The tables would store a wrong or merged value: nothing is written before an operator has mended them."""

    def __init__(self, faults: Sequence[tables.Fault]) -> None:
        super().__init__(ErrorClass.SCHEMA, TABLES_NOT_OURS, f"nothing is written: {tables.summary(faults)}")

    @property
    def public(self) -> str:
        return self.detail


class Store:
    """One connection, made when needed."""

    def __init__(
        self,
        server: Server,
        *,
        connect: Callable[..., Any] = MySQLdb.connect,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._connect = connect
        self._clock = clock
        self._host = 0
        self._db: Any = None
        self._connected_at = 0.0
        self._looked_at: float | None = None
        """When the tables were found to be ours, over the present connection."""
        self._asked_at = 0.0
        self._looked_back_at = 0.0
        self._flavour = Flavour.MARIADB
        self._form = Form.VALUES
        self._max_packet_bytes = 0
        self._losses = 0
        """Connections to the present host that were lost since it last took a write."""
        self._refused: dict[int, tuple[float, float, tuple[Any, ...]]] = {}
        """Logins by host: when it is asked again, how long that takes the next time, and what it said."""
        self.statements = 0
        self.version = ""

    @property
    def host(self) -> str:
        return self._server.socket or self._server.hosts[self._host]

    @property
    def connected(self) -> bool:
        return self._db is not None

    def write(self, rows: Rows, ready: Sequence[Insert] | None = None, *, rehearse: bool = False) -> None:
        """Upserts rows in one transaction: sessions first, then tasks. Blocks. A rehearsal is rolled back.

        Args: ready: the rows' inserts, where somebody has made them already.
        Raises: StoreError; then nothing of it is in the database, except after a connection lost at COMMIT, when
        nobody knows. Writing it again is harmless either way.
        """
        db = self._reach()
        try:
            with hung_up_after(self._server.read_timeout_s, self._peer):
                self._look_at_tables(db)
            fitting = self._fitting(rows, ready)
            with hung_up_after(self._server.read_timeout_s * (len(fitting) + 1), self._peer):
                for insert in fitting:
                    self._query(db, insert.statement(self._form))
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
        """Finds out whether the database answers and its tables are ours. Blocks. Raises: StoreError."""
        db = self._reach()
        try:
            self._asked_at = self._clock()
            db.ping()
            self._look_at_tables(db)
        except MySQLdb.Error as error:
            raise self._failed(error) from error

    def execute(self, statements: Sequence[str], *, database: bool = True) -> None:
        """Runs statements of ours (the schema). Blocks. Raises: StoreError.

        Args: database: whether it is there already; else they make and USE it.
        """
        db = self._reach(database=database)
        try:
            for statement in statements:
                self._query(db, statement.encode())
        except MySQLdb.Error as error:
            raise self._failed(error) from error

    def change(self, statements: Sequence[str]) -> list[int]:
        """Runs statements of ours in one transaction. Blocks. Returns: how many rows each has changed.

        Raises: StoreError; nothing is changed then.
        """
        db = self._reach()
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
        """The rows of a question of ours. Blocks. Raises: StoreError."""
        db = self._reach()
        try:
            found = _select(db, statement)
            db.rollback()
        except MySQLdb.Error as error:
            raise self._failed(error) from error
        return found

    def describe(self) -> Facts:
        """The server and our tables, as far as our user may see them. Blocks. Raises: StoreError."""
        db = self._reach()
        try:
            return self._facts(db)
        except MySQLdb.Error as error:
            raise self._failed(error) from error

    def close(self) -> None:
        db, self._db, self._looked_at = self._db, None, None
        if db is not None:
            try:
                db.close()
            except MySQLdb.Error:
                pass  # it is gone already

    def _facts(self, db: Any) -> Facts:
        found = gather(partial(_select, db), self.host, self._flavour, self.version)
        db.rollback()
        return found

    def _look_at_tables(self, db: Any) -> None:
        """Invariant 8. Raises: TablesNotOurs, MySQLdb.Error."""
        now = self._clock()
        if self._looked_at is not None and now - self._looked_at < LOOK_AGAIN_S:
            return
        faults = tables.faults(self._facts(db))
        if not all(fault.harmless for fault in faults):
            self.close()
            raise TablesNotOurs(faults)
        if self._looked_at is None and self._flavour is Flavour.MARIADB:
            db.query(AS_BYTES)
        self._looked_at = now

    def _reach(self, *, database: bool = True) -> Any:
        """A connection. Raises: StoreError, of which no row is the cause."""
        try:
            return self._connection(database=database)
        except MySQLdb.Error as error:
            failed = self._failed(error)
            if failed.error_class in (ErrorClass.DATA, ErrorClass.TOO_BIG):
                failed.error_class = ErrorClass.STORAGE
            raise failed from error
        except (ValueError, TypeError, OverflowError) as error:
            self.close()
            raise StoreError(ErrorClass.UNKNOWN, -1, f"no connection can be made: {error}") from error

    def _connection(self, *, database: bool) -> Any:
        now = self._clock()
        if self._host and now - self._looked_back_at >= RETURN_S:
            self._look_back(database=database)
        if self._db is not None and now - self._connected_at < self._server.recycle_s:
            return self._db
        self.close()
        hosts = 1 if self._server.socket else len(self._server.hosts)
        for left in reversed(range(hosts)):
            try:
                self._db = self._open(database=database)
                if not left or self._takes_writes(self._db, self._server.connect_timeout_s, tables=database):
                    break
                self.close()
            except MySQLdb.Error:
                if not left:
                    raise
            self._move_on()
        self._connected_at = self._clock()
        return self._db

    def _move_on(self) -> None:
        self._losses = 0
        self._host = (self._host + 1) % len(self._server.hosts)
        self._looked_back_at = self._clock()

    def _look_back(self, *, database: bool) -> None:
        """Goes back to the first host if it takes writes; else all stays as it is."""
        before = (self._host, self.version, self._flavour, self._form, self._max_packet_bytes)
        self._host = 0
        try:
            db = self._open(database=database, connect_timeout_s=RETURN_CONNECT_S)
        except MySQLdb.Error:
            db = None
        if db is not None:
            if self._takes_writes(db, RETURN_CONNECT_S, tables=True):
                self.close()
                self._db = db
                self._connected_at = self._clock()
                return
            db.close()
        self._host, self.version, self._flavour, self._form, self._max_packet_bytes = before
        self._looked_back_at = self._clock()

    def _takes_writes(self, db: Any, timeout_s: float, *, tables: bool) -> bool:
        """Whether the host is not read-only, and inside its cluster's majority, where it gives its tables' rows."""
        rows = f"(SELECT COUNT(*) FROM {KINDS[0].table} WHERE FALSE)" if tables else "0"  # noqa: S608 -- a constant
        try:
            with hung_up_after(timeout_s, self._peer):
                ((read_only, _),) = _select(db, f"SELECT @@read_only, {rows}")
                db.rollback()
        except MySQLdb.Error:
            return False
        return str(read_only) in ("0", "OFF")  # MariaDB 12 has words for it

    @property
    def _peer(self) -> str | int:
        return self._server.socket or address(self._server.hosts[self._host], self._server.port)[1]

    def _open(self, *, database: bool, connect_timeout_s: int | None = None) -> Any:
        """A connection to the present host, ready for use, within twice the connect timeout."""
        again_at, wait_s, said = self._refused.get(self._host, (0.0, LOGIN_AGAIN_S, ()))
        if said and self._clock() < again_at:
            raise MySQLdb.OperationalError(*said)
        timeout_s = connect_timeout_s or self._server.connect_timeout_s
        try:
            with hung_up_after(2 * timeout_s, self._peer):
                db = self._enter(timeout_s, database=database)
        except MySQLdb.Error as error:
            if LOGIN_REFUSED.intersection(error.args[:1]):
                self._refused[self._host] = self._clock() + wait_s, min(2 * wait_s, LOGIN_AGAIN_AT_MOST_S), error.args
            raise
        self._refused.pop(self._host, None)
        return db

    def _enter(self, connect_timeout_s: int, *, database: bool) -> Any:
        server = self._server
        options: dict[str, Any] = {
            "user": server.user,
            "passwd": server.password,
            "connect_timeout": connect_timeout_s,
            "read_timeout": server.read_timeout_s,
            "write_timeout": server.write_timeout_s,
            "charset": "utf8mb4",
            "autocommit": False,
            "local_infile": 0,
            "multi_statements": False,
        }
        if database:
            options["db"] = server.database
        if server.socket:
            options["unix_socket"] = server.socket
        else:
            host, options["port"] = address(server.hosts[self._host], server.port)
            # The client library would take "localhost" for a socket of its own choice.
            options["host"] = "127.0.0.1" if host == "localhost" else host
        if server.ssl_mode:
            options["ssl_mode"] = server.ssl_mode
        ssl = {"ca": server.ssl_ca, "cert": server.ssl_cert, "key": server.ssl_key}
        if any(ssl.values()):
            options["ssl"] = {name: _readable(f"ssl_{name}", value) for name, value in ssl.items() if value}
        db = self._connect(**options)
        try:
            self.version = db.get_server_info()
            self._flavour = Flavour.MARIADB if "mariadb" in self.version.lower() else Flavour.MYSQL
            self._form = form_of(self._flavour, self.version)
            db.query(f"SET SESSION {_SESSION}")
            db.query("SELECT @@max_allowed_packet")
            self._max_packet_bytes = int(db.store_result().fetch_row()[0][0])
        except BaseException:
            db.close()
            raise
        return db

    def _query(self, db: Any, statement: bytes) -> None:
        self.statements += 1
        self._asked_at = self._clock()
        db.query(statement)

    def _fitting(self, rows: Rows, ready: Sequence[Insert] | None) -> Sequence[Insert]:
        """The rows' inserts, each within the server's packet. Raises: StoreError for a row that is not."""
        # The packet holds the statement and one byte of command; leave some room for either.
        packet = self._max_packet_bytes - 1024
        if ready is None or max((insert.size for insert in ready), default=0) > packet:
            ready = inserts(rows, min(packet, MAX_STATEMENT_BYTES))
        longest = max((insert.size for insert in ready), default=0)
        if longest > packet:
            raise StoreError(
                ErrorClass.TOO_BIG,
                1153,
                f"a row makes a statement of {longest} bytes, over the server's max_allowed_packet of"
                f" {self._max_packet_bytes} bytes; set it to {max(MIN_PACKET_BYTES, 2 * longest)} or more",
            )
        return ready

    def _failed(self, error: Exception) -> StoreError:
        error_class, number = classify(self._flavour, error)
        if number == REFUSED_BY_HOOK:
            self._rollback()
            if self._db and self._takes_writes(self._db, self._server.connect_timeout_s, tables=True):
                error_class = ErrorClass.TOO_BIG
        detail = str(error.args[-1]) if error.args else repr(error)
        if number in UNREACHED and not self._server.socket:
            detail += f", port {self._peer}"
        silent = self._db is not None and self._clock() - self._asked_at >= self._server.read_timeout_s
        if error_class in _KEEPS_CONNECTION and number not in OF_THE_SESSION:
            self._rollback()
        else:
            self.close()
        refuses = error_class is ErrorClass.READ_ONLY or number == OUTSIDE_CLUSTER
        lost = error_class is ErrorClass.RECONNECT
        self._losses += lost
        if (refuses or (lost and (silent or self._losses > 1))) and not self._server.socket:
            self._move_on()
        return StoreError(error_class, number, detail)

    def _rollback(self) -> None:
        if self._db is not None:
            try:
                self._db.rollback()
            except MySQLdb.Error:
                self.close()


def _readable(setting: str, path: str) -> str:
    """Raises: MySQLdb.Error, which names the file; the client library's does not."""
    try:
        with Path(path).open("rb"):
            return path
    except OSError as error:
        raise MySQLdb.OperationalError(2026, f"database.{setting} = {path}: {error.strerror}") from error


def _select(db: Any, statement: str) -> list[tuple[Any, ...]]:
    db.query(statement)
    rows: tuple[tuple[Any, ...], ...] = db.store_result().fetch_row(0)
    return [tuple(_plain(value) for value in row) for row in rows]


def _plain(value: Any) -> Any:
    """information_schema gives some of its texts as bytes on MySQL 8."""
    return value.decode() if isinstance(value, bytes) else value


def schema_statements(text: str, database: str) -> list[str]:
    """sql/schema.sql as single statements, its database's name replaced by the configured one."""
    lines = [line for line in text.splitlines() if not line.startswith("--")]
    name = "`" + database.replace("`", "``") + "`"
    statements = "\n".join(lines).replace("ai_terminal", name).split(";")
    return [statement.strip() for statement in statements if statement.strip()]
