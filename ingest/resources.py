"""HTTP <-> records: what each path answers. Falcon resources and the error document they share."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Any

import falcon
import falcon.asgi
import orjson
from prometheus_client import CONTENT_TYPE_LATEST

from ingest.forwarder import FlusherUnavailable, Forwarder, Rejected
from shared import VERSION
from shared.bodies import InvalidBody
from shared.records import KINDS
from shared.validation import FieldError, InvalidRecord, Validator
from shared.wire import Reason

UTC = timezone.utc
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DEFAULT_TIMEOUT_S = 10.0
MAX_TIMEOUT_S = 60.0
SHARED_S = 1.0
LARGE_BODY_BYTES = 1024 * 1024
"""One step of a larger body may take tens of milliseconds, so only one of them has the closer look at a time."""
TURN_S = 0.002
"""How long a request may keep the loop from all others."""
_NUMBER = re.compile(r"[+-]?(\d{1,20}\.?\d{0,20}|\.\d{1,20})([eE][+-]?\d{1,3})?", re.ASCII)
_UNAVAILABLE_RETRY_AFTER_S = 1.0

LIVENESS = orjson.dumps({"service": "Persistence Service", "status": "running", "version": VERSION})
REASONS = {
    Reason.JOURNAL_FULL: "the journal is full: the database takes less than arrives",
    Reason.JOURNAL_NOT_WRITABLE: "the journal cannot be written",
}


class Problem(Exception):
    """An answer other than success, in the form of the contract's error document."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: dict[str, str] | None = None,
        more: dict[str, Any] | None = None,
        records: Mapping[str, int] | None = None,
    ) -> None:
        """Args: records: how many are refused, by reason; None: nobody has counted them, and they count as one."""
        super().__init__(detail)
        self.records = {code: 1} if records is None else records
        self.status = status
        self.code = code
        self.headers = headers or {}
        document: dict[str, Any] = {"detail": detail, "error_code": code}
        document["errors"] = [{"field": error.field, "message": error.message} for error in errors]
        self.body = orjson.dumps({**(more or {}), **document})

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """`headers` as they go over the wire."""
        return [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]


