"""A connection that only reads: short transactions, a time limit for each statement, the next host where one is away.

Rules: one Database belongs to one thread at a time; everything here blocks for as long as the database does, at most
`timeout_s` a statement.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import MySQLdb

from reader.queries import Row, Select
from shared import settings
from shared.database import TlsFileUnreadable, connect_options, host_options

MAX_BYTES = 1024 * 1024
"""Of one fetch, as the server sends it; a page ends there. A single row may be larger."""
_CONNECT_TIMEOUT_S = 2
_SLACK_S = 2
"""How much longer than the server's own limit an answer is waited for."""
_BEGIN = "START TRANSACTION READ ONLY"
_OVER_TIME = 3024
_TOO_SLOW = {1969, _OVER_TIME}
_LOST = 2013
"""The server ended, or did not keep to its limit."""
_TABLES_OR_RIGHTS = {1044, 1045, 1049, 1054, 1142, 1143, 1146, 1176}


class ReadFailed(Exception):
    """The database gives no answer now. `detail` may be shown to callers: it holds no record content."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Database:
    """Args: settings: how to connect; timeout_s: of a statement."""

    def __init__(self, settings: settings.Database, *, timeout_s: float) -> None:
        self._settings = settings
        self._addresses = host_options(settings)
        self._timeout_s = timeout_s
        self._db: Any = None
        self._opened_at = 0.0

    def fetch(self, groups: Sequence[Sequence[Select]], limit: int) -> list[tuple[list[Row], bool]]:
        """Reads each group's ranges one after the other, all in one snapshot.

        Returns: for each group at most `limit` rows, and whether there may be more.
        Raises: ReadFailed, after at most twice `timeout_s` and the time to connect.
        """
        begun_at = time.monotonic()
        try:
            first, *others = [select for ranges in groups for select in ranges]
            db = self._ask(None if others else first)
            give_up_at = time.monotonic() + self._timeout_s
            found = []
            for ranges in groups:
                found.append(self._read(db, ranges, limit, MAX_BYTES // len(groups), asked=not others))
                if time.monotonic() > give_up_at:
                    raise MySQLdb.OperationalError(_OVER_TIME)
            if others:
                db.commit()
            return found
        except MySQLdb.Error as error:
            self.close()
            raise _failed(_number(error), self._timeout_s, time.monotonic() - begun_at) from error
        except BaseException:
            self.close()  # an answer of which a part is unread
            raise

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _ask(self, alone: Select | None) -> Any:
        """A connection with a transaction open; or asked for one range, which alone needs none. One that the server has
        closed while it was idle is made anew."""
        if time.monotonic() - self._opened_at > self._settings.pool_recycle:
            self.close()
        if self._db is not None:
            asked_at = time.monotonic()
            try:
                self._db.query(_put_in(self._db, alone) if alone else _BEGIN)
                return self._db
            except MySQLdb.Error as error:
                self.close()
                if _number(error) in _TOO_SLOW or time.monotonic() - asked_at > _CONNECT_TIMEOUT_S:
                    raise
        self._db = self._open()
        self._opened_at = time.monotonic()
        self._db.query(_put_in(self._db, alone) if alone else _BEGIN)
        return self._db

    @staticmethod
    def _read(db: Any, ranges: Sequence[Select], limit: int, max_bytes: int, *, asked: bool) -> tuple[list[Row], bool]:
        rows: list[Row] = []
        size = 0
        for select in ranges:
            if size > max_bytes or len(rows) >= limit:
                return rows[:limit], True
            if not asked:
                db.query(_put_in(db, select))
            result = db.use_result()
            while some := result.fetch_row(10):
                if size <= max_bytes:  # the server sends the others all the same: nobody keeps them
                    rows += some
                    size += sum(sum(map(len, filter(None, row))) for row in some)
        return rows[:limit], size > max_bytes or len(rows) >= limit

    def _open(self) -> Any:
        """The first host that answers; the others are asked after it from now on."""
        for _ in self._addresses[1:]:
            try:
                return self._open_at(self._addresses[0])
            except MySQLdb.OperationalError:
                self._addresses.append(self._addresses.pop(0))
        return self._open_at(self._addresses[0])

    def _open_at(self, address: dict[str, Any]) -> Any:
        try:
            options = connect_options(self._settings)
        except TlsFileUnreadable as error:
            raise ReadFailed("DATABASE_UNAVAILABLE", str(error)) from error
        db = MySQLdb.connect(
            **options,
            **address,
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=int(self._timeout_s) + _SLACK_S,
            write_timeout=int(self._timeout_s) + _SLACK_S,
            conv={},
        )
        try:
            limit = (
                f"max_statement_time={self._timeout_s}"
                if "mariadb" in db.get_server_info().lower()
                else f"max_execution_time={max(1, int(1000 * self._timeout_s))}"
            )
            db.query(f"SET SESSION {limit}, time_zone='+00:00'")
            db.query("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            db.autocommit(True)  # a range alone leaves no snapshot open
        except BaseException:
            db.close()
            raise
        return db


def _number(error: MySQLdb.Error) -> int:
    return error.args[0] if error.args and isinstance(error.args[0], int) else -1


def _put_in(db: Any, select: Select) -> bytes:
    args = tuple(db.string_literal(str(value).encode()) for value in select.args)
    return select.statement.encode() % args


def _failed(number: int, timeout_s: float, took_s: float) -> ReadFailed:
    if number in _TOO_SLOW or (number == _LOST and took_s > timeout_s):
        return ReadFailed("READ_TOO_SLOW", f"the database took longer than {timeout_s:g} s (read.timeout)")
    if number in _TABLES_OR_RIGHTS:
        text = f"tables or rights do not fit ({number}); ./scripts/ctl.sh db check says what to do"
        return ReadFailed("READ_NOT_POSSIBLE", text)
    return ReadFailed("DATABASE_UNAVAILABLE", f"the database does not answer ({number})")
