"""What becomes of records when the service takes them, refuses them, is slow, or is not there."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import pytest

from client import persistence_client as module
from client.persistence_client import Counters, SyncPersistenceClient
from tests.client.conftest import Connect, Scripted, settled, together, warnings
from tests.support.scripted import Reply
from tests.support.service import free_port, session, task, wait_until

FLUSHED = Reply(200, {"status": "flushed", "sessions_written": 0, "tasks_written": 1})


pytestmark = pytest.mark.usefixtures("short_pauses")


def test_records_go_to_the_path_of_their_kind_over_one_connection_with_the_token(
    scripted: Scripted, connect: Connect
) -> None:
    server = scripted()
    client = connect(f"{server.url}/", "secret")
    client.persist_session(session("s1"))
    first = server.next()
    with together():
        client.persist_tasks([task("t1"), task("t2")])
    second = server.next()
    assert (first.path, first.ids) == ("/api/v1/persistence/sessions/batch", ["s1"])
    assert (second.path, second.ids) == ("/api/v1/persistence/tasks/batch", ["t1", "t2"])
    for request in (first, second):
        assert request.headers["authorization"] == "Bearer secret"
        assert request.headers["content-type"] == "application/json"
    assert first.connection is second.connection
    assert settled(client) == Counters(sent=3, retried=0, dropped=0, coalesced=0, waiting=0)


def test_url_and_token_are_read_from_the_environment_at_the_first_call(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = scripted()
    client = SyncPersistenceClient()
    monkeypatch.setenv("PERSISTENCE_URL", server.url)
    monkeypatch.setenv("PERSISTENCE_TOKEN", "from-outside\n")
    with client:
        client.persist_tasks([task()])
    assert server.next().headers["authorization"] == "Bearer from-outside"


def test_a_hundred_records_go_at_once_and_fewer_when_the_oldest_is_old_enough(
    scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_AGE_S", 3600.0)
    server = scripted()
    client = connect(server.url)
    client.persist_tasks([task(f"t{number}") for number in range(250)])
    assert [len(server.next().records) for _ in range(2)] == [100, 100]
    wait_until(lambda: client.counters.waiting == 50)
    monkeypatch.setattr(module, "BATCH_AGE_S", 0.0)
    assert len(server.next().records) == 50


def test_states_that_wait_are_coalesced_and_stamped_in_the_order_of_the_calls(
    scripted: Scripted, connect: Connect
) -> None:
    server = scripted()
    client = connect(server.url)
    before = datetime.now(timezone.utc)
    with together():
        for status in ("pending", "processing", "completed"):
            client.persist_tasks([task("t1", status=status)])
        client.persist_tasks([task("t2")])
    one, two = server.next().records
    assert (one["task_id"], one["status"], two["task_id"]) == ("t1", "completed", "t2")
    first, second = (datetime.fromisoformat(record["updated_at"]) for record in (one, two))
    assert before <= first < second <= datetime.now(timezone.utc) + timedelta(milliseconds=1)
    assert settled(client).coalesced == 2


def test_stamps_grow_when_the_clock_steps_back_a_little_and_follow_when_it_is_set_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [datetime(2026, 11, 23, 12, tzinfo=timezone.utc)]

    class Clock(datetime):
        @classmethod
        def now(cls, _zone: object = None) -> datetime:
            return clock[0]

    monkeypatch.setattr(module, "datetime", Clock)
    client = SyncPersistenceClient()
    first, second = client._stamp(), client._stamp()
    clock[0] -= timedelta(seconds=10)
    third = client._stamp()
    assert first < second < third
    clock[0] -= timedelta(hours=1)
    assert client._stamp() == clock[0]


def test_a_lost_connection_is_tried_again_with_the_newest_state_and_the_same_times(
    scripted: Scripted, connect: Connect
) -> None:
    hold = threading.Event()
    server = scripted(Reply(lost=True, hold=hold))
    client = connect(server.url)
    with together():
        client.persist_tasks([task("t1", status="processing"), task("t2", status="processing")])
    first = server.next()
    client.persist_tasks([task("t1", status="completed")])
    hold.set()
    second = server.next()
    assert {one["task_id"]: one["status"] for one in second.records} == {"t1": "completed", "t2": "processing"}
    stamps = [{one["task_id"]: one["updated_at"] for one in request.records} for request in (first, second)]
    assert stamps[0]["t2"] == stamps[1]["t2"]
    assert stamps[0]["t1"] < stamps[1]["t1"]
    assert settled(client) == Counters(sent=2, retried=2, dropped=0, coalesced=1, waiting=0)


def test_what_takes_too_long_is_sent_in_smaller_parts_and_the_next_ones_in_larger_again(
    scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("PERSISTENCE_TOKEN", raising=False)
    monkeypatch.setattr(module, "REQUEST_TIMEOUT_S", 0.3)
    hold = threading.Event()
    server = scripted(Reply(hold=hold))
    client = connect(server.url)
    with together():
        client.persist_tasks([task(f"t{number}") for number in range(8)])
    requests = [server.next() for _ in range(3)]
    assert [len(request.ids) for request in requests] == [8, 4, 4]
    assert "authorization" not in requests[0].headers
    assert settled(client) == Counters(sent=8, retried=8, dropped=0, coalesced=0, waiting=0)
    assert warnings(caplog) == [f"persistence client of {server.url}: 8 tasks not sent yet, kept: no answer in time"]
    hold.set()


def test_a_request_may_take_longer_the_larger_it_is(
    scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REQUEST_TIMEOUT_S", 0.0)
    monkeypatch.setattr(module, "SLOWEST_BYTES_PER_S", 0.001)
    server = scripted()
    client = connect(server.url)
    client.persist_tasks([task("t1")])
    assert settled(client).sent == 1


def test_warnings_are_counted_up_and_given_at_most_every_few_seconds(
    scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "WARNING_INTERVAL_S", 3600.0)
    client = connect(scripted().url)
    client.persist_tasks([None])  # type: ignore[list-item]
    wait_until(lambda: warnings(caplog), what="the first failure is warned of at once")
    for number in range(30):
        client.persist_tasks([None, task(f"t{number}")])  # type: ignore[list-item]
    settled(client)
    assert len(warnings(caplog)) == 1
    client.close()
    assert [one.partition(": ")[2] for one in warnings(caplog)[1:]] == [
        "30 tasks dropped: tasks[0]: NoneType is no record"
    ]


def test_a_trailing_warning_is_given_when_its_time_has_come_though_nothing_waits(
    scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "WARNING_INTERVAL_S", 0.3)
    client = connect(scripted().url)
    client.persist_tasks([None])  # type: ignore[list-item]
    wait_until(lambda: len(warnings(caplog)) == 1)
    client.persist_tasks([None])  # type: ignore[list-item]
    wait_until(lambda: len(warnings(caplog)) == 2)


def test_flush_all_sends_what_waits_then_flushes_and_returns_the_answer(
    scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_AGE_S", 3600.0)
    server = scripted(Reply(), Reply(), Reply(), FLUSHED)
    client = connect(server.url)
    client.persist_session(session("s1"))
    client.persist_tasks([task(f"t{number}") for number in range(130)])
    assert client.flush_all() == FLUSHED.document
    assert [server.next().path.rpartition("/")[2] for _ in range(3)] == ["batch"] * 3
    path, _, timeout = server.next().path.partition("?timeout=")
    assert path == "/api/v1/persistence/flush"
    assert 8 < float(timeout) <= 10
    assert client.counters.sent == 131


def test_flush_all_gives_up_on_a_service_that_is_away_and_keeps_the_records(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_TIMEOUT_S", 0.5)
    client = connect(f"http://127.0.0.1:{free_port()}")
    client.persist_tasks([task("t1"), task("t2")])
    answer = client.flush_all()
    assert (answer["status"], answer["pending"]) == ("error", 2)
    assert re.fullmatch(
        r"2 records not sent to http://[\d.:]+ within 0.5 s: ConnectionRefusedError .*", answer["detail"]
    )
    assert client.counters.waiting == 2


def test_flush_all_does_not_wait_for_what_is_queued_after_it(
    scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records come in faster than they are sent, for as long as the flush has not answered."""
    answered = threading.Event()
    server = scripted(usual=lambda request: FLUSHED if "flush" in request.path else Reply())
    client = connect(server.url)

    def produce() -> None:
        number = 0
        while not answered.is_set():
            client.persist_tasks([task(f"t{number + n}") for n in range(200)])
            number += 200

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        assert client.flush_all() == FLUSHED.document
    finally:
        answered.set()
        producer.join()


