"""Valid records of every form, and bodies that are none: that every way of reading agrees, check() sees to."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.bodies import InvalidBody, _in_one_pass
from shared.records import KINDS, SESSIONS, TASKS, Kind, utc
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
