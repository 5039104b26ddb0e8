"""Plain bodies: those that are found valid at a look, in a third of the time that it takes to make records of them.

The look is recognizer.cpp's; what it looks for follows from KINDS here. A limit that it does not know makes a field
one that no plain body has, never one that is not checked.
"""

from __future__ import annotations

from math import inf
from typing import Any, TypeAlias

import msgspec
from msgspec import inspect

from shared.records import KINDS, Kind, types_of_field

try:
    from shared.recognizer import Recognizer
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("shared/recognizer.cpp is not built: run ./scripts/install.sh") from error

_MAX_FIELDS = 64
_EXACT = 2.0**53
"""Integers below it are their own doubles."""
_NULL: tuple[str, float, float, tuple[str, ...]] = ("null", 0, 0, ())

_Field: TypeAlias = tuple[str, str, bool, bool, float, float, tuple[str, ...]]


def count(kind: Kind, body: bytes, latest_s: int) -> int:
    """Returns: how many records the body holds, if validate() would take them all; 0 where that takes a closer look.

    Args:
        latest_s: since 1970 UTC; a body with a later time, in any field, is not plain.
    """
    recognizer = _RECOGNIZERS.get(kind.code)
    return recognizer.count(body, latest_s) if recognizer is not None else 0


def _recognizer(kind: Kind) -> Recognizer | None:
    fields = msgspec.structs.fields(kind.record)
    config = kind.record.__struct_config__
    special = config.array_like or config.tag is not None or hasattr(kind.record, "__post_init__")
    if special or len(fields) > _MAX_FIELDS:
        return None
    return Recognizer(kind.name, tuple(map(_field, fields)))


def _field(field: msgspec.structs.FieldInfo) -> _Field:
    types = types_of_field(field)
    others = [one for one in types if not isinstance(one, inspect.NoneType)]
    sort, least, most, choices = _sort(others[0]) if len(others) == 1 else _NULL
    return field.encode_name, sort, field.required, len(others) < len(types), least, most, choices


def _sort(info: Any) -> tuple[str, float, float, tuple[str, ...]]:
    """Sort, least, most, choices."""
    if isinstance(info, inspect.StrType) and info.pattern is None and (info.min_length or 0) <= 1:
        # Bytes are counted: a text of one character or more has one or more, one of at most so many has at most those.
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
    return _NULL


_RECOGNIZERS = {kind.code: found for kind in KINDS if (found := _recognizer(kind)) is not None}
