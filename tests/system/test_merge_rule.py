"""The merge rule from end to end: however records are split, ordered and repeated over requests, flushes and crashes
of the flusher, the tables end as a model of three lines says."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import datetime
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.support.mariadb import MariaDB
from tests.support.service import SESSIONS, TASKS, Service, session, task

TASK_COLUMNS = ("task_id", "status", "target_text", "retry_count", "row_index", "updated_at")
SESSION_COLUMNS = ("session_id", "status", "filename", "completed_tasks", "failed_tasks", "updated_at")

times = st.one_of(
    st.none(),  # the time of arrival
    # Few, so that ties are frequent.
    st.integers(0, 3).map(lambda n: datetime(2024, 1, 1, microsecond=n)),
    st.just(datetime(1969, 12, 31, 23, 59, 59, 999999)),
)
task_fields = st.fixed_dictionaries(
    {"status": st.sampled_from(["pending", "processing", "completed", "failed"])},
    optional={
        "target_text": st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=5)),
        "retry_count": st.integers(0, 5),
        "row_index": st.integers(0, 2**31 - 1),
    },
)
session_fields = st.fixed_dictionaries(
    {"status": st.sampled_from(["pending", "processing", "completed", "failed", "cancelled"])},
    optional={
        "filename": st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5),
        "completed_tasks": st.integers(0, 5),
        "failed_tasks": st.integers(0, 5),
    },
)
keys = st.sampled_from(["a", "b"])  # few, so that records meet


@st.composite
def stories(draw: st.DrawFn) -> list[Any]:
    """Steps: (kind, records) to post, "flush", or "crash". Every record comes at least once, some again."""
    records = draw(
        st.lists(
            st.one_of(
                st.tuples(st.just("tasks"), keys, times, task_fields),
                st.tuples(st.just("sessions"), keys, times, session_fields),
            ),
            min_size=12,
            max_size=24,
        )
    )
    again = draw(st.lists(st.sampled_from(records), max_size=12))
    deck = draw(st.permutations(records + again))
    steps: list[Any] = []
    while deck:
        size = draw(st.integers(1, 5))
        batch, deck = deck[:size], deck[size:]
        for kind in ("sessions", "tasks"):
            of_kind = [record for record in batch if record[0] == kind]
            if of_kind:
                steps.append((kind, of_kind))
        steps += draw(st.sampled_from([["flush"], ["flush"], ["flush"], [], [], ["crash"]]))
    return steps


def merge(table: dict[str, dict[str, Any]], key: str, row: dict[str, Any]) -> None:
    """The model. What comes later wins a tie: inside a flush it arrives later, across flushes it is written later."""
    if key not in table or row["updated_at"] >= table[key]["updated_at"]:
        table[key] = row


def post(service: Service, kind: str, batch: list[Any], prefix: str, model: dict[str, dict[str, Any]]) -> None:
    make: Callable[..., dict[str, Any]] = task if kind == "tasks" else session
    columns = TASK_COLUMNS if kind == "tasks" else SESSION_COLUMNS
    documents = []
    for _, key, updated_at, fields in batch:
        stamp = {} if updated_at is None else {"updated_at": updated_at.isoformat()}
        documents.append(make(prefix + key, **fields, **stamp))

    answer = service.post(TASKS if kind == "tasks" else SESSIONS, {kind: documents})

    assert answer.status == 202, answer
    arrival = datetime.fromisoformat(answer.json["timestamp"].removesuffix("Z"))
    for document, (_, key, updated_at, _) in zip(documents, batch, strict=True):
        defaults = {"target_text": None, "retry_count": 0, "completed_tasks": 0, "failed_tasks": 0}
        whole = {**defaults, **document, "updated_at": updated_at or arrival}
        merge(model, prefix + key, {column: whole[column] for column in columns})


def rows(mariadb: MariaDB, database: str, table: str, columns: tuple[str, ...], prefix: str) -> dict[str, Any]:
    found = mariadb.execute(
        f"SELECT {', '.join(columns)} FROM {table} WHERE {columns[0]} LIKE %s", (prefix + "%",), database
    )
    return {row[0]: dict(zip(columns, row, strict=True)) for row in found}


def test_any_split_order_and_repetition_over_flushes_and_crashes_ends_in_the_rows_of_the_model(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    # One writer, so that segments are written in their order and the model can say who wins a tie across flushes.
    service = start_service(mariadb, database, BUFFER_FLUSH_INTERVAL=86400, DB_POOL_SIZE=1)
    numbers = itertools.count()

    @settings(
        max_examples=8,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],  # shrinking would take minutes
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large],
    )
    @given(stories())
    def check(story: list[Any]) -> None:
        prefix = f"{next(numbers)}-"
        model: dict[str, dict[str, dict[str, Any]]] = {"tasks": {}, "sessions": {}}
        for step in story:
            if step == "flush":
                assert service.flush().status == 200
            elif step == "crash":
                service.kill_flusher()
                service.start_flusher()
            else:
                kind, batch = step
                post(service, kind, batch, prefix, model[kind])
        answer = service.flush()
        assert answer.status == 200, answer
        assert rows(mariadb, database, "translation_tasks", TASK_COLUMNS, prefix) == model["tasks"]
        assert rows(mariadb, database, "translation_sessions", SESSION_COLUMNS, prefix) == model["sessions"]

    check()
    assert service.stats()["dead_letters"]["count"] == 0
