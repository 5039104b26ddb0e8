"""What real servers say and how they are set, MariaDB or with --database=mysql MySQL: each class is met as it comes."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import MySQLdb
import pytest
from msgspec.structs import replace

from flusher.answers import Written
from flusher.connection import LOGIN_AGAIN_AT_MOST_S, LOGIN_AGAIN_S
from flusher.mysql_errors import ErrorClass, Flavour
from flusher.schema import FILE
from flusher.segments import Entry
from flusher.sql import UPDATES, Form
from flusher.store import Store, StoreError, schema_statements
from flusher.writer import Writer, prepared
from shared.records import TASKS
from tests.flusher.test_store import HARD_TEXTS, WatchedConnection, rows_of, session, stored, task
from tests.support.flusher import task_body
from tests.support.mariadb import MariaDB
from tests.support.segments import filled
from tests.support.service import task as task_document
from tests.support.service import wait_until
from tests.support.writer import refused


@dataclass
class Place:
    """A server that a test may set as it likes, and a user who is bound by everything, unlike root."""

    server: MariaDB
    database: str

    def run(self, statement: str) -> list[Any]:
        return self.server.execute(statement, (), self.database)

    def store(self, user: str = "app", **options: Any) -> Store:
        return Store(replace(self.server.server(self.database), user=user), connect=WatchedConnection, **options)

    def fails(self, store: Store, *rows: Any) -> tuple[ErrorClass, int]:
        with pytest.raises(StoreError) as caught:
            store.write(rows_of(*rows or (task(),)))
        return caught.value.error_class, caught.value.number


@pytest.fixture(scope="module")
def server(new_database: type[MariaDB]) -> Iterator[MariaDB]:
    directory = Path(tempfile.mkdtemp(prefix="db-", dir="/tmp"))
    options = ["--log-bin=binlog", "--server-id=1", "--sync-binlog=0", "--binlog-format=ROW"]
    options += ["--disconnect-on-expired-password=OFF"] if new_database.flavour is Flavour.MYSQL else []
    made = new_database(directory, *options)
    made.install()
    made.start()
    made.execute("CREATE USER app@localhost")
    yield made
    made.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def place(server: MariaDB) -> Iterator[Place]:
    name = server.create_database()
    server.execute(f"GRANT SELECT, INSERT, UPDATE ON {name}.* TO app@localhost")
    yield Place(server, name)
    server.drop_database(name)


class Globals:
    def __init__(self, server: MariaDB) -> None:
        self._server = server
        self._before: dict[str, object] = {}

    def __call__(self, name: str, value: object) -> None:
        if name not in self._before:
            ((self._before[name],),) = self._server.execute(f"SELECT @@GLOBAL.{name}")
        self._server.execute(f"SET GLOBAL {name} = %s", (value,))

    def undo(self) -> None:
        for name, value in self._before.items():
            self._server.execute(f"SET GLOBAL {name} = %s", (value,))


@pytest.fixture
def set_global(server: MariaDB) -> Iterator[Globals]:
    """set_global(name, value), until the test ends."""
    made = Globals(server)
    yield made
    made.undo()


MODES = ["", "ANSI_QUOTES", "NO_BACKSLASH_ESCAPES", "ANSI", "TRADITIONAL", "NO_BACKSLASH_ESCAPES,ANSI_QUOTES"]
SETTINGS: list[tuple[str, object, str]] = [
    *[
        ("sql_mode", mode, "")
        for mode in (*MODES, "PIPES_AS_CONCAT,IGNORE_SPACE,HIGH_NOT_PRECEDENCE,PAD_CHAR_TO_FULL_LENGTH")
    ],
    ("sql_mode", "ORACLE", "mariadb"),
    ("time_zone", "-08:00", ""),
    ("group_concat_max_len", 4, ""),
    ("sql_select_limit", 1, ""),
    ("max_join_size", 1, ""),
    ("completion_type", "RELEASE", ""),
    ("completion_type", "CHAIN", ""),
    ("autocommit", 0, ""),
    ("character_set_server", "latin1", ""),
    ("character_set_client", "latin1", "mariadb"),
    ("character_set_connection", "utf16", ""),
    ("character_set_results", "latin1", ""),
    ("collation_connection", "utf8mb4_general_ci", ""),
    ("innodb_lock_wait_timeout", 1, ""),
    ("lock_wait_timeout", 1, ""),
    ("sql_safe_updates", 1, ""),
    ("sql_auto_is_null", 1, ""),
    ("sql_warnings", 1, ""),
    ("max_error_count", 0, ""),
    ("transaction_isolation", "SERIALIZABLE", "mysql"),
    ("transaction_isolation", "READ-COMMITTED", "mysql"),
    ("tx_isolation", "SERIALIZABLE", "mariadb"),
    ("tx_isolation", "READ-COMMITTED", "mariadb"),
    ("default_storage_engine", "MyISAM", ""),
    ("foreign_key_checks", 0, ""),
    ("unique_checks", 0, ""),
    ("low_priority_updates", 1, ""),
    ("max_sort_length", 64, ""),
    ("net_buffer_length", 1024, ""),
    ("explicit_defaults_for_timestamp", 0, ""),
    ("div_precision_increment", 0, ""),
    ("lc_time_names", "zh_CN", ""),
    ("lc_messages", "de_DE", ""),
    ("sql_quote_show_create", 0, ""),
    ("big_tables", 1, ""),
    ("tmp_table_size", 1024, ""),
    ("max_heap_table_size", 16384, ""),
    ("sql_require_primary_key", 1, "mysql"),
    ("binlog_row_image", "MINIMAL", ""),
    ("binlog_format", "MIXED", ""),
    ("old_mode", "NO_PROGRESS_INFO,ZERO_DATE_TIME_CAST", "mariadb"),
    ("check_constraint_checks", 0, "mariadb"),
    ("information_schema_stats_expiry", 0, "mysql"),
    ("default_collation_for_utf8mb4", "utf8mb4_general_ci", "mysql"),
    ("session_track_schema", 0, ""),
    ("session_track_state_change", 1, ""),
    ("session_track_system_variables", "*", ""),
]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, marks=[pytest.mark.only(only)] if only else [], id=f"{name}={value}")
        for name, value, only in SETTINGS
    ],
)
def test_a_setting_of_the_server_changes_nothing_of_what_is_stored_or_found(
    place: Place, set_global: Globals, name: str, value: object
) -> None:
    store = place.store()
    facts = store.describe()
    store.close()
    set_global(name, value)
    if name == "default_storage_engine":
        Store(place.server.server(place.database)).execute(schema_statements(FILE.read_text(), place.database))
    sent = {str(number): task(str(number), source_text=text, context=text) for number, text in enumerate(HARD_TEXTS)}
    for _ in range(2):
        store.write(rows_of(session(metadata={"text": HARD_TEXTS[3]}), *sent.values()))
    seen = store.describe()
    store.close()
    set_global.undo()

    assert stored(place.server, place.database, TASKS) == sent
    assert seen.tables == facts.tables


def test_the_upsert_has_the_form_of_the_server(place: Place) -> None:
    """The other's is a syntax error, or, on MySQL, a warning in each statement; WatchedConnection sees those."""
    store = place.store()
    store.write(rows_of(task()))
    mysql = place.server.flavour is Flavour.MYSQL
    connection = store._reach()
    assert connection.form is (Form.ALIAS if mysql else Form.VALUES)

    store._connection = dataclasses.replace(connection, form=Form.VALUES if mysql else Form.ALIAS)
    with pytest.raises(AssertionError, match="1287") if mysql else pytest.raises(StoreError, match="SQL syntax"):
        store.write(rows_of(task()))
    store.close()


