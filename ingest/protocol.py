"""One HTTP/1.1 connection under uvicorn's server: httptools' events in, cycles out, with limits and deadlines.

Rules: belongs to the loop's thread. One sweep a second looks at all connections; a timer for each request would cost
as much as the rest of its parsing. A connection is always in one phase, and may stay in it for so long:

    FIRST    a new one, until its first byte              15 s
    IDLE     between two requests                         75 s
    HEADER   from a request's first byte to its header's  10 s
    BODY     from there to the end of its body            30 s
    ANSWER   until the answer is written                  no deadline here: an ack has its own
    LINGER   the last answer is sent, what still comes is thrown away, so that the client gets to read it

Requests that come before the answer to an earlier one wait in `_pipeline`, and nothing more is read until they had
their turn. What is refused here no application has seen, or not all of it: it gets the last answer of its connection,
after those of the requests before it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import Enum
from typing import Any, NoReturn, cast

import httptools
import uvicorn
from uvicorn.server import ServerState

from ingest.access import OPEN_PATHS
from ingest.cycle import NO_ROUTE, App, Cycle, Exchange
from ingest.refusals import (
    BAD_TARGET,
    CUT_SHORT,
    FAILED,
    FULL,
    LARGE_HEADER,
    LONG_URL,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_URL_BYTES,
    NOT_HTTP,
    PIPELINED,
    TOO_SLOW,
    UPGRADE,
    Refusal,
)
from ingest.shortcut import Shortcut
from shared.timers import logged

log = logging.getLogger(__name__)

MAX_PIPELINED = 100
"""Requests of one connection that may wait for the answers of those before them."""
MAX_HELD_BYTES = 64 * 1024
"""Of a body that the application has not asked for yet; beyond, reading pauses."""
MAX_SURPLUS = 64
"""Connections over the limit that are still listened to, each for one request; those beyond are closed at once."""
SURPLUS_S = 2.0
UNREAD_S = 30.0
"""How long an answer may wait for its client to read it."""
DISCARD_BYTES = 64 * 1024 * 1024
LINGER_S = 0.5
"""How long a connection without a request stays when the worker stops: one may be on its way."""
SWEEP_S = 1.0
SLICE = 20
MAX_SLICES = 50

_OPEN_TARGETS = frozenset(path.encode() for path in OPEN_PATHS)
_ASGI = {"version": "3.0", "spec_version": "2.3"}


class Phase(Enum):
    FIRST = 15.0
    IDLE = 75.0
    HEADER = 10.0
    BODY = 30.0
    ANSWER = float("inf")
    LINGER = 2.0


class Clock:
    """Seconds, as of the last sweep: exact to a second and free."""

    now = 0.0


class Refused(Exception):
    """Raised out of a callback of the parser, which then takes nothing more: `refusal` is the answer."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.code)
        self.refusal = refusal


class NoTrailers(list[tuple[bytes, bytes]]):
    """Takes the place of the list of header fields once that is complete: fields behind a chunked body would be kept
    without a limit, and nobody reads them."""

    def append(self, field: tuple[bytes, bytes]) -> NoReturn:  # noqa: ARG002 -- list's signature
        raise Refused(NOT_HTTP)


NO_TRAILERS = NoTrailers()


