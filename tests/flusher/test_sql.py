from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flusher import sql
from flusher.mysql_errors import Flavour
from flusher.sql import HEADS, ROWS_PER_JSON_CHUNK, UPDATES, Form, Row, form_of, inserts, with_values
from shared.records import KINDS, SESSIONS, TASKS, UTC, Count, Kind, Record
from tests.flusher.test_store import hostile, rows_of, session, task

RAW = msgspec.Raw(b"{ }")
NOON = datetime(2026, 11, 24, 12, 0, 0, 5, tzinfo=UTC)

times = st.sampled_from([None, NOON, NOON.replace(tzinfo=None), NOON.astimezone(timezone(timedelta(hours=-9)))])
objects = st.none() | st.dictionaries(hostile, hostile | st.integers(-9, 9) | st.none(), max_size=2)
any_records: dict[Kind, st.SearchStrategy[Any]] = {
    TASKS: st.builds(
        task,
        hostile,
        source_text=hostile,
        context=st.none() | hostile,
        confidence=st.none() | st.floats(0, 1),
        start_time=times,
        end_time=times,
        duration_ms=st.none() | st.integers(0, 9),
    ),
    SESSIONS: st.builds(session, hostile, filename=hostile, game_info=objects, metadata=objects),
}


def row(record: Record) -> Row:
    return Row(NOON, record, 0, 0)


def values_of(kind: Kind, rows: list[Row]) -> list[bytes]:
    return [one.values for one in with_values(kind, rows)]


@given(st.data())
def test_rows_become_together_what_each_becomes_alone(data: st.DataObject) -> None:
    for kind in KINDS:
        records = data.draw(st.lists(any_records[kind], max_size=12)) * 12
        alone = [values_of(kind, [row(record)])[0] for record in records]
        assert all(alone)
        assert values_of(kind, [row(record) for record in records]) == alone


def test_a_row_as_sql() -> None:
    record = task('quote " back \\ line \n end', confidence=0.5, row_index=7, start_time=NOON, duration_ms=3)
    texts = b'"quote "" back \\\\ line \n end","b","s","sheet","A","text","pending",null,null,null,NULL,NULL'
    assert values_of(TASKS, [row(record)]) == [
        b"%b,0.5000,7,0,20261124120000.000005,null,3,20261124120000.000005" % texts
    ]


@pytest.mark.parametrize(
    ("fields", "columns", "expected"),
    [
        ({}, ("key", "extra"), b'"a",NULL,20261124120000.000005'),
        ({"count": 7}, ("key", "extra", "count"), b'"a",NULL,7,20261124120000.000005'),
        ({"small": 7}, ("key", "extra", "small"), b'"a",NULL,7,20261124120000.000005'),
        ({"count": -7}, ("key", "extra", "count"), b'"a",NULL,-7,20261124120000.000005'),
        (
            {"one": -1, "at": NOON, "two": -2},
            ("key", "extra", "one", "at", "two"),
            b'"a",NULL,-1,20261124120000.000005,-2,2026',
        ),
        ({"at": NOON}, ("key", "extra", "at"), b'"a",NULL,20261124120000.000005,20261124120000.000005'),
        (
            {"at": NOON.replace(tzinfo=None)},
            ("key", "extra", "at"),
            b'"a",NULL,20261124120000.000005,20261124120000.000005',
        ),
        ({"part": 0.5}, ("key", "extra", "part"), b'"a",NULL,0.5000,20261124120000.000005'),
        (
            {"part": 0.5, "o": RAW, "text": '"'},
            ("key", "text", "o", "extra", "part"),
            b'"a","""",\'{}\',NULL,0.5000,2026',
        ),
    ],
)
def test_a_kind_may_have_any_number_of_fields_of_a_sort(
    fields: dict[str, Any], columns: tuple[str, ...], expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    types: list[Any] = [(name, type(value)) for name, value in fields.items()]
    types = [(name, Count if name == "small" else type_) for name, type_ in types]
    record = msgspec.defstruct(
        "Other", [("key", str), *types, ("updated_at", datetime | None, None)], namespace={"extra": None}
    )
    kind = Kind(9, "others", record, ("key",), "others")
    monkeypatch.setitem(sql._COLUMNS, kind, sql._Columns(kind))
    assert sql._COLUMNS[kind].names == (*columns, "updated_at")
    made = values_of(kind, [row(record("a", **fields)), row(record("b", **fields))])
    assert made[0].startswith(expected)
    assert made[1] == made[0].replace(b'"a"', b'"b"')


@pytest.mark.parametrize("at", [0, ROWS_PER_JSON_CHUNK - 1, ROWS_PER_JSON_CHUNK, 2 * ROWS_PER_JSON_CHUNK])
def test_one_row_without_a_form_in_sql_takes_none_from_the_others(at: int) -> None:
    some = [row(session(str(index))) for index in range(2 * ROWS_PER_JSON_CHUNK + 1)]
    some[at] = row(session("no object", metadata=msgspec.Raw(b"[]")))
    found = values_of(SESSIONS, some)
    assert [index for index, values in enumerate(found) if not values] == [at]
    assert found[at - 1] == values_of(SESSIONS, [some[at - 1]])[0]
    with pytest.raises(ValueError, match="no form in SQL"):
        inserts({SESSIONS: some})


@pytest.mark.parametrize("limit", [1, 700, 2000, 10_000, 100_000])
def test_statements_keep_the_limit_and_every_row_in_its_order(limit: int) -> None:
    some = rows_of(*[task(f"{index:04}", source_text="x" * (index % 90)) for index in range(100)])[TASKS]
    made = inserts({TASKS: some}, limit)
    head, tail = HEADS[TASKS], b")" + UPDATES[Form.ALIAS][TASKS]
    held = []
    for insert in made:
        statement = insert.statement(Form.ALIAS)
        assert insert.size == max(len(statement), len(insert.statement(Form.VALUES)))
        assert statement.startswith(head)
        assert statement.endswith(tail)
        held.append(statement.removeprefix(head).removesuffix(tail).split(b"),("))
        assert insert.size <= limit or len(held[-1]) == 1
    assert [values for part in held for values in part] == [one.values for one in some]


def test_a_statement_may_be_as_large_as_the_limit() -> None:
    both = rows_of(task("a"), task("b"))
    (whole,) = inserts(both)
    assert inserts(both, whole.size) == [whole]
    assert len(inserts(both, whole.size - 1)) == 2


@pytest.mark.parametrize(
    ("flavour", "version", "form"),
    [
        (Flavour.MYSQL, "9.7.4-2", Form.ALIAS),
        (Flavour.MYSQL, "8.0.20", Form.ALIAS),
        (Flavour.MYSQL, "8.0.19", Form.VALUES),
        (Flavour.MYSQL, "8.0.34-google", Form.ALIAS),
        (Flavour.MYSQL, "8.0.11-TiDB-v8.5.0", Form.VALUES),
        (Flavour.MYSQL, "8.0.30-Vitess", Form.VALUES),
        (Flavour.MYSQL, "unknown", Form.VALUES),
        (Flavour.MARIADB, "10.11.19-MariaDB-0+deb12u1", Form.VALUES),
        (Flavour.MARIADB, "5.5.5-10.6.12-MariaDB", Form.VALUES),
    ],
)
def test_the_form_of_the_upsert_follows_from_the_servers_version(flavour: Flavour, version: str, form: Form) -> None:
    assert form_of(flavour, version) is form
