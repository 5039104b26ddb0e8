"""Rows -> statements: the merge rule in SQL. Pure: bytes out, no connection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flusher.rows import COLUMNS, Rows
from shared.records import KINDS, Kind

MAX_STATEMENT_ROWS = 1000
MAX_STATEMENT_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Upsert:
    head: bytes
    tail: bytes


def _upsert(kind: Kind) -> Upsert:
    """INSERT whose update leaves a newer stored row alone: the merge rule in SQL.

    updated_at is assigned last: MySQL assigns from left to right, and the guards should see the stored value.
    VALUES() is deprecated on MySQL 8.0.20+, where its successor is a syntax error on MariaDB: the one that both
    take is used.
    """
    columns = COLUMNS[kind]
    updates = [
        f"{name}=IF(VALUES(updated_at)>=updated_at,VALUES({name}),{name})"
        for name in columns
        if name not in (*kind.key, "updated_at")
    ]
    updates.append("updated_at=GREATEST(updated_at,VALUES(updated_at))")
    head = f"INSERT INTO {kind.table} ({','.join(columns)}) VALUES "  # noqa: S608 -- constants from KINDS
    tail = f" ON DUPLICATE KEY UPDATE {','.join(updates)}"
    return Upsert(head.encode(), tail.encode())


UPSERTS = {kind: _upsert(kind) for kind in KINDS}


def statements(rows: Rows, limit: int = MAX_STATEMENT_BYTES) -> list[bytes]:
    """Upserts of sessions first, then of tasks, each within both caps; a row over `limit` bytes has one of its own.

    Raises: ValueError for a row without a form in SQL.
    """
    made: list[bytes] = []
    for kind in KINDS:
        values = [row.values for row in rows.get(kind, ())]
        if not all(values):
            raise ValueError("a value has no form in SQL")
        for first in range(0, len(values), MAX_STATEMENT_ROWS):
            made += _within(limit, UPSERTS[kind], values[first : first + MAX_STATEMENT_ROWS])
    return made


def _within(limit: int, upsert: Upsert, values: Sequence[bytes]) -> list[bytes]:
    """One statement, or where that would be over the limit those of each half."""
    size = len(upsert.head) + sum(map(len, values)) + len("(),") * len(values) - 1 + len(upsert.tail)
    if size <= limit or len(values) == 1:
        return [b"".join((upsert.head, b"(", b"),(".join(values), b")", upsert.tail))]
    middle = len(values) // 2
    return [*_within(limit, upsert, values[:middle]), *_within(limit, upsert, values[middle:])]
