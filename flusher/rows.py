"""Rows: what coalescing leaves of records, with their SQL literals. Pure: bytes out, no connection.

A row costs a few calls into C instead of one or more a column, since the JSON encoder writes almost what SQL reads: its
texts are SQL's once their escapes are, its numbers and NULLs as they are, its times once they have lost their marks. A
time is a number, 20261124115825.123456, which costs the server less than a text.
Source: "DATETIME" and "The DATE, DATETIME, and TIMESTAMP Types" in the manuals of MariaDB and MySQL.
"""

from __future__ import annotations

import re
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
        self.texts = [name for name, found in types.items() if found <= {StrType, LiteralType, NoneType}]
        self.plain = [name for name, found in types.items() if found <= {IntType, DateTimeType, NoneType}]
        self.others = [name for name in types if name not in (*self.texts, *self.plain)]
        self.encoders = [_encoder(name, types[name]) for name in self.others]
        self.names = (*self.texts, *self.others, *self.plain, "updated_at")


def _types(field_type: Any) -> set[type]:
    info = msgspec.inspect.type_info(field_type)
    return {type(member) for member in getattr(info, "types", (info,))}


def _encoder(name: str, types: set[type]) -> Callable[[Record], bytes]:
    value_of = attrgetter(name)
    form: Callable[[Any], bytes]
    if FloatType in types:
        form = b"%.4f".__mod__
    else:
        assert DictType in types
        form = _object

    def encode(record: Record) -> bytes:
        value = value_of(record)
        return b"NULL" if value is None else form(value)

    return encode


def _object(value: Any) -> bytes:
    return _texts([orjson.dumps(value).decode()])


def _row_encoder(columns: _Columns) -> Callable[[Row], bytes]:
    """A function from a row to its `(...)` in SQL."""
    texts_of, plain_of = attrgetter(*columns.texts), attrgetter(*columns.plain)
    encoders = columns.encoders

    def encode(row: Row) -> bytes:
        record = row.record
        plain = (*plain_of(record), row.updated_at)
        values = _json(plain)
        if values.count(b'"') != 2 * values.count(b'Z"'):
            values = _json([utc(value) if isinstance(value, datetime) else value for value in plain])
        others = [encoder(record) for encoder in encoders]
        return b"(%b)" % b",".join((_texts(texts_of(record)), *others, values[1:-1].translate(None, b'-T:Z"')))

    return encode


def _texts(texts: Sequence[str | None]) -> bytes:
    """Texts and NULLs as they stand in SQL, between double quotes, for a connection in utf8mb4 or in bytes.

    There only two characters mean anything to the server: the quote, which is doubled, and the backslash, as long as
    sql_mode lets it (store.SQL_MODE does); should it not, the text gets a backslash too many, and still ends where it
    should. All else stands for itself, as it does not in JSON. Raises: ValueError for a lone surrogate.
    Source: "String Literals" in the manuals of MariaDB and MySQL; RFC 8259, section 7.
    """
    found = _json(texts)[1:-1]
    if b"\\" in found:
        found = found.replace(b"\\\\", _NO_UTF8).replace(b'\\"', b'""')
        if b"\\" in found:
            found = _ESCAPE.sub(_meant, found)
        found = found.replace(_NO_UTF8, b"\\\\")
    return found


_NO_UTF8 = b"\xff"
"""Keeps a backslash's place; no text has this byte."""
_ESCAPE = re.compile(rb"\\(?:u00([0-9a-f]{2})|[nrtbf])")


def _meant(escape: re.Match[bytes]) -> bytes:
    return bytes.fromhex(escape[1].decode()) if escape[1] else _CONTROLS[escape[0]]


_CONTROLS = {b"\\n": b"\n", b"\\r": b"\r", b"\\t": b"\t", b"\\b": b"\b", b"\\f": b"\f"}
_json = msgspec.json.Encoder().encode
"""Of a sequence of texts, integers, None and times. A time in UTC is "YYYY-MM-DDThh:mm:ss.ffffffZ"; NULL may be
written small."""
_COLUMNS = {kind: _Columns(kind) for kind in KINDS}
COLUMNS = {kind: columns.names for kind, columns in _COLUMNS.items()}
_ENCODE = {kind.code: _row_encoder(columns) for kind, columns in _COLUMNS.items()}
