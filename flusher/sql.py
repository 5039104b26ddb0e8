"""Rows -> SQL text: literals, statements, and the merge rule in SQL. Pure: bytes out, no connection.

    statement := insert update

The insert holds the rows and is the same for every server, so it is made before the server is known. The update is the
server's (Form); the store appends it.

The JSON encoder writes almost what SQL reads, so some dozens of rows become SQL in a few calls into C: texts once their
escapes are SQL's, numbers and NULLs as they are, times once their marks are removed. A time is a number,
20261124115825.123456, which costs the server less than a text.
Source: "String Literals", "DATETIME" and "The DATE, DATETIME, and TIMESTAMP Types" in the manuals of MariaDB and MySQL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec
import orjson
from msgspec.inspect import DateTimeType, FloatType, IntType, LiteralType, RawType, StrType

from flusher.mysql_errors import Flavour
from shared.records import KINDS, Kind, Object, Record, utc

ROWS_PER_JSON_CHUNK = 64
"""Larger chunks are not measurably faster and triple the peak memory."""
MAX_STATEMENT_ROWS = 1000
MAX_STATEMENT_BYTES = 8 * 1024 * 1024


class Row(msgspec.Struct, gc=False):
    """The winner of its key. `updated_at` is in UTC; `entry` and `index` say where in the segment the record is;
    `values` are its SQL literals, set by with_values(), and empty if a value has no form in SQL."""

    updated_at: datetime
    record: Record
    entry: int
    index: int
    values: bytes = b""


Rows = Mapping[Kind, Sequence[Row]]
"""Rows by kind, each sequence sorted by key."""


# Literals


class _Columns:
    """A kind's columns in the order of its upserts, by how their values become SQL."""

    def __init__(self, kind: Kind) -> None:
        objects = (*kind.fields_of(RawType), "extra")
        texts = kind.fields_of(StrType, LiteralType)
        floats = kind.fields_of(FloatType)
        plain = tuple(name for name in kind.fields_of(IntType, DateTimeType) if name != "updated_at")
        self.names = (*texts, *objects, *floats, *plain, "updated_at")
        known = {*kind.record.__struct_fields__, "extra"}
        assert set(self.names) == known, "a field of a type that is not known here"
        self.texts_of = _values_of(texts)
        self.objects_of = [attrgetter(name) for name in objects]
        self.floats_of = [attrgetter(name) for name in floats]
        self.plain_of = _values_of(plain)


