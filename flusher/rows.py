"""Rows: what coalescing leaves of records, with their SQL literals. Pure: bytes out, no connection.

Rows become SQL some dozens at a time, in a few calls into C instead of one or more a column, since the JSON encoder
writes almost what SQL reads: its texts are SQL's once their escapes are, its numbers and NULLs as they are, its times
once they have lost their marks. A time is a number, 20261124115825.123456, which costs the server less than a text.
Source: "DATETIME" and "The DATE, DATETIME, and TIMESTAMP Types" in the manuals of MariaDB and MySQL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any

import msgspec
import orjson
from msgspec.inspect import DateTimeType, FloatType, IntType, LiteralType, RawType, StrType

from shared.records import KINDS, Kind, Object, Record, utc

TOGETHER = 64
"""Rows whose JSON is made in one piece. More of them are hardly faster, and their texts are in memory thrice for as
long."""


class Row(msgspec.Struct, gc=False):
    """The winner of its key. `updated_at` is aware, in UTC; `entry` and `index` say where in the segment it stands;
    `values` are its literals in SQL, separated by commas: set by with_values(), and still empty where a value has no
    form in SQL."""

    updated_at: datetime
    record: Record
    entry: int
    index: int
    values: bytes = b""


Rows = Mapping[Kind, Sequence[Row]]
"""Rows by kind, each sequence sorted by key."""


def with_values(kind: Kind, rows: list[Row]) -> list[Row]:
    """Sets the values of every row that has a form in SQL. Returns: the same rows."""
    columns = _COLUMNS[kind]
    for first in range(0, len(rows), TOGETHER):
        part = rows[first : first + TOGETHER]
        if not _set_values(columns, part):
            for row in part:
                _set_values(columns, [row])  # the store refuses what still has none, and it becomes a dead letter
    return rows


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
        self.unusual = not plain or any(info.ge is None or info.ge < 0 for info in kind.types_of(IntType))


def _values_of(names: Sequence[str]) -> Callable[[Record], Sequence[Any]]:
    """attrgetter(), which returns no tuple where there is one name, and takes none at all."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda record: tuple(getattr(record, name) for name in names)


def _set_values(columns: _Columns, rows: Sequence[Row]) -> bool:
    """Of all of them, or of none where one has a value without a form in SQL."""
    records = [row.record for row in rows]
    try:
        texts = _texts(map(columns.texts_of, records))
        objects = [_objects(list(map(object_of, records))) for object_of in columns.objects_of]
        floats = [_floats(map(float_of, records)) for float_of in columns.floats_of]
        times = map(_UPDATED_AT, rows)
        plain = _plain(list(zip(map(columns.plain_of, records), times, strict=True)), unusual=columns.unusual)
        for row, values in zip(rows, map(b",".join, zip(texts, *objects, *floats, plain, strict=True)), strict=True):
            row.values = values
    except (ValueError, TypeError, OverflowError):
        return False
    return True


def _objects(values: Sequence[Object]) -> list[bytes]:
    """Between single quotes, since JSON is full of double ones. Each in one form, however it was sent: of equal keys
    only the last, which MariaDB would not see to. Raises: ValueError."""
    return [_object(value) for value in values] if any(values) else [b"NULL"] * len(values)


def _object(value: Object) -> bytes:
    parsed = None if value is None else orjson.loads(memoryview(value))
    if parsed is None:
        return b"NULL"
    if type(parsed) is not dict:
        raise ValueError("an object is something else")
    return b"'%b'" % orjson.dumps(parsed).replace(b"\\", b"\\\\").replace(b"'", b"''")


def _floats(values: Iterable[float | None]) -> list[bytes]:
    return [b"NULL" if value is None else b"%.4f" % value for value in values]


def _plain(rows: Sequence[tuple[Sequence[Any], datetime]], *, unusual: bool) -> list[bytes]:
    """Integers, times and NULLs of each row; `unusual`: there may be numbers below 0, or nothing but `updated_at`."""
    found = _json_lines(rows)
    if found.count(b'"') != 2 * found.count(b'Z"'):
        found = _json_lines(
            [[[utc(value) if isinstance(value, datetime) else value for value in a], utc(b)] for a, b in rows]
        )
    if unusual:
        found = found.replace(b"[[],", b"").replace(b",-", b"," + _NO_UTF8_MINUS).replace(b"[-", _NO_UTF8_MINUS)
        return found.translate(None, _MARKS).replace(_NO_UTF8_MINUS, b"-").splitlines()
    return found.translate(None, _MARKS).splitlines()


def _texts(rows: Iterable[Sequence[str | None]]) -> list[bytes]:
    """Texts and NULLs of each row as they stand in SQL, between double quotes, for a connection in utf8mb4 or in bytes.

    There only two characters mean anything to the server: the quote, which is doubled, and the backslash, as long as
    sql_mode lets it (store.SQL_MODE does); should it not, the text gets a backslash too many, and still ends where it
    should. All else stands for itself, as it does not in JSON. Raises: ValueError for a lone surrogate.
    Source: "String Literals" in the manuals of MariaDB and MySQL; RFC 8259, section 7.
    """
    found, end_of_row = _json_lines(rows)[1:-2], _END_OF_ROW  # in JSON no text holds a newline
    if b"\\" in found:
        found, end_of_row = found.replace(_END_OF_ROW, _NO_UTF8_END), _NO_UTF8_END
        found = found.replace(b"\\\\", _NO_UTF8_BACKSLASH).replace(b'\\"', b'""')
        if b"\\" in found:
            found = _ESCAPE.sub(_meant, found)
        found = found.replace(_NO_UTF8_BACKSLASH, b"\\\\")
    return found.split(end_of_row)


_MARKS = b'-T:Z"[]'
"""What JSON's lists and times have that SQL's numbers have not."""
_END_OF_ROW = b"]\n["
_NO_UTF8_END = b"\xfe"
_NO_UTF8_BACKSLASH = _NO_UTF8_MINUS = b"\xff"
"""They keep the places of what they are named after; no text has these bytes."""
_ESCAPE = re.compile(rb"\\(?:u00([0-9a-f]{2})|[nrtbf])")


def _meant(escape: re.Match[bytes]) -> bytes:
    return bytes.fromhex(escape[1].decode()) if escape[1] else _CONTROLS[escape[0]]


_CONTROLS = {b"\\n": b"\n", b"\\r": b"\r", b"\\t": b"\t", b"\\b": b"\b", b"\\f": b"\f"}
_json_lines = msgspec.json.Encoder().encode_lines
"""A line each of texts, integers, None and times. A time in UTC is "YYYY-MM-DDThh:mm:ss.ffffffZ"; NULL may be written
small."""
_UPDATED_AT = attrgetter("updated_at")
_COLUMNS = {kind: _Columns(kind) for kind in KINDS}
COLUMNS = {kind: columns.names for kind, columns in _COLUMNS.items()}
