"""A caller whose connection has gone costs nothing, whatever its request waits for.

One that closes it in order may have closed only its sending half: it is answered, and is a connection until then.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ingest.forwarder import Forwarder
from ingest.reading import Reading, Target
from ingest.responses import ErrorResponse
from shared.reading import PREFIX
from shared.wire import Ack
from tests.support.connections import Front, play, post
from tests.support.fake_flusher import LONG_S, FakeFlusher, barrier, result, run, soon
from tests.support.guarded import LOCAL, Exchange, part, scope_of


@pytest.mark.parametrize(("callers", "size"), [(1, 1), (50, 1), (1, 900_000)])
def test_a_request_ends_when_its_caller_goes(callers: int, size: int) -> None:
    async def scenario(front: Front, connect: Any) -> None:
        clients = [await connect() for _ in range(callers)]
        for client in clients:
            await client.send(post(b"1" * size, path="/slow"))
            await front.started.acquire()
        assert len(front.state.tasks) == callers
        for client in clients:
            client.reset()
        await front.until(lambda: not front.state.tasks)  # nobody has released it

    play(scenario)


def test_a_request_whose_body_is_still_to_come_ends_when_its_caller_goes() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        client = await connect()
        await client.send(post(b"12345")[:-1])
        await front.until(lambda: bool(front.state.tasks))
        client.reset()
        await front.until(lambda: not front.state.tasks)
        assert front.seen == []

    play(scenario)


def test_nothing_is_read_for_a_caller_that_leaves_within_the_body_of_its_get() -> None:
    reading = Reading("nowhere", Forwarder("nowhere", ack_timeout_s=1), timeout_s=1)
    exchange = Exchange([part(b"x", more=True)])
    scope = {**scope_of(PREFIX, "GET", LOCAL, {}), "target": Target(PREFIX)}
    with pytest.raises(ErrorResponse) as raised:
        asyncio.run(reading(scope, exchange.receive, exchange.send))
    assert raised.value.code == "BODY_CUT_SHORT"  # the reader was not asked


@pytest.mark.parametrize("acked", [False, True])
def test_nothing_is_kept_of_a_commit_whose_caller_was_cancelled(short_path: Path, acked: bool) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        async def request() -> None:
            _, seq = await forwarder.submit(2, 1, b"a", want_commit=True)
            try:
                await forwarder.committed(seq, LONG_S)
            finally:
                forwarder.forget(seq)

        waiting = soon(request())
        frame = await flusher.submit()
        if acked:
            flusher.send(Ack(frame.seq, 5))
            await barrier(flusher, forwarder)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await result(waiting)
        assert forwarder._committing == {}
        if not acked:
            flusher.send(Ack(frame.seq, 5))
        await barrier(flusher, forwarder)
        assert forwarder._pending == {}

    run(short_path, test)
