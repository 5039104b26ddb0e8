"""One connection: what is answered, in which order, and when it ends."""

from __future__ import annotations

from typing import Any

import pytest

from ingest.connection import MAX_IGNORED_BYTES
from ingest.deadlines import Phase
from ingest.framing import MAX_HEADERS, MAX_URL_BYTES
from tests.support.connections import CHUNKED, GET, HEALTH, Front, ask, get_with, play, post

END = b"0\r\n\r\n"


def test_the_largest_url_and_header_pass_and_a_larger_one_does_not() -> None:
    """To the byte: tests/ingest/test_framing.py."""

    async def scenario(front: Front, connect: Any) -> None:
        request = b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n"
        target = b"/?" + b"a" * (MAX_URL_BYTES - 2)
        assert await ask(connect, request % target) == [(200, b"-")]
        assert await ask(connect, request % (target + b"a")) == [(414, b"URL_TOO_LONG")]
        many = [f"x{number}: y" for number in range(MAX_HEADERS - 1)]
        assert await ask(connect, get_with(*many)) == [(200, b"-")]
        assert await ask(connect, get_with(*many, "z: y")) == [(431, b"HEADER_TOO_LARGE")]
        assert front.refused == [414, 431]
        assert front.rejected == {"URL_TOO_LONG": 1, "HEADER_TOO_LARGE": 1}

    play(scenario)


@pytest.mark.parametrize("begin", [b"GET /?", b"GET / HTTP/1.1\r\nx: ", b"GET / HTTP/1.1\r\nx"])
def test_a_header_without_end_is_refused_before_much_of_it_is_kept(begin: bytes) -> None:
    async def scenario(front: Front, connect: Any) -> None:
        client = await connect()
        await client.send(begin)
        await front.reach(Phase.HEADER)
        # Such a client goes on sending; it still gets to read its answer.
        for _ in range(64):
            await client.send(b"a" * 16 * 1024)
        code = (414, b"URL_TOO_LONG") if begin == b"GET /?" else (431, b"HEADER_TOO_LARGE")
        assert await client.rest() == [code]
        assert front.seen == []

    play(scenario)


