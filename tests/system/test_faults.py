"""What callers notice of a fault, and what is in the tables afterwards: real processes, a real database."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from tests.support.load import Load, task_ids
from tests.support.mariadb import MariaDB
from tests.support.service import SESSIONS, TASKS, Service, alive, processes_of, session, task, wait_until

NEVER_BY_ITSELF = {"BUFFER_FLUSH_INTERVAL": 86400, "BUFFER_MAX_SIZE": 1000000}
"""Only POST /flush and ?ack=committed flush."""
AT_ONCE = {"BUFFER_FLUSH_INTERVAL": 0.05}


def flushed(service: Service) -> None:
    answer = service.flush(60)
    assert answer.status == 200, answer


def nothing_dead_lettered(service: Service) -> None:
    assert service.stats()["dead_letters"]["count"] == 0


# The database


def test_a_write_locked_table_delays_no_post_and_loses_no_row(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, **AT_ONCE)
    with Load(service) as load:
        with mariadb.locked(database):
            wait_until(lambda: mariadb.hanging(database), what="a writer waits for the lock")
            # Long enough for the writer's own lock wait (10 s) to end and be tried again.
            unlock_at = time.monotonic() + 10
            before = len(load.acknowledged)
            wait_until(lambda: time.monotonic() > unlock_at)
            assert len(load.acknowledged) > before + 100
        load.go_on()
    assert load.refused == []
    assert load.failures == []
    flushed(service)
    assert task_ids(mariadb, database) == load.acknowledged
    nothing_dead_lettered(service)


@pytest.mark.timeout(240)
def test_a_database_that_is_away_for_a_minute_refuses_nothing_and_loses_nothing(
    start_service: Callable[..., Service], own_mariadb: MariaDB
) -> None:
    database = own_mariadb.create_database()
    service = start_service(own_mariadb, database, **AT_ONCE)
    with Load(service) as load:
        own_mariadb.stop()
        back_at = time.monotonic() + 60
        wait_until(lambda: service.get("/health").json["database"] == "unhealthy", what="/health tells of it")
        health = service.get("/health")
        assert (health.status, health.json["status"]) == (200, "degraded")
        assert service.get("/ready").status == 200
        wait_until(lambda: time.monotonic() > back_at, 90)
        own_mariadb.start()
        load.go_on()
    assert load.refused == []
    assert load.failures == []
    flushed(service)
    assert task_ids(own_mariadb, database) == load.acknowledged
    wait_until(lambda: service.get("/health").json["status"] == "healthy", what="/health tells that it is back")
    nothing_dead_lettered(service)


def test_a_flush_without_a_database_answers_503_and_what_waits_and_succeeds_when_it_is_back(
    start_service: Callable[..., Service], own_mariadb: MariaDB
) -> None:
    database = own_mariadb.create_database()
    service = start_service(own_mariadb, database, **NEVER_BY_ITSELF)
    own_mariadb.stop()
    assert service.post(TASKS, {"tasks": [task("t1"), task("t2"), task("t3")]}).status == 202

    answer = service.flush(0.5)

    assert answer.status == 503
    assert answer.json["status"] == "error"
    assert answer.json["pending"] == 3
    assert answer.json["detail"]
    own_mariadb.start()
    answer = service.flush(30)
    assert answer.status == 200
    assert answer.json["tasks_written"] == 3
    assert task_ids(own_mariadb, database) == {"t1", "t2", "t3"}


# The flusher


def test_a_record_acknowledged_right_before_the_flusher_is_killed_arrives_after_its_restart(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, **NEVER_BY_ITSELF)
    assert service.post(TASKS, {"tasks": [task("t1")]}).status == 202
    service.kill_flusher()
    assert task_ids(mariadb, database) == set()

    service.start_flusher()

    # Without a flush by anybody: what a start finds is written at once.
    wait_until(lambda: task_ids(mariadb, database) == {"t1"}, what="the recovered row")


def test_posts_under_way_while_the_flusher_restarts_are_late_and_not_refused(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, **AT_ONCE)
    with Load(service, clients=4) as load:
        for _ in range(3):
            service.kill_flusher()
            # Everything in flight or sent now finds nobody there.
            posts = load.posts
            with ThreadPoolExecutor(1) as one:
                late = one.submit(service.post, SESSIONS, {"sessions": [session("late")]})
                service.start_flusher()
                assert late.result(30).status == 202
            assert load.posts >= posts
            load.go_on()
    assert load.refused == []
    assert load.failures == []
    flushed(service)
    assert task_ids(mariadb, database) == load.acknowledged
    assert mariadb.execute("SELECT session_id FROM translation_sessions", (), database) == [("late",)]


def test_without_a_flusher_a_post_is_answered_503_after_its_deadline_and_202_when_there_is_one_again(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, SERVICE_ACK_TIMEOUT=0.5)
    service.kill_flusher()

    refused = service.post(TASKS, {"tasks": [task("t1")]})

    assert refused.status == 503
    assert refused.json["error_code"] == "FLUSHER_UNAVAILABLE"
    assert int(refused.headers["retry-after"]) >= 1
    assert service.get("/").status == 200
    assert service.get("/ready").status == 503
    health = service.get("/health")
    assert (health.status, health.json["status"]) == (503, "unhealthy")
    service.start_flusher()
    service.wait_ready()
    assert service.post(TASKS, {"tasks": [task("t2")]}).status == 202
    flushed(service)
    assert task_ids(mariadb, database) == {"t2"}


def test_an_idle_writer_ends_with_its_flusher(service: Service) -> None:
    writers = wait_until(service.writers, what="the first writer, started by the first ping")

    service.kill_flusher()

    wait_until(lambda: not any(map(alive, writers)), what="the writers are gone")


def test_a_writer_that_hangs_in_a_query_ends_with_its_flusher(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, **AT_ONCE)
    with mariadb.locked(database):
        assert service.post(TASKS, {"tasks": [task("t1")]}).status == 202
        wait_until(lambda: mariadb.hanging(database), what="a writer waits for the lock")
        writers = service.writers()
        assert writers

        service.kill_flusher()

        wait_until(lambda: not any(map(alive, writers)), what="the writers are gone")
        # In the middle of it: neither the lock nor the statement's own lock wait has ended.
        assert mariadb.hanging(database)
    service.start_flusher()
    wait_until(lambda: task_ids(mariadb, database) == {"t1"}, what="the recovered row")


def test_a_second_flusher_on_the_same_state_directory_ends_and_disturbs_nobody(
    service: Service, mariadb: MariaDB, database: str
) -> None:
    first = service.flusher
    service.start_flusher()
    second = service.flusher
    service.flusher = first
    assert second is not None

    assert second.wait(20) == 1

    assert (service.directory / "flusher.stderr").read_text().count("\n") == 1
    assert service.post(TASKS, {"tasks": [task("t1")]}).status == 202
    flushed(service)
    assert task_ids(mariadb, database) == {"t1"}


# Writers


def test_a_writer_killed_in_mid_transaction_is_replaced_and_nobody_outside_notices(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
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
    flushed(service)
    assert task_ids(mariadb, database) == {"t1", "t2"}
    nothing_dead_lettered(service)


def test_writers_killed_again_and_again_under_load_lose_nothing(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, **AT_ONCE)
    with Load(service) as load:
        for _ in range(8):
            for writer in wait_until(service.writers, what="a writer"):
                with suppress(ProcessLookupError):  # a further one, let go meanwhile
                    os.kill(writer, signal.SIGKILL)
                wait_until(lambda writer=writer: not alive(writer), what="it is gone")
            load.go_on(5)
    assert load.refused == []
    assert load.failures == []
    flushed(service)
    assert task_ids(mariadb, database) == load.acknowledged
    nothing_dead_lettered(service)


# Ingest


def test_a_killed_ingest_worker_is_replaced_while_the_others_go_on(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, SERVICE_WORKERS=2, **AT_ONCE)
    workers = wait_until(lambda: len(service.workers()) == 2 and service.workers(), what="two workers")
    with Load(service) as load:
        os.kill(workers[0], signal.SIGKILL)
        load.go_on()
        wait_until(lambda: len(set(service.workers()) - set(workers)) == 1, what="a new worker")
        load.go_on()
    assert alive(workers[1])
    assert not alive(workers[0])
    assert load.refused == []
    # Only requests that were with the killed one have no answer, and no client has more than one of those.
    assert len(load.failures) <= 3
    flushed(service)
    assert load.acknowledged <= task_ids(mariadb, database)


def test_workers_end_with_their_killed_parent_and_a_new_one_takes_the_port(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, SERVICE_WORKERS=2)
    workers = wait_until(lambda: len(service.workers()) == 2 and service.workers(), what="two workers")
    assert service.ingest is not None
    assert service.post(TASKS, {"tasks": [task("t1")]}).status == 202

    service.ingest.kill()
    service.ingest.wait(10)
    service.start_ingest()  # at once, as supervisord does

    wait_until(lambda: not any(map(alive, workers)), 30, "the workers are gone")
    service.wait_ready()
    assert service.post(TASKS, {"tasks": [task("t2")]}).status == 202
    flushed(service)
    assert task_ids(mariadb, database) == {"t1", "t2"}


def test_a_worker_that_waits_for_the_flusher_still_ends_with_its_parent(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
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
    keep_alive: bool, start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, SERVICE_WORKERS=2, **AT_ONCE)
    assert service.ingest is not None
    with Load(service, clients=6, pause_s=0, keep_alive=keep_alive) as load:
        for _ in range(4):
            old = wait_until(lambda: len(service.workers()) == 2 and service.workers(), what="two workers")
            service.ingest.send_signal(signal.SIGHUP)
            wait_until(lambda old=old: not any(map(alive, old)), 30, "the old workers are gone")
            wait_until(lambda: len(service.workers()) == 2, what="two new workers")
            load.go_on()
    assert load.failures == []
    assert load.refused == []
    flushed(service)
    assert task_ids(mariadb, database) == load.acknowledged


def test_old_workers_answer_until_the_new_ones_accept(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database)
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


def test_sighups_in_a_row_leave_as_many_workers_as_configured(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, SERVICE_WORKERS=2)
    assert service.ingest is not None
    # An idle connection keeps its old worker for a moment, so that the next SIGHUP finds old and new.
    idle = service.connect()
    idle.connect()
    seen = set(service.workers())
    for _ in range(3):
        service.ingest.send_signal(signal.SIGHUP)
        wait_until(lambda: set(service.workers()) - seen, what="new workers")  # noqa: B023 -- called at once
        seen |= set(service.workers())
    wait_until(lambda: len(service.workers()) == 2, 30, "the old workers are gone")
    idle.close()
    assert service.post(TASKS, {"tasks": [task("t1")]}).status == 202
    assert len(service.workers()) == 2


def test_nothing_is_left_running_when_both_processes_are_killed(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, SERVICE_WORKERS=2)
    wait_until(lambda: len(processes_of(service.directory)) == 5, what="ingest, 2 workers, flusher, writer")

    service.kill()

    wait_until(lambda: not processes_of(service.directory), 30, "all are gone")


# Promises to callers


@pytest.mark.parametrize("policy", ["always", "interval", "never"])
def test_every_fsync_policy_keeps_what_it_acknowledged_over_a_kill(
    policy: str, start_service: Callable[..., Service], mariadb: MariaDB, database: str
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
    service.kill_flusher()
    service.start_flusher()
    wait_until(lambda: task_ids(mariadb, database) == ids, what="the recovered rows")


def test_ack_committed_answers_200_when_the_rows_are_in_the_table(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, **NEVER_BY_ITSELF)
    for number in range(5):
        answer = service.post(f"{TASKS}?ack=committed", {"tasks": [task(f"t{number}")]})
        assert answer.status == 200
        assert answer.json["status"] == "committed"
        assert answer.json["count"] == 1
        assert f"t{number}" in task_ids(mariadb, database)


def test_ack_committed_answers_202_after_its_timeout_and_the_row_is_on_its_way(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, **NEVER_BY_ITSELF)
    with mariadb.locked(database):
        answer = service.post(f"{TASKS}?ack=committed&timeout=0.3", {"tasks": [task("t1")]})
        assert answer.status == 202
        assert answer.json["status"] == "accepted"
    wait_until(lambda: task_ids(mariadb, database) == {"t1"}, 30, "the row")


def test_ack_committed_survives_a_restart_of_the_flusher(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, **NEVER_BY_ITSELF)
    with ThreadPoolExecutor(1) as one, mariadb.locked(database):
        answer = one.submit(service.post, f"{TASKS}?ack=committed&timeout=60", {"tasks": [task("t1")]})
        wait_until(lambda: mariadb.hanging(database), what="a writer waits for the lock")
        service.kill_flusher()
        service.start_flusher()
        # Nobody knows any more when it will be committed, but it is safe.
        assert answer.result(30).status == 202
    wait_until(lambda: task_ids(mariadb, database) == {"t1"}, 30, "the row")


def test_two_services_side_by_side_keep_to_their_own(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    other_database = mariadb.create_database()
    service = start_service(mariadb, database, **AT_ONCE)
    other = start_service(mariadb, other_database, **AT_ONCE)
    with Load(service) as load, Load(other) as other_load:
        service.kill_flusher()
        other_load.go_on()
        service.start_flusher()
        load.go_on()
    assert load.refused + other_load.refused == []
    assert load.failures + other_load.failures == []
    flushed(service)
    flushed(other)
    assert task_ids(mariadb, database) == load.acknowledged
    assert task_ids(mariadb, other_database) == other_load.acknowledged
    service.stop()
    assert other.post(TASKS, {"tasks": [task("after")]}).status == 202


def test_a_stopped_flusher_delays_posts_until_it_goes_on(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, **AT_ONCE)
    assert service.flusher is not None
    answered = threading.Event()
    with ThreadPoolExecutor(1) as one:
        service.flusher.send_signal(signal.SIGSTOP)
        try:
            late = one.submit(service.post, TASKS, {"tasks": [task("t1")]})
            late.add_done_callback(lambda _: answered.set())
            assert not answered.wait(0.5)
        finally:
            service.flusher.send_signal(signal.SIGCONT)
        assert late.result(30).status == 202
    flushed(service)
    assert task_ids(mariadb, database) == {"t1"}
