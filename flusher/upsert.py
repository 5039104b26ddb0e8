"""Rows -> statements: the merge rule in SQL. Pure: bytes out, no connection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flusher.rows import COLUMNS, Row, Rows
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
        if name not in (kind.key, "updated_at")
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
    return [statement for kind in KINDS for statement in _of_kind(UPSERTS[kind], rows.get(kind, ()), limit)]


def _of_kind(upsert: Upsert, rows: Sequence[Row], limit: int) -> list[bytes]:
    fixed = len(upsert.head) + len(upsert.tail)
    made: list[bytes] = []
    values: list[bytes] = []
    size = fixed
    for row in rows:
        value = row.values
        if not value:
            raise ValueError("a value has no form in SQL")
        if values and (size + len(value) + 1 > limit or len(values) >= MAX_STATEMENT_ROWS):
            made.append(upsert.head + b",".join(values) + upsert.tail)
            values, size = [], fixed
        values.append(value)
        size += len(value) + 1
    if values:
        made.append(upsert.head + b",".join(values) + upsert.tail)
    return made
