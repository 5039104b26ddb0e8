"""What becomes of records when the service takes them, refuses them, is slow, or is not there."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest

from client import persistence_client as module
from client.persistence_client import Counters, SyncPersistenceClient
from tests.support.scripted import Reply, Request, ScriptedServer, refusal
from tests.support.service import free_port, session, task, wait_until

FLUSHED = Reply(200, {"status": "flushed", "sessions_written": 0, "tasks_written": 1})
Scripted = Callable[..., ScriptedServer]
Connect = Callable[..., SyncPersistenceClient]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch's age and the pauses between tries would only make these tests longer."""
    monkeypatch.setattr(module, "BATCH_AGE_S", 0.05)
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(module, "_TICK_S", 0.01)


@contextmanager
def together() -> Iterator[None]:
    """What is handed over inside waits for the rest, however slow the machine is: it is one batch."""
    age_s = module.BATCH_AGE_S
    module.BATCH_AGE_S = 3600.0
    yield
    module.BATCH_AGE_S = age_s


def settled(client: SyncPersistenceClient) -> Counters:
    wait_until(lambda: client.counters.waiting == 0, what="nothing waits")
    return client.counters


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


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


def test_without_a_token_no_header_is_sent(
    scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PERSISTENCE_TOKEN", raising=False)
    server = scripted()
    connect(server.url).persist_tasks([task()])
    assert "authorization" not in server.next().headers


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


def test_the_callers_own_updated_at_decides_in_any_form(scripted: Scripted, connect: Connect) -> None:
    early, late = "2026-11-23T10:00:00Z", datetime(2026, 11, 23, 11, 30, tzinfo=timezone(timedelta(hours=1)))
    server = scripted()
    client = connect(server.url)
    with together():
        client.persist_tasks([task("t1", status="completed", updated_at=late), task("t1", updated_at=early)])
        client.persist_tasks([task("t2", updated_at=datetime(2026, 11, 23, 10)), task("t2", updated_at="20261123T09")])
        # What only the service can read is not compared: it gets both.
        client.persist_tasks([task("t3", updated_at="tomorrow"), task("t3", updated_at=early)])
    records = server.next().records
    assert [(one["task_id"], one["status"]) for one in records if one["task_id"] != "t2"] == [
        ("t1", "completed"),
        ("t3", "pending"),
        ("t3", "pending"),
    ]
    assert "2026-11-23T10:00:00" in [one["updated_at"] for one in records if one["task_id"] == "t2"]


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


def test_later_changes_of_what_was_given_do_not_matter(scripted: Scripted, connect: Connect) -> None:
    server = scripted()
    state = session("s1", metadata={"rows": [1]})
    connect(server.url).persist_session(state)
    assert "updated_at" not in state
    state["status"] = "failed"
    state["metadata"]["rows"].append(2)
    [record] = server.next().records
    assert (record["status"], record["metadata"]) == ("processing", {"rows": [1]})


class Status(Enum):
    DONE = "completed"


def test_what_backends_have_in_their_records_is_encoded(scripted: Scripted, connect: Connect) -> None:
    server = scripted()
    ident = UUID(int=5)
    start = datetime(2026, 11, 23, tzinfo=timezone.utc)
    connect(server.url).persist_tasks(
        task(ident, status=Status.DONE, confidence=Decimal("0.5"), start_time=start, context="é\n") for _ in "1"
    )
    [record] = server.next().records
    assert (record["task_id"], record["status"], record["confidence"]) == (str(ident), "completed", "0.5")
    assert (record["start_time"], record["context"]) == ("2026-11-23T00:00:00+00:00", "é\n")


def broken_off() -> Iterator[dict[str, Any]]:
    yield task("before")
    raise KeyError("the caller's own fault")


class Hostile(dict):
    def keys(self) -> Any:
        raise ZeroDivisionError


ENDLESS: dict[str, Any] = {}
ENDLESS["self"] = ENDLESS
DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]
UNUSABLE = [
    None,
    7,
    "t1",
    {},
    task(None),
    task(["t1"]),
    task(context=object()),
    task(context={1, 2}),
    task(context=b"bytes"),
    task(confidence=float("nan")),
    task(context="\ud800"),
    task(context=10**5000),
    task(context={(1, 2): 3}),
    task(updated_at={}),
    session("s1", metadata=ENDLESS),
    task(context=DEEP),
    task(context="x" * 11_000_000),
]