def test_after_a_fail_over_to_the_other_kind_of_server_the_same_inserts_get_its_form(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server only says that it is another: it has not the other's information_schema.
    monkeypatch.setattr(Store, "_check_tables", lambda _store, _connection: None)
    sent: list[bytes] = []

    class Elsewhere(WatchedConnection):
        version = "8.0.19"

        def get_server_info(self) -> str:
            return type(self).version

        def query(self, query: str | bytes) -> None:
            if isinstance(query, bytes) and query.startswith(b"INSERT"):
                sent.append(query)
            else:
                super().query(query)

    store = Store(place.server.server(place.database), connect=Elsewhere)
    for version in ("8.0.19", "9.7.4-2", "10.11.19-MariaDB"):
        Elsewhere.version = version
        store.close()
        store.write(rows_of(task()))
    store.close()

    forms = [form for statement in sent for form in Form if statement.endswith(UPDATES[form][TASKS])]
    assert forms == [Form.VALUES, Form.ALIAS, Form.VALUES]


def broken(value: str) -> Any:
    """A session whose metadata is this text."""
    rows = rows_of(session(metadata={"MARK": 1}))
    (row,) = next(iter(rows.values()))
    assert b'{"MARK":1}' in row.values
    row.values = row.values.replace(b'{"MARK":1}', value.encode())
    return rows


@pytest.mark.parametrize(("value", "number"), [("{", 3140), ("[" * 200 + "]" * 200, 3157)])
def test_a_text_that_is_no_json_is_the_rows_fault(place: Place, value: str, number: int) -> None:
    store = place.store()
    with pytest.raises(StoreError) as caught:
        store.write(broken(value))
    store.close()

    expected = number if place.server.flavour is Flavour.MYSQL else place.server.check_failed
    assert (caught.value.error_class, caught.value.number) == (ErrorClass.DATA, expected)


def test_a_connection_idle_for_too_long_is_made_anew(place: Place, set_global: Globals) -> None:
    set_global("wait_timeout", 1)
    store = place.store()
    store.write(rows_of(task("a")))
    running = f"SELECT 1 FROM information_schema.processlist WHERE db = '{place.database}'"
    wait_until(lambda: not place.server.execute(running), what="the server has hung up")

    error_class, number = place.fails(store)

    assert (error_class, number) in {(ErrorClass.RECONNECT, number) for number in (4031, 2006, 2013)}
    store.write(rows_of(task("b")))
    store.close()


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("read_only", 1290),
        pytest.param("super_read_only", 1290, marks=pytest.mark.only("mysql")),
        pytest.param("offline_mode", 3032, marks=pytest.mark.only("mysql")),
        pytest.param("transaction_read_only", 1792, marks=pytest.mark.only("mysql")),
        pytest.param("tx_read_only", 1792, marks=pytest.mark.only("mariadb")),
    ],
)
def test_a_server_that_takes_no_writes_is_left_and_writes_go_on_when_it_does(
    place: Place, set_global: Globals, name: str, number: int
) -> None:
    store = place.store()
    if number != 1792:  # of the session, from its start
        store.write(rows_of(task("before")))
    set_global(name, 1)
    seen = {place.fails(store) for _ in range(3)}
    assert seen <= {(ErrorClass.READ_ONLY, number), (ErrorClass.RECONNECT, 2013), (ErrorClass.RECONNECT, 2006)}
    assert (ErrorClass.READ_ONLY, number) in seen
    assert not store.connected

    set_global(name, 0)
    place.run("SET GLOBAL read_only = 0")  # the one that is super has set it too
    store.write(rows_of(task("after")))
    store.close()


