"""A node behind a load balancer tells that it is about to go, and goes on taking records until the balancer knows."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from tests.support.mariadb import MariaDB
from tests.support.service import TASKS, Service, task, wait_until

DELAY_S = 2.0


def test_a_stopping_node_is_not_ready_and_accepts_until_its_delay_is_over(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, SERVICE_DRAIN_DELAY=DELAY_S, SERVICE_WORKERS=2)
    assert service.ingest is not None
    service.ingest.terminate()
    told_at = time.monotonic()
    wait_until(lambda: service.get("/ready").status == 503, DELAY_S)

    answer = service.get("/ready")
    assert (answer.status, answer.json) == (503, {"ready": False, "reason": "stopping"})
    assert service.get("/health").status == 200
    assert service.post(TASKS, {"tasks": [task("t1")]}).status == 202
    assert service.ingest.poll() is None
    assert service.ingest.wait(20) == 0
    assert time.monotonic() - told_at >= DELAY_S


def test_a_second_signal_cuts_the_delay_short(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, SERVICE_DRAIN_DELAY=10)
    assert service.ingest is not None
    service.ingest.terminate()
    told_at = time.monotonic()
    wait_until(lambda: service.get("/ready").status == 503)
    service.ingest.send_signal(signal.SIGTERM)

    assert service.ingest.wait(9) == 0
    assert time.monotonic() - told_at < 9
