"""The short way of nearly every request: a plain POST of a batch that is not large, answered without ASGI and Falcon.

Those cost twice as much as all that has to be done for such a request (docs/PERFORMANCE.md). What is taken here passes
the same guard, the same validation and the same forwarder, and gets the same answer; whatever has anything special to
it, an invalid record included, goes the long way, which words the problem.

Rules: belongs to the loop's thread. A plain request says how large it is, has no query, and its header has nothing that
the guard would have to look at twice.
"""

from __future__ import annotations

from collections.abc import Mapping

from ingest.batches import Batch, accepted
from ingest.cycle import Connection, Exchange
from ingest.forwarder import FlusherUnavailable, Forwarder, Rejected
from ingest.guard import Guard
from ingest.request_ids import request_id
from ingest.responses import JSON_TYPE, encode_response, unavailable

MAX_BODY_BYTES = 256 * 1024
_LENGTH_DIGITS = len(str(MAX_BODY_BYTES))

_HEAD = {
    keep_alive: encode_response(
        202, [(b"content-type", JSON_TYPE), (b"content-length", b"%d")], b"%b", keep_alive=keep_alive
    )
    for keep_alive in (False, True)
}
"""Of an accepted batch; the length of the body and the body are still to be put in."""


class PlainBatch(Exchange):
    """One request on the short way."""

    __slots__ = ("_connection", "_count", "_shortcut")

    def __init__(
        self, shortcut: Shortcut, connection: Connection, count: int, keep_alive: bool, started_at: float
    ) -> None:
        super().__init__(keep_alive, started_at)
        self._shortcut = shortcut
        self._connection = connection
        self._count = count
        self.more_body = False

    @property
    def route(self) -> str:
        return self._shortcut.route

    def answer(self, arrival: int | Exception) -> None:
        """Args: arrival: µs since 1970 UTC, or why there is none."""
        if self.disconnected:
            return
        if type(arrival) is int:
            self.status = 202
            body = accepted("accepted", self._count, arrival)
            answer = _HEAD[self.keep_alive] % (len(body), body)
        else:
            assert isinstance(arrival, FlusherUnavailable | Rejected)
            problem = unavailable(arrival, self._count)
            scope = {"method": "POST", "path": self.route, "route": self.route}
            self._shortcut.guard.report(scope, problem)
            self.status = problem.status
            fields = [*problem.fields, (b"x-request-id", request_id(scope).encode())]
            answer = encode_response(self.status, fields, problem.body, keep_alive=self.keep_alive)
        self.response_complete = True
        self._connection.write(answer)
        self._connection.answered(self)


class Shortcut:
    """One for each path that takes batches. `guard` is told of what is refused."""

    def __init__(self, batch: Batch, guard: Guard, forwarder: Forwarder) -> None:
        self._batch = batch
        self.guard = guard
        self._forwarder = forwarder
        self.route = batch.path

    def admits(self, fields: list[tuple[bytes, bytes]], client: tuple[str, int] | None) -> int:
        """Whether a request with this header may come this way, if its body is all right.

        Returns: the bytes of its body, for which release() must follow; 0 if not.
        """
        headers: Mapping[bytes, bytes] = dict(fields)
        length = headers.get(b"content-length", b"")
        if not 1 <= len(length) <= _LENGTH_DIGITS or not self.guard.is_plain(fields, headers, client):
            return 0
        size = int(length)
        return size if size <= MAX_BODY_BYTES and self.guard.reserve(size) else 0

    def release(self, size: int) -> None:
        """The body is no longer being read."""
        self.guard.release(size)

    def take(self, connection: Connection, body: bytes, keep_alive: bool, started_at: float) -> PlainBatch | None:
        """Validates and forwards. Returns: None where it needs the long way, and then nothing has been done."""
        count = self._batch.count(body)
        if not count:
            return None
        exchange = PlainBatch(self, connection, count, keep_alive, started_at)
        if not self._forwarder.submit_now(self._batch.kind.code, count, body, exchange.answer):
            return None
        return exchange
