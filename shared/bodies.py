"""Bodies of requests -> records, and what is wrong with those that are none.

Plain bodies, which are most, ingest only counts (plain.py); all others, and all that a writer reads, come here.
A body is parsed and validated in one strict pass, by msgspec alone where it reads a body as orjson does, else by orjson
and msgspec. Only when that fails is each record looked at alone: numbers sent as strings and integral floats are
converted, times in other forms of ISO 8601 are read, and every record that is still wrong is named. Ingest and writer
decode with the same function, so what was accepted is what is written; what plain.py counts is a part of that.
"""

from __future__ import annotations

import re
from collections import Counter
from datetime import datetime, timedelta
from itertools import chain
from operator import attrgetter
from typing import Any, cast, get_args

import msgspec
import orjson

from shared.records import KINDS, UTC, Kind, Object, Record, utc

MAX_ERRORS = 100
MAX_JSON_DEPTH = 20
MAX_JSON_BYTES = 2 * 1024 * 1024
"""Of one object as stored. Two of them, every byte escaped, stay under MySQL's smallest default packet, 16 MiB."""
MAX_JSON_KEY_BYTES = 65535
"""MySQL's own limit (error 3151)."""
_SMALL_BODY_BYTES = 64 * 1024
"""A body below this holds no object or key over its limit, whatever orjson makes of it (1e15 grows 4.5-fold)."""
_INTEGER = re.compile(r"\s{0,9}[+-]?\d{1,15}(\.0{0,20})?\s{0,9}", re.ASCII)
_FLOAT = re.compile(r"\s{0,9}[+-]?(\d{1,40}\.?\d{0,40}|\.\d{1,40})([eE][+-]?\d{1,3})?\s{0,9}", re.ASCII)
_EARLIEST = datetime(1000, 1, 1, tzinfo=UTC)
_LATEST = datetime.max.replace(tzinfo=UTC)
"""What a DATETIME column holds."""


def _open(record: type[Record]) -> type[Record]:
    """The type itself, or with further fields, which are ignored, where it has none of them."""
    if not record.__struct_config__.forbid_unknown_fields:
        return record
    opened = msgspec.defstruct(record.__name__, [], bases=(record,), frozen=True, gc=False, forbid_unknown_fields=False)
    return cast("type[Record]", opened)


_OPEN = {kind.code: _open(kind.record) for kind in KINDS}
_LIST_TYPE: dict[int, Any] = {code: list[record] for code, record in _OPEN.items()}  # type: ignore[valid-type]
_TIMES = {kind.code: kind.fields_of(msgspec.inspect.DateTimeType) for kind in KINDS}
# With one name alone attrgetter() would return no tuple.
_TIMES_OF = {code: attrgetter(*(names if len(names) > 1 else names * 2)) for code, names in _TIMES.items()}
_INTEGERS = {kind.code: kind.fields_of(msgspec.inspect.IntType) for kind in KINDS}
_FLOATS = {kind.code: kind.fields_of(msgspec.inspect.FloatType) for kind in KINDS}
_CHOICES = {
    kind.code: {field.name: get_args(field.type) for field in msgspec.structs.fields(kind.record)} for kind in KINDS
}
_OBJECTS = {kind.code: kind.fields_of(msgspec.inspect.DictType) for kind in KINDS}
_ONE_PASS: dict[int, msgspec.json.Decoder[dict[str, list[Record]]]] = {
    kind.code: msgspec.json.Decoder(dict[str, list[kind.record]])  # type: ignore[name-defined]
    for kind in KINDS
    if kind.record.__struct_config__.forbid_unknown_fields and not _OBJECTS[kind.code]
}
"""Of kinds whose bodies msgspec may read alone: it and orjson agree on what passes here, and fuzzers hold them to it.
They do not on what stands in an unknown field, which msgspec passes over, and on large numbers in an object."""


class FieldError(msgspec.Struct, frozen=True):
    """One fault. `reason` is for counting: KIND, KIND.FIELD, or one of these and a kind of fault after a blank, like
    `tasks.updated_at in the future`. The set of reasons is fixed: nothing that a caller chooses stands in one."""

    field: str
    message: str
    reason: str


