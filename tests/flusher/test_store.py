from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from MySQLdb.connections import Connection

from flusher.mysql_errors import ErrorClass
from flusher.schema import FILE
from flusher.sql import MAX_STATEMENT_ROWS, Row, with_values
from flusher.store import Store, StoreError, TablesNotOurs, schema_statements
from shared.bodies import MAX_OBJECT_BYTES
from shared.records import KINDS, SESSIONS, TASKS, UTC, Kind, Record, Session, Task, utc
from tests.support.mariadb import MariaDB
from tests.support.writer import refused

NOON = datetime(2026, 1, 1, 12)
INT_MAX = 2147483647


def with_raw(fields: dict[str, Any]) -> dict[str, Any]:
    """Objects as records hold them."""
    return {
        name: msgspec.Raw(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)) if isinstance(value, dict) else value
        for name, value in fields.items()
    }


def task(task_id: str = "t", **fields: Any) -> Task:
    return Task(
        **{
            "task_id": task_id,
            "batch_id": "b",
            "session_id": "s",
            "sheet_name": "sheet",
            "column_name": "A",
            "row_index": 0,
            "source_text": "text",
            "status": "pending",
            "updated_at": NOON,
            **with_raw(fields),
        }
    )


def session(session_id: str = "s", **fields: Any) -> Session:
    return Session(
        **{
            "session_id": session_id,
            "filename": "f",
            "file_path": "/f",
            "status": "pending",
            "llm_provider": "openai",
            "updated_at": NOON,
            **with_raw(fields),
        }
    )


def rows_of(*records: Record) -> dict[Kind, list[Row]]:
    """Each record as the winner of its key, sorted as a flush would."""
    found: dict[Kind, list[Row]] = {kind: [] for kind in KINDS}
    for index, record in enumerate(records):
        kind = SESSIONS if isinstance(record, Session) else TASKS
        assert record.updated_at is not None
        found[kind].append(Row(utc(record.updated_at).replace(tzinfo=UTC), record, 0, index))
    for kind, rows in found.items():
        rows.sort(key=lambda row, kind=kind: kind.key_of(row.record))
        with_values(kind, rows)
    return found


class WatchedConnection(Connection):
    """Fails the test when a statement leaves a warning; `rewrite` edits settings."""

    rewrite: Callable[[str], str] = staticmethod(lambda statement: statement)

    def query(self, query: str | bytes) -> None:
        if isinstance(query, str):
            query = type(self).rewrite(query)
        super().query(query)
        if query.startswith(b"INSERT" if isinstance(query, bytes) else "INSERT"):
            warnings = self.show_warnings()
            assert not warnings, warnings


@pytest.fixture
def store(mariadb: MariaDB, database: str) -> Iterator[Store]:
    made = Store(mariadb.server(database), connect=WatchedConnection)
    yield made
    made.close()


def stored(mariadb: MariaDB, database: str, kind: Kind) -> dict[Any, Record]:
    """The table as records."""
    fields = kind.record.__struct_fields__
    rows = mariadb.execute(f"SELECT {','.join(fields)} FROM {kind.table}", (), database)
    objects = kind.fields_of(msgspec.inspect.RawType)
    found: dict[str, Record] = {}
    for row in rows:
        values = dict(zip(fields, row, strict=True))
        for name in objects:
            if values[name] is not None:
                # MySQL keeps an object's keys in an order of its own.
                values[name] = msgspec.Raw(orjson.dumps(orjson.loads(values[name]), option=orjson.OPT_SORT_KEYS))
        if values.get("confidence") is not None:
            values["confidence"] = float(values["confidence"])
        record = kind.record(**values)
        found[getattr(record, kind.key[-1])] = record
    return found


HARD_TEXTS = [
    "🙂👩‍👩‍👧‍👦🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "مرحبا بالعالم \u202eabc\u202c שלום",
    "it's \"quoted\" `ticks` ''",
    "back\\slash \\' \\\\ \\n \\0 \\Z \\%",
    "nul \x00 and \x1a and \x7f",
    "".join(map(chr, range(32))),
    '\\u0041 \\\\n \\" \\\\" \\f \\',
    " leading and trailing ",
    "%s %(name)s {} ; -- /* */ #",
    "\ufeff\ufffd\uffff\U0010ffff",
    "é = e\u0301",
    "你" * 65535,
    "🙂" * 65535,
    "'" * 65535,
    "\x00" * 65535,
]


