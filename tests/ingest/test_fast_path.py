"""The fast path takes only requests that the slow path would accept too, and answers alike."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, cast

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.access import Access
from ingest.batches import MAX_FAST_BODY_BYTES, MAX_FAST_READING_BYTES, BatchRoute, FastPathRequest
from ingest.forwarder import Forwarder, Rejected
from ingest.guard import Guard
from ingest.unpacking import SMALL_BODY_BYTES
from shared.records import TASKS
from shared.validation import Policy, Validator
from shared.wire import Reason
from tests.support import connections
from tests.support.connections import Client, Front
from tests.support.service import task

ARRIVAL = 1_700_000_000_123_456
LOCAL = ("127.0.0.1", 40000)
STRANGER = ("203.0.113.7", 40000)
JSON = (b"content-type", b"application/json")
BODY = orjson.dumps({"tasks": [task("t1")]})
LARGE = BODY + b" " * (MAX_FAST_BODY_BYTES - len(BODY))


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


def access(auth_token: str | None = None, *, protected_mode: bool = True) -> Access:
    return Access(auth_token, protected_mode=protected_mode, allowed_hosts=())


def guard(keeper: Access, app: Any, *, max_body_bytes: int = 2 * MAX_FAST_BODY_BYTES) -> Guard:
    paths = frozenset([TASKS.path])
    routes = dict.fromkeys(paths, frozenset(["POST"]))
    return Guard(app, keeper, routes=routes, posts_with_body=paths, max_body_bytes=max_body_bytes)


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


class Fast:
    """A client of a connection whose fast path ends in a fake forwarder."""

    def __init__(self) -> None:
        self.front: Front
        self.client: Client
        self.forwarder = FakeForwarder()
        self.rejected: Counter[str] = Counter()
        self.route = route(self.forwarder, reject=self.rejected.update)

    async def send(self, data: bytes) -> None:
        await self.client.send(data)

    async def answer(self, number: int = 0, arrival: int | Exception = ARRIVAL) -> tuple[int, bytes, bytes]:
        """Of the flusher's answer to the request that was submitted as this one."""
        await self.front.until(lambda: len(self.forwarder.done) > number)
        self.forwarder.done[number](arrival)
        return await self.client.whole_answer()


def play(scenario: Callable[[Fast], Awaitable[None]]) -> None:
    fast = Fast()

    async def run(front: Front, connect: Callable[[], Awaitable[Client]]) -> None:
        fast.front, fast.client = front, await connect()
        await scenario(fast)

    connections.play(run, batches={TASKS.path.encode(): fast.route})


def post(body: bytes = BODY, *fields: str, target: str = TASKS.path) -> bytes:
    return connections.post(body, *fields, path=target)


def test_a_plain_batch_is_forwarded_as_it_is_and_answered_when_the_flusher_has_it() -> None:
    async def scenario(fast: Fast) -> None:
        for number in range(2):
            await fast.send(post(BODY, "User-Agent: any"))
            await fast.front.until(lambda number=number: len(fast.forwarder.done) > number)  # type: ignore[misc]
            assert not fast.front.observed[number:]
            status, header, body = await fast.answer(number)
            assert status == 202
            assert b"content-type: application/json\r\n" in header
            assert b"connection" not in header
            expected = {"status": "accepted", "count": 1, "timestamp": "2023-11-14T22:13:20.123456Z"}
            assert orjson.loads(body) == expected
        assert fast.forwarder.bodies == [BODY, BODY]
        assert fast.front.observed == [(TASKS.path, 202)] * 2

    play(scenario)


def test_a_body_that_comes_byte_by_byte_is_taken_whole() -> None:
    async def scenario(fast: Fast) -> None:
        for byte in post():
            await fast.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await fast.answer())[0] == 202
        assert fast.forwarder.bodies == [BODY]

    play(scenario)


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
    async def scenario(fast: Fast) -> None:
        await fast.send(post(LARGE)[:-1])
        await fast.front.until(lambda: free_bytes(fast.route) != MAX_FAST_READING_BYTES)
        assert free_bytes(fast.route) == MAX_FAST_READING_BYTES - MAX_FAST_BODY_BYTES
        await fast.send(post(LARGE)[-1:])
        assert (await fast.answer())[0] == 202
        assert fast.forwarder.bodies == [LARGE]
        assert free_bytes(fast.route) == MAX_FAST_READING_BYTES

    play(scenario)


@pytest.mark.parametrize("cut", ["closed", "half-closed", "reset"])
def test_room_comes_back_where_a_body_does_not(cut: str) -> None:
    async def scenario(fast: Fast) -> None:
        await fast.send(post(LARGE)[:-1])
        await fast.front.until(lambda: free_bytes(fast.route) != MAX_FAST_READING_BYTES)
        {"closed": fast.client.writer.close, "half-closed": fast.client.send_no_more, "reset": fast.client.reset}[cut]()
        await fast.front.until(lambda: free_bytes(fast.route) == MAX_FAST_READING_BYTES)
        assert fast.forwarder.bodies == []

    play(scenario)


def test_without_room_a_batch_takes_the_slow_path_unless_it_is_small() -> None:
    async def scenario(fast: Fast) -> None:
        fill(fast.route)
        small = BODY + b" " * (SMALL_BODY_BYTES - len(BODY))
        await fast.send(post(small))
        assert (await fast.answer())[0] == 202
        await fast.send(post(LARGE))
        assert await fast.client.answer() == (200, LARGE)
        assert fast.forwarder.bodies == [small]

    play(scenario)


