"""Rows -> statements: the merge rule in SQL. Pure: bytes out, no connection.

    statement := insert update

An insert has the rows and is the same for every server, so it may be made before anybody knows which; the update is
the server's (Form), and the store adds it when it sends.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from flusher.mysql_errors import Flavour
from flusher.rows import COLUMNS, Rows
from shared.records import KINDS, Kind

MAX_STATEMENT_ROWS = 1000
MAX_STATEMENT_BYTES = 8 * 1024 * 1024


class Form(Enum):
    """How an update names the value of a new row and of the stored one; {} is the column, {table} its table."""

    VALUES = (b"", "VALUES({})", "{}")
    ALIAS = (b" AS new", "new.{}", "{table}.{}")
    """VALUES() raises a warning in each statement since MySQL 8.0.20. On MariaDB an alias is a syntax error."""


def form_of(flavour: Flavour, version: str) -> Form:
    """Args: version: as the server says at connect. Products that only speak MySQL's protocol put their names in it."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)(?!.*(?:tidb|vitess))", version, re.IGNORECASE)
    new = found is not None and tuple(map(int, found.groups())) >= (8, 0, 20)
    return Form.ALIAS if new and flavour is Flavour.MYSQL else Form.VALUES


def _update(kind: Kind, form: Form) -> bytes:
    """Leaves a newer stored row alone: the merge rule in SQL.

    updated_at is assigned last: MySQL assigns from left to right, and the guards should see the stored value.
    """
    alias, new, old = form.value
    old = old.replace("{table}", kind.table)
    newer = f"{new.format('updated_at')}>={old.format('updated_at')}"
    updates = [
        f"{name}=IF({newer},{new.format(name)},{old.format(name)})"
        for name in COLUMNS[kind]
        if name not in (*kind.key, "updated_at")
    ]
    updates.append(f"updated_at=GREATEST({old.format('updated_at')},{new.format('updated_at')})")
    return alias + f" ON DUPLICATE KEY UPDATE {','.join(updates)}".encode()


HEADS = {kind: f"INSERT INTO {kind.table} ({','.join(COLUMNS[kind])}) VALUES (".encode() for kind in KINDS}  # noqa: S608 -- constants from KINDS
UPDATES = {form: {kind: _update(kind, form) for kind in KINDS} for form in Form}
_LONGEST = {kind: max(len(UPDATES[form][kind]) for form in Form) for kind in KINDS}


class Insert(NamedTuple):
    kind: Kind
    text: bytes

    @property
    def size(self) -> int:
        """Of the statement in its longest form, in bytes."""
        return len(self.text) + _LONGEST[self.kind]

    def statement(self, form: Form) -> bytes:
        return self.text + UPDATES[form][self.kind]


def inserts(rows: Rows, limit: int = MAX_STATEMENT_BYTES) -> list[Insert]:
    """Of sessions first, then of tasks, each statement within both caps; a row over `limit` bytes has one of its own.

    Raises: ValueError for a row without a form in SQL.
    """
    made: list[Insert] = []
    for kind in KINDS:
        values = [row.values for row in rows.get(kind, ())]
        if not all(values):
            raise ValueError("a value has no form in SQL")
        for first in range(0, len(values), MAX_STATEMENT_ROWS):
            made += _within(limit, kind, values[first : first + MAX_STATEMENT_ROWS])
    return made


def _within(limit: int, kind: Kind, values: Sequence[bytes]) -> list[Insert]:
    """One insert, or where its statement would be over the limit those of each half."""
    size = len(HEADS[kind]) + sum(map(len, values)) + len("),(") * (len(values) - 1) + len(")") + _LONGEST[kind]
    if size <= limit or len(values) == 1:
        return [Insert(kind, b"".join((HEADS[kind], b"),(".join(values), b")")))]
    middle = len(values) // 2
    return [*_within(limit, kind, values[:middle]), *_within(limit, kind, values[middle:])]