@pytest.mark.parametrize("text", HARD_TEXTS, ids=lambda text: ascii(text[:8]))
def test_any_text_comes_back_from_every_text_column_as_sent(
    store: Store, mariadb: MariaDB, database: str, text: str
) -> None:
    sent_task = task(
        text[:64],
        batch_id=text[:64],
        session_id=text[:36],
        sheet_name=text[:255],
        column_name=text[:255],
        source_text=text,
        target_text=text,
        context=text,
        error_message=text,
    )
    sent_session = session(
        text[:36],
        filename=text[:255],
        file_path=text[:512],
        llm_provider=text[:50],
        game_info={text[:100]: [text]},
        metadata={"text": text},
    )

    store.write(rows_of(sent_task, sent_session))

    assert stored(mariadb, database, TASKS) == {text[:64]: sent_task}
    assert stored(mariadb, database, SESSIONS) == {text[:36]: sent_session}


def test_empty_texts_and_nulls_are_told_apart(store: Store, mariadb: MariaDB, database: str) -> None:
    empty = task("empty", target_text="", context="", error_message="")
    null = task("null")
    store.write(rows_of(empty, null, session("null"), session("empty", game_info={}, metadata={})))

    assert stored(mariadb, database, TASKS) == {"empty": empty, "null": null}
    assert stored(mariadb, database, SESSIONS)["empty"].game_info == msgspec.Raw(b"{}")  # type: ignore[union-attr]
    assert stored(mariadb, database, SESSIONS)["null"].game_info is None  # type: ignore[union-attr]


@pytest.mark.parametrize("number", [0, 1, INT_MAX - 1, INT_MAX])
def test_the_extremes_of_every_integer_come_back(store: Store, mariadb: MariaDB, database: str, number: int) -> None:
    sent: list[Record] = []
    for kind in KINDS:
        names = kind.fields_of(msgspec.inspect.IntType)
        assert len(names) >= 3
        made = session if kind is SESSIONS else task
        sent.append(made(**dict.fromkeys(names, number)))

    store.write(rows_of(*sent))

    assert [*stored(mariadb, database, SESSIONS).values(), *stored(mariadb, database, TASKS).values()] == sent


@pytest.mark.parametrize("confidence", [0.0, 1.0, 0.5, 0.0001, 0.9999])
def test_confidence_keeps_its_four_digits(store: Store, mariadb: MariaDB, database: str, confidence: float) -> None:
    store.write(rows_of(task(confidence=confidence)))

    assert stored(mariadb, database, TASKS)["t"].confidence == confidence  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "moment",
    [
        datetime(1000, 1, 1),
        datetime(1582, 10, 10),
        datetime(1900, 2, 28, 23, 59, 59, 999999),
        datetime(1969, 12, 31, 23, 59, 59, 999999),
        datetime(1970, 1, 1),
        datetime(2024, 2, 29, 12, 0, 0, 1),
        datetime(2038, 1, 19, 3, 14, 8),
        datetime(2100, 12, 31, 23, 59, 59, 999999),
        datetime(9998, 12, 31),
        datetime(9999, 12, 31, 23, 59, 59, 999999),
    ],
)
def test_any_moment_comes_back_to_the_microsecond(
    store: Store, mariadb: MariaDB, database: str, moment: datetime
) -> None:
    sent = task(start_time=moment, end_time=moment, updated_at=moment)
    store.write(rows_of(sent))

    assert stored(mariadb, database, TASKS) == {"t": sent}


def test_a_moment_with_an_offset_is_stored_in_utc(store: Store, mariadb: MariaDB, database: str) -> None:
    east = datetime(2026, 1, 1, 1, 2, 3, 456789, timezone(timedelta(hours=5, minutes=30)))
    store.write(rows_of(task(start_time=east)))

    assert stored(mariadb, database, TASKS)["t"].start_time == datetime(2025, 12, 31, 19, 32, 3, 456789)  # type: ignore[union-attr]

    west = datetime(2025, 12, 31, 23, 0, tzinfo=timezone(timedelta(hours=-5)))
    store.write(rows_of(session(updated_at=west), task("west", updated_at=west, end_time=NOON)))
    assert stored(mariadb, database, SESSIONS)["s"].updated_at == datetime(2026, 1, 1, 4, 0)
    assert stored(mariadb, database, TASKS)["west"] == task(
        "west", updated_at=datetime(2026, 1, 1, 4, 0), end_time=NOON
    )


