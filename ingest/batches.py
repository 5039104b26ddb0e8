"""POST of a batch: validate, forward, answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime, timedelta, timezone
from functools import lru_cache

import falcon
import falcon.asgi

from ingest.forwarder import FlusherUnavailable, Forwarder, Rejected
from ingest.parameters import DEFAULT_TIMEOUT_S, invalid_parameter, parse_timeout
from ingest.responses import ErrorResponse, unavailable
from shared.bodies import InvalidBody
from shared.validation import InvalidRecord, Validator

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
LARGE_BODY_BYTES = 1024 * 1024
"""One step of a larger body may take tens of milliseconds, so only one of them is validated in full at a time."""
TURN_S = 0.002
"""How long a request may keep the loop from all others."""


@lru_cache(maxsize=4)
def _second(seconds: int) -> bytes:
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S").encode()


def timestamp(arrival_us: int) -> bytes:
    """µs since 1970 UTC as ISO 8601. strftime() for every answer would cost more than its validation."""
    seconds, fraction = divmod(arrival_us, 1_000_000)
    return b"%b.%06dZ" % (_second(seconds), fraction)


def accepted(status: str, count: int, arrival_us: int) -> bytes:
    return b'{"status":"%b","count":%d,"timestamp":"%b"}' % (status.encode(), count, timestamp(arrival_us))


class Batch:
    """One kind's batches, as a Falcon resource."""

    def __init__(
        self,
        validator: Validator,
        forwarder: Forwarder,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.kind = validator.kind
        self.path = self.kind.path
        self._validator = validator
        self._forwarder = forwarder
        self._wall = wall
        self._large = asyncio.Lock()

    async def on_post(self, request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
        body: bytes = request.scope["body"]
        want_commit = False
        timeout_s = DEFAULT_TIMEOUT_S
        if request.query_string:
            want_commit, timeout_s = self._parameters(request)
        try:
            count = self.count(body) or await self._validate(body)
        except InvalidBody as error:
            raise ErrorResponse(400, error.code, error.detail) from error
        except InvalidRecord as error:
            detail = f"the request has {len(error.errors)} errors; nothing of it is stored"
            raise ErrorResponse(422, "INVALID_RECORD", detail, errors=error.errors, records=error.reasons()) from error
        try:
            arrival, seq = await self._forwarder.submit(self.kind.code, count, body, want_commit=want_commit)
            dead = None
            if want_commit:
                try:
                    dead = await self._forwarder.committed(seq, timeout_s)
                finally:
                    self._forwarder.forget(seq)
        except (FlusherUnavailable, Rejected) as error:
            raise unavailable(error, count) from error
        response.status = falcon.HTTP_202 if dead is None else falcon.HTTP_200
        status = "accepted" if dead is None else "dead_lettered" if dead else "committed"
        response.data = accepted(status, count, arrival)
        if dead:
            response.data = response.data[:-1] + b',"dead_lettered":%d}' % dead

    @staticmethod
    def _parameters(request: falcon.asgi.Request) -> tuple[bool, float]:
        ack = request.get_param("ack")
        if ack not in (None, "journaled", "committed"):
            raise invalid_parameter("ack", ack, "journaled and committed")
        return ack == "committed", parse_timeout(request.get_param("timeout"))

    def count(self, body: bytes) -> int:
        """Returns: the number of records of a valid body; 0 where only full validation can tell."""
        return self._validator.count(body, self._wall())

    async def _validate(self, body: bytes) -> int:
        """Full validation; other tasks get turns in between. Raises: InvalidBody, InvalidRecord."""
        steps = self._validator.validate(body, self._wall())
        async with self._large if len(body) > LARGE_BODY_BYTES else nullcontext():
            turn_ends_at = time.monotonic() + TURN_S
            while True:
                try:
                    next(steps)
                except StopIteration as end:
                    return int(end.value)
                if time.monotonic() > turn_ends_at:
                    await asyncio.sleep(0)
                    turn_ends_at = time.monotonic() + TURN_S
