"""GET /metrics of the real service: the rules of Prometheus, and one truth whichever worker answers."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

from tests.ingest.test_metrics import samples
from tests.support.mariadb import MariaDB
from tests.support.service import SESSIONS, TASKS, Service, session, task, wait_until

StartService = Callable[..., Service]
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def metrics(service: Service) -> Samples:
    return samples(service.get("/metrics").body)


def promtool(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, timeout=60)


def test_promtool_finds_nothing_to_criticise(start_service: StartService, mariadb: MariaDB, database: str) -> None:
    """Against a service that has done, refused and failed to do something of everything."""
    service = start_service(mariadb, database, SERVICE_WORKERS=2)
    assert service.post(TASKS, {"tasks": [task(), task(status="completed")]}).status == 202
    assert service.post(SESSIONS, {"sessions": [session(status="no such")]}).status == 422
    assert service.flush().status == 200
    mariadb.execute("ALTER TABLE translation_tasks RENAME TO away", (), database)
    assert service.post(TASKS, {"tasks": [task()]}).status == 202
    assert service.flush(0.5).status == 503
    failures = ("persistence_flush_failures_total", (("error_class", "schema"),))
    wait_until(lambda: metrics(service).get(failures, 0) >= 1, what="the try has failed")
    text = service.get("/metrics").body
    found = samples(text)
    assert found["persistence_flush_duration_seconds_count", (("reason", "manual"),)] == 1
    done = promtool("check", "metrics", stdin=text)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert promtool("check", "metrics", stdin=text.replace(b"_rows_written_total", b"_rows_written")).returncode != 0


def test_counters_do_not_fall_when_workers_die_and_are_replaced(
    start_service: StartService, mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, SERVICE_WORKERS=2)
    posts = highest = 0
    name = ("persistence_http_requests_total", (("path", TASKS), ("status", "202")))
    count = ("persistence_http_request_duration_seconds_count", (("path", TASKS),))
    for killed in (None, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP):
        before = service.workers()
        if killed is signal.SIGHUP:
            assert service.ingest is not None
            service.ingest.send_signal(killed)
            wait_until(lambda: not set(before) & set(service.workers()))  # noqa: B023 -- called at once
        elif killed is not None:
            os.kill(before[0], killed)
            wait_until(lambda: before[0] not in service.workers() and len(service.workers()) == 2)  # noqa: B023
        for number in range(40):  # each on a connection of its own, so that both workers get some
            try:
                posts += service.post(TASKS, {"tasks": [task(f"t{posts}-{number}")]}).status == 202
                found = service.requests().get(TASKS, {}).get(202, 0)
            except ConnectionError:
                continue  # it was in the queue of the worker that was leaving
            # A worker's first counts are published within a second.
            assert found >= highest
            highest = found
        # Each worker publishes within a second: when one is killed next, nothing is left to be lost with it.
        wait_until(lambda: metrics(service).get(name, 0.0) == posts)  # noqa: B023
        assert service.requests()[TASKS][202] == posts
    found_at_last = metrics(service)
    assert found_at_last[name] == found_at_last[count]
    # Files don't pile up: those that have ended are in one.
    files = {path.name.partition("-")[0] for path in (service.directory / "run" / "metrics").iterdir()}
    assert files <= {"ended", *map(str, service.workers())}
