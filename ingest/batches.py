"""POST of a batch: admit, validate, forward, answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import falcon
import falcon.asgi

from ingest.access import Access
from ingest.forwarder import FlusherUnavailable, Forwarder, Rejected
from ingest.headers import is_host
from ingest.parameters import DEFAULT_TIMEOUT_S, invalid_parameter, parse_timeout
from ingest.request_ids import log_error, request_id
from ingest.responses import JSON_TYPE, ErrorResponse, encode_response, unavailable
from ingest.unpacking import SMALL_BODY_BYTES
from shared.bodies import InvalidBody
from shared.clock import iso
from shared.validation import InvalidRecord, Validator

MAX_FAST_BODY_BYTES = 256 * 1024
_LENGTH_DIGITS = len(str(MAX_FAST_BODY_BYTES))
MAX_FAST_READING_BYTES = 16 * 1024 * 1024
"""Bodies over SMALL_BODY_BYTES on the fast path, as announced; more take the slow path."""
_SLOW_FIELDS = frozenset((b"transfer-encoding", b"content-encoding", b"x-request-id", b"origin", b"sec-fetch-site"))
LARGE_BODY_BYTES = 1024 * 1024
"""One step of a larger body may take tens of milliseconds, so only one of them is validated in full at a time."""
TURN_S = 0.002
"""How long a request may keep the loop from all others."""

_ACCEPTED = {
    keep_alive: encode_response(
        202, [(b"content-type", JSON_TYPE), (b"content-length", b"%d")], b"%b", keep_alive=keep_alive
    )
    for keep_alive in (False, True)
}
"""An accepted batch's answer, without the length of its body and the body."""


def accepted(status: str, count: int, arrival_us: int) -> bytes:
    return b'{"status":"%b","count":%d,"timestamp":"%b"}' % (status.encode(), count, iso(arrival_us).encode())


class BatchRoute:
    """One kind's batches. Two doors lead here: the connection's fast path (admit, count, submit, answer), and Falcon's
    on_post, behind the guard, for every other request.

    The fast path takes a POST that says how large it is, has no query, and has nothing in its header that the guard
    would have to check in full. Its body is certainly valid, or on_post validates it. ASGI and Falcon cost twice as
    much as all the rest of such a request (docs/PERFORMANCE.md).

    Args: reject(records): told of refused records, by reason.
    """

    def __init__(
        self,
        validator: Validator,
        forwarder: Forwarder,
        access: Access,
        *,
        max_body_bytes: int,
        reject: Callable[[Mapping[str, int]], None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.kind = validator.kind
        self.path = self.kind.path
        self._validator = validator
        self._forwarder = forwarder
        self._access = access
        self._max_body_bytes = min(max_body_bytes, MAX_FAST_BODY_BYTES)
        self._reject = reject
        self._wall = wall
        self.reading_bytes = 0
        self._large = asyncio.Lock()

    def admit(self, fields: Sequence[tuple[bytes, bytes]], client: tuple[str, int] | None) -> FastPathRequest | None:
        """A POST with this header, if it takes the fast path: it passes all checks of the guard, and there is room."""
        headers = dict(fields)
        length = headers.get(b"content-length", b"")
        if (
            len(headers) != len(fields)
            or not 1 <= len(length) <= _LENGTH_DIGITS
            or headers.get(b"content-type") != JSON_TYPE
            or b"host" not in headers
            or not _SLOW_FIELDS.isdisjoint(headers)
            or not is_host(headers[b"host"])
            or not self._access.admits(headers, client)
        ):
            return None
        size = int(length)
        held = size if size > SMALL_BODY_BYTES else 0
        if not 0 < size <= self._max_body_bytes or self.reading_bytes + held > MAX_FAST_READING_BYTES:
            return None
        self.reading_bytes += held
        return FastPathRequest(self, size, held)

    def count(self, body: bytes) -> int:
        """Returns: the number of records of a body that is certainly valid; 0 where only full validation can tell."""
        return self._validator.count(body, self._wall())

    def submit(self, count: int, body: bytes, done: Callable[[int | Exception], None]) -> bool:
        """Forwards a valid body; `done` gets what answer() takes. Returns: False if the window to the flusher is full,
        and then nothing is sent."""
        return self._forwarder.submit_now(self.kind.code, count, body, done)

    def answer(self, arrival_us: int | Exception, count: int, *, keep_alive: bool) -> tuple[int, bytes]:
        """Args: arrival_us: since 1970 UTC, or why there is none. Returns: status and the whole answer."""
        if type(arrival_us) is int:
            body = accepted("accepted", count, arrival_us)
            return 202, _ACCEPTED[keep_alive] % (len(body), body)
        assert isinstance(arrival_us, FlusherUnavailable | Rejected)
        error = unavailable(arrival_us, count)
        scope = {"method": "POST", "path": self.path}
        log_error(scope, error)
        self._reject(error.records)
        fields = [*error.fields, (b"x-request-id", request_id(scope).encode())]
        return error.status, encode_response(error.status, fields, error.body, keep_alive=keep_alive)

    async def on_post(self, request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
        body: bytes = request.scope["body"]
        want_commit = False
        timeout_s = DEFAULT_TIMEOUT_S
        if request.query_string:
            want_commit, timeout_s = self._parameters(request)
        try:
            counted: int | None = request.scope.get("record_count")  # the fast path has counted it
            count = (self.count(body) if counted is None else counted) or await self._validate(body)
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


class FastPathRequest:
    """One admitted request. `parts` are its body, as it comes; `body` and `count` are known after submit(). Args: held:
    bytes of its route's room."""

    __slots__ = ("_held", "body", "count", "parts", "route", "size")
    body: bytes
    count: int

    def __init__(self, route: BatchRoute, size: int, held: int) -> None:
        self.route = route
        self.size = size
        self._held = held
        self.parts: list[bytes] = []

    def release(self) -> None:
        """Gives the room back, once: the body is no longer being read."""
        if self._held:
            self.route.reading_bytes -= self._held
            self._held = 0

    def submit(self, done: Callable[[int | Exception], None]) -> bool:
        """Returns: whether the body is valid and on its way; if not, the slow path takes it."""
        self.release()
        self.body = self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
        self.count = self.route.count(self.body)
        return self.count > 0 and self.route.submit(self.count, self.body, done)