@pytest.mark.parametrize("size", [1000, 15_000])
def test_a_header_behind_a_large_body_is_not_taken_for_a_large_header(size: int) -> None:
    async def scenario(front: Front, connect: Any) -> None:
        large = post(b"x" * 200_000)
        header = get_with("x: " + "a" * size)
        for at in (1, size // 2, len(header) - 1):
            assert await ask(connect, large + header[:at], header[at:]) == [(200, b"x" * 200_000), (200, b"-")]

    play(scenario)


@pytest.mark.parametrize("request_", [GET, post(b"{}"), CHUNKED + b"1\r\nx\r\n" * 3 + END])
def test_requests_are_the_same_however_many_reads_they_come_in(request_: bytes) -> None:
    """Empty lines before them included; one byte a read, and cut at every byte."""
    once = [(200, {GET: b"-", post(b"{}"): b"{}"}.get(request_, b"xxx"))]

    async def scenario(front: Front, connect: Any) -> None:
        whole = request_ + b"\r\n" + request_ + b"\r\n\r\n" + request_
        assert await ask(connect, whole) == once * 3
        assert await ask(connect, *(bytes([byte]) for byte in whole)) == once * 3
        for at in range(1, len(whole)):
            assert await ask(connect, whole[:at], whole[at:]) == once * 3

    play(scenario)


def test_pipelined_requests_are_answered_in_order() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        bodies = [b"%d" % number for number in range(300)]
        assert await ask(connect, b"".join(map(post, bodies))) == [(200, body) for body in bodies]

    play(scenario)


def test_http_1_0_knows_no_100_continue() -> None:
    async def scenario(_front: Front, connect: Any) -> None:
        request = post(b"12345", "Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0")
        assert await ask(connect, request) == [(200, b"12345")]

    play(scenario)


# ---- broken requests

BROKEN = {
    "no request": (b"\0\r\n\r\n", b"INVALID_HTTP"),
    "no header": (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"INVALID_HTTP"),
    "RTSP": (GET.replace(b"HTTP", b"RTSP"), b"INVALID_HTTP"),
    "three empty lines": (b"\r\n\r\n\r\n" + GET, b"INVALID_HTTP"),
    "bad target": (b"GET http://h/ HTTP/1.1\r\nHost: h\r\n\r\n", b"INVALID_HTTP"),
    "bad chunk": (CHUNKED + b"zz\r\n", b"INVALID_HTTP"),
    "a length of 5000 digits": (get_with("Content-Length: " + 5000 * "0"), b"INVALID_HTTP"),
    "a trailer": (CHUNKED + b"2\r\nab\r\n0\r\nAuthorization: x\r\n\r\n", b"INVALID_HTTP"),
    "half a body": (post()[:-1], b"BODY_CUT_SHORT"),
    "half a header": (GET[:-1], b"INVALID_HTTP"),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_a_broken_request_keeps_the_answers_of_those_before_it_and_nothing_behind_it_is_seen(
    name: str, ahead: int
) -> None:
    broken, code = BROKEN[name]

    async def scenario(front: Front, connect: Any) -> None:
        client = await connect()
        for number in range(ahead):
            await client.send(post(b"%d" % number, path="/slow"))
        await client.send(broken)
        if not name.startswith("half"):
            await client.send(HEALTH)
        client.send_no_more()
        front.release.set()
        assert await client.rest() == [*((200, b"%d" % number) for number in range(ahead)), (400, code)]
        await front.until(lambda: not front.connections)
        assert front.seen == ["/slow"] * ahead
        assert front.refused == [400]
        assert front.rejected == {code.decode(): 1}

    play(scenario)


@pytest.mark.parametrize("rest", [b"zz\r\n", b""], ids=["broken", "cut"])
@pytest.mark.parametrize("path", ["/", "/nowhere"])
def test_a_request_whose_body_goes_wrong_after_its_answer_gets_no_second_one(rest: bytes, path: str) -> None:
    async def scenario(front: Front, connect: Any) -> None:
        client = await connect()
        # Answered before its body is read; the second lingers over the body, the first does not.
        await client.send(get_with("Transfer-Encoding: chunked").replace(b"/", path.encode(), 1))
        assert (await client.answer())[0] == (200 if path == "/" else 404)
        await client.send(rest)
        client.send_no_more()
        assert await client.rest() == []
        await front.until(lambda: not front.connections)

    play(scenario)


@pytest.mark.parametrize("request_", [post(), GET, post(b"1") + GET], ids=["POST", "GET", "both"])
@pytest.mark.parametrize("gone", [False, True])
def test_a_request_cut_at_any_byte_is_answered_if_its_client_listens_and_leaves_nothing(
    request_: bytes, gone: bool
) -> None:
    async def scenario(front: Front, connect: Any) -> None:
        for at in range(len(request_)):
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


@pytest.mark.parametrize("last", [post(b"1", "Connection: close"), GET.replace(b"1.1", b"1.0"), get_with("Host: x")])
def test_requests_behind_the_last_one_do_not_reset_its_answer(last: bytes) -> None:
    async def scenario(_front: Front, connect: Any) -> None:
        for _ in range(5):
            client = await connect()
            client.writer.write(last + post(b"x" * 600_000) * 2)
            assert len(await client.rest()) == 1

    play(scenario)


def test_a_body_that_comes_after_the_answer_has_a_bound() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        for size, again in ((MAX_IGNORED_BYTES, True), (MAX_IGNORED_BYTES + 1, False)):
            client = await connect()
            await client.send(get_with(f"Content-Length: {size}"))
            assert await client.answer() == (200, b"-")
            await client.send(b"x" * size + GET)
            client.send_no_more()
            assert await client.rest() == [(200, b"-")] * again

    play(scenario)


@pytest.mark.parametrize("upgrade", ["websocket", "h2c", "TLS/1.0"])
def test_upgrade_is_ignored_and_never_makes_a_body_a_request(upgrade: str) -> None:
    async def scenario(front: Front, connect: Any) -> None:
        fields = (f"Upgrade: {upgrade}", "Connection: Upgrade")
        for parts in ([get_with(*fields) + GET], [get_with(*fields), GET]):
            assert await ask(connect, *parts) == [(200, b"-"), (200, b"-")]
        front.scopes.clear()
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


@pytest.mark.parametrize(
    ("sent", "phase", "limit_s"),
    [(b"", Phase.FIRST, 15), (GET, Phase.IDLE, 75), (get_with("Content-Length: 5") + b"12345", Phase.IDLE, 75)],
)
def test_a_connection_without_a_request_is_closed_in_time(sent: bytes, phase: Phase, limit_s: float) -> None:
    async def scenario(front: Front, connect: Any) -> None:
        client = await connect()
        await client.send(sent)
        if sent:
            assert await client.answer() == (200, b"-")
        await front.reach(phase)
        assert await closed_after(front, limit_s)
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
        for second, byte in enumerate(GET[:12]):
            await client.send(bytes([byte]))
            await front.reach(Phase.HEADER)
            await front.sweep(second)
        assert await client.rest() == [(408, b"REQUEST_TOO_SLOW")]

    play(scenario)


@pytest.mark.parametrize("part", [b"", b"G", post()[:-1]])
def test_the_deadline_of_a_request_begins_when_those_before_it_are_answered(part: bytes) -> None:
    async def scenario(front: Front, connect: Any) -> None:
        client = await connect()
        await client.send(post(path="/slow") + part)
        await front.started.acquire()
        for now in (31, 62, 93):
            await front.sweep(now)
        assert front.phase is Phase.ANSWER
        front.release.set()
        assert await client.answer() == (200, b"12345")
        await front.sweep(93 + 76)
        assert await client.rest() == ([(408, b"REQUEST_TOO_SLOW")] if part else [])

    play(scenario)


def test_a_slow_body_after_its_answer_is_cut_off_without_a_second_answer() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        client = await connect()
        await client.send(get_with("Content-Length: 5"))
        assert await client.answer() == (200, b"-")
        await client.send(b"1")
        await front.sweep(31)
        assert await client.rest() == []

    play(scenario)
