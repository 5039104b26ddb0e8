"""The network between service and database fails in each phase and way: nothing is lost, and it goes on when mended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import pytest

from tests.support.bad_network import FAULTS, PHASES, BadNetwork
from tests.support.mariadb import MariaDB
from tests.support.service import TASKS, Service, task, wait_until


@pytest.fixture
def network(mariadb: MariaDB) -> Iterator[BadNetwork]:
    made = BadNetwork(mariadb.socket)
    mariadb.execute("CREATE USER IF NOT EXISTS app")
    mariadb.execute("GRANT ALL ON *.* TO app")
    yield made
    made.close()


@pytest.mark.parametrize("case", [*product(PHASES, FAULTS)], ids=", ".join)
def test_nothing_acknowledged_is_lost_and_writing_goes_on_when_the_network_is_well_again(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str, network: BadNetwork, case: tuple[str, str]
) -> None:
    phase, fault = case
    of_the_start = phase in ("connect", "handshake")
    if of_the_start:
        network.break_(phase, fault)
    way = {"DB_SOCKET": "", "DB_HOST": f"127.0.0.1:{network.port}", "DB_USER": "app", "DB_CONNECT_TIMEOUT": 1}
    service = start_service(mariadb, database, **way)
    if not of_the_start:
        network.break_(phase, fault)
    assert service.post(TASKS, {"tasks": [task("a"), task("b")]}).status == 202

    flushed = service.flush(timeout_s=1)

    assert (flushed.status, flushed.json["pending"]) == (503, 2)
    assert network.hit.wait(20)
    if of_the_start or fault == "reset in mid-packet":  # else it is a statement that takes long
        wait_until(lambda: service.get("/health").json["status"] == "degraded", 20, "the state is told")
        assert service.get("/health").json["reason"]
    assert service.post(TASKS, {"tasks": [task("c")]}).status == 202
    network.mend()
    assert service.flush(timeout_s=20).status == 200
    assert mariadb.execute("SELECT task_id FROM translation_tasks ORDER BY 1", (), database) == [("a",), ("b",), ("c",)]
    wait_until(lambda: service.get("/health").json["status"] == "healthy", what="healthy again")
