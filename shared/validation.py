"""Validates bodies before they are forwarded, and lists the faults of invalid ones.

count() accepts most valid bodies without making Python objects (fast_validator.cpp). validate() handles all others and
words the errors. Its work is bounded in advance: children() measures a record before any of it is parsed, one record is
parsed at a time, and the caller may do other work in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Generator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, get_args

import msgspec
import orjson
from msgspec import inspect

from shared.bodies import (
    IGNORED,
    MAX_OBJECT_BYTES,
    MAX_OBJECT_DEPTH,
    MAX_OBJECT_VALUES,
    PROGRESS,
    InvalidBody,
    Reader,
    is_progress,
)
from shared.fast_path import fast_validator_of
from shared.fast_validator import children
from shared.records import UTC, Kind, Rules

MAX_ERRORS = 100
"""Invalid records that an answer lists."""
_MAX_FAULTS = 32
"""Listed faults of one record; beyond, unknown fields are left out."""
_SHORT_BODY_BYTES = 64 * 1024
"""A body up to this size may be parsed whole to find where it stops being JSON."""
_MAX_FIELDS = 64
_NAMES = {dict: "object", list: "array", str: "str", int: "int", float: "float", bool: "bool", type(None): "null"}
_BRACE, _BRACKET = b"{["
_MAX_MEMBERS = MAX_OBJECT_VALUES + _MAX_FIELDS
_NO_JSON = (b"NaN", b"Infinity", b"-Infinity")


class FieldError(msgspec.Struct, frozen=True):
    """One fault. `reason` is for counting: KIND or KIND.FIELD, perhaps followed by a kind of fault, as in
    `tasks.updated_at in the future`. The set of reasons is fixed: it includes no text of a caller."""

    field: str
    message: str
    reason: str


class InvalidRecord(Exception):
    """At least one record is invalid. `errors` lists every fault of the first MAX_ERRORS; `records`: of the body."""

    def __init__(self, errors: list[FieldError], records: int) -> None:
        super().__init__(f"{len(errors)} invalid")
        self.errors = errors
        self.records = records

    def reasons(self) -> dict[str, int]:
        """Refused records by reason: an invalid one counts for its first fault, the valid ones of the request as `KIND
        beside an invalid one`. The sum is `records`."""
        first = {error.field.partition("]")[0]: error.reason for error in reversed(self.errors)}
        kind = self.errors[0].reason.partition(".")[0].partition(" ")[0]
        found = Counter(first.values())
        if "[" not in self.errors[0].field:  # of the request as a whole
            return {self.errors[0].reason: max(1, self.records)}
        found[f"{kind} beside an invalid one"] = self.records - found.total()
        return dict(+found)


class Policy(msgspec.Struct, frozen=True):
    """The settings that decide what is valid. `statuses`: by name of a kind; if missing, those of the type."""

    statuses: Mapping[str, Sequence[str]] = {}
    time_zone: str = "UTC"
    unknown_fields: str = "keep"
    max_records: int = 1000
    max_clock_skew_s: float = 300

    @property
    def rules(self) -> Rules:
        return Rules(self.time_zone, "ignore" if self.unknown_fields == "ignore" else "keep")


class Validator:
    """Validates bodies of one kind. Args: ignored(name): called for each dropped field (unknown_fields: ignore)."""

    def __init__(self, kind: Kind, policy: Policy, ignored: Callable[[str], None] = lambda _name: None) -> None:
        self.kind = kind
        self._policy = policy
        self._ignored = ignored
        self._reader = Reader(kind, policy.rules)
        self._fields = {field.name: field for field in msgspec.structs.fields(kind.record)}
        self._statuses = tuple(policy.statuses.get(kind.name, ()))
        self._objects = kind.fields_of(inspect.RawType)
        self._times = kind.fields_of(inspect.DateTimeType)
        self._offset = (0, 0)
        self._fast = fast_validator_of(kind, self._statuses, keep_unknown=policy.unknown_fields == "keep")

    def count(self, body: bytes, now_s: float) -> int:
        """Returns: the number of records, if the body is certainly valid; 0 if only validate() can tell.

        Args: now_s: since 1970 UTC.
        """
        if self._fast is None:
            return 0
        latest_s = int(now_s + self._policy.max_clock_skew_s)
        records = self._fast.count(body, latest_s, latest_s + self._least_offset_s(latest_s))
        return records if records <= self._policy.max_records else 0

    def validate(self, body: bytes, now_s: float) -> Generator[None, None, int]:
        """Works for at most some milliseconds between two yields. Returns: the number of records.

        Raises: InvalidBody, InvalidRecord.
        """
        latest = datetime.fromtimestamp(now_s, UTC) + timedelta(seconds=self._policy.max_clock_skew_s)
        kind, most = self.kind.name, self._policy.max_records
        try:
            count, members = children(body, 0, len(body), 2)
            yield
            key, start, end, *_ = members[0] if members else (None, 0, 0)
            if count != 1 or key is None or _parsed(key, "a name") != kind or body[start] != _BRACKET:
                raise self._wrong_shape(body)
            count, items = children(body, start, end, most)
        except ValueError as error:
            raise self._wrong_shape(body, str(error)) from None
        yield
        if not 1 <= count <= most:
            message = f"takes 1 to {most} records, {count} were sent"
            raise InvalidRecord([FieldError(kind, message, f"{kind} of a wrong number")], count)
        errors: list[FieldError] = []
        invalid = 0
        for index, (_, start, end, values, *_) in enumerate(items):
            found = self._faults(body, (start, end, values), f"{kind}[{index}]", latest)
            errors += found
            invalid += bool(found)
            if invalid == MAX_ERRORS:
                break
            yield
        if errors:
            raise InvalidRecord(errors, count)
        return count

    def _wrong_shape(self, body: bytes, why: str = "") -> InvalidBody:
        if len(body) <= _SHORT_BODY_BYTES:
            _parsed(body, "the body")
        elif why:
            return InvalidBody(f"the body is not JSON: {why}", code="INVALID_JSON")
        shape = f'{{"{self.kind.name}": [...]}}'
        return InvalidBody(f"the body must be {shape}, with no second key", code="INVALID_SHAPE")

    def _faults(self, body: bytes, span: tuple[int, int, int], where: str, latest: datetime) -> list[FieldError]:
        """Every fault of one record. Raises: InvalidBody if it is not JSON."""
        kind = self.kind.name
        start, end, values = span
        if body[start] != _BRACE:
            item = _parsed(body[start:end], where) if values <= MAX_OBJECT_VALUES else []
            return [FieldError(where, f"Expected `object`, got `{_NAMES[type(item)]}`", kind)]
        try:
            count, members = children(body, start, end, _MAX_MEMBERS)
        except ValueError as error:
            raise InvalidBody(f"{where} is not JSON: {error}", code="INVALID_JSON") from None
        if count > _MAX_MEMBERS:
            return [FieldError(where, f"has {count} fields, {_MAX_MEMBERS} are allowed", f"{kind} too large")]
        item, errors, faulty = self._members(body, members, where)
        record = None
        if not errors:
            with suppress(msgspec.ValidationError):
                record = self._reader.read(item)
        else:
            self._reader.set_extra(item)
            self._reader.relax(item)
        fields = record if record is not None else self._convert_each(item, where, faulty, errors)
        return errors + self._beyond_limits(fields, where, latest)

    def _members(
        self, body: bytes, members: Sequence[tuple[Any, ...]], where: str
    ) -> tuple[dict[str, Any], list[FieldError], set[str]]:
        """Returns: the parsed fields, except those that are too large to parse or repeated; the faults of these; their
        names."""
        item: dict[str, Any] = {}
        errors: list[FieldError] = []
        faulty: set[str] = set()
        unknown = 0
        for key, start, end, values, depth, beyond in members:
            name = _parsed(key, where)
            if name in faulty or (name == PROGRESS and self._is_progress(body[start:end], values, depth)):
                continue  # it is named already, or not ours to keep
            fault, kind_of_fault = self._fault_of_member(name, values, depth, beyond=beyond)
            if name in item:
                fault, kind_of_fault = "is sent twice", " twice"
            elif not fault and name not in self._fields and name != IGNORED:
                unknown += 1 + values
                if self._policy.unknown_fields == "ignore":
                    self._ignored(name)
            if fault:
                faulty.add(name)
                item.pop(name, None)
                reason = f"{self.kind.name}.{name}" if name in self._fields else f"{self.kind.name} unknown field"
                if name in self._fields or len(errors) < _MAX_FAULTS:
                    errors.append(FieldError(f"{where}.{name[:64]}", fault, reason + kind_of_fault))
            elif unknown <= MAX_OBJECT_VALUES or name in self._fields:
                item[name] = _parsed(body[start:end], f"{where}.{name[:64]}")
        if unknown > MAX_OBJECT_VALUES:
            fault = f"its unknown fields hold {unknown} values together, {MAX_OBJECT_VALUES} are allowed"
            errors.append(FieldError(where, fault, f"{self.kind.name} unknown field too large"))
        return item, errors, faulty

    def _is_progress(self, value: bytes, values: int, depth: int) -> bool:
        """Of a field of that name: whether it is ours. Looks only into what is bounded."""
        with suppress(orjson.JSONDecodeError):
            return depth <= 2 and values <= MAX_OBJECT_VALUES and is_progress(self.kind, PROGRESS, orjson.loads(value))
        return False

    def _fault_of_member(self, name: str, values: int, depth: int, *, beyond: bool) -> tuple[str, str]:
        """The fault that is known before a value is parsed, and its kind for counting; empty if none."""
        if depth > MAX_OBJECT_DEPTH:
            return f"is nested over {MAX_OBJECT_DEPTH} deep", " too large"
        if values > MAX_OBJECT_VALUES:
            return f"holds {values} values, {MAX_OBJECT_VALUES} are allowed", " too large"
        if beyond:
            return "holds an integer beyond 64 bits", ""
        if self._policy.unknown_fields == "reject" and name not in self._fields and name != IGNORED:
            return f"is no field of {self.kind.name} (records.unknown_fields: reject)", ""
        return "", ""

    def _convert_each(
        self, item: dict[str, Any], where: str, faulty: Container[str], errors: list[FieldError]
    ) -> SimpleNamespace:
        """Converts each field by itself, so that every invalid one is listed. Returns: the valid ones."""
        right = SimpleNamespace(**dict.fromkeys(self._fields), extra=item.get("extra"))
        for name, field in self._fields.items():
            if name in faulty or (name not in item and not field.required):
                continue
            message = "is required"
            if name in item:
                try:
                    setattr(right, name, msgspec.convert(item[name], field.type))
                    continue
                except msgspec.ValidationError as error:
                    message = _in_words(str(error), field)
            errors.append(FieldError(f"{where}.{name}", message, f"{self.kind.name}.{name}"))
        return right

    def _beyond_limits(self, record: Any, where: str, latest: datetime) -> list[FieldError]:
        """Faults that types cannot express: configured statuses, times in the future, sizes of objects."""
        kind = self.kind.name
        errors: list[FieldError] = []
        if self._statuses and record.status is not None and record.status not in self._statuses:
            message = f"must be one of {', '.join(self._statuses)} ({self.kind.statuses_setting})"
            errors.append(FieldError(f"{where}.status", message, f"{kind}.status"))
        for name in self._times:
            time: datetime | None = getattr(record, name)
            if time is None:
                continue
            try:
                in_utc = self._reader.in_utc(time)
            except ValueError as error:
                errors.append(FieldError(f"{where}.{name}", str(error), f"{kind}.{name}"))
                continue
            if name == "updated_at" and in_utc > latest:
                message = f"lies in the future: {latest.isoformat()} is the latest allowed (service.max_clock_skew)"
                if time.tzinfo is None:
                    message += f"; it has no offset and was read in {self._policy.time_zone} (records.time_zone)"
                errors.append(FieldError(f"{where}.{name}", message, f"{kind}.{name} in the future"))
        for name in (*self._objects, "extra"):
            value: msgspec.Raw | None = getattr(record, name)
            if value is not None and memoryview(value).nbytes > MAX_OBJECT_BYTES:
                path, what = (where, "its unknown fields take") if name == "extra" else (f"{where}.{name}", "takes")
                reason = f"{kind} unknown field" if name == "extra" else f"{kind}.{name}"
                message = f"{what} over {MAX_OBJECT_BYTES} bytes as JSON"
                errors.append(FieldError(path, message, f"{reason} too large"))
        return errors

    def _least_offset_s(self, latest_s: int) -> int:
        """The zone's offset; for a day after it has grown, the offset before, which applies to times that local clocks
        have skipped."""
        if self._reader.zone is UTC:
            return 0
        if self._offset[0] != latest_s:
            offsets = [
                datetime.fromtimestamp(at, self._reader.zone).utcoffset() for at in (latest_s, latest_s - 24 * 3600)
            ]
            self._offset = latest_s, min(int(offset.total_seconds()) for offset in offsets if offset is not None)
        return self._offset[1]


def _in_words(message: str, field: msgspec.structs.FieldInfo) -> str:
    """Rewords msgspec's messages that callers would not understand."""
    if message.startswith("Invalid enum value"):
        return f"must be one of {', '.join(get_args(field.type))}"
    if message.startswith("Invalid RFC3339"):
        return "must be an ISO 8601 time, such as 2026-11-23T10:15:30Z"
    return message.replace("`raw`", "`object`" if field.required else "`object | null`")


def _parsed(text: bytes, where: str) -> Any:
    """Raises: InvalidBody."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        constant = text.strip() if text.strip() in _NO_JSON else b""
        what = f"{constant.decode()}, which JSON has not: send null" if constant else f"not JSON: {error}"
        raise InvalidBody(f"{where} is {what}", code="INVALID_JSON") from None
