"""Pages -> SELECTs, and rows -> JSON: the only SELECTs of the read side. Pure.

Every statement is one range of one index in the index's own order, so that its cost does not grow with the table and
the server sorts nothing: several statuses are several ranges, merged here, and so are "the same time, a lower key" and
"an earlier time" of a page that is ordered by time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec
import orjson
from msgspec.inspect import DateTimeType, FloatType, IntType, RawType

from reader.pages import Position, Query
from shared.records import SESSIONS, TASKS, Kind

Row = tuple[Any, ...]
"""A row as the driver gives it without converters: texts as str, all else as the server's bytes."""


class Select(msgspec.Struct, frozen=True):
    """One range. `args` are put in by the driver."""

    statement: str
    args: tuple[Any, ...]


def _columns(kind: Kind) -> tuple[str, ...]:
    return (*kind.record.__struct_fields__, "extra", "created_at")


COLUMNS = {kind: _columns(kind) for kind in (SESSIONS, TASKS)}
_LISTS = {kind: ",".join(f"t.{name}" for name in names) for kind, names in COLUMNS.items()}


def one_session(session_id: str) -> Select:
    return Select(f"SELECT {_LISTS[SESSIONS]} FROM {SESSIONS.table} t WHERE session_id=%s", (session_id,))  # noqa: S608


def one_task(session_id: str, task_id: str) -> Select:
    statement = f"SELECT {_LISTS[TASKS]} FROM {TASKS.table} t WHERE session_id=%s AND task_id=%s"  # noqa: S608
    return Select(statement, (session_id, task_id))


def progress(session_id: str) -> tuple[Select, Select]:
    """Status and number of its tasks, from an index alone; and the latest updated_at, along the primary key. One
    statement for both would look up each row of the index: it takes twice as long."""
    counts = (
        f"SELECT status, COUNT(*) FROM {TASKS.table} FORCE INDEX (ix_tasks_session_status)"  # noqa: S608
        " WHERE session_id=%s GROUP BY status"
    )
    latest = f"SELECT MAX(updated_at) FROM {TASKS.table} FORCE INDEX (PRIMARY) WHERE session_id=%s"  # noqa: S608
    return Select(counts, (session_id,)), Select(latest, (session_id,))


def tasks_after(session_id: str, query: Query, position: Position, limit: int) -> list[list[Select]]:
    """A page in the order of task_id. Returns: a range for each status, or one for the batch, or for the session."""
    after = " AND task_id>%s" if position else ""
    tail = f"{after} ORDER BY task_id LIMIT {limit}"
    if query.batch_id is not None:
        among = f" AND status IN ({','.join(['%s'] * len(query.statuses))})" if query.statuses else ""
        args = (session_id, query.batch_id, *query.statuses, *position)
        return [[_select(TASKS, "ix_tasks_batch", f"session_id=%s AND batch_id=%s{among}{tail}", args)]]
    if not query.statuses:
        return [[_select(TASKS, "PRIMARY", f"session_id=%s{tail}", (session_id, *position))]]
    where = f"session_id=%s AND status=%s{tail}"
    index = "ix_tasks_session_status"
    return [[_select(TASKS, index, where, (session_id, status, *position))] for status in query.statuses]


def sessions_before(query: Query, position: Position, limit: int) -> list[list[Select]]:
    """A page in the order of updated_at and session_id, both falling. Returns: for each status the ranges that follow
    each other."""
    found = []
    for status in query.statuses or (None,):
        index = "ix_sessions_updated_at" if status is None else "ix_sessions_status"
        where, args = ("", ()) if status is None else ("status=%s AND ", (status,))
        lowest, low = "", tuple[datetime, ...]()
        if query.updated_after is not None:
            lowest, low = " AND updated_at>%s", (query.updated_after,)
        order = f" ORDER BY updated_at DESC, session_id DESC LIMIT {limit}"
        ranges = []
        if position:
            updated_at, session_id = position
            at = f"{where}updated_at=%s AND session_id<%s"
            ranges.append(_select(SESSIONS, index, at + order, (*args, updated_at, session_id)))
            ranges.append(_select(SESSIONS, index, f"{where}updated_at<%s{lowest}{order}", (*args, updated_at, *low)))
        else:
            latest = query.updated_before or datetime(9999, 12, 31, 23, 59, 59, 999999)
            before = "updated_at<%s" if query.updated_before else "updated_at<=%s"
            ranges.append(_select(SESSIONS, index, f"{where}{before}{lowest}{order}", (*args, latest, *low)))
        found.append(ranges)
    return found


