"""Reading back: which pages are asked for, and which error says what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest

from client import persistence_client as module
from client.persistence_client import (
    AccessDenied,
    InvalidRequest,
    NotFound,
    PersistenceClient,
    ReadFailed,
    SyncPersistenceClient,
    Unavailable,
)
from tests.client.conftest import Connect, Scripted
from tests.support.scripted import Reply, Request, ScriptedServer
from tests.support.service import free_port

READ = "/api/v1/persistence/sessions"


def page(kind: str, *ids: str, following: str | None = None) -> Reply:
    records = [{"session_id": one} if kind == "sessions" else {"session_id": "s1", "task_id": one} for one in ids]
    return Reply(200, {kind: records, "next": following, "as_of": "2026-11-23T10:15:30Z", "pending_records": 0})


def no(status: int, code: str, **headers: str) -> Reply:
    return Reply(status, {"error_code": code, "detail": "the reason"}, headers)


def asked(request: Request) -> tuple[str, dict[str, str]]:
    """Its path and its parameters."""
    parts = urlsplit(request.path)
    given = parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    return parts.path, {name: value for name, (value,) in given.items()}


def read_in_a_loop(url: str, call: Callable[[PersistenceClient], Any]) -> Any:
    """What an asynchronous read gives: the records of an iterator as a list."""

    async def read() -> Any:
        result = call(PersistenceClient(url, "secret"))
        return [one async for one in result] if hasattr(result, "__aiter__") else await result

    return asyncio.run(read())


def read_in_a_thread(url: str, call: Callable[[SyncPersistenceClient], Any]) -> Any:
    result = call(SyncPersistenceClient(url, "secret"))
    return result if isinstance(result, dict) else list(result)


@pytest.mark.parametrize("read", [read_in_a_thread, read_in_a_loop])
def test_all_pages_are_read_over_one_connection_with_the_filter_and_freshly_once(
    scripted: Scripted, read: Callable[..., Any]
) -> None:
    server = scripted(page("tasks", "t1", "t2", following="c/1"), page("tasks", following="c2"), page("tasks", "t3"))
    filters = {"status": ("failed", "pending"), "batch_id": "", "fields": ["task_id", "a b"]}
    records = read(server.url, lambda client: client.tasks("s1", fresh=True, **filters))
    assert [one["task_id"] for one in records] == ["t1", "t2", "t3"]
    expected = {"status": "failed,pending", "batch_id": "", "fields": "task_id,a b", "limit": "1000"}
    requests = [server.next() for _ in range(3)]
    assert [asked(one) for one in requests] == [
        (f"{READ}/s1/tasks", {**expected, "fresh": "flushed"}),
        (f"{READ}/s1/tasks", {**expected, "cursor": "c/1"}),
        (f"{READ}/s1/tasks", {**expected, "cursor": "c2"}),
    ]
    assert len({one.connection for one in requests}) == 1
    assert {one.headers["authorization"] for one in requests} == {"Bearer secret"}


@pytest.mark.parametrize("read", [read_in_a_thread, read_in_a_loop])
def test_sessions_take_times_as_records_do(scripted: Scripted, read: Callable[..., Any]) -> None:
    server = scripted(page("sessions", "s1", "s2"))
    after = datetime(2026, 11, 23, tzinfo=timezone.utc)
    sessions = read(server.url, lambda client: client.sessions(status="running", updated_after=after))
    assert [one["session_id"] for one in sessions] == ["s1", "s2"]
    query = {"status": "running", "updated_after": "2026-11-23T00:00:00+00:00", "limit": "200"}
    assert asked(server.next()) == (READ, query)


@pytest.mark.parametrize("read", [read_in_a_thread, read_in_a_loop])
def test_one_session(scripted: Scripted, read: Callable[..., Any]) -> None:
    document = {"session_id": "s1", "progress": {"total": 0, "by_status": {}, "last_task_at": None}}
    server = scripted(Reply(200, document), Reply(200, document))
    assert read(server.url, lambda client: client.session("s1")) == document
    assert read(server.url, lambda client: client.session("s1", fresh=True)) == document
    assert [asked(server.next()) for _ in range(2)] == [(f"{READ}/s1", {}), (f"{READ}/s1", {"fresh": "flushed"})]


def test_a_page_is_asked_for_when_it_is_needed(scripted: Scripted, connect: Connect) -> None:
    server = scripted(page("tasks", "t1", following="c"), page("tasks", "t2"))
    records = connect(server.url).tasks("s1")
    assert server.requests.empty()
    assert next(records)["task_id"] == "t1"
    assert server.requests.qsize() == 1
    assert next(records)["task_id"] == "t2"


@pytest.mark.parametrize(
    ("session_id", "segment"),
    [
        ("a/b", "a%2Fb"),
        ("a?b#c%", "a%3Fb%23c%25"),
        ("会 ", "%E4%BC%9A%20"),
        ("..", "%2E%2E"),
        ("batch", "%62%61%74%63%68"),
        (UUID(int=5), str(UUID(int=5))),
    ],
)
def test_ids_are_percent_encoded(scripted: Scripted, connect: Connect, session_id: object, segment: str) -> None:
    server = scripted(Reply(200, {"session_id": "any"}), page("tasks"))
    client = connect(server.url)
    client.session(session_id)
    assert list(client.tasks(session_id)) == []
    assert server.next().path == f"{READ}/{segment}"
    assert server.next().path.startswith(f"{READ}/{segment}/tasks?")


ERRORS: list[tuple[Reply, type[ReadFailed], str, str]] = [
    (no(404, "NOT_FOUND"), NotFound, "NOT_FOUND", "HTTP 404 NOT_FOUND: the reason"),
    (no(404, "READ_DISABLED"), ReadFailed, "READ_DISABLED", "HTTP 404 READ_DISABLED"),
    (no(404, "UNKNOWN_PATH"), ReadFailed, "UNKNOWN_PATH", "HTTP 404 UNKNOWN_PATH"),
    (no(400, "INVALID_PARAMETER"), InvalidRequest, "INVALID_PARAMETER", "the reason"),
    (no(401, "TOKEN_MISSING"), AccessDenied, "TOKEN_MISSING", "the reason"),
    (no(403, "TOKEN_WRONG"), AccessDenied, "TOKEN_WRONG", "the reason"),
    (no(503, "READ_BUSY", **{"Retry-After": "7"}), Unavailable, "READ_BUSY", "the reason"),
    (no(500, "INTERNAL_ERROR"), ReadFailed, "INTERNAL_ERROR", "the reason"),
    (Reply(404, b"<html>"), Unavailable, "", "no answer of Persistence Service"),
    (Reply(502, b"<html>"), Unavailable, "", "no answer of Persistence Service"),
    (Reply(200, b"<html>sign in", {"Server": "nginx"}), Unavailable, "", "nginx, no answer"),
    (Reply(200, {"status": "running"}), Unavailable, "", "no answer of Persistence Service"),
    (Reply(200, {"tasks": 5, "session_id": 5}), Unavailable, "", "no answer of Persistence Service"),
    (Reply(lost=True), Unavailable, "", "RemoteDisconnected"),
]


@pytest.mark.parametrize(("reply", "kind", "code", "words"), ERRORS)
def test_each_failure_has_its_error(
    scripted: Scripted, reply: Reply, kind: type[ReadFailed], code: str, words: str
) -> None:
    server: ScriptedServer = scripted(usual=lambda _: reply)
    for read in (read_in_a_thread, read_in_a_loop):
        for call in (lambda client: client.session("s1"), lambda client: client.tasks("s1")):
            with pytest.raises(ReadFailed) as caught:
                read(server.url, call)
            error = caught.value
            assert (type(error), error.status, error.code) == (kind, 0 if reply.lost else reply.status, code)
            assert error.retry_after_s == (7 if "Retry-After" in reply.headers else 0)
            assert str(error).startswith(f"{server.url}: ")
            assert words in str(error)


def test_what_was_read_before_a_failure_is_not_taken_for_all(scripted: Scripted, connect: Connect) -> None:
    server = scripted(page("tasks", "t1", following="c"), no(503, "READ_TOO_SLOW"))
    records = connect(server.url).tasks("s1")
    assert next(records)["task_id"] == "t1"
    with pytest.raises(Unavailable):
        next(records)


def test_a_service_that_is_away_or_slow_is_unavailable(
    scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unavailable, match="ConnectionRefusedError"):
        list(connect(f"http://127.0.0.1:{free_port()}").sessions())
    monkeypatch.setattr(module, "READ_TIMEOUT_S", 0.2)
    held = module.threading.Event()
    server = scripted(Reply(hold=held))
    with pytest.raises(Unavailable, match="no answer in time"):
        connect(server.url).session("s1")
    held.set()


def test_what_no_request_can_be_made_of_is_a_value_error(
    scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(scripted().url)
    with pytest.raises(ValueError, match="status: object cannot be sent"):
        list(client.sessions(status=object()))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="session_id: text with a lone surrogate"):
        client.session("\ud800")
    monkeypatch.setenv("PERSISTENCE_URL", "localhost:8001")
    with pytest.raises(ValueError, match="write http://HOST:PORT"):
        list(connect(None).sessions())
