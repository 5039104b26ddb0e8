from __future__ import annotations

from collections.abc import Callable
from typing import Any

import MySQLdb
import pytest
from msgspec.structs import replace

from flusher import connection as connection_module
from flusher import store as store_module
from flusher.connection import RETURN_S
from flusher.mysql_errors import ErrorClass
from flusher.store import Store, StoreError
from shared.records import TASKS
from tests.flusher.test_store import rows_of, stored, task
from tests.support.mariadb import MariaDB
from tests.support.writer import refused


def test_nobody_at_the_socket_means_reconnect(mariadb: MariaDB) -> None:
    server = replace(mariadb.server("any"), socket=mariadb.socket + "-not-there")

    with refused(ErrorClass.RECONNECT, 2002):
        Store(server).ping()


class Hosts:
    """Connections by host name: an error, or a connection to the real server, whatever the host."""

    def __init__(self, mariadb: MariaDB, down: dict[str, int]) -> None:
        self.mariadb = mariadb
        self.down = down
        self.tried: list[str] = []

    def connect(self, **options: Any) -> Any:
        host = options.pop("host")
        options.pop("port")
        self.tried.append(host)
        if host in self.down:
            raise MySQLdb.OperationalError(self.down[host], "down")
        return MySQLdb.connect(unix_socket=self.mariadb.socket, **options)


def test_the_next_host_is_tried_when_one_is_unreachable_and_is_kept(mariadb: MariaDB, database: str) -> None:
    hosts = Hosts(mariadb, {"one": 2002})
    store = Store(replace(mariadb.server(database), socket=None, host=("one", "two")), connect=hosts.connect)
    store.write(rows_of(task()))
    assert (hosts.tried, store.host) == (["one", "two"], "two")

    store.close()
    store.write(rows_of(task()))
    assert hosts.tried == ["one", "two", "two"]
    store.close()


def test_every_host_is_tried_once_before_a_write_fails(mariadb: MariaDB, database: str) -> None:
    hosts = Hosts(mariadb, {"one": 2002, "two": 2003})
    store = Store(replace(mariadb.server(database), socket=None, host=("one", "two:3307")), connect=hosts.connect)
    with pytest.raises(StoreError) as caught:
        store.write(rows_of(task()))

    assert caught.value.number == 2003
    assert "down, port 3307" in str(caught.value)
    assert hosts.tried == ["one", "two"]


class Refusing:
    """A connection whose host answers every question with an error from when it has one in `errors`."""

    def __init__(self, connection: Any, host: str, errors: dict[str, int]) -> None:
        self._connection = connection
        self._host = host
        self._errors = errors

    def query(self, statement: Any) -> None:
        number = self._errors.get(self._host)
        text = statement if isinstance(statement, str) else statement.decode()
        # A node outside its cluster's majority answers what needs no table.
        if number is not None and "translation_" in text:
            raise MySQLdb.OperationalError(number, "refused")
        self._connection.query(statement)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


class Cluster:
    """A store with two hosts, which are one real server; `errors` by host begin when they are set."""

    def __init__(self, mariadb: MariaDB, database: str) -> None:
        self.now = 1000.0
        self.errors: dict[str, int] = {}
        self.down: dict[str, int] = {}
        self.hosts = Hosts(mariadb, self.down)
        self.store = Store(
            replace(mariadb.server(database), socket=None, host=("one", "two"), read_timeout=60),
            connect=self.connect,
            clock=lambda: self.now,
        )

    def connect(self, **options: Any) -> Any:
        host = options["host"]
        return Refusing(self.hosts.connect(**options), host, self.errors)

    def write(self) -> int:
        """Returns: the error's number, 0 where it is written."""
        try:
            self.store.write(rows_of(task()))
        except StoreError as error:
            return error.number
        return 0