def _values_of(names: Sequence[str]) -> Callable[[Record], Sequence[Any]]:
    """attrgetter() that returns a tuple for one name and for none, too."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda record: tuple(getattr(record, name) for name in names)


def with_values(kind: Kind, rows: list[Row]) -> list[Row]:
    """Sets the values of every row that has a form in SQL. Returns: the same rows."""
    columns = _COLUMNS[kind]
    for first in range(0, len(rows), ROWS_PER_JSON_CHUNK):
        part = rows[first : first + ROWS_PER_JSON_CHUNK]
        if not _set_values(columns, part):
            for row in part:
                _set_values(columns, [row])  # a row that stays without becomes a dead letter
    return rows


def _set_values(columns: _Columns, rows: Sequence[Row]) -> bool:
    """Sets the values of all rows, or of none if one has no form in SQL. Returns: whether it did."""
    records = [row.record for row in rows]
    try:
        texts = _texts(map(columns.texts_of, records))
        objects = [_objects(list(map(object_of, records))) for object_of in columns.objects_of]
        floats = [_floats(map(float_of, records)) for float_of in columns.floats_of]
        times = map(_UPDATED_AT, rows)
        plain = _numbers_and_times(list(zip(map(columns.plain_of, records), times, strict=True)))
        for row, values in zip(rows, map(b",".join, zip(texts, *objects, *floats, plain, strict=True)), strict=True):
            row.values = values
    except (ValueError, TypeError, OverflowError):
        return False
    return True


def _objects(values: Sequence[Object]) -> list[bytes]:
    """JSON between single quotes. Raises: ValueError."""
    return [_object(value) for value in values] if any(values) else [b"NULL"] * len(values)


def _object(value: Object) -> bytes:
    """Parses the object first: of equal keys only the last may reach the server, which MariaDB would not see to."""
    parsed = None if value is None else orjson.loads(memoryview(value))
    if parsed is None:
        return b"NULL"
    if type(parsed) is not dict:
        raise ValueError("an object is something else")
    return b"'%b'" % orjson.dumps(parsed).replace(b"\\", b"\\\\").replace(b"'", b"''")


def _floats(values: Iterable[float | None]) -> list[bytes]:
    return [b"NULL" if value is None else b"%.4f" % value for value in values]


def _numbers_and_times(rows: Sequence[tuple[Sequence[Any], datetime]]) -> list[bytes]:
    found = _json_lines(rows)
    if found.count(b'"') != 2 * found.count(b'Z"'):  # a time that is not in UTC
        found = _json_lines(
            [[[utc(value) if isinstance(value, datetime) else value for value in a], utc(b)] for a, b in rows]
        )
    found = found.replace(b"[[],", b"").replace(b",-", b"," + _MINUS).replace(b"[-", _MINUS)
    return found.translate(None, _MARKS).replace(_MINUS, b"-").splitlines()


def _texts(rows: Iterable[Sequence[str | None]]) -> list[bytes]:
    """Texts and NULLs of each row between double quotes, for a connection in utf8mb4 or in bytes.

    SQL knows two special characters there: the quote, which is doubled, and the backslash (if sql_mode had
    NO_BACKSLASH_ESCAPES, a text would get one too many, and still end where it should). JSON's other escapes are
    undone. Raises: ValueError for a lone surrogate.
    """
    found, end_of_row = _json_lines(rows)[1:-2], _END_OF_ROW  # in JSON no text holds a newline
    if b"\\" in found:
        found, end_of_row = found.replace(_END_OF_ROW, _END), _END
        found = found.replace(b"\\\\", _BACKSLASH).replace(b'\\"', b'""')
        if b"\\" in found:
            found = _ESCAPE.sub(_unescaped, found)
        found = found.replace(_BACKSLASH, b"\\\\")
    return found.split(end_of_row)


_MARKS = b'-T:Z"[]'
"""The bytes of JSON's lists and times that SQL's numbers do not have."""
_END_OF_ROW = b"]\n["
_END = b"\xfe"
_BACKSLASH = _MINUS = b"\xff"
"""Placeholders: no UTF-8 text has these bytes."""
_ESCAPE = re.compile(rb"\\(?:u00([0-9a-f]{2})|[nrtbf])")
_CONTROLS = {b"\\n": b"\n", b"\\r": b"\r", b"\\t": b"\t", b"\\b": b"\b", b"\\f": b"\f"}


def _unescaped(escape: re.Match[bytes]) -> bytes:
    return bytes.fromhex(escape[1].decode()) if escape[1] else _CONTROLS[escape[0]]


_json_lines = msgspec.json.Encoder().encode_lines
"""A line each of texts, integers, None and times. A time in UTC is "YYYY-MM-DDThh:mm:ss.ffffffZ"."""
_UPDATED_AT = attrgetter("updated_at")
_COLUMNS = {kind: _Columns(kind) for kind in KINDS}
COLUMNS = {kind: columns.names for kind, columns in _COLUMNS.items()}


# Statements


class Form(Enum):
    """How an update names the value of a new row and of the stored one; {} is the column, {table} its table."""

    VALUES = (b"", "VALUES({})", "{}")
    ALIAS = (b" AS new", "new.{}", "{table}.{}")
    """On MySQL since 8.0.20 VALUES() raises a warning in each statement. On MariaDB an alias is a syntax error."""


def form_of(flavour: Flavour, version: str) -> Form:
    """Args: version: as the server says at connect; products that only speak MySQL's protocol are named in it."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)(?!.*(?:tidb|vitess))", version, re.IGNORECASE)
    new = found is not None and tuple(map(int, found.groups())) >= (8, 0, 20)
    return Form.ALIAS if new and flavour is Flavour.MYSQL else Form.VALUES


def _update(kind: Kind, form: Form) -> bytes:
    """The merge rule: a newer stored row is left alone.

    updated_at comes last: MySQL assigns from left to right, and the guards compare with the stored value.
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
        """Bytes of the statement in its longest form."""
        return len(self.text) + _LONGEST[self.kind]

    def statement(self, form: Form) -> bytes:
        return self.text + UPDATES[form][self.kind]


def inserts(rows: Rows, limit: int = MAX_STATEMENT_BYTES) -> list[Insert]:
    """Sessions first, then tasks, each statement within both caps; a row over `limit` bytes gets its own.

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
    """One insert, or the inserts of each half if its statement would be over the limit."""
    size = len(HEADS[kind]) + sum(map(len, values)) + len("),(") * (len(values) - 1) + len(")") + _LONGEST[kind]
    if size <= limit or len(values) == 1:
        return [Insert(kind, b"".join((HEADS[kind], b"),(".join(values), b")")))]
    middle = len(values) // 2
    return [*_within(limit, kind, values[:middle]), *_within(limit, kind, values[middle:])]
