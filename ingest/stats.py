"""GET stats and metrics, POST flush: the flusher's figures and its flush on demand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import falcon.asgi
import orjson
from prometheus_client import CONTENT_TYPE_LATEST

from ingest.forwarder import FlusherUnavailable, Forwarder
from ingest.parameters import parse_timeout
from ingest.responses import flush_incomplete, unavailable

METRICS_SHARED_S = 1.0


class Stats:
    """The flusher's figures, and the refusals of all workers. Args: rejected(): records, by reason."""

    def __init__(self, forwarder: Forwarder, rejected: Callable[[], dict[str, int]]) -> None:
        self._forwarder = forwarder
        self._rejected = rejected

    async def on_get(self, _request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
        try:
            stats = orjson.loads(await self._forwarder.stats())
        except FlusherUnavailable as error:
            raise unavailable(error) from error
        response.data = orjson.dumps({**stats, "rejected": self._rejected()})


class Flush:
    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder

    async def on_post(self, request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
        timeout_s = parse_timeout(request.get_param("timeout"))
        try:
            result: dict[str, Any] = orjson.loads(await self._forwarder.flush(timeout_s))
        except FlusherUnavailable as error:
            raise unavailable(error) from error
        pending = result.pop("pending")
        if pending:
            raise flush_incomplete(pending, timeout_s)
        response.data = orjson.dumps({"status": "flushed", **result})


class Metrics:
    """Every request within METRICS_SHARED_S gets the same text: computing it takes milliseconds."""

    def __init__(
        self,
        forwarder: Forwarder,
        exposition: Callable[[dict[str, Any] | None], bytes],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._forwarder = forwarder
        self._exposition = exposition
        self._clock = clock
        self._text: asyncio.Task[bytes] | None = None
        self._begun_at = 0.0

    async def on_get(self, _request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
        now = self._clock()
        if self._text is None or now - self._begun_at >= METRICS_SHARED_S:
            self._begun_at = now
            self._text = asyncio.ensure_future(self._compute())
        response.content_type = CONTENT_TYPE_LATEST
        response.data = await asyncio.shield(self._text)

    async def _compute(self) -> bytes:
        try:
            stats = orjson.loads(await self._forwarder.stats())
        except FlusherUnavailable:
            stats = None
        return self._exposition(stats)