@pytest.mark.parametrize("number", [1047, 1290])
def test_a_host_that_refuses_writes_is_left_for_the_next(mariadb: MariaDB, database: str, number: int) -> None:
    cluster = Cluster(mariadb, database)
    assert (cluster.write(), cluster.store.host) == (0, "one")

    cluster.errors["one"] = number
    assert (cluster.write(), cluster.store.host) == (number, "two")
    assert (cluster.write(), cluster.store.host) == (0, "two")
    cluster.store.close()


def test_a_new_connection_passes_over_a_host_that_takes_no_writes(mariadb: MariaDB, database: str) -> None:
    cluster = Cluster(mariadb, database)
    cluster.errors["one"] = 1290
    assert (cluster.write(), cluster.store.host) == (0, "two")

    cluster.errors["two"] = 1290  # all are read-only: the last one tried says so
    cluster.store.close()
    assert cluster.write() == 1290
    cluster.store.close()


@pytest.mark.parametrize("number", [1142, 1146, 1205])
def test_missing_tables_or_rights_and_locks_are_no_fault_of_a_host(
    mariadb: MariaDB, database: str, number: int
) -> None:
    """The next one may be a replica, where nothing may be written or made."""
    cluster = Cluster(mariadb, database)
    cluster.errors["one"] = number
    assert (cluster.write(), cluster.store.host) == (number, "one")
    cluster.store.close()


def test_a_new_connection_stays_with_a_host_whose_tables_are_locked(mariadb: MariaDB, database: str) -> None:
    cluster = Cluster(mariadb, database)
    with mariadb.locked(database, "translation_sessions"):
        assert cluster.store.select("SELECT @@lock_wait_timeout") == [(connection_module.LOCK_WAIT_S,)]
    assert cluster.store.host == "one"
    cluster.store.close()


