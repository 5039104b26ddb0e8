"""The guard at the ASGI level: what no HTTP client can send, and what no test over loopback can be."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import orjson
import pytest

from ingest.responses import ErrorResponse
from ingest.unpacking import MAX_PACKED, SMALL_BODY_BYTES, gunzip
from tests.support.guarded import BATCH, GONE, LOCAL, OTHER, Exchange, Guarded, part, scope_of
from tests.support.service import task

# ---- path and method


def test_head_reaches_the_application_as_get_and_the_server_as_head() -> None:
    guarded = Guarded()
    exchange = Exchange([part(b"")])
    scope = scope_of(OTHER, "HEAD", LOCAL, {})
    asyncio.run(guarded.guard(scope, exchange.receive, exchange.send))
    assert guarded.app.scopes[0]["method"] == "GET"
    assert scope["method"] == "HEAD"


def test_other_scopes_than_http_go_through_untouched() -> None:
    guarded = Guarded()
    exchange = Exchange([])
    asyncio.run(guarded.guard({"type": "lifespan"}, exchange.receive, exchange.send))
    assert guarded.app.scopes == [{"type": "lifespan", "received": None}]


# ---- reading the body


def test_the_body_is_handed_on_in_the_scope_and_nothing_is_left_to_receive() -> None:
    guarded = Guarded()
    assert guarded.post(part(b"ab", more=True), part(b"", more=True), part(b"cd"), content_length="4").status == 200
    assert guarded.app.body == b"abcd"
    assert guarded.app.scopes[0]["received"] == part(b"")


@pytest.mark.parametrize("declared", [0, 1, 3, 5, 100])
def test_another_length_than_declared_is_a_body_cut_short(declared: int) -> None:
    guarded = Guarded()
    exchange = guarded.post(part(b"ab", more=True), part(b"cd"), content_length=str(declared))
    assert (exchange.status, exchange.code) == (400, "BODY_CUT_SHORT")
    assert guarded.app.scopes == []


def test_a_client_that_leaves_gets_no_answer_and_reaches_nothing() -> None:
    guarded = Guarded()
    exchange = guarded.post(part(b"ab", more=True), GONE, content_length="4")
    assert exchange.sent == []
    assert guarded.app.scopes == []


def test_a_declared_length_over_the_limit_is_refused_before_anything_is_received() -> None:
    guarded = Guarded()
    exchange = Exchange([])

    async def receive() -> Any:
        raise AssertionError

    asyncio.run(guarded.guard(scope_of(BATCH, "POST", LOCAL, {"content-length": "101"}), receive, exchange.send))
    assert exchange.code == "BODY_TOO_LARGE"
    assert exchange.headers[b"connection"] == b"close"


def test_an_undeclared_body_is_counted_as_it_comes() -> None:
    guarded = Guarded()
    exactly = [part(b"x" * 50, more=True), part(b"x" * 50)]
    assert guarded.post(*exactly, transfer_encoding="chunked").status == 200
    # The rest is not read: the connection ends with the answer.
    over = [part(b"x" * 50, more=True), part(b"x" * 51, more=True), part(b"x", more=True), part(b"x")]
    exchange = guarded.post(*over, transfer_encoding="chunked")
    assert exchange.code == "BODY_TOO_LARGE"
    assert exchange.headers[b"connection"] == b"close"
    assert len(exchange.messages) == 2
    assert len(guarded.app.scopes) == 1


def test_a_refusal_without_a_body_keeps_the_connection() -> None:
    for exchange in (Guarded().ask("/nowhere"), Guarded().ask("/nowhere", "POST", content_length="0")):
        assert exchange.status == 404
        assert b"connection" not in exchange.headers
        assert exchange.received == 0


# ---- room for all bodies at once


SMALL = SMALL_BODY_BYTES
PACKED = gzip.compress(b"".join(b"%016x" % number for number in range(SMALL // 8)))


def test_bodies_under_way_have_a_bound_together_and_room_comes_back() -> None:
    guarded = Guarded(max_reading_bytes=3 * SMALL, max_body_bytes=2 * SMALL)

    async def main() -> None:
        first = Slow(guarded, 2 * SMALL, part(b"x" * (SMALL + 1), more=True), part(b"x" * (SMALL - 1)))
        await first.reach(1)
        # What it has announced and not sent takes no room.
        assert (await ask(2 * SMALL - 1)).status == 200
        # What is announced and can't fit is refused unread; the other goes on.
        refused = await ask(2 * SMALL)
        assert (refused.status, refused.code) == (503, "TOO_MANY_BYTES_IN_FLIGHT")
        assert refused.headers[b"retry-after"] == b"1"
        await first.reach(2)
        assert (await ask(SMALL + 1)).status == 503
        # A small one has room at any time. Others are refused when they grow out of it, packed or not.
        assert (await ask(SMALL)).status == 200
        grown = [part(b"x" * SMALL, more=True), part(b"x", more=True), part(b"x")]
        assert (await ask(*grown, transfer_encoding="chunked")).code == "TOO_MANY_BYTES_IN_FLIGHT"
        assert (await ask(part(PACKED), content_encoding="gzip")).code == "TOO_MANY_BYTES_IN_FLIGHT"
        assert (await first.end()).status == 200
        assert (await ask(2 * SMALL)).status == 200
        assert guarded.guard._reading_bytes == 0

    async def ask(*body: Any, **headers: str) -> Exchange:
        if isinstance(body[0], int):
            headers["content_length"] = str(body[0])
            body = (part(b"x" * body[0]),)
        exchange = Exchange(body)
        await guarded.guard(scope_of(BATCH, "POST", LOCAL, headers), exchange.receive, exchange.send)
        return exchange

    asyncio.run(asyncio.wait_for(main(), 60))


class Slow(Exchange):
    """A request that sends its parts one by one, as the test goes on; the application has the last one when
    reach(all of them) returns, and answers at end()."""

    def __init__(self, guarded: Guarded, declared: int, *messages: dict[str, Any]) -> None:
        super().__init__(messages)
        self._allowed = asyncio.Semaphore(0)
        self._answer = asyncio.Event()
        self._taken = asyncio.Semaphore(0)
        app = guarded.app

        async def wait_and_answer(scope: Any, receive: Any, send: Any) -> None:
            if scope.get("slow"):
                self._taken.release()
                await self._answer.wait()
            await app(scope, receive, send)

        scope = {**scope_of(BATCH, "POST", LOCAL, {"content-length": str(declared)}), "slow": True}
        guarded.guard._app = wait_and_answer
        self._reached = 0
        self._task = asyncio.ensure_future(guarded.guard(scope, self.receive_slowly, self.send))

    async def receive_slowly(self) -> dict[str, Any]:
        if self.received:
            self._taken.release()
        await self._allowed.acquire()
        return await self.receive()

    async def reach(self, count: int) -> None:
        for _ in range(count - self._reached):
            self._allowed.release()
            await self._taken.acquire()
        self._reached = count

    async def end(self) -> Exchange:
        self._answer.set()
        await self._task
        return self


@pytest.mark.parametrize(
    ("messages", "headers"),
    [
        ([part(b"ab")], {"content_length": "4"}),
        ([GONE], {"content_length": "100"}),
        ([part(b"x" * 101)], {"transfer_encoding": "chunked"}),
        ([part(b"x")], {"transfer_encoding": "chunked", "content_encoding": "gzip"}),
    ],
)
def test_whatever_ends_a_request_gives_its_room_back(messages: list[dict[str, Any]], headers: dict[str, str]) -> None:
    guarded = Guarded(max_reading_bytes=100)
    for _ in range(3):
        exchange = guarded.post(*messages, **headers)
        assert not exchange.sent or exchange.status != 503
    assert guarded.guard._reading_bytes == 0


# ---- types, hosts, gzip


@pytest.mark.parametrize(
    ("value", "good"),
    [
        *((value, True) for value in ("application/json", "Application/JSON", "application/json;charset=utf-8")),
        *((value, True) for value in ('application/json; charset="UTF-8"', "application/json; charset=utf8")),
        *((value, True) for value in ("application/json; indent=2; charset=utf-8", "application/json;")),
        *((value, False) for value in ("", "json", "text/json", "application/json2", "application/json; charset=")),
        *((value, False) for value in ("application/json; charset=latin-1", "application/json; a=b; charset=utf-16")),
    ],
)
def test_json_in_utf_8_is_taken_and_nothing_else(value: str, good: bool) -> None:
    exchange = Guarded().post(part(b"{}"), content_type=value, content_length="2")
    assert exchange.status == (200 if good else 415)


def test_a_post_without_a_content_type_is_not_taken_for_json() -> None:
    """A page of another site can send one without asking first."""
    scope = scope_of(BATCH, "POST", LOCAL, {})
    scope["headers"] = [field for field in scope["headers"] if field[0] != b"content-type"]
    guarded, exchange = Guarded(), Exchange([part(b"ab")])
    asyncio.run(guarded.guard(scope, exchange.receive, exchange.send))
    assert exchange.code == "UNSUPPORTED_MEDIA_TYPE"
    assert guarded.app.scopes == []


@pytest.mark.parametrize("host", ["h", "h:80", "h:", "a.b-c_d.example:8001", "127.0.0.1", "[::1]:80", "%41", ""])
def test_these_are_hosts(host: str) -> None:
    assert Guarded(auth_token="token").post(part(b"ab"), host=host, authorization="Bearer token").status == 200


@pytest.mark.parametrize(
    "host",
    [
        *("a b", "[rebound.example]", "127.0.0.1@rebound.example", "rebound.example:127.0.0.1", "a/b", "h:x", "a@b"),
        *("h:123456", "[::1", "::1", "[h]", "h?", "h#", '"h"', "%4", "\xe9", "a" * 301),
    ],
)
def test_an_invalid_host_is_refused_with_and_without_a_token(host: str) -> None:
    for guarded in (Guarded(auth_token="token"), Guarded()):
        assert guarded.post(part(b"ab"), host=host, authorization="Bearer token").code == "INVALID_HTTP"


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip", "gzip, br", "*", ""])
def test_another_encoding_than_gzip_is_refused(encoding: str) -> None:
    exchange = Guarded().post(part(b"{}"), content_encoding=encoding, content_length="2")
    assert (exchange.status, exchange.code) == (415, "UNSUPPORTED_ENCODING")


def test_a_gzipped_body_is_unpacked_on_its_way() -> None:
    packed = gzip.compress(b"x" * 100)
    guarded = Guarded()
    assert guarded.post(part(packed), content_encoding="gzip", content_length=str(len(packed))).status == 200
    assert guarded.app.body == b"x" * 100


LARGE = b"".join(b"%032x" % number for number in range(2**17))


def unpacked(packed: bytes, max_bytes: int = 10_000_000) -> bytes:
    return b"".join(gunzip(packed, max_bytes))


def refused(packed: bytes, max_bytes: int = 10_000_000) -> tuple[int, str]:
    with pytest.raises(ErrorResponse) as raised:
        unpacked(packed, max_bytes)
    return raised.value.status, raised.value.code


def test_gunzip_stops_at_the_limit() -> None:
    assert unpacked(gzip.compress(b"x" * 100), 100) == b"x" * 100
    assert refused(gzip.compress(b"x" * 101), 100) == (413, "BODY_TOO_LARGE")


@pytest.mark.parametrize(
    "parts",
    [[b"ab", b"c"], [b"", b"ab", b"", b""], [LARGE, b"y"], [b"z"] * 1000],
)
def test_gzip_has_any_number_of_members(parts: list[bytes]) -> None:
    """RFC 1952, 2.2: `cat a.gz b.gz` unpacks to both."""
    packed = b"".join(map(gzip.compress, parts))
    assert unpacked(packed) == b"".join(parts)
    assert refused(packed, len(b"".join(parts)) - 1) == (413, "BODY_TOO_LARGE")


def test_a_bomb_is_refused_by_its_ratio_before_it_is_unpacked() -> None:
    bomb = gzip.compress(bytes(10_000_000))
    sizes: list[int] = []
    with pytest.raises(ErrorResponse) as raised:
        sizes.extend(map(len, gunzip(bomb, 10_000_000)))
    assert (raised.value.status, raised.value.code) == (413, "BODY_TOO_PACKED")
    assert sum(sizes) <= MAX_PACKED * len(bomb)
    assert max(sizes) <= 256 * 1024
    assert unpacked(gzip.compress(bytes(SMALL))) == bytes(SMALL), "a small body may be packed in any way"


@pytest.mark.parametrize("status", ["pending", "completed"])
def test_honest_tasks_are_far_from_the_ratio(status: str) -> None:
    tasks = [task(f"TASK_{number:04d}", status=status, source_text="确定") for number in range(1000)]
    body = orjson.dumps({"tasks": tasks})
    packed = gzip.compress(body)
    assert len(body) < 0.7 * MAX_PACKED * len(packed)
    assert unpacked(packed) == body


def test_the_loop_has_its_turns_while_a_large_body_is_unpacked() -> None:
    guarded = Guarded(max_body_bytes=len(LARGE))
    packed = gzip.compress(LARGE)
    turns = 0

    async def main() -> None:
        nonlocal turns
        exchange = Exchange([part(packed)])
        scope = scope_of(BATCH, "POST", LOCAL, {"content-encoding": "gzip"})
        asked = asyncio.ensure_future(guarded.guard(scope, exchange.receive, exchange.send))
        while not asked.done():
            turns += 1
            await asyncio.sleep(0)
        assert exchange.status == 200

    asyncio.run(main())
    assert guarded.app.body == LARGE
    assert turns >= len(LARGE) / (256 * 1024)


def test_the_packed_size_has_the_limit_too() -> None:
    packed = gzip.compress(b"x") * 6
    for headers in ({"content_length": str(len(packed))}, {"transfer_encoding": "chunked"}):
        exchange = Guarded().post(part(packed), content_encoding="gzip", **headers)
        assert (exchange.status, exchange.code) == (413, "BODY_TOO_LARGE")
        assert "100 bytes" in orjson.loads(exchange.sent[1]["body"])["detail"]


def test_gzip_cut_at_any_position_is_refused() -> None:
    packed = gzip.compress(b'{"tasks":[]}')
    for at in range(len(packed)):
        assert refused(packed[:at])[0] == 400
        if at:
            assert refused(packed + packed[:at])[0] == 400


@pytest.mark.parametrize("behind", [b"\0", b"x", b"\x1f"])
def test_gzip_with_any_byte_behind_it_is_refused(behind: bytes) -> None:
    assert refused(gzip.compress(b"{}") + behind)[0] == 400


# ---- what is counted


def test_metrics_find_the_route_in_the_servers_scope_and_paths_that_do_not_exist_share_a_name() -> None:
    guarded = Guarded()
    for path, method, route in (
        (OTHER, "GET", OTHER),
        (OTHER, "HEAD", OTHER),
        (BATCH, "DELETE", BATCH),
        ("/a", "GET", "other"),
        ("/b", "GET", "other"),
    ):
        scope = scope_of(path, method, LOCAL, {})
        exchange = Exchange([part(b"")])
        asyncio.run(guarded.guard(scope, exchange.receive, exchange.send))
        assert scope["route"] == route
