"""The HTTP protocol over real sockets, with a small application behind its guard. Time goes on only when a test says
so."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, cast

import pytest
import uvicorn
import uvloop
from uvicorn.server import ServerState

from ingest.access import Access
from ingest.connection import Connection, Phase
from ingest.deadlines import Clock, sweep
from ingest.framing import MAX_HEADER_BYTES, MAX_HEADERS, MAX_URL_BYTES
from ingest.guard import Guard
from ingest.responses import SITE_HEADERS

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
CHUNKED = b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n"


SITE_FIELDS = b"".join(f"{name}: {value}\r\n".encode() for name, value in SITE_HEADERS)
READ_AT_ONCE = 256 * 1024
LARGE = 8_000_000


def post(body: bytes = b"12345", *fields: str, path: str = "/echo") -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: h",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *fields,
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + body


def get_with(*fields: str) -> bytes:
    return "\r\n".join(["GET / HTTP/1.1", "Host: h", *fields, "", ""]).encode()


class Front:
    """Connection and Guard on a port, in front of an application that answers with what it got. POST /slow waits for
    `release`; GET /large answers more than any kernel takes."""

    def __init__(self, max_connections: int) -> None:
        self.release = asyncio.Event()
        self.started = asyncio.Semaphore(0)
        self.seen: list[str] = []
        self.refused: list[int] = []
        self.rejected: Counter[str] = Counter()
        self.state = ServerState()
        self._max_connections = max_connections
        self._server: asyncio.Server
        self.port = 0
        self.clients = ExitStack()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        app = Guard(
            self._app,
            Access(None, protected_mode=True, allowed_hosts=()),
            routes={
                "/": frozenset(["GET"]),
                "/health": frozenset(["GET"]),
                "/large": frozenset(["GET"]),
                "/echo": frozenset(["POST"]),
                "/slow": frozenset(["POST"]),
            },
            posts_with_body=frozenset(["/echo", "/slow"]),
            max_body_bytes=1_000_000,
        )
        config = uvicorn.Config(
            cast(Any, app), ws="none", lifespan="off", log_config=None, access_log=False, headers=SITE_HEADERS
        )
        config.load()
        self.state.default_headers = config.encoded_headers
        Clock.now = 0.0
        make = partial(
            Connection,
            config=config,
            server_state=self.state,
            app_state={},
            max_connections=self._max_connections,
            batches={},
            observe=lambda _route, status, _seconds: self.refused.append(status) if status >= 400 else None,
            reject=self.rejected.update,
        )
        self._server = await loop.create_server(make, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append(scope["path"])
        if scope["path"] == "/slow":
            self.started.release()
            await self.release.wait()
        body = b"x" * LARGE if scope["path"] == "/large" else scope.get("body", b"-") or b"empty"
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def sweep(self, now: float) -> None:
        """Lets that much time pass since the start. What follows from it has happened on return, as far as it does not
        depend on a client."""
        sweep(list(self.state.connections), now)
        await asyncio.sleep(0)

    @property
    def connections(self) -> set[Connection]:
        return cast(set[Connection], self.state.connections)

    @property
    def phase(self) -> Phase:
        """Of the only connection."""
        (connection,) = self.connections
        return connection.phase

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.001)

    async def reach(self, phase: Phase) -> None:
        await self.until(lambda: len(self.connections) == 1 and self.phase is phase)

    async def stop(self) -> None:
        self.release.set()
        self.clients.close()
        for connection in list(self.connections):
            connection.transport.abort()
        await self.until(lambda: not self.connections)
        self._server.close()
        await self._server.wait_closed()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def send_no_more(self) -> None:
        self.writer.write_eof()

    async def answer(self) -> tuple[int, bytes]:
        """One answer: its status, and its body or error code."""
        header = await self.reader.readuntil(b"\r\n\r\n")
        assert header.count(SITE_FIELDS) == 1
        length = re.search(rb"content-length: (\d+)", header)
        assert length
        body = await self.reader.readexactly(int(length[1]))
        if b"application/json" in header:
            body = json.loads(body)["error_code"].encode()
        return int(header[9:12]), body

    async def rest(self) -> list[tuple[int, bytes]]:
        """Every answer until the connection ends, without an error of the connection."""
        answers = []
        while not await self.has_ended():
            answers.append(await self.answer())
        return answers

    async def has_ended(self) -> bool:
        """Whether nothing more comes. Blocks until it is known."""
        buffer: bytearray = self.reader._buffer  # type: ignore[attr-defined]
        while not buffer and not self.reader.at_eof():
            await self.reader._wait_for_data("has_ended")  # type: ignore[attr-defined]
        return not buffer


Scenario = Callable[[Front, Callable[[], Awaitable[Client]]], Awaitable[None]]


def play(scenario: Scenario, *, max_connections: int = 1000) -> None:
    clients = []

    async def main() -> None:
        front = Front(max_connections)
        await front.start()

        async def connect() -> Client:
            client = Client(*await asyncio.open_connection("127.0.0.1", front.port))
            clients.append(client)
            return client

        try:
            await asyncio.wait_for(scenario(front, connect), 60)
        finally:
            for client in clients:
                client.writer.transport.abort()
            await front.stop()

    uvloop.run(main())


async def ask(connect: Callable[[], Awaitable[Client]], *parts: bytes) -> list[tuple[int, bytes]]:
    """What a connection that sends these parts and then stops sending is answered."""
    client = await connect()
    for part in parts:
        await client.send(part)
        for _ in range(3):
            await asyncio.sleep(0)  # or two parts would come with one read
    client.send_no_more()
    return await client.rest()


# ---- sizes


def test_the_largest_url_and_header_pass_and_a_byte_more_does_not() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        target = b"/?" + b"a" * (MAX_URL_BYTES - 2)
        request = b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n"
        assert await ask(connect, request % target) == [(200, b"-")]
        assert await ask(connect, request % (target + b"a")) == [(414, b"URL_TOO_LONG")]
        room = MAX_HEADER_BYTES - len(get_with("x: "))
        assert await ask(connect, get_with("x: " + "a" * room)) == [(200, b"-")]
        assert await ask(connect, get_with("x: " + "a" * (room + 1))) == [(431, b"HEADER_TOO_LARGE")]
        many = [f"x{number}: y" for number in range(MAX_HEADERS - 1)]
        assert await ask(connect, get_with(*many)) == [(200, b"-")]
        assert await ask(connect, get_with(*many, "z: y")) == [(431, b"HEADER_TOO_LARGE")]
        assert front.refused == [414, 431, 431]
        assert front.rejected == {"URL_TOO_LONG": 1, "HEADER_TOO_LARGE": 2}

    play(scenario)


@pytest.mark.parametrize("begin", [b"GET /?", b"GET / HTTP/1.1\r\nx: ", b"GET / HTTP/1.1\r\nx", b"G"])
def test_a_header_without_end_is_refused_before_much_of_it_is_kept(begin: bytes) -> None:
    async def scenario(front: Front, connect: Any) -> None:
        client = await connect()
        await client.send(begin)
        await front.reach(Phase.HEADER)
        # A client of this kind goes on sending; it still gets to read its answer.
        for _ in range(64):
            await client.send(b"a" * 16 * 1024)
        code = {b"GET /?": (414, b"URL_TOO_LONG"), b"G": (400, b"INVALID_HTTP")}.get(begin, (431, b"HEADER_TOO_LARGE"))
        assert await client.rest() == [code]
        assert front.seen == []

    play(scenario)


@pytest.mark.parametrize("size", [1000, 7000, 9000, 15_000])
def test_a_header_behind_a_large_body_is_not_taken_for_a_large_header(size: int) -> None:
    async def scenario(front: Front, connect: Any) -> None:
        large = post(b"x" * 200_000)
        header = get_with("x: " + "a" * size)
        for at in (1, 10, size // 2, len(header) - 1):
            client = await connect()
            await client.send(large + header[:at])
            assert await client.answer() == (200, b"x" * 200_000)
            await client.send(header[at:])
            client.send_no_more()
            assert await client.rest() == [(200, b"-")]

    play(scenario)


def test_a_header_that_comes_in_two_reads_behind_a_large_one_is_not_taken_for_both() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        large = get_with("x: " + "a" * 9000)
        assert await ask(connect, large, large[:5000], large[5000:]) == [(200, b"-")] * 2

    play(scenario)


def test_fields_behind_a_chunked_body_are_refused() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        chunked = CHUNKED + b"2\r\nab\r\n0\r\n"
        assert await ask(connect, chunked + b"\r\n") == [(200, b"ab")]
        assert await ask(connect, chunked + b"Authorization: x\r\n\r\n") == [(400, b"INVALID_HTTP")]
        assert await ask(connect, chunked, b"x: y\r\n" * 10_000) == [(400, b"INVALID_HTTP")]
        assert front.seen == ["/echo"]

    play(scenario)


def test_pipelined_requests_are_answered_in_order() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        bodies = [b"%d" % number for number in range(300)]
        assert await ask(connect, b"".join(map(post, bodies))) == [(200, body) for body in bodies]

    play(scenario)


# ---- what is wrong behind what is right


BROKEN = {
    "no request": (b"\0\r\n\r\n", b"INVALID_HTTP"),
    "no header": (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"INVALID_HTTP"),
    "bad target": (b"GET http://h/ HTTP/1.1\r\nHost: h\r\n\r\n", b"INVALID_HTTP"),
    "bad chunk": (
        b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"INVALID_HTTP",
    ),
    "half a body": (post()[:-1], b"BODY_CUT_SHORT"),
    "half a header": (GET[:-1], b"INVALID_HTTP"),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_a_broken_request_does_not_take_the_answers_of_those_before_it(name: str, ahead: int) -> None:
    broken, code = BROKEN[name]

    async def scenario(front: Front, connect: Any) -> None:
        client = await connect()
        for number in range(ahead):
            await client.send(post(b"%d" % number, path="/slow"))
        if ahead:
            await front.started.acquire()
        await client.send(broken)
        client.send_no_more()
        front.release.set()
        expected = [(200, b"%d" % number) for number in range(ahead)]
        assert await client.rest() == [*expected, (400, code)]
        await front.until(lambda: not front.connections)
        assert front.seen == ["/slow"] * ahead
        assert front.refused == [400]

    play(scenario)


@pytest.mark.parametrize("rest", [b"zz\r\n", b""], ids=["broken", "cut"])
@pytest.mark.parametrize("path", ["/", "/nowhere"])
def test_a_request_whose_body_goes_wrong_after_its_answer_gets_no_second_one(rest: bytes, path: str) -> None:
    async def scenario(front: Front, connect: Any) -> None:
        client = await connect()
        # Answered before its body is read; the second lingers over the body, the first does not.
        header = get_with("Transfer-Encoding: chunked").replace(b"/", path.encode(), 1)
        await client.send(header)
        status, _ = await client.answer()
        assert status == (200 if path == "/" else 404)
        await client.send(rest)
        client.send_no_more()
        assert await client.rest() == []
        await front.until(lambda: not front.connections)

    play(scenario)


def test_a_refusal_with_the_status_of_the_answer_that_was_begun_is_no_second_answer() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        client = await connect()
        await client.send(post(b"", "Host: other").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
        assert await client.answer() == (400, b"INVALID_HTTP")
        await client.send(b"zz\r\n")
        assert await client.rest() == []

    play(scenario)


def test_a_slow_body_after_its_answer_is_cut_off_without_a_second_answer() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        client = await connect()
        await client.send(get_with("Content-Length: 5"))
        assert await client.answer() == (200, b"-")
        await client.send(b"1")
        await front.sweep(31)
        assert await client.rest() == []
        assert front.seen == ["/"]

    play(scenario)


def test_nothing_behind_a_broken_request_is_looked_at() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        for broken, _ in BROKEN.values():
            if not broken.endswith(b"\r\n"):
                continue
            answers = await ask(connect, broken + HEALTH, HEALTH)
            assert [status for status, _ in answers] == [400]
        assert front.seen == []

    play(scenario)


@pytest.mark.parametrize("request_", [post(), GET, post(b"1") + GET], ids=["POST", "GET", "both"])
@pytest.mark.parametrize("gone", [False, True])
def test_a_request_cut_at_any_byte_is_answered_if_its_client_listens_and_leaves_nothing(
    request_: bytes, gone: bool
) -> None:
    async def scenario(front: Front, connect: Any) -> None:
        for at in range(len(request_)):
            front.seen.clear()
            client = await connect()
            await client.send(request_[:at])
            if gone:
                client.writer.transport.abort()
            else:
                client.send_no_more()
                answers = await client.rest()
                whole = [(200, b"1")] if b"\r\n\r\n1GET" in request_ and at >= len(post(b"1")) else []
                cut = request_[len(post(b"1")) if whole else 0 : at]
                code = b"BODY_CUT_SHORT" if b"\r\n\r\n" in cut else b"INVALID_HTTP"
                assert answers == whole + ([(400, code)] if cut else [])
            await front.until(lambda: not front.connections)
        assert (await ask(connect, request_))[0][0] == 200

    play(scenario)


def test_a_client_that_closes_its_sending_half_gets_what_it_waits_for() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        client = await connect()
        await client.send(post(b"1", path="/slow") + post(b"2", path="/slow"))
        client.send_no_more()
        await front.started.acquire()
        front.release.set()
        assert await client.rest() == [(200, b"1"), (200, b"2")]
        await front.until(lambda: not front.connections)

    play(scenario)


# ---- Upgrade


@pytest.mark.parametrize("upgrade", ["websocket", "h2c", "TLS/1.0"])
def test_upgrade_is_ignored_and_never_makes_a_body_a_request(upgrade: str) -> None:
    async def scenario(front: Front, connect: Any) -> None:
        fields = (f"Upgrade: {upgrade}", "Connection: Upgrade")
        for parts in ([get_with(*fields) + GET], [get_with(*fields), GET]):
            assert await ask(connect, *parts) == [(200, b"-"), (200, b"-")]
        assert await ask(connect, get_with(*fields) * 100) == [(200, b"-")] * 100
        front.seen.clear()
        whole = post(HEALTH, *fields)
        header = whole[: -len(HEALTH)]
        for parts in ([whole], [header, HEALTH]):
            assert await ask(connect, *parts) == [(400, b"INVALID_HTTP")]
        chunked = header.replace(b"Content-Length: %d" % len(HEALTH), b"Transfer-Encoding: chunked")
        assert await ask(connect, chunked, b"%x\r\n%b\r\n0\r\n\r\n" % (len(HEALTH), HEALTH)) == [(400, b"INVALID_HTTP")]
        assert front.seen == []

    play(scenario)


# ---- time


def test_a_connection_whose_deadline_fails_does_not_keep_the_others_from_theirs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(front: Front, connect: Any) -> None:
        clients = [await connect() for _ in range(3)]
        await front.until(lambda: len(front.connections) == 3)
        broken = next(iter(front.connections))

        def raises(_now: float) -> None:
            raise RuntimeError

        broken.check_deadline = raises  # type: ignore[method-assign]
        await front.sweep(16)
        await front.until(lambda: front.connections == {broken})
        assert "the deadline of a connection failed" in caplog.text
        del broken.check_deadline
        await front.sweep(16)
        assert [await client.rest() for client in clients] == [[]] * 3

    play(scenario)


async def closed_after(front: Front, limit_s: float) -> bool:
    """Whether the only connection stays for `limit_s` and not for longer."""
    (connection,) = front.connections
    since = connection.since
    await front.sweep(since + limit_s)
    stays = connection in front.connections and not connection.transport.is_closing()
    await front.sweep(since + limit_s + 0.001)
    return stays and connection.transport.is_closing()


def test_a_new_connection_must_send_something() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        client = await connect()
        await front.reach(Phase.FIRST)
        assert await closed_after(front, 15)
        assert await client.rest() == []

    play(scenario)


def test_between_requests_a_connection_may_rest_longer() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        client = await connect()
        await client.send(GET)
        await client.answer()
        await front.reach(Phase.IDLE)
        assert await closed_after(front, 75)
        assert await client.rest() == []

    play(scenario)


@pytest.mark.parametrize(
    ("part", "phase", "limit_s"),
    [(GET[:-2], Phase.HEADER, 10), (post()[:-1], Phase.BODY, 30), (b"G", Phase.HEADER, 10)],
)
def test_a_request_that_does_not_come_in_time_is_told_so(part: bytes, phase: Phase, limit_s: float) -> None:
    async def scenario(front: Front, connect: Any) -> None:
        client = await connect()
        await client.send(part)
        await front.reach(phase)
        await front.sweep(limit_s)
        assert front.phase is phase
        await front.sweep(limit_s + 0.001)
        assert await client.rest() == [(408, b"REQUEST_TOO_SLOW")]
        # It neither reads on nor closes: it is closed.
        assert await closed_after(front, 2) or not front.connections
        assert front.refused == [408]
        assert front.rejected == {"REQUEST_TOO_SLOW": 1}

    play(scenario)


def test_bytes_one_by_one_do_not_put_a_deadline_off() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        client = await connect()
        for second, byte in enumerate(GET):
            await client.send(bytes([byte]))
            await front.reach(Phase.HEADER)
            await front.sweep(second)
            if second == 11:
                break
        assert await client.rest() == [(408, b"REQUEST_TOO_SLOW")]

    play(scenario)


@pytest.mark.parametrize("part", [b"", b"G", post()[:-1]])
def test_who_waits_for_an_answer_is_not_hurried_with_the_next_request(part: bytes) -> None:
    async def scenario(front: Front, connect: Any) -> None:
        client = await connect()
        await client.send(post(path="/slow") + part)
        await front.started.acquire()
        (connection,) = front.connections
        for now in (31, 62, 93):
            await front.sweep(now)
        assert connection.phase is Phase.ANSWER
        front.release.set()
        assert await client.answer() == (200, b"12345")
        # From here on it is its turn.
        await front.sweep(93 + 76)
        assert await client.rest() == ([(408, b"REQUEST_TOO_SLOW")] if part else [])

    play(scenario)


def test_a_connection_whose_body_came_after_its_answer_does_not_stay_for_ever() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        client = await connect()
        whole = get_with("Content-Length: 5") + b"12345"
        await client.send(whole[:-5])
        assert await client.answer() == (200, b"-")
        await client.send(b"12345")
        await front.reach(Phase.IDLE)
        assert await closed_after(front, 75)

    play(scenario)


async def unreading(front: Front) -> socket.socket:
    """A client whose kernel takes little, and that reads nothing of it."""
    client = front.clients.enter_context(socket.socket())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", front.port))
    client.setblocking(True)
    return client
