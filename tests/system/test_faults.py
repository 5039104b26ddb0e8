"""What callers notice of a fault, and what is in the tables afterwards: real processes, a real database."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.load import Load, task_ids
from tests.support.mariadb import MariaDB
from tests.support.service import SESSIONS, TASKS, Service, alive, processes_of, session, task, wait_until

NEVER_BY_ITSELF = {"BUFFER_FLUSH_INTERVAL": 86400, "BUFFER_MAX_SIZE": 1000000}
"""Only POST /flush and ?ack=committed flush."""
AT_ONCE = {"BUFFER_FLUSH_INTERVAL": 0.05}
StartService = Callable[..., Service]


def all_arrived(service: Service, mariadb: MariaDB, database: str, load: Load) -> None:
    """Nothing was refused, nothing is lost, nothing is a dead letter."""
    assert load.refused == []
    assert load.failures == []
    answer = service.flush(60)
    assert answer.status == 200, answer
    assert task_ids(mariadb, database) == load.acknowledged
    assert service.stats()["dead_letters"]["count"] == 0


# The database


def test_a_write_locked_table_delays_no_post_and_loses_no_row(
    start_service: StartService, mariadb: MariaDB, database: str
) -> None:
    """flusher/test_store.py has what follows when the writer's own wait for the lock ends."""
    service = start_service(mariadb, database, **AT_ONCE)
    with Load(service) as load:
        with mariadb.locked(database):
            wait_until(lambda: mariadb.hanging(database), what="a writer waits for the lock")
            load.go_on(50)
        load.go_on()
    all_arrived(service, mariadb, database, load)


def test_a_database_that_is_away_refuses_nothing_and_loses_nothing(
    start_service: StartService, own_mariadb: MariaDB
) -> None:
    database = own_mariadb.create_database()
    service = start_service(own_mariadb, database, **AT_ONCE)
    with Load(service) as load:
        own_mariadb.stop()
        wait_until(lambda: service.get("/health").json["database"] == "unhealthy", what="/health tells of it")
        health = service.get("/health")
        assert (health.status, health.json["status"]) == (200, "degraded")
        assert service.get("/ready").status == 200
        load.go_on(100)
        own_mariadb.start()
        load.go_on()
    all_arrived(service, own_mariadb, database, load)
    wait_until(lambda: service.get("/health").json["status"] == "healthy", what="/health tells that it is back")


# The flusher


def test_posts_under_way_while_the_flusher_restarts_are_late_and_not_refused(
    start_service: StartService, mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, **AT_ONCE)
    with Load(service, clients=4) as load:
        for _ in range(3):
            service.kill_flusher()
            # Everything in flight or sent now finds nobody there.
            with ThreadPoolExecutor(1) as one:
                late = one.submit(service.post, SESSIONS, {"sessions": [session("late")]})
                service.start_flusher()
                assert late.result(30).status == 202
            load.go_on()
    all_arrived(service, mariadb, database, load)
    assert mariadb.execute("SELECT session_id FROM translation_sessions", (), database) == [("late",)]


def test_without_a_flusher_a_post_is_answered_503_after_its_deadline_and_202_when_there_is_one_again(
    start_service: StartService, mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, SERVICE_ACK_TIMEOUT=0.5)
    service.kill_flusher()

    refused = service.post(TASKS, {"tasks": [task("t1")]})

    assert (refused.status, refused.json["error_code"]) == (503, "FLUSHER_UNAVAILABLE")
    assert int(refused.headers["retry-after"]) >= 1
    assert service.get("/").status == 200
    assert service.get("/ready").status == 503
    health = service.get("/health")
    assert (health.status, health.json["status"]) == (503, "unhealthy")
    service.start_flusher()
    service.wait_ready()
    assert service.post(f"{TASKS}?ack=committed", {"tasks": [task("t2")]}).status == 200
    assert task_ids(mariadb, database) == {"t2"}


def test_a_writer_that_hangs_in_a_query_ends_with_its_flusher(
    start_service: StartService, mariadb: MariaDB, database: str
) -> None:
    """And its callers of ack=committed get 202: nobody knows any more when it will be committed, but it is safe."""
    service = start_service(mariadb, database, **NEVER_BY_ITSELF)
    with ThreadPoolExecutor(1) as one, mariadb.locked(database):
        answer = one.submit(service.post, f"{TASKS}?ack=committed&timeout=60", {"tasks": [task("t1")]})
        wait_until(lambda: mariadb.hanging(database), what="a writer waits for the lock")
        writers = service.writers()
        assert writers

        service.kill_flusher()

        wait_until(lambda: not any(map(alive, writers)), what="the writers are gone")
        # In the middle of it: neither the lock nor the statement's own lock wait has ended.
        assert mariadb.hanging(database)
        service.start_flusher()
        assert answer.result(30).status == 202
        late = service.post(f"{TASKS}?ack=committed&timeout=0.3", {"tasks": [task("t2")]})
        assert (late.status, late.json["status"]) == (202, "accepted")
    wait_until(lambda: task_ids(mariadb, database) == {"t1", "t2"}, 30, "the recovered rows")


