"""A body is let go with its request, without waiting for the collector: the bound of all bodies counts on that."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import falcon.asgi
import pytest

from ingest.app import _pass_on
from ingest.deadlines import Phase
from ingest.forwarder import FlusherUnavailable, Forwarder
from ingest.responses import ErrorResponse
from tests.support.connections import Front, play, post
from tests.support.fake_flusher import FakeFlusher, run
from tests.support.guarded import BATCH, LOCAL, Exchange, Guarded, part, scope_of


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def test_a_connection_that_waits_for_its_next_request_does_not_keep_the_last_body() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        client = await connect()
        await client.send(post(b"x" * 900_000))
        await client.answer()
        await front.reach(Phase.IDLE)
        (connection,) = front.connections
        assert (connection.cycle.scope.get("body"), connection.cycle.body) == (None, b"")

    play(scenario)


def test_nothing_is_kept_of_a_request_whose_client_has_left() -> None:
    async def scenario(front: Front, connect: Any) -> None:
        client = await connect()
        await client.send(post(path="/slow"))
        await front.started.acquire()
        task = weakref.ref(next(iter(front.state.tasks)))
        client.reset()
        await front.until(lambda: not front.state.tasks)
        await asyncio.sleep(0)
        assert task() is None

    play(scenario)


@pytest.mark.parametrize("sent", [b"", post(), post()[:-1], post()[:20]])
def test_nothing_is_kept_of_a_connection_that_has_ended(sent: bytes) -> None:
    async def scenario(front: Front, connect: Any) -> None:
        client = await connect()
        await client.send(sent)
        await front.until(lambda: bool(front.connections))
        connection = weakref.ref(next(iter(front.connections)))
        client.send_no_more()
        await client.rest()
        await front.until(lambda: not front.connections and not front.state.tasks)
        for _ in range(3):
            await asyncio.sleep(0)
        assert connection() is None

    play(scenario)


def test_nothing_is_kept_of_a_request_that_is_refused_behind_falcon() -> None:
    errors: list[weakref.ref[ErrorResponse]] = []

    class Refusing:
        async def on_post(self, _request: Any, _response: Any) -> None:
            error = ErrorResponse(422, "INVALID_RECORD", "refused")
            errors.append(weakref.ref(error))
            raise error from ValueError()

    app = falcon.asgi.App()
    app.add_route(BATCH, Refusing())
    app.add_error_handler(ErrorResponse, _pass_on)
    guarded = Guarded()
    guarded.guard._app = app  # type: ignore[assignment]
    exchange = Exchange([part(b"x")])
    asyncio.run(guarded.guard(scope_of(BATCH, "POST", LOCAL, {}), exchange.receive, exchange.send))
    assert exchange.status == 422
    assert [error() for error in errors] == [None]


def test_nothing_is_kept_of_a_submit_without_an_answer(short_path: Path) -> None:
    async def test(_flusher: FakeFlusher, forwarder: Forwarder) -> None:
        kept: weakref.ref[FlusherUnavailable] | None = None
        try:
            await forwarder.submit(2, 1, b"a")
        except FlusherUnavailable as error:
            kept = weakref.ref(error)
        await asyncio.sleep(0)
        assert kept is not None
        assert kept() is None

    run(short_path, test, ack_timeout_s=0.1, running=False)
