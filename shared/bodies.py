"""Bodies -> records. Ingest (validation.py) and the writer use the same functions, so that both read the same values.

msgspec reads most bodies in one pass, after unknown fields have been moved into `extra`. Any other body is cut into its
records, which are parsed one by one, so that memory holds the objects of one record. Then numbers in strings, integral
floats, other forms of ISO 8601 and objects as texts are converted, and null becomes the default.

A body's rules (records.Rules) decide which fields are kept and in which zone times without an offset are read. A time
that occurs twice is the earlier one; a time that the zone skips uses the offset before (PEP 495, fold 0).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta, tzinfo
from functools import lru_cache
from itertools import chain
from math import isfinite
from operator import attrgetter
from typing import Any, cast

import msgspec
import orjson

from shared.clock import time_zone
from shared.fast_validator import children, fold
from shared.records import KIND_OF_CODE, KINDS, SESSIONS, UTC, Kind, Record, Rules, utc

MAX_OBJECT_BYTES = 64 * 1024
"""As JSON. validation.py checks these limits before it parses an object, and so does record_counter.h."""
MAX_OBJECT_VALUES = 4096
MAX_OBJECT_DEPTH = 20
IGNORED = "created_at"
"""It comes with a record that was read; the database keeps its own."""
PROGRESS = "progress"
_PROGRESS_FIELDS = {"total", "by_status", "last_task_at"}
_INTEGER = re.compile(r"\s{0,9}[+-]?\d{1,15}(\.0{0,20})?\s{0,9}", re.ASCII)
_FLOAT = re.compile(r"\s{0,9}[+-]?(\d{1,40}\.?\d{0,40}|\.\d{1,40})([eE][+-]?\d{1,3})?\s{0,9}", re.ASCII)
_OFFSET_WITH_SECONDS = re.compile(r"(.{10,40}[+-]\d\d:\d\d):(\d\d)", re.ASCII)
_MAX_TIME_CHARACTERS = 64
_EARLIEST = datetime(1000, 1, 1, tzinfo=UTC)
_LATEST = datetime.max.replace(tzinfo=UTC)
"""The range of a DATETIME column."""


class InvalidBody(Exception):
    """The body as a whole is not what the path expects."""

    def __init__(self, detail: str, *, code: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code


def decode(kind: Kind, body: bytes | memoryview, rules: bytes = b"") -> list[Record]:
    """Records of a body that was accepted under these rules.

    Raises: InvalidBody, ValueError, msgspec.ValidationError if the body comes from a version with other limits or from
    an edited dead letter, or if its time zone is no longer known.
    """
    reader = _reader(kind.code, rules)
    records = _in_one_pass(kind, body) or reader.in_one_pass_folded(body)
    if not records:
        records = [reader.read(item) for item in _items(kind, body)]
    return reader.with_times_in_utc(records)


def decode_raw(kind: Kind, body: bytes | memoryview) -> list[Any]:
    """The records of a body as they were received, in the order of decode(). Raises: InvalidBody."""
    return list(_items(kind, body))


def _in_one_pass(kind: Kind, body: bytes | memoryview) -> list[Record] | None:
    """The records of most bodies; None for all others."""
    try:
        return _ONE_PASS[kind.code].decode(body).get(kind.name)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _items(kind: Kind, body: bytes | memoryview) -> Iterator[Any]:
    """Parsed records. Version 1 also accepted further keys, and used the last of two lists. Raises: InvalidBody."""
    try:
        _, members = children(body, 0, len(body), len(body))
        spans = [(start, end) for key, start, end, *_ in members if key and orjson.loads(key) == kind.name]
        _, items = children(body, *spans[-1], len(body))
        for _, start, end, *_ in items:
            yield orjson.loads(body[start:end])
    except (ValueError, IndexError) as error:
        raise InvalidBody(f"not JSON with {kind.name}: {type(error).__name__}", code="INVALID_JSON") from error


class Reader:
    """Reads parsed records of a kind under some rules. Has no other state."""

    def __init__(self, kind: Kind, rules: Rules) -> None:
        """Raises: ValueError if the time zone is unknown."""
        fields = msgspec.structs.fields(kind.record)
        self.zone: tzinfo = time_zone(rules.time_zone)
        self._keep = rules.unknown_fields == "keep"
        self._kind = kind
        self._known = frozenset(kind.record.__struct_fields__)
        self._stored = STORED[kind.code]
        self._objects = kind.fields_of(msgspec.inspect.RawType)
        self._times = _TIMES[kind.code]
        self._integers = frozenset(kind.fields_of(msgspec.inspect.IntType))
        self._floats = frozenset(kind.fields_of(msgspec.inspect.FloatType))
        self._defaults = frozenset(field.name for field in fields if not field.required)

    def in_one_pass_folded(self, body: bytes | memoryview) -> list[Record] | None:
        """The records of most bodies with unknown fields; None for all others."""
        if self._kind is SESSIONS and PROGRESS.encode() in bytes(body):
            return None
        folded = fold(body, self._kind.name, self._kind.record.__struct_fields__, self._keep)
        try:
            return _FOLDED[self._kind.code].decode(folded) if folded else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def read(self, item: Any) -> Record:
        """Args: item: changed, where it is a dict. Raises: msgspec.ValidationError."""
        if type(item) is dict:
            self.set_extra(item)
            try:
                return msgspec.convert(item, self._stored)
            except msgspec.ValidationError:
                self.relax(item)
        return msgspec.convert(item, self._stored)

    def set_extra(self, item: dict[str, Any]) -> None:
        """Moves unknown fields into `extra`, also one of that name, and encodes objects as JSON."""
        unknown = item.keys() - self._known
        if unknown:
            extra = {
                name: item[name]
                for name in item
                if name in unknown and name != IGNORED and not is_progress(self._kind, name, item[name])
            }
            for name in unknown:
                del item[name]
            if extra and self._keep:
                item["extra"] = msgspec.Raw(orjson.dumps(extra))
        for name in self._objects:
            if type(item.get(name)) is dict:
                item[name] = msgspec.Raw(orjson.dumps(item[name]))

    def relax(self, item: dict[str, Any]) -> None:
        """Converts alternative forms of values, in place."""
        for name, value in list(item.items()):
            if value is None and name in self._defaults:
                del item[name]
            elif name in self._integers:
                item[name] = _integer(value, rounded=name in self._kind.rounded)
            elif name in self._floats:
                item[name] = _rounded(float(value) if type(value) is str and _FLOAT.fullmatch(value) else value)
            elif name in self._times:
                item[name] = _time(value)
            elif type(value) is dict and name in self._kind.as_text:
                item[name] = orjson.dumps(value).decode()

    def time(self, text: str) -> datetime:
        """A time as it may stand in a record, in UTC. Raises: ValueError."""
        try:
            found = msgspec.convert(_time(text), datetime)
        except msgspec.ValidationError:
            raise ValueError("must be an ISO 8601 time, such as 2026-11-23T10:15:30Z") from None
        return self.in_utc(found)

    def in_utc(self, time: datetime) -> datetime:
        """Raises: ValueError if a DATETIME column cannot hold it."""
        try:
            time = (time if time.tzinfo else time.replace(tzinfo=self.zone)).astimezone(UTC)
        except OverflowError:
            time = datetime.min.replace(tzinfo=UTC)
        if time < _EARLIEST:
            raise ValueError("must lie between the years 1000 and 9999, in UTC")
        return time

    def with_times_in_utc(self, records: list[Record]) -> list[Record]:
        """Checks all times together; one by one would cost twice as much. Raises: ValueError."""
        times_of = _TIMES_OF[self._kind.code]
        times: list[datetime] = list(filter(None, chain.from_iterable(map(times_of, records))))
        if not times:
            return records
        naive = times[0].tzinfo is None
        if not naive or self.zone is UTC:
            earliest, latest = (utc(_EARLIEST), utc(_LATEST)) if naive else (_EARLIEST, _LATEST)
            try:
                if earliest <= min(times) and max(times) <= latest:
                    return records
            except TypeError:
                pass  # some have an offset, some have none
        for record in records:
            for name in self._times:
                time = getattr(record, name)
                if time is not None:
                    msgspec.structs.force_setattr(record, name, self.in_utc(time))
        return records


def is_progress(kind: Kind, name: str, value: Any) -> bool:
    """Whether a field is what reading adds to a session, counted from its tasks; ignored where it is sent back. Any
    other `progress` is a field of the sender's."""
    return kind is SESSIONS and name == PROGRESS and type(value) is dict and value.keys() == _PROGRESS_FIELDS