@lru_cache(maxsize=4)
def _second(seconds: int) -> bytes:
    return (EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S").encode()


def timestamp(arrival: int) -> bytes:
    """µs since 1970 UTC as ISO 8601. strftime() for every answer would cost more than its validation."""
    seconds, fraction = divmod(arrival, 1_000_000)
    return b"%b.%06dZ" % (_second(seconds), fraction)


def accepted(status: str, count: int, arrival: int) -> bytes:
    return b'{"status":"%b","count":%d,"timestamp":"%b"}' % (status.encode(), count, timestamp(arrival))


def unavailable(error: FlusherUnavailable | Rejected, records: int = 1) -> Problem:
    if isinstance(error, Rejected):
        after_s, code, detail = error.retry_after_s, error.reason.name, REASONS[error.reason]
    else:
        after_s, code, detail = _UNAVAILABLE_RETRY_AFTER_S, "FLUSHER_UNAVAILABLE", str(error)
    headers = {"Retry-After": str(max(1, round(after_s)))}
    return Problem(503, code, detail, headers=headers, records={code: records})


def invalid_parameter(name: str, value: str, allowed: str) -> Problem:
    shown = value if len(value) <= 40 else f"{value[:40]}… ({len(value)} characters)"
    return Problem(400, "INVALID_PARAMETER", f"{name}={shown}: {allowed} are allowed")


def parse_number(value: str) -> float:
    """A number as JSON would have it, nan for all else: float() also takes white space, 1_0 and other digits."""
    return float(value) if _NUMBER.fullmatch(value) else math.nan


def parse_timeout(value: str | None, default_s: float = DEFAULT_TIMEOUT_S) -> float:
    """`?timeout=SECONDS`. Raises: Problem."""
    if value is None:
        return default_s
    timeout_s = parse_number(value)
    if not 0 <= timeout_s <= MAX_TIMEOUT_S:
        raise invalid_parameter("timeout", value, f"seconds from 0 to {MAX_TIMEOUT_S:g}")
    return timeout_s


class Batch:
    """POST of one kind's batch."""

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
            raise Problem(400, error.code, error.detail) from error
        except InvalidRecord as error:
            detail = f"the request has {len(error.errors)} errors; nothing of it is stored"
            raise Problem(422, "INVALID_RECORD", detail, errors=error.errors, records=error.reasons()) from error
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
        """Returns: the number of records of a valid body; 0 where that takes a closer look."""
        return self._validator.count(body, self._wall())

    async def _validate(self, body: bytes) -> int:
        """The closer look; the loop's other tasks have their turns in between. Raises: InvalidBody, InvalidRecord."""
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


def flush_incomplete(pending: int, timeout_s: float) -> Problem:
    detail = f"{pending} records could not be written within {timeout_s:g} s; they stay queued"
    more = {"status": "error", "pending": pending}
    return Problem(503, "FLUSH_INCOMPLETE", detail, headers={"Retry-After": "1"}, more=more)


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


class Liveness:
    async def on_get(self, _request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
        response.data = LIVENESS


class Stats:
    """The flusher's figures, and the refusals of all workers: args: rejected(): records, by reason."""

    def __init__(self, forwarder: Forwarder, rejected: Callable[[], dict[str, int]]) -> None:
        self._forwarder = forwarder
        self._rejected = rejected

    async def on_get(self, _request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
        try:
            stats = orjson.loads(await self._forwarder.stats())
        except FlusherUnavailable as error:
            raise unavailable(error) from error
        response.data = orjson.dumps({**stats, "rejected": self._rejected()})


class Health:
    def __init__(self, forwarder: Forwarder, started_at: float) -> None:
        self._forwarder = forwarder
        self._started_at = started_at

    async def on_get(self, _request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
        document = await self.document()
        response.status = 503 if document["status"] == "unhealthy" else 200
        response.data = orjson.dumps(document)

    async def document(self) -> dict[str, Any]:
        """The health document: what the flusher says of itself."""
        common = {"uptime_seconds": round(time.monotonic() - self._started_at, 3), "version": VERSION}
        try:
            stats = orjson.loads(await self._forwarder.stats())
        except FlusherUnavailable as error:
            empty = dict.fromkeys((*(f"{kind.name}_count" for kind in KINDS), "total_count", "capacity"), 0)
            buffer = {**empty, "usage_percent": 0.0, "last_flush": None}
            return {
                "status": "unhealthy",
                "reason": str(error),
                "since": None,
                "database": "unhealthy",
                "database_state": "unknown",
                "buffer": buffer,
                **common,
            }
        buffer = {**stats["buffer"], "last_flush": stats["flush_info"]["last_flush_time"]}
        state = stats["state"]
        return {
            "status": state["status"],
            "reason": state["reason"],
            "since": state["since"],
            "database": "healthy" if state["database"] == "up" else "unhealthy",
            "database_state": state["database"],
            "buffer": buffer,
            **common,
        }


class Ready:
    """Whether a load balancer may send traffic here: records are accepted, and will be for a while."""

    def __init__(self, health: Health, leaving: asyncio.Event) -> None:
        self._health = health
        self._leaving = leaving

    async def on_get(self, _request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
        ready = False
        reason: str | None = "stopping"
        if not self._leaving.is_set():
            document = await self._health.document()
            ready = document["status"] != "unhealthy"
            reason = document["reason"] if not ready or document["database_state"] != "unknown" else None
        response.status = 200 if ready else 503
        response.data = orjson.dumps({"ready": ready, "reason": reason})


class Metrics:
    """One text for all who ask within SHARED_S: a scrape a second is plenty, and each would cost milliseconds."""

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
        if self._text is None or now - self._begun_at >= SHARED_S:
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


class OpenApi:
    def __init__(self, document: bytes) -> None:
        self._document = document

    async def on_get(self, _request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
        response.data = self._document
