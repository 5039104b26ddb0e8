"""What bounds the work and the memory that one connection, and all of them together, may cause."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ingest import connection as module
from ingest import deadlines
from ingest.connection import MAX_SURPLUS, UNREAD_BYTES, Connection
from ingest.deadlines import SURPLUS_S, UNREAD_S, Clock, Phase, bound_held, sweep_slowly
from tests.support.connections import (
    CHUNKED,
    GET,
    HEALTH,
    LARGE,
    READ_AT_ONCE,
    Client,
    Front,
    ask,
    get_with,
    play,
    post,
    unreading,
)

ONE_BYTE = b"1\r\nx\r\n"


@pytest.mark.parametrize("path", ["/nowhere", "/echo"])
def test_nothing_of_a_body_is_parsed_once_its_request_is_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown path, and a type that is not taken."""

    async def scenario(front: Front, connect: Any) -> None:
        client = await connect()
        await client.send(CHUNKED.replace(b"/echo", path.encode()).replace(b"json", b"xml"))
        assert (await client.answer())[0] in (404, 415)
        await front.reach(Phase.LINGER)
        monkeypatch.setattr(Connection, "_parse_held", None)
        await client.send(ONE_BYTE * 10_000)
        client.send_no_more()
        assert await client.rest() == []
        await front.until(lambda: not front.connections)
        assert front.refused in ([404], [415])

    play(scenario)