class Protocol(asyncio.Protocol):
    """Made by uvicorn's server for each connection.

    Args: max_connections: of this worker; shortcuts: by path; observe(route, status, seconds): told of every answer,
    status 0 where the client left before it; reject(records): told of refused requests, each as one record, by reason.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],  # noqa: ARG002 -- uvicorn's signature
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        max_connections: int,
        shortcuts: Mapping[bytes, Shortcut],
        observe: Callable[[str, int, float], None],
        reject: Callable[[Mapping[str, int]], None] = lambda _records: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._app = cast(App, config.loaded_app)
        self._server = server_state
        self._max_connections = max_connections
        self._shortcuts = shortcuts
        self._observe = observe
        self._reject = reject
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._addresses: dict[str, Any] = {}
        self._scheme = "http"
        # The request that is being read
        self._parsing: Cycle | None = None
        self._shortcut: Shortcut | None = None
        """Where its body goes, if nothing is special about its header."""
        self._announced = 0
        """What is reserved there for the body."""
        self._body: list[bytes] = []
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._expects_continue = False
        self._started_at = 0.0
        self._header_bytes = 0
        """Of all data that the header of a request is in."""
        self._header_only_bytes = 0
        """Of data that is nothing but a part of a header."""
        # The one that is being answered, and those behind it
        self._cycle: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._pipeline: deque[Cycle] = deque()
        self._last: Refusal | None = None
        """The last answer, once there is one; nothing is parsed any more."""
        # The connection
        self.phase = Phase.FIRST
        self.since = Clock.now
        self.writable: asyncio.Future[None] | None = None
        self._stalled_at = 0.0
        self._read_paused = False
        self._discarded = 0
        self._surplus = False
        self._ended = False
        """Whether the client has said that it sends no more."""
        self._stopping = False

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        # Its type names uvicorn's own protocols; what its server asks of them is shutdown().
        self._server.connections.add(self)  # type: ignore[arg-type]
        self._scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        self._addresses = {
            "server": _address(transport.get_extra_info("sockname")),
            "client": _address(transport.get_extra_info("peername")),
        }
        surplus = len(self._server.connections) - self._max_connections
        if surplus > 0:
            self._surplus = True
            if surplus > MAX_SURPLUS:
                self._refuse(FULL)
                self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's signature
        self._server.connections.discard(self)
        # They hold us: without them all of it goes at once, with them when the collector comes by.
        del self._parser
        self._parsing = None
        if self._shortcut is not None:
            self._shortcut.release(self._announced)
        cycle, self._cycle = self._cycle, None
        if cycle is not None:
            cycle.disconnect()
            self._observed(cycle)
            if self._task is not None and not cycle.more_body:
                self._task.cancel()  # whatever it waits for, nobody waits for it
        self._pipeline.clear()  # nobody has looked at these
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._last is not None:
            self._discarded += len(data)
            if self._discarded > DISCARD_BYTES:
                self._transport.abort()
            return
        if self.phase is Phase.HEADER:
            self._header_bytes += len(data)
            self._header_only_bytes += len(data)
        else:
            self._header_bytes = len(data)
        try:
            while data:
                try:
                    self._parser.feed_data(data)
                    break
                except httptools.HttpParserUpgrade as upgrade:
                    # Passed over, as RFC 9110, 7.8 allows: the connection goes on as it is.
                    data = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            self._refuse(_refusal(error))
            return
        if self.phase is Phase.HEADER and self._header_only_bytes > MAX_HEADER_BYTES:
            self._refuse(LONG_URL if len(self._url) > MAX_URL_BYTES else LARGE_HEADER)

    def eof_received(self) -> bool:
        """A client that sends no more may still read: it gets the answers that it waits for, and learns that its
        request was cut short. Returns: whether the transport must not close by itself; with TLS it does anyway."""
        self._ended = True
        if self._last is None:
            if self.phase is Phase.BODY:
                self._refuse(CUT_SHORT)
            elif self.phase is Phase.HEADER:
                self._refuse(NOT_HTTP)
            elif self._cycle is not None:
                self._newest(self._cycle).keep_alive = False
        return self.phase is Phase.ANSWER and self._scheme == "http"

    def pause_writing(self) -> None:
        self._stalled_at = Clock.now
        if self.writable is None:
            self.writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self.writable is not None:
            if not self.writable.done():
                self.writable.set_result(None)
            self.writable = None

    # The parser's side

    def on_message_begin(self) -> None:
        self.phase = Phase.HEADER
        self.since = Clock.now
        self._started_at = self._clock()
        self._header_only_bytes = 0
        self._url = b""
        self._headers = []
        self._expects_continue = False

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self._expects_continue = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        url, headers = self._url, self._headers
        path, _, query = url.partition(b"?")
        if (
            b"%" in path
            or path[:1] != b"/"
            or b"#" in url
            or self._header_bytes > MAX_URL_BYTES
            or len(headers) > MAX_HEADERS
            or parser.should_upgrade()
            or self._surplus
            or len(self._pipeline) >= MAX_PIPELINED
        ):
            refusal = self._refusal_of_header(path)
            if refusal is not None:
                raise Refused(refusal)
        self.phase = Phase.BODY
        self.since = Clock.now
        if self._cycle is None and self.writable is None and not self._expects_continue:
            shortcut = self._shortcuts.get(url)
            if (
                shortcut is not None
                and parser.get_method() == b"POST"
                and parser.get_http_version() == "1.1"
                and (announced := shortcut.admits(headers, self._addresses["client"]))
            ):
                self._shortcut = shortcut
                self._announced = announced
                self._body = []
                return
        self._begin_cycle(path, query)

    def _begin_cycle(self, path: bytes, query: bytes) -> None:
        parser, headers = self._parser, self._headers
        self._headers = NO_TRAILERS
        version = parser.get_http_version()
        scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "scheme": self._scheme,
            "root_path": "",
            "method": parser.get_method().decode(),
            "path": path.decode("ascii"),
            "raw_path": path,
            "query_string": query,
            "headers": headers,
            **self._addresses,
        }
        keep_alive = version == "1.1" and self._may_keep_alive()
        self._parsing = cycle = Cycle(self, scope, keep_alive, self._expects_continue, self._started_at)
        if self._cycle is None:
            self._start(cycle)
        else:
            self._pipeline.append(cycle)
            self.pause_reading()

    def _may_keep_alive(self) -> bool:
        keep: bool = self._parser.should_keep_alive()
        return keep and not (self._stopping or self._surplus)

    def on_body(self, body: bytes) -> None:
        if self._shortcut is not None:
            self._body.append(body)
            return
        cycle = self._parsing
        if cycle is not None and not cycle.response_complete:
            cycle.feed(body)
            if cycle.held_bytes > MAX_HELD_BYTES:
                self.pause_reading()

    def on_message_complete(self) -> None:
        shortcut, self._shortcut = self._shortcut, None
        if shortcut is not None:
            self.phase = Phase.ANSWER
            self.since = Clock.now
            shortcut.release(self._announced)
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self._body = []
            self._cycle = shortcut.take(self, body, self._may_keep_alive(), self._started_at)
            if self._cycle is not None:
                return
            self._begin_cycle(self._url, b"")
            self.on_body(body)
        if self._parsing is not None:
            self._parsing.end_of_body()
        # Without a cycle its answer did not wait for its end.
        self.phase = Phase.IDLE if self._cycle is None else Phase.ANSWER
        self.since = Clock.now

    def _refusal_of_header(self, path: bytes) -> Refusal | None:
        if len(self._url) > MAX_URL_BYTES:
            return LONG_URL
        size = len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._headers)
        if len(self._headers) > MAX_HEADERS or size > MAX_HEADER_BYTES:
            return LARGE_HEADER
        if not path.startswith(b"/") or b"%" in path or b"#" in self._url:
            return BAD_TARGET
        if self._parser.should_upgrade() and any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip(b" 0"))
            for name, value in self._headers
        ):
            return UPGRADE  # the parser would take the body for the next request
        if len(self._pipeline) >= MAX_PIPELINED:
            return PIPELINED
        return FULL if self._surplus and path not in _OPEN_TARGETS else None

    # The cycle's side

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def pause_reading(self) -> None:
        if not self._read_paused:
            self._read_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._read_paused:
            self._read_paused = False
            self._transport.resume_reading()

    def answered(self, exchange: Exchange) -> None:
        self._server.total_requests += 1
        self._observed(exchange)
        self._cycle = None
        if not exchange.keep_alive:
            self.since = Clock.now
            self._transport.close()
        elif self._pipeline:
            self._start(self._pipeline.popleft())
        elif self._last is not None:
            self._send_last(self._last)
        else:
            self.resume_reading()
            if self.phase is Phase.ANSWER:
                self.phase = Phase.IDLE
                self.since = Clock.now

    def failed(self) -> None:
        """The application has not answered: a fault of ours, already logged."""
        self._pipeline.clear()
        if self._last is None:
            self._last = FAILED
            self._send_last(FAILED)

    def _start(self, cycle: Cycle) -> None:
        self._cycle = cycle
        task = self._task = self._loop.create_task(cycle.run(self._app))
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    def _observed(self, exchange: Exchange) -> None:
        status = exchange.status if exchange.response_complete else 0
        self._observe(exchange.route, status, self._clock() - exchange.started_at)

    def _newest(self, exchange: Exchange) -> Exchange:
        """Of the requests under way, beginning with `exchange`."""
        return self._pipeline[-1] if self._pipeline else exchange

    def _refuse(self, refusal: Refusal) -> None:
        """Nothing more is parsed. The requests that were read before keep their answers."""
        self._last = refusal
        if self._cycle is None or self._cycle.more_body:
            self._send_last(refusal)
            return
        if self.phase is Phase.BODY:
            self._pipeline.pop()
        self.phase = Phase.ANSWER

    def _send_last(self, refusal: Refusal) -> None:
        cycle, self._cycle = self._cycle, None
        # A request has one answer: what was said before its body went wrong cannot be mended.
        said = self.phase is Phase.BODY and self._shortcut is None if cycle is None else cycle.status > 0
        if cycle is not None:
            # The application finds its client gone.
            cycle.response_complete = True
            cycle.status = cycle.status or refusal.status
            cycle.disconnect()
            self._observed(cycle)
        elif not said:
            self._observe(self._shortcut.route if self._shortcut else NO_ROUTE, refusal.status, 0.0)
        if not said:
            self._transport.write(refusal.data)
            self._reject({refusal.code: 1})
        self.phase = Phase.LINGER
        self.since = Clock.now
        if self._ended:
            self._transport.close()
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self.resume_reading()

    # The server's side

    def shutdown(self) -> None:
        """The request under way, or the one that may have left its client before it could know, is the last.

        uvicorn's own protocol closes a connection without a request at once, and so resets those that were accepted but
        not read yet.
        """
        if self._stopping:
            return
        self._stopping = True
        if self._cycle is None:
            self._loop.call_later(LINGER_S, self._close_unused)
        else:
            self._newest(self._cycle).keep_alive = False

    def _close_unused(self) -> None:
        if self.phase in (Phase.FIRST, Phase.IDLE):
            self._transport.close()

    def check_deadline(self, now: float) -> None:
        waited_s = now - self.since
        if self.writable is not None or self._transport.is_closing():
            # Its client does not read.
            if now - max(self.since, self._stalled_at) > UNREAD_S:
                self._transport.abort()
            return
        phase = self.phase
        limit_s = SURPLUS_S if self._surplus and phase in (Phase.FIRST, Phase.HEADER) else phase.value
        if waited_s <= limit_s:
            if phase is Phase.IDLE and waited_s > UNREAD_S and self._transport.get_write_buffer_size():
                self._transport.abort()
        elif phase not in (Phase.HEADER, Phase.BODY):
            self.since = now
            self._transport.close()
        elif self._cycle is not None and not self._cycle.more_body:
            self.since = now  # its turn has not come
        else:
            self._refuse(TOO_SLOW)


def _refusal(error: httptools.HttpParserError) -> Refusal:
    """What the client is told: its own mistake or, where one of our callbacks has failed, ours, which is logged."""
    if not isinstance(error, httptools.HttpParserCallbackError):
        return NOT_HTTP
    cause = error.__context__
    if isinstance(cause, Refused):
        return cause.refusal
    log.error("a request could not be taken", exc_info=cause)
    return FAILED


def _address(name: Any) -> tuple[str, int] | None:
    return (name[0], name[1]) if isinstance(name, tuple) else None


def sweep(connections: Iterable[Any], now: float) -> None:
    """Closes the connections that are over their deadline."""
    Clock.now = now
    for connection in connections:
        if isinstance(connection, Protocol):
            with logged("the deadline of a connection"):
                connection.check_deadline(now)


async def sweep_slowly(connections: Collection[Any]) -> None:
    """All connections in about a second; some at a time, since thousands may be over their deadline together, and
    those that are not must not wait for them."""
    loop = asyncio.get_running_loop()
    waiting = list(connections)
    slices = min(MAX_SLICES, len(waiting) // SLICE + 1)
    for number in range(slices):
        sweep(waiting[number::slices], loop.time())
        await asyncio.sleep(SWEEP_S / slices)
