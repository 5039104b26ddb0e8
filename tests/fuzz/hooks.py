"""What schemathesis must know that no schema can say: a time that is accepted does not lie in the future, and its
second is one that DATETIME holds; an integer in an object has 64 bits, and an object 20 levels; a cursor is one that an
answer gave, and what is not flushed within the time asked for is a 503."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import schemathesis
from hypothesis import strategies as st

zones = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda minutes: timezone(timedelta(minutes=minutes)))
times = st.datetimes(datetime(1000, 1, 2), datetime(2026, 1, 1))
forms = st.sampled_from(["Z", "z", ""])

schemathesis.openapi.format(
    "date-time",
    st.one_of(
        st.builds(lambda time, zone: time.replace(tzinfo=zone).isoformat(), times, zones),
        st.builds(lambda time, form: time.isoformat() + form, times, forms),
    ),
)


IDS = st.sampled_from(
    [
        "a/b",
        "/",
        "%",
        "%2F",
        "100%",
        "?",
        "a?b#c&d=e",
        "会话",
        "🀄️",
        "e\u0301",
        "two  ",
        " ",
        "a\0b",
        "\\",
        "..",
        "tasks",
    ]
)


@schemathesis.hook
def flatmap_path_parameters(_context: Any, path_parameters: Any) -> Any:
    """Half of the ids are ones that a path could be led astray by."""
    if not isinstance(path_parameters, dict):
        return st.just(path_parameters)
    return st.fixed_dictionaries({name: st.just(value) | IDS for name, value in path_parameters.items()})


@schemathesis.hook
def filter_body(_context: Any, body: Any) -> bool:
    return _can_be_kept(body, 23)  # the body, its list and the record are around an object


@schemathesis.hook
def filter_query(_context: Any, query: Any) -> bool:
    return not query or not {"cursor", "fresh"} & set(query)


@schemathesis.hook
def filter_case(_context: Any, case: Any) -> bool:
    return filter_query(_context, case.query)


def _can_be_kept(value: Any, depth: int) -> bool:
    if isinstance(value, (dict, list)):
        inside = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(_can_be_kept(child, depth - 1) for child in inside)
    return not isinstance(value, int) or -(2**63) <= value < 2**64