@pytest.mark.only("mysql")
def test_a_schema_that_is_read_only_is_no_fault_of_the_rows(place: Place) -> None:
    store = place.store()
    store.write(rows_of(task()))
    place.run(f"ALTER SCHEMA {place.database} READ ONLY = 1")
    try:
        assert place.fails(store) == (ErrorClass.READ_ONLY, 3989)
    finally:
        place.run(f"ALTER SCHEMA {place.database} READ ONLY = 0")
    store.write(rows_of(task()))
    store.close()


def write_many(place: Place, directory: Path, store: Store) -> Any:
    """200 rows of 1,000 bytes, as a writer writes them."""
    body = task_body(*(task_document(f"{n:03}", source_text="x" * 1000) for n in range(200)))
    path = filled(directory, [Entry(2, 200, 1, body)])
    return Writer(store, directory / "dead", 1 << 20).write(path, prepared(path, None))


def test_a_transaction_over_the_binary_logs_cache_is_halved(place: Place, set_global: Globals, tmp_path: Path) -> None:
    set_global("max_binlog_cache_size", 32768)
    set_global("binlog_cache_size", 32768)
    store = place.store()
    rows = rows_of(*[task(str(number), source_text="x" * 1000) for number in range(200)])
    with refused(ErrorClass.TOO_BIG, 1197):
        store.write(rows)

    answer = write_many(place, tmp_path, store)
    assert isinstance(answer, Written), answer
    assert (answer.rows["tasks"], answer.dead_lettered) == (200, 0)

    # A row that is over it by itself waits for the setting.
    set_global("max_binlog_cache_size", 4096)
    store.close()
    assert place.fails(store, task("large", source_text="x" * 60_000)) == (ErrorClass.TOO_BIG, 1197)
    set_global("max_binlog_cache_size", 1 << 30)
    store.write(rows_of(task("large", source_text="x" * 60_000)))
    store.close()


def test_a_binary_log_that_cannot_have_the_rows_is_a_fault_of_the_settings(place: Place, set_global: Globals) -> None:
    name = "transaction_isolation" if place.server.flavour is Flavour.MYSQL else "tx_isolation"
    set_global("binlog_format", "STATEMENT")
    set_global(name, "READ-UNCOMMITTED")
    store = place.store("root")
    assert place.fails(store) == (ErrorClass.SCHEMA, 1665)

    set_global(name, "REPEATABLE-READ")  # the session that has failed would not see it
    store.write(rows_of(task()))
    store.close()


