"""Pages -> SELECTs, and rows -> JSON: the only SELECTs of the read side. Pure.

Every statement is one range of one index in the index's own order, so that its cost does not grow with the table and
the server sorts nothing: several statuses are several ranges, merged here, and so are "the same time, a lower key" and
"an earlier time" of a page that is ordered by time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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


def progress(session_id: str) -> Select:
    """Rows: status, number of tasks, latest updated_at."""
    statement = (
        f"SELECT status, COUNT(*), MAX(updated_at) FROM {TASKS.table}"  # noqa: S608
        " FORCE INDEX (ix_tasks_session_status) WHERE session_id=%s GROUP BY status"
    )
    return Select(statement, (session_id,))


def tasks_after(session_id: str, query: Query, position: Position, limit: int) -> list[Select]:
    """A page in the order of task_id: one range for each status, or for the batch, or for the whole session."""
    where, args = "session_id=%s", [session_id]
    index = "PRIMARY"
    if query.batch_id is not None:
        where, index = f"{where} AND batch_id=%s", "ix_tasks_batch"
        args.append(query.batch_id)
    after = " AND task_id>%s" if position else ""
    tail = f"{after} ORDER BY task_id LIMIT {limit}"
    if not query.statuses or query.batch_id is not None:
        among = ""
        if query.statuses:
            among = f" AND status IN ({','.join(['%s'] * len(query.statuses))})"
        values = (*args, *query.statuses, *position) if query.statuses else (*args, *position)
        return [_select(TASKS, index, where + among + tail, values)]
    return [
        _select(TASKS, "ix_tasks_session_status", f"{where} AND status=%s{tail}", (*args, status, *position))
        for status in query.statuses
    ]


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


class Encoder:
    """Rows of a kind -> records as JSON, with all their fields or some."""

    def __init__(self, kind: Kind, fields: Sequence[str] = ()) -> None:
        self._fields = frozenset(fields)
        times = {*kind.fields_of(DateTimeType), "created_at"}
        convert: dict[str, Callable[[Any], Any]] = {
            **dict.fromkeys(times, _time),
            **dict.fromkeys(kind.fields_of(IntType, FloatType), orjson.Fragment),
            **dict.fromkeys(kind.fields_of(RawType), orjson.Fragment),
        }
        self._columns = [(name, convert.get(name)) for name in COLUMNS[kind]]
        self._extra_at = COLUMNS[kind].index("extra")

    def encode(self, row: Row) -> bytes:
        """One record as JSON. Further fields that it was sent with are fields of it again."""
        record = {
            name: value if value is None or convert is None else convert(value)
            for (name, convert), value in zip(self._columns, row, strict=True)
        }
        del record["extra"]
        extra = row[self._extra_at]
        if extra is not None:
            record = {**orjson.loads(extra), **record}
        if self._fields:
            record = {name: value for name, value in record.items() if name in self._fields}
        return orjson.dumps(record)


def _time(value: bytes | str) -> str:
    text = value if isinstance(value, str) else value.decode()
    return f"{text[:10]}T{text[11:]}Z"


time_text = _time
