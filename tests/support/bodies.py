"""Bodies for tests, and the checks that every body must stand, whatever the test is about."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

import msgspec
import orjson
import pytest

from shared.bodies import InvalidBody, Reader, _items, decode
from shared.records import SESSIONS, TASKS, Kind, Record
from shared.settings import Records
from shared.validation import FieldError, InvalidRecord, Policy, Validator
from tests.support.service import session, task, values_of

NOW = datetime(2026, 11, 23, 10, 15, 30, tzinfo=timezone.utc)
POLICY = Policy({"sessions": Records().session_statuses, "tasks": Records().task_statuses})
MAKE: dict[str, Callable[..., dict[str, Any]]] = {SESSIONS.name: session, TASKS.name: task}


def policy(**settings: Any) -> Policy:
    return msgspec.structs.replace(POLICY, **settings)


def body_of(kind: Kind, *items: Any) -> bytes:
    return orjson.dumps({kind.name: items})


_VALIDATORS: dict[tuple[str, str], Validator] = {}


def validator(kind: Kind, policy: Policy) -> Validator:
    """Made once for each policy: a parser's buffers cost more than a look at a small body."""
    key = kind.name, repr(policy)
    if key not in _VALIDATORS:
        _VALIDATORS[key] = Validator(kind, policy)
    return _VALIDATORS[key]


def validate(kind: Kind, body: bytes, policy: Policy = POLICY, now: datetime = NOW) -> int:
    """The slow path, without turns in between."""
    steps = validator(kind, policy).validate(body, now.timestamp())
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return int(end.value)


def count(kind: Kind, body: bytes, policy: Policy = POLICY, now: datetime = NOW) -> int:
    return validator(kind, policy).count(body, now.timestamp())


def check(kind: Kind, body: bytes, policy: Policy = POLICY, now: datetime = NOW) -> list[Record]:
    """The records of a valid body. What is counted is valid; what is valid decodes, in one pass as record by record."""
    counted = count(kind, body, policy, now)
    try:
        valid = validate(kind, body, policy, now)
    except (InvalidBody, InvalidRecord):
        assert counted == 0
        raise
    assert counted in (0, valid)
    rules = policy.rules.encode()
    records = decode(kind, memoryview(body), rules)
    assert len(records) == valid
    reader = Reader(kind, policy.rules)
    singly = reader.with_times_in_utc([reader.read(item) for item in _items(kind, body)])
    assert repr(values_of(singly)) == repr(values_of(records))  # -0.0 equals 0.0, and is not the same
    return records


def one(kind: Kind, policy: Policy = POLICY, **fields: Any) -> SimpleNamespace:
    """The only record of a valid body, its times in UTC, its objects parsed."""
    return SimpleNamespace(**values_of(check(kind, body_of(kind, MAKE[kind.name](**fields)), policy))[0])


def errors_of(kind: Kind, body: bytes, policy: Policy = POLICY) -> list[FieldError]:
    with pytest.raises(InvalidRecord) as raised:
        check(kind, body, policy)
    return list(raised.value.errors)


def error_of(kind: Kind, policy: Policy = POLICY, **fields: Any) -> FieldError:
    (error,) = errors_of(kind, body_of(kind, MAKE[kind.name](**fields)), policy)
    return error


def nested(depth: int, *, lists: bool = False) -> dict[str, Any]:
    value: Any = {}
    for level in range(depth - 1):
        value = [value] if lists and level < depth - 2 else {"a": value}
    return value  # type: ignore[no-any-return]