def test_a_body_over_the_configured_limit_is_not_taken_however_small_the_limit_is() -> None:
    for limit, admitted in ((len(BODY), True), (len(BODY) - 1, False)):
        way = route(FakeForwarder(), max_body_bytes=limit)
        assert (way.admit(header_of(len(BODY)), LOCAL) is not None) == admitted


@pytest.mark.parametrize(
    ("request_bytes", "counted"),
    [
        (post(BODY, target=TASKS.path + "?ack=committed"), None),
        (post(BODY, target=TASKS.path + "?"), None),
        (post().replace(b"/json", b"/json; charset=utf-8"), None),
        (post(BODY, "Content-Encoding: identity"), None),
        (post(BODY, "Expect: 100-continue"), None),
        (post(BODY, "X-Forwarded-For: a", "X-Forwarded-For: b"), None),
        (post(BODY + b" " * (MAX_FAST_BODY_BYTES + 1 - len(BODY))), None),
        (connections.CHUNKED.replace(b"/echo", TASKS.path.encode()) + b"1\r\n1\r\n0\r\n\r\n", None),
        (post(b""), None),
        (post(BODY).replace(b" HTTP/1.1", b" HTTP/1.0"), None),
        (post(b'{"tasks":[{}]}'), 0),
        (post(b'{"sessions":[]}'), 0),
        (post(b"not JSON"), 0),
    ],
)
def test_every_other_request_takes_the_slow_path_once_and_nothing_is_forwarded(
    request_bytes: bytes, counted: int | None
) -> None:
    """`counted`: what on_post() is told, so that no body is counted twice (tests/ingest/test_batches.py)."""

    async def scenario(fast: Fast) -> None:
        await fast.send(request_bytes)
        await fast.front.until(lambda: (TASKS.path, 200) in fast.front.observed)
        assert [scope["record_count"] for scope in fast.front.scopes] == [counted]
        assert fast.forwarder.bodies == []

    play(scenario)


def test_where_the_window_to_the_flusher_is_full_a_request_waits_on_the_slow_path() -> None:
    async def scenario(fast: Fast) -> None:
        fast.forwarder.full = True
        await fast.send(post())
        assert await fast.client.answer() == (200, BODY)
        assert fast.front.scopes[0]["record_count"] == 1

    play(scenario)


def test_a_refusal_is_counted_and_worded_as_on_the_slow_path() -> None:
    async def scenario(fast: Fast) -> None:
        await fast.send(post())
        status, header, body = await fast.answer(arrival=Rejected(Reason.JOURNAL_FULL, 7.0))
        assert (status, orjson.loads(body)["error_code"]) == (503, "JOURNAL_FULL")
        assert b"retry-after: 7\r\n" in header
        assert b"x-request-id: " in header
        assert fast.front.observed == [(TASKS.path, 503)]
        assert fast.rejected == {"JOURNAL_FULL": 1}

    play(scenario)


def test_the_answer_says_so_where_the_connection_ends_with_it() -> None:
    async def scenario(fast: Fast) -> None:
        await fast.send(post(BODY, "Connection: close"))
        assert b"connection: close\r\n" in (await fast.answer())[1]
        assert await fast.client.has_ended()

    play(scenario)


def test_requests_behind_a_plain_one_wait_for_their_turn() -> None:
    async def scenario(fast: Fast) -> None:
        await fast.send(post() + post(target=TASKS.path + "?") + post())
        await fast.front.until(lambda: bool(fast.forwarder.done))
        assert fast.front.observed == []
        assert (await fast.answer())[0] == 202
        assert await fast.client.answer() == (200, BODY)
        assert (await fast.answer(1))[0] == 202

    play(scenario)


def test_a_client_that_has_left_is_counted_once_and_its_late_answer_goes_nowhere() -> None:
    async def scenario(fast: Fast) -> None:
        await fast.send(post())
        await fast.front.until(lambda: bool(fast.forwarder.done))
        fast.client.reset()
        await fast.front.until(lambda: not fast.front.connections)
        fast.forwarder.done[0](ARRIVAL)
        assert fast.front.observed == [(TASKS.path, 0)]

    play(scenario)


def test_a_fault_of_ours_is_a_500_and_logged_and_no_fault_of_the_client(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(fast: Fast) -> None:
        fast.forwarder.done = None  # type: ignore[assignment]
        await fast.send(post())
        assert await fast.client.answer() == (500, b"INTERNAL_ERROR")
        assert await fast.client.has_ended()

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

    async def accepts(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    asyncio.run(guard(keeper, accepts, max_body_bytes=max_body_bytes)(scope, receive, send))
    assert sent[0]["status"] == 200


def test_a_plain_header_takes_the_fast_path() -> None:
    plain = header_of(5)
    assert route(FakeForwarder()).admit(plain, LOCAL)
    assert not route(FakeForwarder()).admit(plain, STRANGER)
    assert not route(FakeForwarder()).admit([(b"host", b"rebound.example"), *plain[1:]], LOCAL)
    with_token = route(FakeForwarder(), access("token"))
    assert with_token.admit([*plain, (b"authorization", b"Bearer token")], STRANGER)
    assert not with_token.admit(plain, LOCAL)