def test_a_writer_killed_in_mid_transaction_is_replaced_and_nobody_outside_notices(
    start_service: StartService, mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, **NEVER_BY_ITSELF)
    assert service.post(SESSIONS, {"sessions": [session("s1")]}).status == 202
    assert service.post(TASKS, {"tasks": [task("t1")]}).status == 202
    with ThreadPoolExecutor(2) as callers:
        with mariadb.locked(database):
            flush = callers.submit(service.flush, 60)
            wait_until(lambda: mariadb.hanging(database), what="a writer has the session, waits to write the task")
            writers = service.writers()
            assert writers
            for writer in writers:  # on a busy machine a further one has joined, since this write is held up
                os.kill(writer, signal.SIGKILL)
            wait_until(lambda: set(service.writers()) - set(writers), what="another writer")
            assert service.post(TASKS, {"tasks": [task("t2")]}).status == 202
            assert mariadb.execute("SELECT * FROM translation_sessions", (), database) == []
        answer = flush.result(90)
    assert answer.status == 200
    assert (answer.json["sessions_written"], answer.json["tasks_written"]) == (1, 1)
    assert mariadb.execute("SELECT session_id FROM translation_sessions", (), database) == [("s1",)]
    assert service.flush(60).status == 200
    assert task_ids(mariadb, database) == {"t1", "t2"}
    assert service.stats()["dead_letters"]["count"] == 0


@pytest.mark.parametrize("policy", ["always", "interval", "never"])
def test_every_fsync_policy_keeps_what_it_acknowledged_over_a_kill(
    policy: str, start_service: StartService, mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, JOURNAL_FSYNC=policy, **NEVER_BY_ITSELF)
    ids = {f"t{number}" for number in range(20)}
    with ThreadPoolExecutor(4) as callers:
        answers = list(callers.map(lambda one: service.post(TASKS, {"tasks": [task(one)]}).status, ids))
    assert answers == [202] * 20
    unsynced = service.stats()["at_risk"]["unsynced_records"]
    if policy == "always":
        assert unsynced == 0
    elif policy == "interval":
        wait_until(lambda: service.stats()["at_risk"]["unsynced_records"] == 0, what="the sync of the interval")
    else:
        assert unsynced == 20
    assert service.stats()["at_risk"]["uncommitted_records"] == 20
    assert task_ids(mariadb, database) == set()
    service.kill_flusher()
    service.start_flusher()
    # Without a flush by anybody: what a start finds is written at once.
    wait_until(lambda: task_ids(mariadb, database) == ids, what="the recovered rows")


# Ingest


def test_a_killed_ingest_worker_is_replaced_while_the_others_go_on(
    start_service: StartService, mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, SERVICE_WORKERS=2, **AT_ONCE)
    workers = wait_until(lambda: len(service.workers()) == 2 and service.workers(), what="two workers")
    with Load(service) as load:
        os.kill(workers[0], signal.SIGKILL)
        load.go_on()
        wait_until(lambda: len(set(service.workers()) - set(workers)) == 1, what="a new worker")
        load.go_on()
    assert alive(workers[1])
    assert load.refused == []
    # Only requests that were with the killed one have no answer, and no client has more than one of those.
    assert len(load.failures) <= 3
    assert service.flush(60).status == 200
    assert load.acknowledged <= task_ids(mariadb, database)


def test_workers_end_with_their_killed_parent_and_a_new_one_takes_the_port(
    start_service: StartService, mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, SERVICE_WORKERS=2)
    workers = wait_until(lambda: len(service.workers()) == 2 and service.workers(), what="two workers")
    assert service.ingest is not None

    service.ingest.kill()
    service.ingest.wait(10)
    service.start_ingest()  # at once, as supervisord does

    wait_until(lambda: not any(map(alive, workers)), 30, "the workers are gone")
    service.wait_ready()
    assert service.post(f"{TASKS}?ack=committed", {"tasks": [task("t1")]}).status == 200
    service.kill()
    wait_until(lambda: not processes_of(service.directory), 30, "nothing is left when both are killed")


def test_a_worker_that_waits_for_the_flusher_still_ends_with_its_parent(
    start_service: StartService, mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, SERVICE_ACK_TIMEOUT=2)
    workers = service.workers()
    assert service.ingest is not None
    service.kill_flusher()
    with ThreadPoolExecutor(1) as one:
        hanging = one.submit(service.post, TASKS, {"tasks": [task("t1")]})
        service.ingest.kill()
        service.ingest.wait(10)
        wait_until(lambda: not any(map(alive, workers)), 30, "the worker is gone")
        error = hanging.exception(30)
        # It was answered (503), or had not reached the worker before it closed.
        assert hanging.result().status == 503 if error is None else isinstance(error, ConnectionError)


@pytest.mark.parametrize("keep_alive", [False, True])
def test_sighup_replaces_the_workers_and_no_request_fails(
    keep_alive: bool, start_service: StartService, mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, SERVICE_WORKERS=2, **AT_ONCE)
    assert service.ingest is not None
    with Load(service, clients=6, pause_s=0, keep_alive=keep_alive) as load:
        for _ in range(2):
            old = wait_until(lambda: len(service.workers()) == 2 and service.workers(), what="two workers")
            service.ingest.send_signal(signal.SIGHUP)
            wait_until(lambda old=old: not any(map(alive, old)), 30, "the old workers are gone")
            wait_until(lambda: len(service.workers()) == 2, what="two new workers")
            load.go_on()
    all_arrived(service, mariadb, database, load)


def test_old_workers_answer_until_the_new_ones_accept(service: Service) -> None:
    assert service.ingest is not None
    (old,) = service.workers()
    service.ingest.send_signal(signal.SIGHUP)
    new = wait_until(lambda: [pid for pid in service.workers() if pid != old], what="the new worker")[0]
    os.kill(new, signal.SIGSTOP)  # long before it accepts
    try:
        for number in range(20):
            assert service.post(TASKS, {"tasks": [task(f"t{number}")]}).status == 202
        assert service.workers() == [old, new]
    finally:
        os.kill(new, signal.SIGCONT)
    wait_until(lambda: service.workers() == [new], what="the old worker has left")
    assert service.post(TASKS, {"tasks": [task("t20")]}).status == 202
