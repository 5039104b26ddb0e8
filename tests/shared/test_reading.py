"""Valid records of every form, and bodies that are none: that every way of reading agrees, check() sees to."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.bodies import InvalidBody, _in_one_pass
from shared.records import KINDS, SESSIONS, TASKS, Kind, Task, utc
from shared.validation import InvalidRecord
from tests.support.bodies import POLICY, body_of, check
from tests.support.service import session, task, values_of

UTC = timezone.utc
MAX_INT = 2147483647

characters = st.characters(exclude_categories=["Cs"])
counts = st.integers(0, MAX_INT)
lax_counts = st.one_of(counts, counts.map(str), counts.map(float))
times = st.one_of(
    st.none(),
    st.datetimes(datetime(1000, 1, 2), datetime(2026, 11, 22)).map(datetime.isoformat),
    st.datetimes(datetime(1000, 1, 2), datetime(2026, 11, 22), timezones=st.just(UTC)).map(datetime.isoformat),
)
json_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False)
    )
    | st.text(characters, max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(characters, max_size=4), inner, max_size=3),
    max_leaves=8,
)
objects = st.none() | st.dictionaries(st.text(characters, max_size=8), json_values, max_size=4)
sessions = st.fixed_dictionaries(
    {
        "session_id": st.text(characters, min_size=1, max_size=36),
        "filename": st.text(characters, min_size=1, max_size=20),
        "file_path": st.text(characters, min_size=1, max_size=20),
        "status": st.sampled_from(POLICY.statuses["sessions"]),
        "llm_provider": st.text(characters, min_size=1, max_size=20),
    },
    optional={
        "metadata": objects,
        "game_info": objects,
        "total_tasks": lax_counts,
        "updated_at": times,
        "x": json_values,
    },
)
tasks = st.fixed_dictionaries(
    {
        "task_id": st.text(characters, min_size=1, max_size=64),
        "batch_id": st.text(characters, min_size=1, max_size=20),
        "session_id": st.text(characters, min_size=1, max_size=36),
        "sheet_name": st.text(characters, min_size=1, max_size=20),
        "column_name": st.text(characters, min_size=1, max_size=20),
        "row_index": lax_counts,
        "source_text": st.text(characters, min_size=1, max_size=40),
        "status": st.sampled_from(POLICY.statuses["tasks"]),
    },
    optional={
        "target_text": st.none() | st.text(characters, max_size=40),
        "confidence": st.none() | st.floats(0, 1) | st.floats(0, 1).map(repr),
        "retry_count": lax_counts,
        "start_time": times,
        "duration_ms": st.none() | lax_counts,
        "updated_at": times,
        "metadata": objects,
        "priority": json_values,
    },
)


@given(st.lists(sessions, min_size=1, max_size=4))
def test_every_valid_session_is_accepted_and_decoded_field_by_field(items: list[dict[str, Any]]) -> None:
    agree(SESSIONS, items)


@given(st.lists(tasks, min_size=1, max_size=4))
def test_every_valid_task_is_accepted_and_decoded_field_by_field(items: list[dict[str, Any]]) -> None:
    agree(TASKS, items)


def agree(kind: Kind, items: list[dict[str, Any]]) -> None:
    for item, fields in zip(items, values_of(check(kind, body_of(kind, *items))), strict=True):
        for name, sent in item.items():
            read = fields[name] if name in fields else fields["extra"][name]
            if isinstance(read, datetime):
                assert read == utc(datetime.fromisoformat(sent))
            elif isinstance(read, (int, float)):
                assert round(read, 4) == round(float(sent), 4)
            else:
                assert read == sent


_JSON_VALUES = """
0 -0 1 1.0 1e2 1E+2 10e-1 2147483647 2147483648 -1 9007199254740993 18446744073709551616 1e400 1e-400 0.1 0e0 0E5 00 01
0.30000000000000004 0.9999999999999999 1.00000000000000005 5e-324 0.12345678901234567890123 1. .5 +1 0x1 NaN Infinity
-Infinity true false null [] {} [[]] "" "a" "\\n" "\\/" "\\x" "\\b\\f" 'a' "12 "2026-01-01" "2026-02-30T00:00:00Z"
"2026-01-01T24:00:00Z" "2026-01-01T00:00:00.1234567Z" "0999-01-01T00:00:00Z" "2026-01-01T00:00:00+24:00"
"""
VALUES = [*_JSON_VALUES.encode().split(), b'"\xff"', b'"\xed\xa0\x80"', b'"\\ud83d"']
PIECES = [
    *(b"%c" % code for code in (0, 9, 10, 11, 13, 31, 32, 34, 44, 47, 48, 58, 91, 92, 93, 101, 123, 125, 127, 255)),
    *(
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\xf0\x9f",
        b"\xc0\x80",
        b"/**/",
        b"//",
        b"\\ud83d",
        b"\\ude42",
        b"\\u0041",
        b"\\u00",
        b"{}",
    ),
    b'"extra":"\xff",',
    b'"tasks":[],',
    b'"task_id":"again",',
    b'"task\\u005fid":"again",',
    b'"colour":{"a":[]},',
]
edits = st.lists(
    st.tuples(st.integers(0, 10_000), st.integers(0, 3), st.sampled_from(PIECES + VALUES)),
    max_size=3,
)
tasks_with_any_values = st.dictionaries(
    st.sampled_from([*Task.__struct_fields__, "extra"]), st.sampled_from(VALUES), max_size=3
)


@settings(max_examples=1000)
@given(tasks_with_any_values, edits)
@example({"extra": b'"\xff"'}, [])
def test_every_way_of_reading_agrees_on_any_body(values: dict[str, bytes], edits: list[tuple[int, int, bytes]]) -> None:
    members = {name: orjson.dumps(value) for name, value in task().items()} | values
    body = b'{"tasks":[{' + b",".join(b'"%b":%b' % (name.encode(), value) for name, value in members.items()) + b"}]}"
    for number, cut, piece in edits:
        at = number % (len(body) + 1)
        body = body[:at] + piece + body[at + cut :]
    try:
        check(TASKS, body)
    except (InvalidBody, InvalidRecord):
        pass


@pytest.mark.parametrize(
    ("body", "one_pass"),
    [
        (body_of(TASKS, task()), True),
        (body_of(TASKS, task(source_text='line\n"quoted" \\')), True),
        (body_of(SESSIONS, session(metadata={"a": [1]})), True),
        (body_of(TASKS, task(colour=1)), False),
        (body_of(TASKS, task(extra=1)), False),
        (body_of(TASKS, task()).replace(b"Sheet1", b"\\u4f60\\ud83d\\ude42"), True),
    ],
)
def test_which_bodies_take_one_pass(body: bytes, one_pass: bool) -> None:
    kind = TASKS if b"tasks" in body else SESSIONS
    check(kind, body)
    assert (_in_one_pass(kind, body) is not None) is one_pass


@given(st.binary(max_size=60) | json_values.map(orjson.dumps) | json_values.map(lambda v: orjson.dumps({"tasks": [v]})))
def test_whatever_comes_is_accepted_or_refused_in_our_own_words(body: bytes) -> None:
    for kind in KINDS:
        try:
            check(kind, body)
        except (InvalidBody, InvalidRecord):
            pass
