"""Invariant 9: a record that is read, sent again and read again is the same, whatever is in it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flusher.batch import coalesce
from flusher.sql import with_values
from flusher.store import Store
from shared.records import KINDS, SESSIONS, TASKS, Kind
from tests.support.bodies import NOW, body_of, check
from tests.support.mariadb import MariaDB
from tests.support.reading import Asking
from tests.support.service import session, task

TIMES = ("updated_at", "start_time", "end_time")
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=36)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.none() | st.dictionaries(texts, values, max_size=3)
counts = st.integers(0, 2147483647)
times = st.datetimes(
    datetime(1001, 1, 1),
    NOW.replace(tzinfo=None),
    timezones=st.sampled_from([timezone.utc, timezone(timedelta(hours=8))]),
).map(datetime.isoformat)
KNOWN = {*SESSIONS.record.__struct_fields__, *TASKS.record.__struct_fields__, "created_at"}
extras = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), values, max_size=3).map(
    lambda found: {name: value for name, value in found.items() if name not in KNOWN}
)


def records(kind: Kind) -> st.SearchStrategy[dict[str, Any]]:
    of_both: dict[str, Any] = {"metadata": objects}
    optional = {
        SESSIONS: {
            "game_info": objects,
            "file_path": texts,
            **dict.fromkeys(("total_tasks", "failed_tasks"), counts),
            "progress": values,
        },
        TASKS: {
            **dict.fromkeys(("batch_id", "sheet_name"), texts),
            **dict.fromkeys(("target_text", "error_message"), st.none() | texts),
            "context": st.none() | texts | st.dictionaries(texts, values, max_size=2),
            "confidence": st.none() | st.floats(0, 1),
            **dict.fromkeys(("start_time", "end_time"), st.none() | times),
            **dict.fromkeys(("row_index", "retry_count"), counts),
            "duration_ms": st.none() | counts,
        },
    }[kind]
    keys = dict.fromkeys(kind.key, ids)
    base = {SESSIONS: session(), TASKS: task()}[kind]
    fields = st.fixed_dictionaries({**keys, "updated_at": times}, optional={**of_both, **optional})
    return st.builds(lambda extra, found: {**base, **extra, **found}, extras, fields)


@pytest.fixture
def store(mariadb: MariaDB, database: str) -> Iterator[Store]:
    made = Store(mariadb.server(database))
    yield made
    made.close()


def write(store: Store, kind: Kind, record: dict[str, Any]) -> None:
    rows = coalesce([(0, 0, check(kind, body_of(kind, record)))], kind)
    store.write({kind: with_values(kind, rows)})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_record_that_is_read_and_sent_again_is_the_same(
    kind: Kind, data: Any, store: Store, mariadb: MariaDB, database: str
) -> None:
    ask = Asking(mariadb, database)
    sent = data.draw(records(kind))
    key = {name: sent[name] for name in kind.key}

    def read() -> dict[str, Any]:
        found: dict[str, Any] = ask(**key).json
        del found["created_at"]
        return found

    write(store, kind, sent)
    first = read()
    own = {name: value for name, value in sent.items() if not (kind is SESSIONS and name == "progress")}
    for name, value in own.items():
        if name in TIMES and value is not None:
            assert datetime.fromisoformat(first[name][:-1] + "+00:00") == datetime.fromisoformat(value)
        elif name == "confidence" and value is not None:
            assert first[name] == round(value, 4)
        elif name == "context" and isinstance(value, dict):
            assert isinstance(first[name], str)
        else:
            assert first[name] == value, name
    assert first.keys() - own.keys() <= {*kind.record.__struct_fields__, "progress"}
    store.change([f"DELETE FROM {kind.table}"])
    write(store, kind, first)
    assert read() == first
    store.change([f"DELETE FROM {kind.table}"])