def _select(kind: Kind, index: str, rest: str, args: Iterable[Any]) -> Select:
    # Which index serves is known here; statistics may be hours old.
    statement = f"SELECT {_LISTS[kind]} FROM {kind.table} t FORCE INDEX ({index}) WHERE {rest}"  # noqa: S608
    return Select(statement, tuple(args))


def without(kind: Kind, row: Row, name: str) -> Row:
    """A row without one of its further fields."""
    at = COLUMNS[kind].index("extra")
    if row[at] is None:
        return row
    extra = {key: value for key, value in orjson.loads(row[at]).items() if key != name}
    return (*row[:at], orjson.dumps(extra), *row[at + 1 :])


def time_text(value: bytes) -> str:
    """A time as records have it."""
    return f"{value[:10].decode()}T{value[11:].decode()}Z"


class Encoder:
    """Rows of a kind -> records as JSON, with all their fields or some.

    Column by column, which takes a fifth of what a dict for each row does. Further fields that a record was sent with
    are fields of it again; they stand first, so that one that has become a column's name since gives way to it.
    """

    def __init__(self, kind: Kind, fields: Sequence[str] = ()) -> None:
        times = {*kind.fields_of(DateTimeType), "created_at"}
        as_they_are = {*kind.fields_of(IntType, FloatType, RawType)}
        self._extra_at = COLUMNS[kind].index("extra")
        self._columns = [
            (at, _times if name in times else _as_they_are if name in as_they_are else _texts)
            for at, name in enumerate(COLUMNS[kind])
            if name != "extra" and (not fields or name in fields)
        ]
        names = [COLUMNS[kind][at] for at, _ in self._columns]
        self._own = frozenset(fields).difference(names) if fields else None
        """Names of further fields that are wanted; None for all."""
        self._template = b"{%b" + b",".join(b'"%b":%%b' % name.encode() for name in names) + b"}"

    def encode(self, rows: Sequence[Row]) -> list[bytes]:
        """Each record as JSON."""
        if not rows:
            return []
        columns = list(zip(*rows, strict=True))
        encoded = [encode(columns[at]) for at, encode in self._columns]
        return [
            self._template % values for values in zip(self._further(columns[self._extra_at]), *encoded, strict=True)
        ]

    def _further(self, column: Sequence[Any]) -> list[bytes]:
        """The fields of `extra`, with a comma behind them."""
        found = [b"" if value is None or self._own == frozenset() else _chosen(value, self._own) for value in column]
        comma = b"," if self._columns else b""
        return [value and value + comma for value in found]


def _chosen(extra: bytes | str, names: frozenset[str] | None) -> bytes:
    """An object's fields without its braces. Args: names: of the fields wanted; None for all."""
    text = extra.encode() if isinstance(extra, str) else extra
    if names is not None:
        text = orjson.dumps({name: value for name, value in orjson.loads(text).items() if name in names})
    return text.strip()[1:-1].strip()


_encode = msgspec.json.Encoder().encode
"""For single texts half as slow as orjson, which takes 4 KiB of memory for each."""


def _texts(column: Sequence[Any]) -> list[bytes]:
    return list(map(_encode, column))


def _as_they_are(column: Sequence[Any]) -> list[bytes]:
    """Of numbers and JSON."""
    return [b"null" if value is None else value.encode() if type(value) is str else value for value in column]


def _times(column: Sequence[Any]) -> list[bytes]:
    return [b"null" if value is None else b'"%bT%bZ"' % (value[:10], value[11:]) for value in column]
