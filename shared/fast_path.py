"""Describes a kind's fields to the fast validator in C++, as far as that can check their limits."""

from __future__ import annotations

from math import inf
from typing import Any

import msgspec
from msgspec import inspect

from shared.bodies import IGNORED
from shared.fast_validator import FastValidator
from shared.records import Kind, types_of_field

_MAX_FIELDS = 64
_EXACT = 2.0**53
"""Integers below it are their own doubles."""
_Field = tuple[str, str, bool, float, float, tuple[str, ...]]
_NULL: tuple[str, float, float, tuple[str, ...]] = ("null", 0, 0, ())


def fast_validator_of(kind: Kind, statuses: tuple[str, ...], *, keep_unknown: bool) -> FastValidator | None:
    """None if the kind's type is read in a way that the fast validator does not know.

    A limit that it does not know sends the field's values to the slow path; it is never skipped.
    """
    fields = msgspec.structs.fields(kind.record)
    config = kind.record.__struct_config__
    special = config.array_like or config.tag is not None or hasattr(kind.record, "__post_init__")
    if special or len(fields) >= _MAX_FIELDS:
        return None
    described = [_described(kind, field, statuses) for field in fields]
    return FastValidator(kind.name, (*described, (IGNORED, "any", False, 0, 0, ())), keep_unknown)


def _described(kind: Kind, field: msgspec.structs.FieldInfo, statuses: tuple[str, ...]) -> _Field:
    types = [info for info in types_of_field(field) if not isinstance(info, inspect.NoneType)]
    type_, least, most, choices = _limits(types[0]) if len(types) == 1 else _NULL
    if type_ == "text" and field.name == "status" and statuses:
        type_, choices = "choice", statuses
    if field.name in kind.as_text:
        type_ = f"{type_}_or_object"
    if field.name in kind.rounded:
        type_ = "rounded"
    return field.encode_name, type_, field.required, least, most, choices


def _limits(info: Any) -> tuple[str, float, float, tuple[str, ...]]:
    """Type, least, most, choices."""
    if isinstance(info, inspect.StrType) and info.pattern is None and (info.min_length or 0) <= 1:
        return "text", info.min_length or 0, inf if info.max_length is None else info.max_length, ()
    if isinstance(info, inspect.IntType | inspect.FloatType):
        least, most = info.ge, info.le
        if info.gt is info.lt is info.multiple_of is None:
            if isinstance(info, inspect.FloatType):
                return "number", -inf if least is None else least, inf if most is None else most, ()
            if least is not None and most is not None and -_EXACT < least <= most < _EXACT:
                return "integer", least, most, ()
    if isinstance(info, inspect.DateTimeType) and info.tz is None:
        return "time", 0, 0, ()
    if isinstance(info, inspect.LiteralType) and all(type(value) is str for value in info.values):
        return "choice", 0, 0, tuple(map(str, info.values))
    return ("object", 0, 0, ()) if isinstance(info, inspect.RawType) else _NULL
