"""The fast path takes only requests that the slow path would accept too, and answers alike."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

import orjson
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from ingest.access import Access
from ingest.batches import MAX_FAST_BODY_BYTES, MAX_FAST_READING_BYTES, BatchRoute, FastPathRequest
from ingest.connection import Connection
from ingest.forwarder import Forwarder, Rejected
from ingest.guard import Guard
from ingest.responses import SITE_HEADERS
from ingest.unpacking import SMALL_BODY_BYTES
from shared.records import TASKS
from shared.validation import Policy, Validator
from shared.wire import Reason
from tests.support.service import task

ARRIVAL = 1_700_000_000_123_456
LOCAL = ("127.0.0.1", 40000)
STRANGER = ("203.0.113.7", 40000)
JSON = (b"content-type", b"application/json")
SITE_FIELDS = b"".join(f"{name}: {value}\r\n".encode() for name, value in SITE_HEADERS)
BODY = orjson.dumps({"tasks": [task("t1")]})


class FakeForwarder:
    """Takes bodies down; the test answers."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.done: list[Callable[[int | Exception], None]] = []
        self.full = False

    def submit_now(self, kind: int, count: int, body: bytes, done: Callable[[int | Exception], None]) -> bool:
        assert (kind, count) == (TASKS.code, 1)
        if self.full:
            return False
        self.bodies.append(body)
        self.done.append(done)
        return True