def test_a_limit_of_time_ends_the_session_that_has_it_from_its_start(place: Place, set_global: Globals) -> None:
    store = place.store()
    store.write(rows_of(task("held")))
    store.close()
    holder = place.server.connect(place.database)
    holder.autocommit(False)
    holder.query("SELECT 1 FROM translation_tasks FOR UPDATE")
    holder.store_result()
    if place.server.flavour is Flavour.MYSQL:  # whose limit is for SELECT alone
        set_global("max_execution_time", 100)
        slow, number = (lambda: store.execute(["SELECT COUNT(*) FROM (SELECT BENCHMARK(1000000000, 1 + 1)) x"])), 3024
    else:
        set_global("max_statement_time", 0.1)
        slow, number = (lambda: store.write(rows_of(task("held")))), 1969
    with pytest.raises(StoreError) as caught:
        slow()
    holder.close()

    assert (caught.value.error_class, caught.value.number) == (ErrorClass.RETRY, number)
    assert not store.connected


@pytest.mark.only("mysql")
@pytest.mark.parametrize(("which", "number"), [("mariadb", 1862), ("server", 1820)])
def test_an_expired_password_is_the_operators_business(request: pytest.FixtureRequest, which: str, number: int) -> None:
    """1862 as MySQL is by default, 1820 where disconnect_on_expired_password is off."""
    server: MariaDB = request.getfixturevalue(which)
    place = Place(server, "mysql")
    place.run("CREATE USER old@localhost PASSWORD EXPIRE")
    try:
        assert place.fails(place.store("old")) == (ErrorClass.SCHEMA, number)
    finally:
        place.run("DROP USER old@localhost")


class Logins:
    """Connections that are counted."""

    def __init__(self) -> None:
        self.count = 0

    def connect(self, **options: Any) -> Any:
        self.count += 1
        return MySQLdb.connect(**options)


def test_a_refused_login_is_asked_again_rarely_so_that_no_account_is_locked(place: Place) -> None:
    now = [1000.0]
    logins = Logins()
    server = replace(place.server.server(place.database), user="guarded", password="right")
    store = Store(server, connect=logins.connect, clock=lambda: now[0])
    locking = " FAILED_LOGIN_ATTEMPTS 4 PASSWORD_LOCK_TIME 1" if place.server.flavour is Flavour.MYSQL else ""
    place.run(f"CREATE USER guarded@localhost IDENTIFIED BY 'wrong'{locking}")
    place.run(f"GRANT SELECT, INSERT, UPDATE ON {place.database}.* TO guarded@localhost")
    try:
        asked = []
        for _ in range(int(300 / 2)):  # five minutes of tries
            assert place.fails(store) == (ErrorClass.SCHEMA, 1045)
            now[0] += 2
            asked.append(logins.count)
        assert asked[-1] == 3

        place.run("ALTER USER guarded@localhost IDENTIFIED BY 'right'")
        now[0] += LOGIN_AGAIN_AT_MOST_S
        store.write(rows_of(task()))
        store.close()
        place.run("ALTER USER guarded@localhost IDENTIFIED BY 'wrong'")
        assert place.fails(store) == (ErrorClass.SCHEMA, 1045)
        now[0] += LOGIN_AGAIN_S - 1
        before = logins.count
        assert place.fails(store) == (ErrorClass.SCHEMA, 1045)
        assert logins.count == before
    finally:
        place.run("DROP USER guarded@localhost")


@pytest.mark.only("mysql")
def test_an_account_that_is_locked_is_the_operators_business(place: Place) -> None:
    place.run("CREATE USER locked@localhost ACCOUNT LOCK")
    place.run("CREATE USER tired@localhost IDENTIFIED BY 'x' FAILED_LOGIN_ATTEMPTS 1 PASSWORD_LOCK_TIME 1")
    try:
        assert place.fails(place.store("locked")) == (ErrorClass.SCHEMA, 3118)
        assert place.fails(place.store("tired")) == (ErrorClass.SCHEMA, 3955)
    finally:
        place.run("DROP USER locked@localhost, tired@localhost")


@pytest.mark.parametrize(
    ("resource", "allowed", "number"), [("MAX_USER_CONNECTIONS", 1, 1203), ("MAX_QUERIES_PER_HOUR", 2, 1226)]
)
def test_a_limit_of_the_account_is_waited_for(place: Place, resource: str, allowed: int, number: int) -> None:
    place.run(f"CREATE USER few@localhost WITH {resource} {allowed}")
    place.run(f"GRANT SELECT, INSERT, UPDATE ON {place.database}.* TO few@localhost")
    held = MySQLdb.connect(unix_socket=place.server.socket, user="few") if number == 1203 else None
    store = place.store("few")
    try:
        error_class, found = place.fails(store)
    finally:
        if held is not None:
            held.close()
        place.run("DROP USER few@localhost")
    assert error_class is ErrorClass.RECONNECT
    assert found in (1203, 1226)