def test_close_drops_what_cannot_be_sent_in_time_with_a_warning(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", 0.3)
    client = connect(f"http://127.0.0.1:{free_port()}")
    client.persist_tasks([task("t1"), task("t2")])
    client.close()
    assert client.counters[2:] == (2, 0, 0)
    assert warnings(caplog)[-1].endswith(": 2 tasks dropped: the client was closed")


def test_close_sends_what_waits_and_the_next_call_starts_it_again(
    scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_AGE_S", 3600.0)
    server = scripted()
    client = connect(server.url)
    for number in range(3):
        client.persist_tasks([task(f"t{number}")])
        client.close()
        assert server.next().ids == [f"t{number}"]
        assert not [thread for thread in threading.enumerate() if thread.name == "persistence-client"]
    client.close()
    assert client.counters == Counters(sent=3, retried=0, dropped=0, coalesced=0, waiting=0)


def test_a_flush_that_is_under_way_is_answered_though_the_client_closes(scripted: Scripted, connect: Connect) -> None:
    hold = threading.Event()
    server = scripted(Reply(200, FLUSHED.document, hold=hold))
    client = connect(server.url)
    with ThreadPoolExecutor() as threads:
        flushing = threads.submit(client.flush_all)
        server.next()
        client.close()
        hold.set()
        assert flushing.result(20) == FLUSHED.document


def test_many_threads_lose_nothing(scripted: Scripted, connect: Connect) -> None:
    server = scripted()
    client = connect(server.url)

    def produce(name: int) -> None:
        for number in range(200):
            client.persist_tasks([task(f"{name}-{number}"), task("shared")])

    threads = [threading.Thread(target=produce, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.close()
    received = [server.next() for _ in range(server.requests.qsize())]
    ids = [one for request in received for one in request.ids]
    assert {one for one in ids if one != "shared"} == {f"{name}-{n}" for name in range(4) for n in range(200)}
    assert client.counters.sent + client.counters.coalesced == 1600
    stamps = [record["updated_at"] for request in received for record in request.records]
    assert len(set(stamps)) == len(stamps)
