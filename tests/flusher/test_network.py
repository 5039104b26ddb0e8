"""The network to the first host fails in each phase and way: its rows are written at the next one, in seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import product

import pytest
from msgspec.structs import replace

from flusher.connection import RETURN_S
from flusher.mysql_errors import ErrorClass
from flusher.store import Store, StoreError
from shared.records import TASKS
from shared.settings import Database
from tests.flusher.test_store import rows_of, stored, task
from tests.support.bad_network import FAULTS, PHASES, BadNetwork
from tests.support.mariadb import MariaDB


@pytest.fixture
def networks(mariadb: MariaDB) -> Iterator[tuple[BadNetwork, BadNetwork]]:
    made = BadNetwork(mariadb.socket), BadNetwork(mariadb.socket)
    yield made
    for one in made:
        one.close()


@pytest.fixture
def server(mariadb: MariaDB, database: str, networks: tuple[BadNetwork, BadNetwork]) -> Database:
    return replace(
        mariadb.server(database),
        socket=None,
        host=tuple(f"127.0.0.1:{network.port}" for network in networks),
        connect_timeout=2,  # longer than a byte of the slowest network takes on a busy machine
        read_timeout=2,
    )


@pytest.mark.parametrize("case", [*product(PHASES, FAULTS)], ids=", ".join)
@pytest.mark.parametrize("when", ["from the start", "later"])
def test_the_next_host_is_tried(
    mariadb: MariaDB, networks: tuple[BadNetwork, BadNetwork], server: Database, case: tuple[str, str], when: str
) -> None:
    phase, fault = case
    store = Store(server)
    if when == "later":
        store.write(rows_of(task("before")))
        if phase in ("connect", "handshake"):
            store.close()
    networks[0].break_(phase, fault)
    began_at = time.monotonic()
    classes = []
    for _ in range(3):
        try:
            store.write(rows_of(task("t")))
            break
        except StoreError as error:
            classes.append(error.error_class)
    assert {*classes} <= {ErrorClass.RECONNECT}
    assert time.monotonic() - began_at < 30
    assert networks[0].hit.is_set()
    assert store.host == f"127.0.0.1:{networks[1].port}"
    assert "t" in stored(mariadb, server.database, TASKS)
    store.close()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("phase", ["connect", "handshake"])
def test_a_look_back_at_a_first_host_that_hangs_holds_a_writer_up_for_little(
    networks: tuple[BadNetwork, BadNetwork], server: Database, phase: str, fault: str
) -> None:
    now = [0.0]
    store = Store(replace(server, read_timeout=60), clock=lambda: now[0])
    networks[0].break_("connect", "reset in mid-packet")
    store.write(rows_of(task("a")))
    connection = store._connection

    networks[0].break_(phase, fault)
    now[0] += RETURN_S
    began_at = time.monotonic()
    store.write(rows_of(task("b")))
    assert networks[0].hit.is_set()
    assert time.monotonic() - began_at < 30
    assert store._connection is connection

    networks[0].mend()
    now[0] += RETURN_S
    store.write(rows_of(task("c")))
    assert store.host == f"127.0.0.1:{networks[0].port}"
    store.close()