def test_requests_behind_the_current_one_wait_unparsed_and_reading_pauses() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        client = await connect()
        await client.send(post(path="/slow"))
        await front.started.acquire()
        (connection,) = front.connections
        requests = GET * (4 * READ_AT_ONCE // len(GET))
        sending = asyncio.ensure_future(client.send(requests))
        await front.until(lambda: connection.flow.read_paused)
        assert len(connection._held) <= READ_AT_ONCE
        assert front.seen == ["/slow"]
        front.release.set()
        answers = [await client.answer() for _ in range(1 + len(requests) // len(GET))]
        await sending
        assert answers == [(200, b"12345"), *[(200, b"-")] * (len(answers) - 1)]

    play(scenario)


# ---- answers that nobody reads


def test_who_got_its_last_answer_and_goes_on_sending_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DISCARDED_BYTES", 1_000_000)

    async def scenario(front: Front, connect: Any) -> None:
        client = await connect()
        with pytest.raises(ConnectionError):
            await client.send(b"\0" * 200_000_000)
        await front.until(lambda: not front.connections)

    play(scenario)


def test_an_answer_that_nobody_reads_ends_its_connection() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        client = await unreading(front)
        client.sendall(GET.replace(b"/ ", b"/large ") * 10)
        await front.until(lambda: len(front.connections) == 1)
        (connection,) = front.connections
        await front.until(lambda: connection.flow.write_paused)
        # Nothing is worked on meanwhile, and little is kept.
        assert len(front.seen) < 4
        assert connection.transport.get_write_buffer_size() < LARGE + 64 * 1024 + 1000
        stalled_at = connection._stalled_at
        await front.sweep(stalled_at + UNREAD_S)
        assert front.connections
        await front.sweep(stalled_at + UNREAD_S + 0.001)
        await front.until(lambda: not front.connections)

    play(scenario)


@pytest.mark.parametrize("fields", [[], ["Connection: close"]])
def test_the_last_answer_that_nobody_reads_ends_its_connection_too(fields: list[str]) -> None:
    async def scenario(front: Front, connect: Any) -> None:
        client = await unreading(front)
        request = get_with(*fields).replace(b"/ ", b"/large ")
        client.sendall(request)
        await front.until(lambda: len(front.connections) == 1)
        (connection,) = front.connections
        # The kernel takes what it has room for; what is left is ours.
        await front.until(lambda: bool(front.seen) and connection.cycle.response_complete)
        assert connection.transport.get_write_buffer_size() > 0
        await front.sweep(Clock.now + UNREAD_S + 1)
        await front.sweep(Clock.now + UNREAD_S + 1)
        await front.until(lambda: not front.connections)

    play(scenario)


def test_no_request_is_begun_for_a_client_that_does_not_read() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        client = await unreading(front)
        large = GET.replace(b"/ ", b"/large ")
        client.sendall(large + large)
        await front.until(lambda: bool(front.connections))
        (connection,) = front.connections
        await front.until(lambda: connection.flow.write_paused)
        client.sendall(large)
        for _ in range(10):
            await asyncio.sleep(0)
        assert front.seen == ["/large"]
        assert connection.held_bytes < LARGE
        # What it has asked for comes once it reads.
        await asyncio.get_running_loop().run_in_executor(None, read_all, client, 3 * LARGE)
        assert front.seen == ["/large"] * 3

    play(scenario)


def test_nothing_behind_the_last_answer_is_begun_once_its_client_has_read_it() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        client = await unreading(front)
        last = GET.replace(b"/ HTTP/1.1", b"/large HTTP/1.0\r\nConnection: keep-alive")
        client.sendall(last + post(b"{}"))
        await front.until(lambda: front.seen == ["/large"])
        await asyncio.get_running_loop().run_in_executor(None, read_all, client, LARGE)
        client.close()
        await front.until(lambda: not front.connections)
        assert front.seen == ["/large"]

    play(scenario)


def read_all(client: Any, size: int) -> None:
    got = 0
    while got < size:
        part = client.recv(1 << 20)
        assert part
        got += len(part)


def test_all_unread_answers_together_have_a_bound_and_the_largest_go(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deadlines, "MAX_HELD_BYTES", 4 * LARGE)

    async def scenario(front: Front, connect: Any) -> None:
        small: Client = await connect()
        for count in range(8):
            client = await unreading(front)
            client.sendall(GET.replace(b"/ ", b"/large "))
            await front.until(lambda count=count: len(front.seen) == count + 1)  # type: ignore[misc]
            await asyncio.sleep(0)
            assert sum(one.held_bytes for one in front.connections if not one.transport.is_closing()) < 4 * LARGE
        assert "largest connections were closed" in caplog.text
        await small.send(post(b"{}"))
        assert await small.answer() == (200, b"{}")

    play(scenario)
    assert not Connection.unread


def test_answers_too_small_to_stall_a_connection_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked at once a second."""
    monkeypatch.setattr(deadlines, "MAX_HELD_BYTES", 5 * UNREAD_BYTES)
    monkeypatch.setattr(deadlines, "SWEEP_S", 0.0)
    monkeypatch.setattr(Connection, "check_deadline", lambda _connection, _now: None)

    async def scenario(front: Front, connect: Any) -> None:
        clients = [await connect() for _ in range(10)]
        await front.until(lambda: len(front.connections) == len(clients))
        sizes = iter(range(10))
        monkeypatch.setattr(Connection, "held_bytes", property(lambda _: UNREAD_BYTES - next(sizes)))
        await sweep_slowly(front.connections)
        await front.until(lambda: len(front.connections) < len(clients))
        assert len(front.connections) == 3

    play(scenario)


def test_requests_that_wait_behind_others_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "MAX_HELD_BYTES", 120_000)

    async def scenario(front: Front, connect: Any) -> None:
        clients = [await connect() for _ in range(4)]
        for client in clients:
            await client.send(post(path="/slow") + get_with("x: " + "y" * 1000) * 50)
            await front.started.acquire()
        bound_held(front.connections)
        await front.until(lambda: len(front.connections) < len(clients))
        assert sum(one.held_bytes for one in front.connections) < 120_000
        front.release.set()
        await front.until(lambda: all(one.held_bytes == 0 for one in front.connections))
        assert len(front.connections) == 1

    play(scenario)


# ---- connections


def test_connections_over_the_limit_get_a_503_while_the_others_go_on() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        first, second = await connect(), await connect()
        for client in (first, second):
            await client.send(post())
            assert await client.answer() == (200, b"12345")
        third = await connect()
        await third.send(post())
        header = await third.reader.readuntil(b"\r\n\r\n")
        assert header.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 1\r\n" in header
        assert b"\r\nconnection: close\r\n" in header
        assert b'"TOO_MANY_CONNECTIONS"' in await third.reader.read()
        for client in (first, second):
            await client.send(post())
            assert await client.answer() == (200, b"12345")
        # Whoever leaves makes room.
        first.writer.close()
        third.writer.close()
        await front.until(lambda: len(front.connections) == 1)
        assert await ask(connect, post()) == [(200, b"12345")]
        assert front.refused == [503]
        assert front.rejected == {"TOO_MANY_CONNECTIONS": 1}

    play(scenario, max_connections=2)


def test_health_is_answered_on_connections_over_the_limit() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        holder = await connect()
        for _ in range(3):
            client = await connect()
            await client.send(HEALTH + HEALTH)
            assert await client.rest() == [(200, b"-")]  # one request each
        assert (await ask(connect, b"GET /health?x=/ HTTP/1.1\r\nHost: h\r\n\r\n")) == [(200, b"-")]
        assert (await ask(connect, post(path="/health")))[0][0] == 405
        await holder.send(GET)
        assert await holder.answer() == (200, b"-")

    play(scenario, max_connections=1)


def test_connections_over_the_limit_must_hurry() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        holder = await connect()
        await front.until(lambda: len(front.connections) == 1)
        silent, slow = await connect(), await connect()
        await slow.send(b"G")
        await front.until(lambda: sorted(one.phase.name for one in front.connections) == ["FIRST", "FIRST", "HEADER"])
        await front.sweep(SURPLUS_S)
        await front.sweep(SURPLUS_S + 0.001)
        assert await silent.rest() == []
        assert await slow.rest() == [(408, b"REQUEST_TOO_SLOW")]
        await holder.send(GET)
        assert await holder.answer() == (200, b"-")

    play(scenario, max_connections=1)


def test_connections_far_over_the_limit_are_told_so_and_closed() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        for _ in range(1 + MAX_SURPLUS):
            await connect()
        await front.until(lambda: len(front.connections) == 1 + MAX_SURPLUS)
        for _ in range(100):
            client = await connect()
            assert await client.rest() == [(503, b"TOO_MANY_CONNECTIONS")]
        assert len(front.connections) <= 2 + MAX_SURPLUS

    play(scenario, max_connections=1)