@lru_cache(maxsize=64)
def _reader(code: int, rules: bytes) -> Reader:
    return Reader(KIND_OF_CODE[code], Rules.decode(rules))


def _integer(value: Any, *, rounded: bool) -> Any:
    if type(value) is str:
        if rounded and _FLOAT.fullmatch(value):
            value = float(value)
        elif _INTEGER.fullmatch(value):
            return int(float(value))
    if type(value) is float and isfinite(value) and (rounded or value.is_integer()):
        return round(value)
    return value


def _rounded(value: Any) -> Any:
    return round(value, 4) if type(value) is float else value


def _time(value: Any) -> Any:
    """Parses forms of ISO 8601 that msgspec does not know. All other values are left to msgspec, errors too."""
    if type(value) is not str or len(value) > _MAX_TIME_CHARACTERS:
        return value
    seconds = 0
    if found := _OFFSET_WITH_SECONDS.fullmatch(value):
        seconds = int(found[2]) * (-1 if found[1][-6] == "-" else 1)
    try:
        time = msgspec.convert(found[1] if found else value, datetime)
        return time - timedelta(seconds=seconds) if found else value
    except (msgspec.ValidationError, OverflowError):
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            return value


def _with_extra(record: type[Record]) -> type[Record]:
    fields = [("extra", msgspec.Raw, None)]
    stored = msgspec.defstruct(record.__name__, fields, bases=(record,), frozen=True, gc=False, kw_only=True)
    return cast("type[Record]", stored)


STORED = {kind.code: _with_extra(kind.record) for kind in KINDS}
"""The type with a field for `extra`, which no name in a body can set."""
_FOLDED: dict[int, msgspec.json.Decoder[list[Record]]] = {
    code: msgspec.json.Decoder(list[stored])  # type: ignore[valid-type]
    for code, stored in STORED.items()
}
_TIMES = {kind.code: kind.fields_of(msgspec.inspect.DateTimeType) for kind in KINDS}
# With one name alone attrgetter() would return no tuple.
_TIMES_OF = {code: attrgetter(*(names if len(names) > 1 else names * 2)) for code, names in _TIMES.items()}
_ONE_PASS: dict[int, msgspec.json.Decoder[dict[str, list[Record]]]] = {
    kind.code: msgspec.json.Decoder(dict[str, list[kind.record]])  # type: ignore[name-defined]
    for kind in KINDS
}