@pytest.mark.parametrize(
    ("read_only", "expected"), [(False, (ErrorClass.TOO_BIG, "one")), (True, (ErrorClass.READ_ONLY, "two"))]
)
def test_what_group_replication_refuses_at_commit_is_too_big_where_the_host_takes_writes(
    mariadb: MariaDB,
    database: str,
    read_only: bool,
    expected: tuple[ErrorClass, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster(mariadb, database)
    assert cluster.write() == 0
    if read_only:
        monkeypatch.setattr(store_module, "takes_writes", lambda *_: False)
    cluster.store._connection.db.commit = refused_by_hook
    with pytest.raises(StoreError) as caught:
        cluster.store.write(rows_of(task()))

    assert (caught.value.error_class, cluster.store.host) == expected
    cluster.store.close()


def refused_by_hook() -> None:
    raise MySQLdb.OperationalError(3100, "Error on observer while running replication hook 'before_commit'.")


def test_a_host_that_is_silent_for_the_read_timeout_is_left_and_one_that_hangs_up_is_tried_again(
    mariadb: MariaDB, database: str
) -> None:
    cluster = Cluster(mariadb, database)
    assert cluster.write() == 0

    cluster.store._connection.db.query = lambda _statement: hang_up(cluster, 0.0)
    assert (cluster.write(), cluster.store.host) == (2013, "one")
    assert (cluster.write(), cluster.store.host) == (0, "one")

    cluster.store._connection.db.query = lambda _statement: hang_up(cluster, 60.0)
    assert (cluster.write(), cluster.store.host) == (2013, "two")
    cluster.store.close()


def hang_up(cluster: Cluster, after_s: float) -> None:
    cluster.now += after_s
    raise MySQLdb.OperationalError(2013, "lost connection during query")


def test_the_first_host_is_used_again_when_it_takes_writes_again(mariadb: MariaDB, database: str) -> None:
    cluster = Cluster(mariadb, database)
    cluster.down["one"] = 2003
    assert (cluster.write(), cluster.store.host) == (0, "two")
    tried = len(cluster.hosts.tried)

    del cluster.down["one"]
    cluster.now += RETURN_S - 1
    assert (cluster.write(), cluster.store.host) == (0, "two")
    assert len(cluster.hosts.tried) == tried
    cluster.now += 1
    assert (cluster.write(), cluster.store.host) == (0, "one")
    cluster.store.close()


@pytest.mark.parametrize("why", ["unreachable", "outside its cluster", "read-only"])
def test_while_the_first_host_takes_no_writes_the_other_is_kept_without_an_error(
    own_mariadb: MariaDB, why: str
) -> None:
    cluster = Cluster(own_mariadb, own_mariadb.create_database())
    cluster.down["one"] = 2003
    assert (cluster.write(), cluster.store.host) == (0, "two")
    if why != "unreachable":
        del cluster.down["one"]
    if why == "outside its cluster":
        cluster.errors["one"] = 1047
    if why == "read-only":
        own_mariadb.execute("SET GLOBAL read_only = 1")  # root may write all the same

    connection = cluster.store._connection
    for _ in range(3):
        cluster.now += RETURN_S
        assert (cluster.write(), cluster.store.host) == (0, "two")
        assert cluster.store._connection is connection
    assert cluster.hosts.tried.count("one") == 4
    cluster.store.close()


def test_what_mariadb_12_says_of_read_only_is_understood(
    mariadb: MariaDB, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    select = connection_module.select

    def as_mariadb_12(db: Any, statement: str) -> list[tuple[Any, ...]]:
        rows = select(db, statement)
        if not statement.startswith("SELECT @@read_only"):
            return rows
        return [({0: "OFF", 1: "ON"}[first], *rest) for first, *rest in rows]

    monkeypatch.setattr(connection_module, "select", as_mariadb_12)
    cluster = Cluster(mariadb, database)
    cluster.down["one"] = 2003
    assert (cluster.write(), cluster.store.host) == (0, "two")
    del cluster.down["one"]
    cluster.now += RETURN_S
    assert (cluster.write(), cluster.store.host) == (0, "one")
    cluster.store.close()


def test_a_login_that_cannot_even_be_sent_is_no_fault_of_a_row(mariadb: MariaDB, database: str) -> None:
    store = Store(replace(mariadb.server(database), password="a\0b"))
    for attempt in (lambda: store.write(rows_of(task())), store.ping, store.describe):
        with pytest.raises(StoreError) as caught:
            attempt()
        assert caught.value.error_class is ErrorClass.UNKNOWN


def remembering(connections: list[Any]) -> Callable[..., Any]:
    """Connects, and adds each connection to the list."""

    def connect(**options: Any) -> Any:
        connections.append(MySQLdb.connect(**options))
        return connections[-1]

    return connect


def test_a_connection_older_than_its_time_is_replaced(mariadb: MariaDB, database: str) -> None:
    now = [0.0]
    connections: list[Any] = []
    store = Store(
        replace(mariadb.server(database), pool_recycle=100.0),
        connect=remembering(connections),
        clock=lambda: now[0],
    )
    store.ping()
    now[0] = 99.0
    store.ping()
    assert len(connections) == 1
    now[0] = 100.0
    store.ping()
    assert len(connections) == 2
    store.close()


@pytest.mark.only("mariadb")
def test_bytes_that_are_no_text_are_refused(mariadb: MariaDB, database: str) -> None:
    connections: list[Any] = []
    store = Store(mariadb.server(database), connect=remembering(connections))
    store.ping()
    (db,) = connections
    db.query("SELECT @@character_set_client")
    assert db.store_result().fetch_row() == (("binary",),), "texts are not sent as bytes"
    rows = rows_of(task(source_text="MARK"))
    (row,) = rows[TASKS]
    good = row.values
    for broken in (b"\xff", b"\xf0\x9f\x99", b"\xc0\xaf"):
        row.values = good.replace(b"MARK", broken)
        with refused(ErrorClass.DATA, 1366):
            store.write(rows)
    store.close()

    assert stored(mariadb, database, TASKS) == {}