hostile = st.text(
    st.sampled_from("',\\\"()[]`;-#%_/*\0\n\r\t\b\f\x01\x1a\x7f anu01Z\u0301\u2028\u4f60\U0001f642"),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_text_in_any_field_is_anything_but_a_text(
    store: Store, mariadb: MariaDB, database: str, data: st.DataObject
) -> None:
    sent: list[Record] = []
    for kind, made in ((SESSIONS, session), (TASKS, task)):
        mariadb.execute(f"DELETE FROM {kind.table}", (), database)
        texts_of = kind.fields_of(msgspec.inspect.StrType)
        assert len(texts_of) >= 4
        fields: dict[str, Any] = {name: data.draw(hostile, name) for name in texts_of}
        fields |= {name: {data.draw(hostile): data.draw(hostile)} for name in kind.fields_of(msgspec.inspect.RawType)}
        sent.append(made(**fields))

    store.write(rows_of(*sent))

    assert [*stored(mariadb, database, SESSIONS).values(), *stored(mariadb, database, TASKS).values()] == sent


@pytest.mark.parametrize("text", ["\\", '\\"', '" , "x', '\\\\" -- ', "\\', \\n\n\t\f", '\\"),("x"'])
def test_a_text_ends_where_it_should_even_where_a_backslash_is_only_a_character(
    mariadb: MariaDB, database: str, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """A session with that sql_mode gets nothing; should the look at it fail, a text is still no statement."""

    def unescaped(statement: str) -> str:
        return statement.replace("STRICT_ALL_TABLES", "STRICT_ALL_TABLES,NO_BACKSLASH_ESCAPES")

    monkeypatch.setattr(WatchedConnection, "rewrite", staticmethod(unescaped))
    store = Store(mariadb.server(database), connect=WatchedConnection)
    with pytest.raises(TablesNotOurs, match="NO_BACKSLASH_ESCAPES"):
        store.write(rows_of(task("t")))

    monkeypatch.setattr("flusher.tables.faults", lambda _facts: [])
    store.write(rows_of(task("t", source_text=text, context=text)))
    store.close()

    doubled = text.replace("\\", "\\\\")
    assert stored(mariadb, database, TASKS) == {"t": task("t", source_text=doubled, context=doubled)}


def test_objects_nested_as_deep_as_allowed_are_stored(store: Store, mariadb: MariaDB, database: str) -> None:
    document: dict[str, Any] = {"leaf": [1]}
    for _ in range(18):
        document = {"x": document}
    sent = session(metadata=document)
    store.write(rows_of(sent))

    assert stored(mariadb, database, SESSIONS) == {"s": sent}


def test_keys_that_differ_only_in_case_accents_or_trailing_spaces_are_different_rows(
    store: Store, mariadb: MariaDB, database: str
) -> None:
    keys = ["a", "A", "a ", "a  ", "á", "a\u0301", "ａ", "a\x00", "a\t", "ß", "ss", "SS"]
    store.write(rows_of(*[task(key, source_text=repr(key)) for key in keys]))
    store.write(rows_of(*[session(key, filename=repr(key)) for key in keys]))

    assert {key: one.source_text for key, one in stored(mariadb, database, TASKS).items()} == {  # type: ignore[union-attr]
        key: repr(key) for key in keys
    }
    assert set(stored(mariadb, database, SESSIONS)) == set(keys)


def test_a_stored_newer_row_is_left_alone_whole(store: Store, mariadb: MariaDB, database: str) -> None:
    newer = task(updated_at=NOON, status="completed", target_text="done", retry_count=1)
    store.write(rows_of(newer))
    store.write(rows_of(task(updated_at=NOON - timedelta(microseconds=1), context="older", retry_count=9)))

    assert stored(mariadb, database, TASKS) == {"t": newer}


@pytest.mark.parametrize("later_by", [timedelta(0), timedelta(microseconds=1), timedelta(days=1)])
def test_a_row_not_older_than_the_stored_one_replaces_every_column(
    store: Store, mariadb: MariaDB, database: str, later_by: timedelta
) -> None:
    store.write(rows_of(task(target_text="old", context="old", confidence=0.5, start_time=NOON, duration_ms=5)))
    newer = task(status="failed", error_message="new", source_text="changed", updated_at=NOON + later_by)
    store.write(rows_of(newer))

    assert stored(mariadb, database, TASKS) == {"t": newer}


def test_created_at_says_when_the_row_was_first_written(store: Store, mariadb: MariaDB, database: str) -> None:
    select = "SELECT created_at FROM translation_tasks"
    store.write(rows_of(task()))
    mariadb.execute("UPDATE translation_tasks SET created_at = '2001-02-03'", (), database)
    store.write(rows_of(task(updated_at=NOON + timedelta(1))))

    assert mariadb.execute(select, (), database) == [(datetime(2001, 2, 3),)]


def test_a_failed_transaction_leaves_nothing_of_either_table(store: Store, mariadb: MariaDB, database: str) -> None:
    mariadb.execute("ALTER TABLE translation_tasks ADD CONSTRAINT poison CHECK (source_text <> 'secret')", (), database)

    with refused(ErrorClass.DATA, mariadb.check_failed) as caught:
        store.write(rows_of(session(), task("a"), task("b", source_text="secret")))

    assert "poison" in caught.value.detail
    assert "secret" not in caught.value.public
    assert stored(mariadb, database, SESSIONS) == {}
    assert stored(mariadb, database, TASKS) == {}
    store.write(rows_of(session(), task("a")))
    assert set(stored(mariadb, database, TASKS)) == {"a"}


def test_many_rows_are_split_at_the_cap_of_rows_within_one_transaction(
    store: Store, mariadb: MariaDB, database: str
) -> None:
    before = store.statements
    store.write(rows_of(*[session(f"{number:05}") for number in range(MAX_STATEMENT_ROWS + 1)]))

    assert store.statements - before == 3  # two upserts and the commit
    assert mariadb.execute("SELECT COUNT(*) FROM translation_sessions", (), database) == [(MAX_STATEMENT_ROWS + 1,)]


@pytest.fixture
def small_packets(mariadb: MariaDB) -> Iterator[int]:
    ((size,),) = mariadb.execute("SELECT @@GLOBAL.max_allowed_packet")
    mariadb.execute("SET GLOBAL max_allowed_packet = 65536")
    yield 65536
    mariadb.execute(f"SET GLOBAL max_allowed_packet = {size}")


def test_statements_stay_under_the_servers_packet(
    store: Store, mariadb: MariaDB, database: str, small_packets: int
) -> None:
    sent = {f"{number:03}": task(f"{number:03}", source_text='"' * 1000) for number in range(200)}
    store.write(rows_of(*sent.values()))

    assert stored(mariadb, database, TASKS) == sent
    assert store.statements > 200 * 2000 // small_packets


def test_a_row_over_the_packet_is_taken_as_soon_as_the_setting_is_mended(
    store: Store, mariadb: MariaDB, database: str, small_packets: int
) -> None:
    with pytest.raises(StoreError) as caught:
        store.write(rows_of(task("a"), task("b", source_text="x" * 65535)))

    assert caught.value.error_class is ErrorClass.TOO_BIG
    assert "max_allowed_packet" in caught.value.public
    assert stored(mariadb, database, TASKS) == {}

    mariadb.execute("SET GLOBAL max_allowed_packet = 67108864")
    store.write(rows_of(task("b", source_text="x" * 65535)))


def test_the_largest_objects_fit_the_servers_default_packet_although_every_byte_is_escaped(
    store: Store, mariadb: MariaDB, database: str
) -> None:
    document = {"x": '"' * (MAX_OBJECT_BYTES // 2 - 10)}  # as JSON each is \", as SQL \\""
    sent = session(game_info=document, metadata=document)

    store.write(rows_of(sent))

    assert stored(mariadb, database, SESSIONS) == {"s": sent}


def test_a_table_that_goes_missing_is_the_operators_business(store: Store, mariadb: MariaDB, database: str) -> None:
    store.ping()
    mariadb.execute("DROP TABLE translation_tasks", (), database)

    with refused(ErrorClass.SCHEMA, 1146):
        store.write(rows_of(session(), task()))

    assert stored(mariadb, database, SESSIONS) == {}


def test_a_missing_database_is_the_operators_business(mariadb: MariaDB) -> None:
    with refused(ErrorClass.SCHEMA, 1049):
        Store(mariadb.server("no_such_database")).ping()


@pytest.fixture
def limited_user(mariadb: MariaDB, database: str) -> Iterator[str]:
    """May do what docs/DEPLOYMENT.md grants, and so is bound by read_only, unlike root."""
    mariadb.execute("CREATE USER limited@localhost")
    mariadb.execute(f"GRANT SELECT, INSERT, UPDATE ON `{database}`.* TO limited@localhost")
    yield "limited"
    mariadb.execute("DROP USER limited@localhost")


def store_of(mariadb: MariaDB, database: str, user: str, password: str = "") -> Store:
    return Store(replace(mariadb.server(database), user=user, password=password))


def test_select_insert_and_update_are_rights_enough(mariadb: MariaDB, database: str, limited_user: str) -> None:
    store = store_of(mariadb, database, limited_user)
    store.write(rows_of(task(), session()))
    store.write(rows_of(task(), session()))
    store.close()

    assert set(stored(mariadb, database, TASKS)) == {"t"}


def test_a_right_that_was_taken_away_is_the_operators_business(
    mariadb: MariaDB, database: str, limited_user: str
) -> None:
    store = store_of(mariadb, database, limited_user)
    store.write(rows_of(task()))
    mariadb.execute(f"REVOKE UPDATE ON `{database}`.* FROM limited@localhost")
    store.close()

    with refused(ErrorClass.SCHEMA, 1142):
        store.write(rows_of(task()))

    store.close()


def test_a_lock_that_does_not_go_away_is_retried_and_nothing_half_written_stays(
    store: Store, mariadb: MariaDB, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        WatchedConnection,
        "rewrite",
        staticmethod(lambda statement: statement.replace("innodb_lock_wait_timeout=10", "innodb_lock_wait_timeout=0")),
    )
    store.write(rows_of(task("locked")))
    holder = mariadb.connect(database)
    try:
        holder.autocommit(False)
        holder.query("SELECT 1 FROM translation_tasks WHERE task_id = 'locked' FOR UPDATE")
        holder.store_result()
        with pytest.raises(StoreError) as caught:
            store.write(rows_of(session(), task("locked", updated_at=NOON + timedelta(1))))
    finally:
        holder.rollback()
        holder.close()

    assert (caught.value.error_class, caught.value.number) == (ErrorClass.RETRY, 1205)
    assert stored(mariadb, database, SESSIONS) == {}
    store.write(rows_of(session(), task("locked")))
    assert set(stored(mariadb, database, SESSIONS)) == {"s"}


def test_a_connection_that_the_server_has_killed_is_replaced_by_the_next_write(
    store: Store, mariadb: MariaDB, database: str
) -> None:
    store.write(rows_of(task("before")))
    ((number,),) = mariadb.execute("SELECT id FROM information_schema.processlist WHERE db = %s", (database,))
    mariadb.execute(f"KILL {number}")

    with pytest.raises(StoreError) as caught:
        store.write(rows_of(task("while")))

    assert caught.value.error_class is ErrorClass.RECONNECT
    store.write(rows_of(task("after")))
    assert set(stored(mariadb, database, TASKS)) == {"before", "after"}


def test_the_session_is_strict_whatever_the_servers_own_mode(mariadb: MariaDB, database: str) -> None:
    mariadb.execute("SET GLOBAL sql_mode = ''")
    try:
        store = Store(mariadb.server(database))
        with pytest.raises(StoreError) as caught:
            store.write(rows_of(task(batch_id="x" * 65)))
        store.close()
    finally:
        mariadb.execute("SET GLOBAL sql_mode = DEFAULT")

    assert (caught.value.error_class, caught.value.number) == (ErrorClass.DATA, 1406)


def test_the_schema_is_idempotent_and_takes_any_database_name(mariadb: MariaDB) -> None:
    name = "we`ird name"
    try:
        for _ in range(2):
            statements = schema_statements(FILE.read_text(encoding="utf-8"), name)
            Store(mariadb.server(name)).execute(statements, database=False)
        tables = mariadb.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = %s", (name,))
    finally:
        mariadb.execute("DROP DATABASE IF EXISTS `we``ird name`")

    assert sorted(tables) == [("translation_sessions",), ("translation_tasks",)]
