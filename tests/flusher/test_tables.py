"""Invariant 8: tables that would store a wrong or merged value get nothing, and are named."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace
from MySQLdb.connections import Connection

from flusher.facts import SESSION
from flusher.mysql_errors import ErrorClass
from flusher.store import LOOK_AGAIN_S, Store, StoreError, TablesNotOurs
from flusher.tables import expected_tables, faults, holds
from shared.records import KINDS
from tests.flusher.test_store import NOON, rows_of, session, task
from tests.support.mariadb import MariaDB
from tests.support.tables import FAULTS, FIRST_USER, FOREIGN, HARMLESS, VERSION_1


class Now:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def store(mariadb: MariaDB, database: str, now: Now) -> Iterator[Store]:
    made = Store(mariadb.server(database), clock=now)
    yield made
    made.close()


def refusal(store: Store) -> TablesNotOurs:
    """What a write and a ping say, which must be the same."""
    said = []
    for attempt in (store.ping, lambda: store.write(rows_of(session(), task("q-A"), task("q-a"), task("q-a ")))):
        with pytest.raises(TablesNotOurs) as caught:
            attempt()
        said.append(caught.value)
    assert said[0].public == said[1].public
    return said[1]


def count(mariadb: MariaDB, database: str) -> list[int]:
    return [mariadb.execute(f"SELECT COUNT(*) FROM {kind.table}", (), database)[0][0] for kind in KINDS]


@pytest.mark.parametrize(("breaks", "named"), FAULTS.values(), ids=FAULTS.keys())
def test_tables_that_would_change_or_merge_values_get_nothing(
    store: Store, mariadb: MariaDB, database: str, breaks: str, named: str
) -> None:
    mariadb.execute(breaks, (), database)

    error = refusal(store)

    assert error.error_class is ErrorClass.SCHEMA
    assert "./scripts/ctl.sh db check" in error.public
    assert named in " ".join(fault.what + fault.detail for fault in faults(store.describe()))
    assert count(mariadb, database) == [0, 0]


@pytest.mark.parametrize(
    ("tables", "said"),
    [(VERSION_1, "of an earlier version"), (FIRST_USER, "db upgrade"), (FOREIGN, "another program's")],
)
def test_whoever_has_made_them_is_told_apart(
    mariadb: MariaDB, database: str, store: Store, tables: tuple[str, ...], said: str
) -> None:
    for statement in ("DROP TABLE translation_tasks, translation_sessions", *tables):
        mariadb.execute(statement, (), database)

    assert said in refusal(store).public


@pytest.mark.parametrize("change", HARMLESS)
def test_tables_that_hold_more_than_ours_do(mariadb: MariaDB, database: str, store: Store, change: str) -> None:
    mariadb.execute(change, (), database)
    newer = session(filename="newer", updated_at=NOON + timedelta(microseconds=1))
    for one in (session(), newer, session()):
        store.write(rows_of(one, task("q-A"), task("q-a"), task("q-a ")))

    assert count(mariadb, database) == [1, 3]
    stored = mariadb.execute("SELECT filename, updated_at FROM translation_sessions", (), database)
    assert stored == [(newer.filename, newer.updated_at)]


def test_a_change_during_a_connection_is_found_within_its_time_and_mended_tables_at_once(
    mariadb: MariaDB, database: str, store: Store, now: Now
) -> None:
    store.write(rows_of(task("a")))
    mariadb.execute("CREATE UNIQUE INDEX once ON translation_tasks (batch_id)", (), database)
    now.now += LOOK_AGAIN_S
    refusal(store)
    mariadb.execute("DROP INDEX once ON translation_tasks", (), database)

    store.write(rows_of(task("b")))

    assert count(mariadb, database) == [0, 2]


def test_no_setting_of_the_server_makes_our_own_tables_look_wrong(mariadb: MariaDB, database: str) -> None:
    """Each would, of an answer put together by the server; a new connection takes all of them."""
    settings = {"group_concat_max_len": 4, "sql_mode": "'ANSI_QUOTES,PIPES_AS_CONCAT'", "sql_quote_show_create": 0}
    settings |= {"sql_select_limit": 1}
    before = {name: mariadb.execute(f"SELECT @@GLOBAL.{name}")[0][0] for name in settings}
    try:
        for name, value in settings.items():
            mariadb.execute(f"SET GLOBAL {name} = {value}")
        store = Store(mariadb.server(database))
        store.write(rows_of(task()))
        store.close()
    finally:
        for name, found in before.items():
            mariadb.execute(f"SET GLOBAL {name} = {found!r}")


class Proxy(Connection):
    """Keeps settings of the session to itself, as some do."""

    def query(self, query: Any) -> None:
        super().query("DO 0" if isinstance(query, str) and query.startswith("SET SESSION sql_mode") else query)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("sql_mode", ""), ("sql_mode", f"{SESSION['sql_mode']},NO_BACKSLASH_ESCAPES"), ("time_zone", "+08:00")],
)
def test_a_session_without_its_settings_writes_nothing(
    mariadb: MariaDB, database: str, setting: str, value: str
) -> None:
    given = {**SESSION, setting: value}
    command = "SET " + ", ".join(f"SESSION {name}='{one}'" for name, one in given.items())
    store = Store(mariadb.server(database), connect=lambda **options: Proxy(**options, init_command=command))

    assert setting in refusal(store).public
    store.close()


def test_a_user_with_the_documented_rights_can_look(mariadb: MariaDB, database: str) -> None:
    mariadb.execute("CREATE USER looking@localhost")
    mariadb.execute(f"GRANT SELECT, INSERT, UPDATE ON `{database}`.* TO looking@localhost")
    try:
        store = Store(replace(mariadb.server(database), user="looking"))
        store.write(rows_of(session(), task()))
        mariadb.execute(FAULTS["a foreign key"][0], (), database)
        store.close()
        with pytest.raises(StoreError, match="belongs"):
            store.ping()
    finally:
        mariadb.execute("DROP USER looking@localhost")


def test_every_field_of_a_record_is_expected_as_a_column() -> None:
    tables = expected_tables()
    assert set(tables) == {kind.table for kind in KINDS}
    for kind in KINDS:
        assert {*tables[kind.table].columns} == {*kind.record.__struct_fields__, "extra", "metadata", "created_at"}
        assert tables[kind.table].comment == "persistence-service tables, version 2"
    assert tables["translation_tasks"].indexes == {
        "ix_tasks_session_status": ("session_id", "status"),
        "ix_tasks_batch": ("session_id", "batch_id"),
    }


@pytest.mark.parametrize(
    ("actual", "wanted", "enough"),
    [
        ("varchar(36)", "varchar(36)", True),
        ("varchar(64)", "varchar(36)", True),
        ("varchar(35)", "varchar(36)", False),
        ("char(36)", "varchar(36)", False),
        ("text", "varchar(512)", True),
        ("tinytext", "varchar(64)", False),
        ("int(11)", "int", True),
        ("int", "int", True),
        ("bigint(20)", "int", True),
        ("int(10) unsigned", "int", True),
        ("smallint", "int", False),
        ("longtext", "mediumtext", True),
        ("text", "mediumtext", False),
        ("longtext", "json", True),
        ("json", "json", True),
        ("mediumtext", "json", False),
        ("decimal(5,4)", "decimal(5,4)", True),
        ("decimal(6,4)", "decimal(5,4)", True),
        ("decimal(5,5)", "decimal(5,4)", False),
        ("decimal(9,3)", "decimal(5,4)", False),
        ("datetime(6)", "datetime(6)", True),
        ("datetime", "datetime(6)", False),
        ("timestamp(6)", "datetime(6)", False),
    ],
)
def test_a_type_is_enough_when_it_holds_every_value_of_ours(actual: str, wanted: str, enough: bool) -> None:
    assert holds(actual, wanted) is enough
