"""The one rule of merging, in memory, in SQL, and in both together, against a model of a few lines."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flusher.answers import Written
from flusher.batch import EPOCH, Batch, coalesce, prepare
from flusher.segments import Entry
from flusher.sql import Row, Rows, with_values
from flusher.store import Store
from flusher.writer import Writer
from shared.bodies import decode
from shared.records import KINDS, SESSIONS, TASKS, UTC, Kind, utc
from tests.support.flusher import sessions_body, task_body
from tests.support.mariadb import MariaDB
from tests.support.segments import filled
from tests.support.service import session, task

NOON = datetime(2026, 1, 1, 12)
ARRIVAL = int((NOON.replace(tzinfo=UTC) - EPOCH) / timedelta(microseconds=1))

Body = tuple[Kind, list[dict[str, Any]]]
Tables = dict[str, dict[tuple[str, ...], tuple[datetime, str]]]

updated_at = st.one_of(
    st.none(),
    st.integers(-4, 12).map(lambda offset: (NOON + timedelta(microseconds=offset)).isoformat()),
    st.integers(-4, 12).map(
        lambda offset: (
            (NOON + timedelta(microseconds=offset))
            .replace(tzinfo=timezone.utc)
            .astimezone(timezone(timedelta(hours=8)))
            .isoformat()
        )
    ),
)
keys = st.sampled_from(["a", "A", "a ", "🙂"])
statuses = st.sampled_from(["pending", "processing", "completed", "failed"])


def of_kind(kind: Kind, make: Callable[..., dict[str, Any]]) -> st.SearchStrategy[Body]:
    record = st.builds(
        lambda ids, at, status: make(**ids, status=status, **({} if at is None else {"updated_at": at})),
        st.fixed_dictionaries(dict.fromkeys(kind.key, keys)),
        updated_at,
        statuses,
    )
    return st.tuples(st.just(kind), st.lists(record, min_size=1, max_size=4))


bodies = st.lists(st.one_of(of_kind(TASKS, task), of_kind(SESSIONS, session)), min_size=1, max_size=6)


@st.composite
def histories(draw: st.DrawFn) -> list[list[Entry]]:
    """Entries as they were accepted, split into flushes written in any order, some of them again."""
    entries = [
        Entry(
            kind.code,
            len(records),
            ARRIVAL + number,
            sessions_body(*records) if kind is SESSIONS else task_body(*records),
        )
        for number, (kind, records) in enumerate(draw(bodies))
    ]
    cuts = sorted(draw(st.sets(st.integers(0, len(entries)), max_size=3)) | {0, len(entries)})
    flushes = [entries[start:end] for start, end in itertools.pairwise(cuts)]
    return draw(st.permutations(flushes + draw(st.lists(st.sampled_from(flushes), max_size=2))))


def model(flushes: Sequence[Sequence[Entry]]) -> Tables:
    """The rule in words: the later updated_at wins; on a tie what comes later in a flush, or what is written last."""
    tables: Tables = {kind.name: {} for kind in KINDS}
    for entries in flushes:
        for entry in entries:
            kind = SESSIONS if entry.kind == SESSIONS.code else TASKS
            for record in decode(kind, entry.body):
                at = record.updated_at or EPOCH + timedelta(microseconds=entry.arrival)
                if at.tzinfo is not None:
                    at = at.astimezone(timezone.utc).replace(tzinfo=None)
                key = kind.key_of(record)
                held = tables[kind.name].get(key)
                if held is None or at >= held[0]:
                    tables[kind.name][key] = (at, record.status)
    return tables


def as_tables(rows: Rows) -> Tables:
    return {
        kind.name: {kind.key_of(row.record): (utc(row.updated_at), row.record.status) for row in rows[kind]}
        for kind in KINDS
    }


def uncoalesced(entries: Sequence[Entry]) -> Iterator[Rows]:
    """One row a time, in the order of arrival: what SQL alone must make the best of."""
    for entry in entries:
        kind = SESSIONS if entry.kind == SESSIONS.code else TASKS
        for index, record in enumerate(decode(kind, entry.body)):
            (row,) = coalesce([(0, entry.arrival, [record])], kind)
            yield {kind: with_values(kind, [Row(row.updated_at, record, 0, index)])}


@pytest.fixture
def empty_tables(mariadb: MariaDB, database: str) -> Iterator[Callable[[], None]]:
    db = mariadb.connect(database)

    def empty() -> None:
        for kind in KINDS:
            db.query(f"DELETE FROM {kind.table}")

    yield empty
    db.close()


def stored(mariadb: MariaDB, database: str) -> Tables:
    return {
        kind.name: {
            tuple(key): (at, status)
            for *key, at, status in mariadb.execute(
                f"SELECT {','.join(kind.key)}, updated_at, status FROM {kind.table}", (), database
            )
        }
        for kind in KINDS
    }


on_the_database = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(histories())
def test_in_memory_one_flush_of_everything_ends_in_the_models_tables(flushes: list[list[Entry]]) -> None:
    everything = [entry for flush in flushes for entry in flush]

    assert as_tables(Batch(everything).rows()) == model([everything])


@on_the_database
@given(flushes=histories())
def test_in_sql_alone_the_tables_end_as_the_models(
    mariadb: MariaDB, database: str, empty_tables: Callable[[], None], flushes: list[list[Entry]]
) -> None:
    empty_tables()
    store = Store(mariadb.server(database))
    for entries in flushes:
        for rows in uncoalesced(entries):
            store.write(rows)
    store.close()

    assert stored(mariadb, database) == model(flushes)


@on_the_database
@given(flushes=histories())
def test_coalesced_in_memory_and_merged_in_sql_the_tables_end_as_the_models(
    mariadb: MariaDB, database: str, empty_tables: Callable[[], None], flushes: list[list[Entry]]
) -> None:
    empty_tables()
    store = Store(mariadb.server(database))
    for entries in flushes:
        store.write(Batch(entries).rows())
    store.close()

    assert stored(mariadb, database) == model(flushes)


@on_the_database
@given(flushes=histories())
def test_through_segments_and_restarted_writers_the_tables_end_as_the_models(
    mariadb: MariaDB, database: str, empty_tables: Callable[[], None], tmp_path: Path, flushes: list[list[Entry]]
) -> None:
    empty_tables()
    for entries in flushes:
        path = filled(tmp_path, entries)
        store = Store(mariadb.server(database))
        assert isinstance(Writer(store, tmp_path / "dead", 1).write(path, prepare(path, None)), Written)
        store.close()
        path.unlink()

    assert stored(mariadb, database) == model(flushes)
