"""Rows: what coalescing leaves of records, with their SQL literals. Pure: bytes out, no connection.

A row costs a few calls into C instead of one or more a column: texts are joined, and looked at once for what must be
escaped; numbers, times and NULLs are written by the JSON encoder, whose forms are SQL's once a time has lost its marks.
A time is a number, 20261124115825.123456: the server reads that in half the time that a text takes it.
Source: "DATETIME" and "The DATE, DATETIME, and TIMESTAMP Types" in the manuals of MariaDB and MySQL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any

import msgspec
import orjson
from msgspec.inspect import DateTimeType, DictType, FloatType, IntType, LiteralType, NoneType, StrType

from shared.records import KINDS, Kind, Record, utc


class Row(msgspec.Struct, gc=False):
    """The winner of its key. `updated_at` is aware, in UTC; `entry` and `index` say where in the segment it stands;
    `values` is its `(...)` in SQL: set by with_values(), and still empty where a value has no form in SQL."""

    updated_at: datetime
    record: Record
    entry: int
    index: int
    values: bytes = b""


Rows = Mapping[Kind, Sequence[Row]]
"""Rows by kind, each sequence sorted by key."""


def with_values(kind: Kind, rows: list[Row]) -> list[Row]:
    encode = _ENCODE[kind.code]
    for row in rows:
        try:
            row.values = encode(row)
        except (ValueError, TypeError, OverflowError):
            pass  # the store refuses it, and it becomes a dead letter
    return rows


class _Columns:
    """A kind's columns in the order of its upserts, by how their values become SQL."""

    def __init__(self, kind: Kind) -> None:
        types = {
            field.name: _types(field.type)
            for field in msgspec.structs.fields(kind.record)
            if field.name != "updated_at"
        }
        self.texts = [name for name, found in types.items() if found <= {StrType, LiteralType}]
        self.plain = [name for name, found in types.items() if found <= {IntType, DateTimeType, NoneType}]
        self.others = [name for name in types if name not in (*self.texts, *self.plain)]
        self.encoders = [_encoder(types[name]) for name in self.others]
        self.names = (*self.texts, *self.others, *self.plain, "updated_at")


def _types(field_type: Any) -> set[type]:
    info = msgspec.inspect.type_info(field_type)
    return {type(member) for member in getattr(info, "types", (info,))}


def _encoder(types: set[type]) -> Callable[[Any], bytes]:
    if FloatType in types:
        return b"%.4f".__mod__
    if DictType in types:
        return lambda value: literal(orjson.dumps(value).decode())
    return literal


def _row_encoder(columns: _Columns) -> Callable[[Row], bytes]:
    """A function from a row to its `(...)` in SQL."""
    texts_of, others_of, plain_of = (attrgetter(*names) for names in (columns.texts, columns.others, columns.plain))
    encoders = columns.encoders
    separators = 2 * (len(columns.texts) - 1)

    def encode(row: Row) -> bytes:
        record = row.record
        texts = texts_of(record)
        joined = "','".join(texts)
        if "\\" in joined or joined.count("'") != separators:
            joined = "','".join(map(escaped, texts))
        others = b",".join(
            [
                b"NULL" if value is None else encoder(value)
                for encoder, value in zip(encoders, others_of(record), strict=False)
            ]
        )
        plain = (*plain_of(record), row.updated_at)
        values = _json(plain)
        if values.count(b'"') != 2 * values.count(b'Z"'):
            values = _json([utc(value) if isinstance(value, datetime) else value for value in plain])
        values = values[1:-1].translate(None, b'-T:Z"')
        return b"('%b',%b,%b)" % (joined.encode(), others, values)

    return encode


def escaped(text: str) -> str:
    """Text as it stands between single quotes, for a connection in utf8mb4.

    There only two characters mean anything to the server: the quote, which is doubled, and the backslash, as long as
    sql_mode lets it (store.SQL_MODE does); should it not, the text gets a backslash too many, and still ends where it
    should. The client library's own escaping takes five times as long: it looks at each byte through a pointer.
    Source: "String Literals" in the manuals of MariaDB and MySQL.
    """
    return text.replace("\\", "\\\\").replace("'", "''")


def literal(text: str) -> bytes:
    return b"'%b'" % escaped(text).encode()


_json = msgspec.json.Encoder().encode
"""Of a tuple of integers, None and times. A time in UTC is "YYYY-MM-DDThh:mm:ss.ffffffZ", and NULL may be written
small."""
_COLUMNS = {kind: _Columns(kind) for kind in KINDS}
COLUMNS = {kind: columns.names for kind, columns in _COLUMNS.items()}
_ENCODE = {kind.code: _row_encoder(columns) for kind, columns in _COLUMNS.items()}
