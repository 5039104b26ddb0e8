"""How much one read of a connection can make the loop do, in calls: a search for the worst, and those that it found."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import uvicorn
from hypothesis import given, settings, target
from hypothesis import strategies as st
from uvicorn.server import ServerState

from ingest.connection import Connection
from shared.records import TASKS
from tests.ingest.test_fast_path import BODY, FakeForwarder, access, guard, route

READ = 256 * 1024
"""What uvloop reads at once."""
MOST_CALLS = 60_000
"""Of Python and C: 3 to 5 ms where nothing else runs; the worst that is known takes 41,000."""

POST = f"POST {TASKS.path} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n".encode()
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
PIECES = (
    *(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"GET /?", b"GET / HTTP/1.1\r\n", b"HEAD /x HTTP/1.1\r\nHost: h\r\n"),
    *(b"\r\n", b"\n", b"\r", b"a:\r\n", b"a: b\r\n", b"x", b" ", b":", b"\0"),
    *(POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY, POST + b"Content-Length: 200000\r\n\r\n", POST),
    *(
        CHUNKED,
        CHUNKED.replace(b"tasks", b"nowhere"),
        b"1\r\nx\r\n",
        b"2\r\n\r\n\r\n",
        b"1;",
        b"1;a\r\nx\r\n",
        b"0\r\n\r\n",
    ),
    *(b"Upgrade: x\r\nConnection: Upgrade\r\n\r\n", b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\nx"),
    b"".join(b"a%d:\r\n" % number for number in range(95)),
)


class Transport:
    """Takes everything and does nothing."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return {"get_extra_info": self._address, "get_write_buffer_size": lambda: 0}.get(name, lambda *_, **__: None)

    def _address(self, name: str) -> tuple[str, int] | None:
        return None if name in ("socket", "sslcontext") else ("127.0.0.1", 40000)


def calls_of(reads: list[bytes]) -> int:
    """The most that one of these reads of a connection causes."""

    async def main() -> int:
        config = uvicorn.Config(cast(Any, guard(access(), None)), ws="none", lifespan="off", log_config=None)
        config.load()
        way = {TASKS.path.encode(): route(FakeForwarder())}
        make = partial(Connection, max_connections=10, batches=way, observe=lambda *_: None, reject=lambda _: None)
        state = ServerState()
        connection = make(config, state, {})
        connection.connection_made(cast(Any, Transport()))
        most = calls = 0

        def count(_frame: object, event: str, _argument: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        for read in reads:
            calls = 0
            before = sys.getprofile()
            sys.setprofile(count)
            try:
                connection.data_received(read)
            finally:
                sys.setprofile(before)
            most = max(most, calls)
        for task in state.tasks:
            task.cancel()
        await asyncio.sleep(0)
        return most

    return asyncio.run(main())


@pytest.mark.parametrize("again", PIECES)
@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\n", CHUNKED, CHUNKED.replace(b"tasks", b"nowhere")])
def test_one_thing_again_and_again_takes_bounded_work(first: bytes, again: bytes) -> None:
    assert calls_of([(first + again * (READ // len(again)))[:READ]]) <= MOST_CALLS


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(PIECES), st.integers(1, 5_000)), min_size=1, max_size=6), st.integers(1, READ)
)
def test_a_search_finds_no_read_that_takes_more_work(parts: list[tuple[bytes, int]], cut: int) -> None:
    data = b"".join(piece * count for piece, count in parts)
    calls = calls_of([data[:cut][:READ], data[cut : cut + READ]])
    target(calls)
    assert calls <= MOST_CALLS