async def slow_path(scope: Any, receive: Any, send: Any) -> None:
    """Stands for the application: it says which way a request came."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"slow"})


def access(auth_token: str | None = None, *, protected_mode: bool = True) -> Access:
    return Access(auth_token, protected_mode=protected_mode, allowed_hosts=())


def guard(keeper: Access, *, max_body_bytes: int = 2 * MAX_FAST_BODY_BYTES) -> Guard:
    return Guard(
        slow_path,
        keeper,
        routes={TASKS.path: frozenset(["POST"])},
        posts_with_body=frozenset([TASKS.path]),
        max_body_bytes=max_body_bytes,
    )


def route(
    forwarder: FakeForwarder,
    keeper: Access | None = None,
    *,
    max_body_bytes: int = 2 * MAX_FAST_BODY_BYTES,
    reject: Callable[[Any], None] = lambda _records: None,
) -> BatchRoute:
    validator = Validator(TASKS, Policy(max_records=10))
    door = cast(Forwarder, forwarder)
    return BatchRoute(validator, door, keeper or access(), max_body_bytes=max_body_bytes, reject=reject)


class Front:
    """A connection on a port, with the fast path in front of the slow one. `observed`: what the metrics hear."""

    def __init__(self) -> None:
        self.forwarder = FakeForwarder()
        self.rejected: Counter[str] = Counter()
        self.route = route(self.forwarder, reject=self.rejected.update)
        self.observed: list[tuple[str, int]] = []
        self.state = ServerState()

    async def start(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        config = uvicorn.Config(
            cast(Any, guard(access())), ws="none", lifespan="off", log_config=None, headers=SITE_HEADERS
        )
        config.load()
        self.state.default_headers = config.encoded_headers
        make = partial(
            Connection,
            config=config,
            server_state=self.state,
            app_state={},
            max_connections=10,
            batches={TASKS.path.encode(): self.route},
            observe=lambda route, status, _: self.observed.append((route, status)),
            reject=self.rejected.update,
        )
        self.server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
        return await asyncio.open_connection(*self.server.sockets[0].getsockname())

    async def submitted(self, count: int = 1) -> None:
        while len(self.forwarder.done) < count:
            await asyncio.sleep(0.001)


def play(scenario: Callable[[Front, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> None:
    async def main() -> None:
        front = Front()
        reader, writer = await front.start()
        try:
            await scenario(front, reader, writer)
        finally:
            writer.transport.abort()
            front.server.close()
            while front.state.connections:
                await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(main(), 30))


def post(body: bytes = BODY, *fields: str, target: str = TASKS.path, method: str = "POST") -> bytes:
    usual = ["Host: h", f"Content-Length: {len(body)}"]
    if not any(field.startswith("Content-Type") for field in fields):
        usual.append("Content-Type: application/json")
    lines = [f"{method} {target} HTTP/1.1", *usual, *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    """Status, header, body."""
    header = await reader.readuntil(b"\r\n\r\n")
    assert header.count(SITE_FIELDS) == 1
    length = re.search(rb"content-length: (\d+)", header)
    assert length
    return int(header.split()[1]), header, await reader.readexactly(int(length[1]))


def test_a_plain_batch_is_forwarded_as_it_is_and_answered_when_the_flusher_has_it() -> None:
    async def scenario(front: Front, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(2):
            writer.write(post(BODY, "Content-Type: application/json", "User-Agent: any"))
            await front.submitted(number + 1)
            assert not front.observed[number:]
            front.forwarder.done[number](ARRIVAL)
            status, header, body = await answer(reader)
            assert status == 202
            assert b"content-type: application/json\r\n" in header
            assert b"connection" not in header
            expected = {"status": "accepted", "count": 1, "timestamp": "2023-11-14T22:13:20.123456Z"}
            assert orjson.loads(body) == expected
        assert front.forwarder.bodies == [BODY, BODY]
        assert front.observed == [(TASKS.path, 202)] * 2

    play(scenario)


def test_a_body_that_comes_byte_by_byte_is_taken_whole() -> None:
    async def scenario(front: Front, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in post():
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        await front.submitted()
        front.forwarder.done[0](ARRIVAL)
        assert (await answer(reader))[0] == 202
        assert front.forwarder.bodies == [BODY]

    play(scenario)


LARGE = BODY + b" " * (MAX_FAST_BODY_BYTES - len(BODY))


def header_of(size: int) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"h"), JSON, (b"content-length", b"%d" % size)]


def fill(way: BatchRoute) -> list[FastPathRequest]:
    """Takes all room for bodies over SMALL_BODY_BYTES."""
    return [
        request
        for size in (MAX_FAST_BODY_BYTES, SMALL_BODY_BYTES + 1)
        for request in iter(lambda size=size: way.admit(header_of(size), LOCAL), None)  # type: ignore[misc]
    ]


def free_bytes(way: BatchRoute) -> int:
    requests = fill(way)
    for request in requests:
        request.release()
    return sum(request.size for request in requests)


def test_a_batch_that_is_not_small_takes_room_while_it_comes() -> None:
    async def scenario(front: Front, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = post(LARGE)
        writer.write(request[:-1])
        while free_bytes(front.route) == MAX_FAST_READING_BYTES:
            await asyncio.sleep(0.001)
        assert free_bytes(front.route) == MAX_FAST_READING_BYTES - MAX_FAST_BODY_BYTES
        writer.write(request[-1:])
        await front.submitted()
        front.forwarder.done[0](ARRIVAL)
        assert (await answer(reader))[0] == 202
        assert front.forwarder.bodies == [LARGE]
        assert free_bytes(front.route) == MAX_FAST_READING_BYTES

    play(scenario)


@pytest.mark.parametrize("cut", ["closed", "half-closed", "reset"])
def test_room_comes_back_where_a_body_does_not(cut: str) -> None:
    async def scenario(front: Front, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(post(LARGE)[:-1])
        while free_bytes(front.route) == MAX_FAST_READING_BYTES:
            await asyncio.sleep(0.001)
        if cut == "closed":
            writer.close()
        elif cut == "half-closed":
            writer.write_eof()
        else:
            reset(writer)
        while free_bytes(front.route) != MAX_FAST_READING_BYTES:
            await asyncio.sleep(0.001)
        assert front.forwarder.bodies == []

    play(scenario)


def test_without_room_a_batch_that_is_not_small_goes_the_slow_path_and_a_small_one_does_not() -> None:
    async def scenario(front: Front, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fill(front.route)
        small = BODY + b" " * (SMALL_BODY_BYTES - len(BODY))
        writer.write(post(small))
        await front.submitted()
        front.forwarder.done[0](ARRIVAL)
        assert (await answer(reader))[0] == 202
        writer.write(post(LARGE))
        assert (await answer(reader))[2] == b"slow"
        assert front.forwarder.bodies == [small]

    play(scenario)


def test_a_body_over_the_configured_limit_is_not_taken_however_small_the_limit_is() -> None:
    for limit, admitted in ((len(BODY), True), (len(BODY) - 1, False)):
        way = route(FakeForwarder(), max_body_bytes=limit)
        assert (way.admit(header_of(len(BODY)), LOCAL) is not None) == admitted


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(BODY, target=TASKS.path + "?ack=committed"),
        post(BODY, target=TASKS.path + "?"),
        post(BODY, "Content-Type: application/json; charset=utf-8"),
        post().replace(b"Content-Type: application/json\r\n", b""),
        post().replace(b"Host: h", b"Host: h/h"),
        post(BODY, "Content-Encoding: identity"),
        post(BODY, "Expect: 100-continue"),
        post(BODY, "Authorization: Bearer x", "Authorization: Bearer y"),
        post(BODY, "X-Forwarded-For: a", "X-Forwarded-For: b"),
        post(BODY + b" " * (MAX_FAST_BODY_BYTES + 1 - len(BODY))),
        post(b'{"tasks":[{}]}'),
        post(b'{"sessions":[]}'),
        post(b"not JSON"),
        post(b""),
        post(BODY).replace(b" HTTP/1.1", b" HTTP/1.0"),
        f"POST {TASKS.path} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        + b"1\r\n1\r\n0\r\n\r\n",
    ],
)
def test_what_has_anything_special_to_it_goes_the_slow_path_and_nothing_is_forwarded(request_bytes: bytes) -> None:
    async def scenario(front: Front, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(request_bytes)
        header = await reader.readuntil(b"\r\n\r\n")
        if header.startswith(b"HTTP/1.1 100"):
            header = await reader.readuntil(b"\r\n\r\n")
        assert not header.startswith(b"HTTP/1.1 202")
        assert front.forwarder.bodies == []

    play(scenario)


def test_where_the_flusher_gets_too_much_at_once_a_request_waits_on_the_slow_path() -> None:
    async def scenario(front: Front, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        front.forwarder.full = True
        writer.write(post())
        assert (await answer(reader))[2] == b"slow"

    play(scenario)


def test_a_refusal_is_worded_as_on_the_slow_path() -> None:
    async def scenario(front: Front, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(post())
        await front.submitted()
        front.forwarder.done[0](Rejected(Reason.JOURNAL_FULL, 7.0))
        status, header, body = await answer(reader)
        assert (status, orjson.loads(body)["error_code"]) == (503, "JOURNAL_FULL")
        assert b"retry-after: 7\r\n" in header
        assert front.observed == [(TASKS.path, 503)]

    play(scenario)


def test_the_answer_says_so_where_the_connection_ends_with_it() -> None:
    async def scenario(front: Front, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(post(BODY, "Connection: close"))
        await front.submitted()
        front.forwarder.done[0](ARRIVAL)
        assert b"connection: close\r\n" in (await answer(reader))[1]
        assert await reader.read() == b""

    play(scenario)


def test_requests_behind_a_plain_one_wait_for_their_turn() -> None:
    async def scenario(front: Front, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(post() + post(target=TASKS.path + "?") + post())
        await front.submitted()
        assert front.observed == []
        front.forwarder.done[0](ARRIVAL)
        assert [(await answer(reader))[0] for _ in range(2)] == [202, 200]
        await front.submitted(2)
        front.forwarder.done[1](ARRIVAL)
        assert (await answer(reader))[0] == 202

    play(scenario)


def test_a_client_that_has_left_is_counted_once_and_its_late_answer_goes_nowhere() -> None:
    async def scenario(front: Front, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(post())
        await front.submitted()
        reset(writer)  # after a plain end it might still be reading
        while front.state.connections:
            await asyncio.sleep(0.001)
        front.forwarder.done[0](ARRIVAL)
        assert front.observed == [(TASKS.path, 0)]

    play(scenario)


def test_a_fault_of_ours_is_a_500_and_logged_and_no_fault_of_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(front: Front, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        front.forwarder.done = None  # type: ignore[assignment]
        writer.write(post())
        status, _, body = await answer(reader)
        assert (status, orjson.loads(body)["error_code"]) == (500, "INTERNAL_ERROR")
        assert await reader.read() == b""

    play(scenario)
    assert "AttributeError" in caplog.text


FIELDS = st.sampled_from(
    [
        (b"host", b"h"),
        (b"content-length", b"5"),
        (b"content-length", b"70000"),
        (b"content-type", b"application/json"),
        (b"content-type", b"text/plain"),
        (b"origin", b"http://elsewhere"),
        (b"sec-fetch-site", b"cross-site"),
        (b"content-encoding", b"gzip"),
        (b"content-encoding", b"br"),
        (b"transfer-encoding", b"chunked"),
        (b"authorization", b"Bearer token"),
        (b"authorization", b"Bearer wrong"),
        (b"authorization", b"Basic token"),
        (b"x-other", b""),
    ]
)
NEARLY_PLAIN = st.builds(
    lambda host, length, more: [(b"host", host), JSON, (b"content-length", b"%d" % length), *more],
    st.sampled_from([b"h", b"rebound.example", b"h h"]),
    st.sampled_from([5, 70000, MAX_FAST_BODY_BYTES + 1]),
    st.lists(FIELDS, max_size=2),
)


@settings(deadline=None)
@given(
    NEARLY_PLAIN | st.lists(FIELDS, max_size=6),
    st.sampled_from([None, "token"]),
    st.booleans(),
    st.sampled_from([60_000, 2 * MAX_FAST_BODY_BYTES]),
    st.sampled_from([LOCAL, STRANGER]),
)
def test_no_header_passes_at_a_glance_that_the_guard_would_refuse(
    fields: list[tuple[bytes, bytes]],
    token: str | None,
    protected_mode: bool,
    max_body_bytes: int,
    client: tuple[str, int],
) -> None:
    keeper = access(token, protected_mode=protected_mode)
    request = route(FakeForwarder(), keeper, max_body_bytes=max_body_bytes).admit(fields, client)
    if request is None:
        return
    size = request.size
    assert size <= MAX_FAST_BODY_BYTES
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": TASKS.path,
        "scheme": "http",
        "client": client,
        "headers": fields,
    }
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": bytes(size), "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guard(keeper, max_body_bytes=max_body_bytes)(scope, receive, send))
    assert sent[0]["status"] == 200


def test_a_plain_header_takes_the_fast_path() -> None:
    plain = header_of(5)
    assert route(FakeForwarder()).admit(plain, LOCAL)
    assert not route(FakeForwarder()).admit(plain, STRANGER)
    assert not route(FakeForwarder()).admit([(b"host", b"rebound.example"), *plain[1:]], LOCAL)
    with_token = route(FakeForwarder(), access("token"))
    assert with_token.admit([*plain, (b"authorization", b"Bearer token")], STRANGER)
    assert not with_token.admit(plain, LOCAL)
