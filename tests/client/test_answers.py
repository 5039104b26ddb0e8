"""Which answers count: only this service's own settle a record; everything else is kept, tried again and said."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from client import persistence_client as module
from client.persistence_client import Counters, PersistenceClient, SyncPersistenceClient
from tests.client.conftest import Connect, Scripted, settled, together, warnings
from tests.support.certificates import Authority
from tests.support.scripted import Reply, Request, ScriptedServer, refusal
from tests.support.service import free_port, session, task, wait_until

pytestmark = pytest.mark.usefixtures("short_pauses")

NOT_OURS = {
    "login page": Reply(200, b"<html>sign in", {"Content-Type": "text/html", "Server": "nginx"}),
    "other server": Reply(200, {"ok": True}),
    "empty": Reply(202, b""),
    "no content": Reply(204, b""),
    "wrong count": Reply(202, {"status": "accepted", "count": 1}),
    "no count": Reply(202, {"status": "accepted"}),
    "count as text": Reply(202, {"status": "accepted", "count": "2"}),
    "list": Reply(202, [{"status": "accepted", "count": 2}]),
    "deep": Reply(200, b"[" * 100_000),
    "health": Reply(200, {"status": "running", "count": 2}),
    "flush": Reply(200, {"status": "flushed"}),
    "redirect": Reply(301, {"status": "accepted", "count": 2}, {"Location": "https://login/?next=secret"}),
    "accepted, but 500": Reply(500, {"status": "accepted", "count": 2}),
    "our 400, of a proxy that spoils requests": refusal(status=400, code="INVALID_HTTP"),
    "our 400, of a proxy that cuts bodies off": refusal(status=400, code="BODY_CUT_SHORT"),
    "400 of a proxy": Reply(400, b"<html>plain HTTP was sent to the HTTPS port"),
    "422 of a proxy": Reply(422, {"errors": [{"field": "tasks[0].status", "message": "?"}]}),
    "our 500": Reply(500, {"error_code": "INTERNAL_ERROR", "detail": "a fault"}),
    "our 404": Reply(404, {"error_code": "UNKNOWN_PATH", "detail": "no such path"}),
    "502": Reply(502, b"<html>"),
}


@pytest.mark.parametrize("reply", NOT_OURS.values(), ids=NOT_OURS)
def test_what_is_no_answer_of_the_service_delivers_nothing(
    scripted: Scripted, connect: Connect, caplog: pytest.LogCaptureFixture, reply: Reply
) -> None:
    server = scripted(reply)
    client = connect(server.url)
    with together():
        client.persist_tasks([task("t1"), task("t2")])
    assert server.next().ids == ["t1", "t2"]
    assert server.next().ids == ["t1"]  # in halves: what a proxy refuses may be in one of them
    assert settled(client) == Counters(sent=2, retried=2, dropped=0, coalesced=0, waiting=0)
    said = warnings(caplog)[0]
    assert said.startswith(f"persistence client of {server.url}: 2 tasks not sent yet, kept: HTTP {reply.status} ")
    assert all(f" {value.partition('?')[0]}" in said for value in reply.headers.values())
    assert "secret" not in said


@pytest.mark.parametrize("word", ["accepted", "committed", "dead_lettered"])
def test_the_services_own_answers_deliver(scripted: Scripted, connect: Connect, word: str) -> None:
    client = connect(scripted(Reply(200, {"status": word, "count": 1, "dead_lettered": 1})).url)
    client.persist_session(session())
    assert settled(client) == Counters(sent=1, retried=0, dropped=0, coalesced=0, waiting=0)


def test_what_a_proxy_never_lets_pass_holds_up_nothing_else(scripted: Scripted, connect: Connect) -> None:
    server = scripted(usual=lambda request: Reply(403, b"<html>firewall") if "t3" in request.ids else Reply())
    client = connect(server.url)
    client.persist_tasks([task(f"t{number}") for number in range(250)])
    wait_until(lambda: client.counters.sent == 249)
    assert client.counters[2:] == (0, 0, 1)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_keeps_the_records_until_it_is_mended(
    scripted: Scripted, connect: Connect, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    refused = Reply(status, {"error_code": "TOKEN_WRONG", "detail": "the token is wrong"})
    server = scripted(refused, refused, refused)
    client = connect(server.url)
    with together():
        client.persist_tasks([task("t1"), task("t2")])
    assert [server.next().ids for _ in range(4)] == [["t1", "t2"]] * 4
    assert settled(client) == Counters(sent=2, retried=6, dropped=0, coalesced=0, waiting=0)
    line = f"2 tasks not sent yet, kept: HTTP {status} TOKEN_WRONG: the token is wrong"
    assert warnings(caplog) == [f"persistence client of {server.url}: {line}"]


def test_an_absent_service_is_waited_for_and_the_warning_names_it(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    client = connect(url)
    with together():
        client.persist_tasks([task("t1"), task("t2")])
    wait_until(lambda: client.counters.retried > 20)
    assert client.counters[2:] == (0, 0, 2)
    line = "2 tasks not sent yet, kept: ConnectionRefusedError Connection refused"
    assert warnings(caplog)[0] == f"persistence client of {url}: {line}"


@pytest.mark.parametrize("retry_after_s", [1, 0])
def test_503_is_tried_again_and_not_before_the_service_asked_for(
    scripted: Scripted, connect: Connect, retry_after_s: int
) -> None:
    refused = Reply(503, {"error_code": "JOURNAL_FULL", "detail": "full"}, {"Retry-After": str(retry_after_s)})
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


@pytest.mark.parametrize(
    "after", ["3600", "999999999", "9" * 400, "-5", "soon", "Wed, 21 Oct 2099 07:28:00 GMT", "٣", "1e9", "5, 7"]
)
def test_a_pause_is_never_longer_than_a_minute_and_close_tries_once_more(
    scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 30.0)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 30.0)
    headers = {"Retry-After": after.encode().decode("latin-1")}
    server = scripted(Reply(503, {"error_code": "JOURNAL_FULL", "detail": "full"}, headers))
    client = connect(server.url)
    client.persist_tasks([task("t1")])
    wait_until(lambda: client._not_before)
    assert client._not_before <= time.monotonic() + module.MAX_PAUSE_S
    client.close()
    assert client.counters == Counters(sent=1, retried=1, dropped=0, coalesced=0, waiting=0)


def test_an_answer_that_comes_in_byte_by_byte_is_given_up(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "REQUEST_TIMEOUT_S", 0.3)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        ended = threading.Event()

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 202 Accepted\r\n")
                while not ended.wait(0.05):
                    try:
                        connection.sendall(b"X-Slow: 1\r\n")
                    except OSError:
                        return

        dripping = threading.Thread(target=drip)
        dripping.start()
        client = connect(f"http://127.0.0.1:{listener.getsockname()[1]}")
        client.persist_tasks([task("t1")])
        wait_until(lambda: client.counters.retried)
        ended.set()
        dripping.join()
    assert warnings(caplog)[0].endswith("no answer in time")


def test_a_kept_connection_that_the_service_has_closed_is_no_failure(scripted: Scripted, connect: Connect) -> None:
    server = scripted(Reply(), Reply(lost=True))
    client = connect(server.url)
    for number in range(2):
        client.persist_tasks([task(f"t{number}")])
        settled(client)
    assert client.counters == Counters(sent=2, retried=0, dropped=0, coalesced=0, waiting=0)


def test_https_is_verified(
    scripted: Scripted, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    authority = Authority(tmp_path)
    server = scripted(tls=authority.issue("service", "DNS:localhost"))
    url = server.url.replace("http://127.0.0.1", "https://localhost")
    stranger = connect(url)
    stranger.persist_tasks([task("t1")])
    wait_until(lambda: warnings(caplog))
    assert "SSLCertVerificationError" in warnings(caplog)[0]
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    friend = connect(url)
    friend.persist_tasks([task("t2")])
    assert settled(friend).sent == 1
    assert server.next().ids == ["t2"]


def test_422_drops_only_what_is_named_with_its_fields_and_types_and_sends_the_rest(
    scripted: Scripted, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [
        ("tasks[1].status", "must be one of …"),
        ("tasks[1].batch_id", "must be text"),
        ("tasks[3]", "is no object"),
    ]
    server = scripted(refusal(*errors))
    client = connect(server.url)
    with together():
        client.persist_tasks([task(f"t{number}", batch_id=7) for number in range(5)])
    assert server.next().ids == ["t0", "t1", "t2", "t3", "t4"]
    assert server.next().ids == ["t0", "t2", "t4"]
    assert settled(client) == Counters(sent=3, retried=0, dropped=2, coalesced=0, waiting=0)
    assert [one.partition(" tasks ")[2] for one in warnings(caplog)] == [
        "dropped: HTTP 422 INVALID_RECORD: status (str): must be one of …; batch_id (int): must be text",
        "dropped: HTTP 422 INVALID_RECORD: : is no object",
    ]


@pytest.mark.parametrize(
    "refused",
    [
        refusal(status=400, code="INVALID_JSON"),
        refusal(status=413, code="BODY_TOO_LARGE"),
        refusal(("tasks", "takes 1 to 5 records, 10 were sent")),
        refusal(("tasks[77].status", "there is no such record")),
        Reply(413, b"<html>"),
        Reply(422, {"error_code": "INVALID_RECORD", "detail": "…", "errors": "of another form"}),
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


UNUSABLE = [
    ("localhost:8001", "", "write http://HOST:PORT"),
    ("127.0.0.1:8001", "", "write http://HOST:PORT"),
    ("ftp://localhost", "", "write http://HOST:PORT"),
    ("http://", "", "write http://HOST:PORT"),
    ("http://a b", "", "write http://HOST:PORT"),
    ("http://127.0.0.1:99999", "", "Port out of range"),
    (f"http://{'x' * 70}.example", "", "cannot be used: "),
    ("http://user:secret@127.0.0.1", "", "no user"),
    ("http://127.0.0.1/?token=secret", "", "no user, query"),
    ("http://127.0.0.1:1", "two\nsecrets", "the token cannot be used"),
    ("http://127.0.0.1:1", "sécret", "the token cannot be used"),
]


@pytest.mark.parametrize(("url", "token", "words"), UNUSABLE)
def test_an_address_or_a_token_that_cannot_be_used_is_refused_in_words(url: str, token: str, words: str) -> None:
    for kind in (SyncPersistenceClient, PersistenceClient):
        with pytest.raises(ValueError, match=words) as caught:
            kind(url, token)
        assert "secret" not in str(caught.value)


def test_an_address_of_the_environment_that_cannot_be_used_is_a_warning_since_no_call_raises(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, connect: Connect
) -> None:
    monkeypatch.setenv("PERSISTENCE_URL", "localhost:8001")
    client = connect(None)
    client.persist_tasks([task("t1")])
    wait_until(lambda: warnings(caplog))
    assert "1 tasks not sent yet, kept: the URL 'localhost:8001' cannot be used: write http://" in warnings(caplog)[0]
    assert client.counters.waiting == 1
    monkeypatch.setattr(module, "FLUSH_TIMEOUT_S", 0.1)
    assert client.flush_all()["pending"] == 1


FLUSH_ERRORS: list[tuple[Reply, dict[str, Any]]] = [
    (
        Reply(503, {"status": "error", "detail": "slow", "pending": 7}, {"Retry-After": "1"}),
        {"detail": "slow", "pending": 7},
    ),
    (
        Reply(401, {"detail": "no token", "error_code": "TOKEN_MISSING"}),
        {"detail": "no token", "error_code": "TOKEN_MISSING", "pending": 0},
    ),
    (Reply(502, b"<html>"), {"detail": "no answer of Persistence Service", "pending": 0}),
    (Reply(200, b"<html>login"), {"detail": "no answer of Persistence Service", "pending": 0}),
    (Reply(200, {"ok": True}), {"detail": "no answer of Persistence Service", "pending": 0}),
    (Reply(503, {"status": "flushed"}), {"detail": "no answer of Persistence Service", "pending": 0}),
    (Reply(lost=True), {"detail": "RemoteDisconnected", "pending": 0}),
]


@pytest.mark.parametrize(("reply", "expected"), FLUSH_ERRORS)
def test_flush_all_says_what_went_wrong(
    scripted: Scripted, connect: Connect, reply: Reply, expected: dict[str, Any]
) -> None:
    server: ScriptedServer = scripted(reply)
    answer = connect(server.url).flush_all()
    detail = expected.pop("detail")
    assert detail in answer.pop("detail")
    assert answer == {"status": "error", **expected}