def test_nothing_that_is_given_raises_and_what_is_unusable_is_counted(
    scripted: Scripted, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    server = scripted()
    client = connect(server.url)
    with together():
        for one in UNUSABLE:
            client.persist_tasks([one])  # type: ignore[list-item]
        client.persist_session(UNUSABLE[0])  # type: ignore[arg-type]
        assert client.counters.dropped == len(UNUSABLE) + 1
        client.persist_tasks(None)  # type: ignore[arg-type]
        client.persist_tasks(task())  # type: ignore[arg-type] -- one instead of several
        client.persist_tasks(broken_off())
        client.persist_tasks([*UNUSABLE, task("after")])  # type: ignore[list-item]
    assert server.next().ids == ["before", "after"]
    counters = settled(client)
    assert (counters.sent, counters.dropped) == (2, 2 * len(UNUSABLE) + 1 + 1 + len(task()) + 1)
    client.close()
    text = "\n".join(warnings(caplog))
    assert "tasks dropped: no task_id" in text
    assert "tasks dropped: not usable as a record: TypeError" in text
    assert "1 sessions dropped: " in text
    assert "caller" not in text
    assert sum(int(line.split()[0]) for line in warnings(caplog)) == counters.dropped


@pytest.mark.parametrize("retry_after_s", [1, 0])
def test_503_is_tried_again_and_not_before_the_service_asked_for(
    scripted: Scripted, connect: Connect, retry_after_s: int, caplog: pytest.LogCaptureFixture
) -> None:
    refused = Reply(503, {"error_code": "JOURNAL_FULL"}, {"Retry-After": str(retry_after_s)} if retry_after_s else {})
    server = scripted(refused)
    client = connect(server.url)
    with together():
        client.persist_tasks([task("t1"), task("t2")])
    first = server.next()
    client.persist_session(session())  # nothing else goes in the meantime either
    second = server.next()
    assert second.at - first.at >= retry_after_s
    assert {*second.ids, *server.next().ids} == {"t1", "t2", "s1"}
    assert settled(client) == Counters(sent=3, retried=2, dropped=0, coalesced=0, waiting=0)
    assert warnings(caplog) == ["2 tasks not sent yet: HTTP 503 JOURNAL_FULL"]


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


def test_a_slow_answer_is_given_up_and_the_records_sent_again(
    scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "REQUEST_TIMEOUT_S", 0.3)
    hold = threading.Event()
    server = scripted(Reply(hold=hold))
    client = connect(server.url)
    client.persist_tasks([task("t1")])
    assert server.next().ids == ["t1"]
    assert server.next().ids == ["t1"]
    assert settled(client).retried == 1
    assert warnings(caplog) == ["1 tasks not sent yet: TimeoutError"]
    hold.set()


def test_what_takes_too_long_is_sent_in_smaller_parts_and_the_next_ones_in_larger_again(
    scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REQUEST_TIMEOUT_S", 0.3)
    hold = threading.Event()
    server = scripted(Reply(hold=hold))
    client = connect(server.url)
    with together():
        client.persist_tasks([task(f"t{number}") for number in range(8)])
    assert [len(server.next().ids) for _ in range(3)] == [8, 4, 4]
    assert settled(client) == Counters(sent=8, retried=8, dropped=0, coalesced=0, waiting=0)
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


def test_an_absent_service_is_tried_for_a_bounded_time(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RETRY_FOR_S", 0.5)
    client = connect(f"http://127.0.0.1:{free_port()}")
    with together():
        client.persist_tasks([task("t1"), task("t2")])
    counters = settled(client)
    assert counters.dropped == 2
    assert counters.retried >= 2
    client.close()
    assert warnings(caplog)[0] == "2 tasks not sent yet: ClientConnectorError"
    assert "2 tasks dropped: the service did not take them in time" in warnings(caplog)


def test_422_drops_only_what_is_named_and_sends_the_rest(
    scripted: Scripted, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    server = scripted(
        refusal(("tasks[1].status", "must be one of …"), ("tasks[1].row_index", "too"), ("tasks[3]", "is no object"))
    )
    client = connect(server.url)
    with together():
        client.persist_tasks([task(f"t{number}") for number in range(5)])
    assert server.next().ids == ["t0", "t1", "t2", "t3", "t4"]
    assert server.next().ids == ["t0", "t2", "t4"]
    assert settled(client) == Counters(sent=3, retried=0, dropped=2, coalesced=0, waiting=0)
    assert warnings(caplog) == [
        "1 tasks dropped: HTTP 422 INVALID_RECORD status (for example: must be one of …)",
        "1 tasks dropped: HTTP 422 INVALID_RECORD (for example: is no object)",
    ]


def test_a_newer_state_of_a_refused_record_is_sent(scripted: Scripted, connect: Connect) -> None:
    hold = threading.Event()
    refused = refusal(("tasks[0].status", "must be"))
    server = scripted(Reply(refused.status, refused.document, hold=hold))
    client = connect(server.url)
    client.persist_tasks([task("t1", status="wrong")])
    server.next()
    client.persist_tasks([task("t1", status="completed")])
    hold.set()
    assert [one["status"] for one in server.next().records] == ["completed"]
    assert settled(client)[:3] == (1, 0, 1)


@pytest.mark.parametrize(
    "refused",
    [
        refusal(status=400, code="INVALID_JSON"),
        refusal(status=413, code="BODY_TOO_LARGE"),
        refusal(("tasks", "takes 1 to 5 records, 10 were sent")),
        refusal(("tasks[77].status", "there is no such record")),
        Reply(400, b"<html>"),
        Reply(422, {"errors": "of another form"}),
    ],
)
def test_where_nobody_is_named_halving_finds_the_record(scripted: Scripted, connect: Connect, refused: Reply) -> None:
    server = scripted(usual=lambda request: refused if "t3" in request.ids else Reply())
    client = connect(server.url)
    client.persist_tasks([task(f"t{number}") for number in range(10)])
    assert settled(client) == Counters(sent=9, retried=0, dropped=1, coalesced=0, waiting=0)
    requests = [server.next().ids for _ in range(server.requests.qsize())]
    assert ["t3"] in requests
    assert len(requests) < 12


def test_a_hundred_errors_are_all_the_service_lists_so_the_rest_is_refused_in_turn(
    scripted: Scripted, connect: Connect
) -> None:
    """Records with several faults each fill the list before the last record is named."""

    def answer(request: Request) -> Reply:
        wrong = [index for index, one in enumerate(request.records) if one["status"] == "wrong"]
        errors = [(f"tasks[{index}].{name}", "…") for index in wrong for name in ("status", "start_time")]
        return refusal(*errors[:100]) if errors else Reply()

    server = scripted(usual=answer)
    client = connect(server.url)
    client.persist_tasks([task(f"t{n}", status="pending" if n % 4 == 0 else "wrong") for n in range(100)])
    assert settled(client) == Counters(sent=25, retried=0, dropped=75, coalesced=0, waiting=0)


@pytest.mark.parametrize("status", [301, 401, 403, 404, 405, 415])
def test_what_will_never_be_answered_otherwise_is_dropped(
    scripted: Scripted, connect: Connect, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    server = scripted(Reply(status, {"error_code": "NO"}, {"Location": "/"} if status == 301 else {}))
    client = connect(server.url)
    client.persist_tasks([task("t1")])
    server.next()
    assert settled(client).dropped == 1
    client.persist_tasks([task("t2")])
    assert server.next().ids == ["t2"]
    assert settled(client) == Counters(sent=1, retried=0, dropped=1, coalesced=0, waiting=0)
    assert warnings(caplog) == [f"1 tasks dropped: HTTP {status} NO"]


@pytest.mark.parametrize(
    ("url", "token"), [("no address", ""), ("http://127.0.0.1:99999", ""), ("http://127.0.0.1:1", "two\nlines")]
)
def test_an_address_or_a_token_that_cannot_be_used_is_a_warning(
    connect: Connect, url: str, token: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(module, "RETRY_FOR_S", 0.2)
    client = connect(url, token)
    client.persist_tasks([task("t1")])
    assert settled(client).dropped == 1
    assert warnings(caplog)[0].startswith("1 tasks not sent yet: ")
    assert "lines" not in caplog.text


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
    assert warnings(caplog)[1:] == ["30 tasks dropped: not usable as a record: TypeError"]


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


def test_flush_all_on_a_new_client_flushes_the_service(scripted: Scripted, connect: Connect) -> None:
    assert connect(scripted(FLUSHED).url).flush_all() == FLUSHED.document


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (
            Reply(503, {"status": "error", "detail": "slow", "pending": 7}, {"Retry-After": "1"}),
            {"status": "error", "detail": "slow", "pending": 7},
        ),
        (
            Reply(401, {"detail": "no token", "error_code": "TOKEN_MISSING"}),
            {"status": "error", "detail": "no token", "pending": 0, "error_code": "TOKEN_MISSING"},
        ),
        (Reply(502, b"<html>"), {"status": "error", "detail": "HTTP 502", "pending": 0}),
        (
            Reply(lost=True),
            {"status": "error", "detail": "the service gave no answer (ServerDisconnectedError)", "pending": 0},
        ),
    ],
)
def test_flush_all_says_what_went_wrong(
    scripted: Scripted, connect: Connect, reply: Reply, expected: dict[str, Any]
) -> None:
    assert connect(scripted(reply).url).flush_all() == expected


def test_flush_all_gives_up_on_a_service_that_is_away_and_keeps_the_records(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_TIMEOUT_S", 0.5)
    client = connect(f"http://127.0.0.1:{free_port()}")
    client.persist_tasks([task("t1"), task("t2")])
    assert client.flush_all() == {
        "status": "error",
        "detail": "2 records could not be sent within 0.5 s",
        "pending": 2,
    }
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


def test_close_sends_what_waits(scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_AGE_S", 3600.0)
    server = scripted()
    client = connect(server.url)
    client.persist_tasks([task(f"t{number}") for number in range(130)])
    client.close()
    assert client.counters == Counters(sent=130, retried=0, dropped=0, coalesced=0, waiting=0)
    assert not [thread for thread in threading.enumerate() if thread.name == "persistence-client"]
    client.close()


def test_close_drops_what_cannot_be_sent_in_time_with_a_warning(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", 0.3)
    client = connect(f"http://127.0.0.1:{free_port()}")
    client.persist_tasks([task("t1"), task("t2")])
    client.close()
    assert client.counters[2:] == (2, 0, 0)
    assert warnings(caplog)[-1] == "2 tasks dropped: the client was closed"


def test_close_does_not_wait_for_a_time_that_lies_beyond_its_own(
    scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", 20.0)
    client = connect(scripted(Reply(503, {}, {"Retry-After": "60"})).url)
    client.persist_tasks([task("t1")])
    wait_until(lambda: client.counters.retried == 1)
    before = time.monotonic()
    client.close()
    assert time.monotonic() - before < 15
    assert client.counters.dropped == 1


def test_a_closed_client_starts_again_with_the_next_call(scripted: Scripted, connect: Connect) -> None:
    server = scripted()
    client = connect(server.url)
    for number in range(3):
        client.persist_tasks([task(f"t{number}")])
        client.close()
        assert server.next().ids == [f"t{number}"]
    assert client.counters.sent == 3


def test_a_flush_that_is_under_way_is_answered_before_the_client_closes(scripted: Scripted, connect: Connect) -> None:
    hold = threading.Event()
    server = scripted(Reply(200, FLUSHED.document, hold=hold))
    client = connect(server.url)
    flushing = client.start_flush()
    server.next()
    closing = client.start_close(1)
    hold.set()
    assert flushing.result(20) == FLUSHED.document
    closing.result(20)


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