class InvalidBody(Exception):
    """The body as a whole is not what the path takes; nothing in it was looked at."""

    def __init__(self, detail: str, *, code: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code


class InvalidRecord(Exception):
    """At least one record is invalid. `errors` names each, the first MAX_ERRORS of them; `records` came in all."""

    def __init__(self, errors: list[FieldError], records: int) -> None:
        super().__init__(f"{len(errors)} invalid")
        self.errors = errors
        self.records = records

    def reasons(self) -> dict[str, int]:
        """How many of the records are refused for which reason: an invalid one for its first fault, the others, which
        share its request, as `KIND beside an invalid one`. The sum is `records`."""
        first = {error.field.partition("]")[0]: error.reason for error in reversed(self.errors)}
        kind = self.errors[0].reason.partition(".")[0].partition(" ")[0]
        found = Counter(first.values())
        if "[" not in self.errors[0].field:  # of the request as a whole
            return {self.errors[0].reason: max(1, self.records)}
        found[f"{kind} beside an invalid one"] = self.records - found.total()
        return dict(+found)


def validate(kind: Kind, body: bytes, *, now: datetime, max_clock_skew_s: float, max_records: int) -> list[Record]:
    """What a request must pass before it is forwarded.

    Args:
        body: JSON in UTF-8, `{"<kind.name>": [...]}`.
        now: aware.
    Raises: InvalidBody, InvalidRecord.
    """
    latest = now + timedelta(seconds=max_clock_skew_s)
    records = _decode_typed(kind, body)
    if records is not None and len(records) <= max_records and _is_plain(kind, records, latest):
        return records
    items = _parse(kind, body)
    if not 1 <= len(items) <= max_records:
        message = f"takes 1 to {max_records} records, {len(items)} were sent"
        raise InvalidRecord([FieldError(kind.name, message, f"{kind.name} of a wrong number")], len(items))
    return _convert(kind, items, latest, small=len(body) < _SMALL_BODY_BYTES)


def decode(kind: Kind, body: bytes | memoryview) -> list[Record]:
    """Records of a body that validate() has passed.

    Raises: InvalidBody, InvalidRecord, where the body comes from a version with other limits, or from a dead letter
    that somebody has edited.
    """
    records = _decode_typed(kind, body)
    if records is None:
        records = _convert(kind, _parse(kind, body), None, small=True)
    if not _has_plain_times(kind, records, _LATEST):
        for index, record in enumerate(records):
            if not all(time is None or _fits_datetime(time) for time in _TIMES_OF[kind.code](record)):
                message = "has a time that is no DATETIME in UTC"
                raise InvalidRecord([FieldError(f"{kind.name}[{index}]", message, kind.name)], len(records))
    return records


def decode_raw(kind: Kind, body: bytes | memoryview) -> list[Any]:
    """The records of a body as they were received, in the order of decode()."""
    return _parse(kind, body)


def _decode_typed(kind: Kind, body: bytes | memoryview) -> list[Record] | None:
    """The records of most bodies, in one pass; None for all others, which must be read by orjson."""
    decoder = _ONE_PASS.get(kind.code)
    if decoder is None:
        return None
    try:
        document = decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    records: list[Record] | None = document.get(kind.name)
    return records or None  # none at all is for the closer look to refuse


def _parse(kind: Kind, body: bytes | memoryview) -> list[Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidBody(f"the body is not JSON: {error}", code="INVALID_JSON") from error
    items = document.get(kind.name) if type(document) is dict else None
    if type(items) is not list:
        raise InvalidBody(f'the body must be {{"{kind.name}": [...]}}', code="INVALID_SHAPE")
    return items


def _convert(kind: Kind, items: list[Any], latest: datetime | None, *, small: bool) -> list[Record]:
    """Parsed records, in one strict pass where that suffices; `latest` None: limits were checked before.

    Raises: InvalidRecord.
    """
    try:
        records: list[Record] = msgspec.convert(items, _LIST_TYPE[kind.code])
    except (msgspec.ValidationError, RecursionError):
        pass
    else:
        if latest is None or _is_plain(kind, records, latest):
            return records
    records, errors = _convert_each(kind, items, latest, small=small)
    if errors:
        raise InvalidRecord(errors, len(items))
    return records


def _convert_each(
    kind: Kind, items: list[Any], latest: datetime | None, *, small: bool
) -> tuple[list[Record], list[FieldError]]:
    """Every record alone, so that each that is wrong can be named."""
    records: list[Record] = []
    errors: list[FieldError] = []
    for index, item in enumerate(items):
        where = f"{kind.name}[{index}]"
        try:
            record = msgspec.convert(_relaxed(kind, item), _OPEN[kind.code])
        except msgspec.ValidationError as error:
            errors.append(_field_error(kind, where, str(error)))
        except RecursionError:
            errors.append(FieldError(where, f"is nested over {MAX_JSON_DEPTH} deep", f"{kind.name} nested too deep"))
        else:
            records.append(record)
            if latest is not None:
                errors += _limit_errors(kind, record, where, latest, small=small)
        if len(errors) >= MAX_ERRORS:
            break
    return records, errors[:MAX_ERRORS]


def _field_error(kind: Kind, where: str, message: str) -> FieldError:
    """msgspec says "what - at `$.path`"; a missing field it names in the text."""
    what, _, path = message.partition(" - at `$")
    path = path.rstrip("`")
    missing = re.fullmatch(r"Object missing required field `(\w{1,64})`", what)
    if missing:
        path, what = f"{path}.{missing[1]}", "is required"
    name = re.split(r"[.\[]", path[1:], maxsplit=1)[0]
    choices = _CHOICES[kind.code].get(name)
    if choices and what.startswith("Invalid enum value"):
        what = f"must be one of {', '.join(choices)}"
    return FieldError(where + path, what, f"{kind.name}.{name}" if choices is not None else kind.name)


def _relaxed(kind: Kind, item: Any) -> Any:
    """The record with numbers in strings, integral floats, and other ISO 8601 times in the form msgspec takes."""
    if type(item) is not dict:
        return item
    item = dict(item)
    for name in _INTEGERS[kind.code]:
        value = item.get(name)
        if type(value) is str and _INTEGER.fullmatch(value):
            item[name] = int(float(value))
        elif type(value) is float and value.is_integer():
            item[name] = int(value)
    for name in _FLOATS[kind.code]:
        value = item.get(name)
        if type(value) is str and _FLOAT.fullmatch(value):
            item[name] = float(value)
    for name in _TIMES[kind.code]:
        value = item.get(name)
        if type(value) is str:
            item[name] = _relaxed_time(value)
    return item


def _relaxed_time(value: str) -> str:
    """Other forms of ISO 8601 in the one that msgspec takes; what it takes already is left to it, rounding included."""
    try:
        msgspec.convert(value, datetime)
    except msgspec.ValidationError:
        try:
            return datetime.fromisoformat(value).isoformat()
        except ValueError:
            pass  # msgspec tries again, and words the error
    return value


def _is_plain(kind: Kind, records: list[Record], latest: datetime) -> bool:
    """Whether nothing in the records needs the closer look of _limit_errors(); most never do."""
    for name in _OBJECTS[kind.code]:
        if any(getattr(record, name) for record in records):
            return False
    return _has_plain_times(kind, records, latest)


def _has_plain_times(kind: Kind, records: list[Record], latest: datetime) -> bool:
    """Whether no time in the records is later than `latest` or too early for DATETIME. They are looked at together:
    each by itself would cost twice as much."""
    times: list[datetime] = list(filter(None, chain.from_iterable(map(_TIMES_OF[kind.code], records))))
    if not times:
        return True
    earliest = _EARLIEST
    if times[0].tzinfo is None:
        earliest, latest = utc(earliest), utc(latest)
    try:
        return earliest <= min(times) and max(times) <= latest
    except TypeError:  # some have an offset, some have none
        return False


def _limit_errors(kind: Kind, record: Record, where: str, latest: datetime, *, small: bool) -> list[FieldError]:
    """What no type can say: years that DATETIME holds, the clock of the sender, objects that fit their column."""
    errors: list[FieldError] = []
    for name in _TIMES[kind.code]:
        time: datetime | None = getattr(record, name)
        if time is None:
            continue
        if not _fits_datetime(time):
            message = "must lie between the years 1000 and 9999, in UTC"
            errors.append(FieldError(f"{where}.{name}", message, f"{kind.name}.{name}"))
        elif name == "updated_at" and utc(time) > utc(latest):
            message = f"lies in the future: {latest.isoformat()} is the latest allowed (service.max_clock_skew)"
            errors.append(FieldError(f"{where}.{name}", message, f"{kind.name}.{name} in the future"))
    for name in _OBJECTS[kind.code]:
        value = getattr(record, name)
        message = _object_error(value, small=small) if value else ""
        if message:
            errors.append(FieldError(f"{where}.{name}", message, f"{kind.name}.{name} too large"))
    return errors


def _fits_datetime(time: datetime) -> bool:
    try:
        return utc(time).year >= 1000
    except OverflowError:
        return False


def _object_error(value: Object, *, small: bool) -> str:
    """Why an object does not fit its column; "" if it does. `small` skips what a small body cannot break."""
    level: list[Any] = [value]
    for _ in range(MAX_JSON_DEPTH):
        below: list[Any] = []
        for node in level:
            if type(node) is dict:
                if not small and any(len(key.encode()) > MAX_JSON_KEY_BYTES for key in node):
                    return f"has a key over {MAX_JSON_KEY_BYTES} bytes"
                below.extend(child for child in node.values() if type(child) in (dict, list))
            else:
                below.extend(child for child in node if type(child) in (dict, list))
        if not below:
            break
        level = below
    else:
        return f"is nested over {MAX_JSON_DEPTH} deep"
    if not small and len(orjson.dumps(value)) > MAX_JSON_BYTES:
        return f"takes over {MAX_JSON_BYTES} bytes as JSON"
    return ""
