"""One HTTP/1.1 connection under uvicorn's server: httptools' events in, cycles out, with limits and deadlines.

Rules: belongs to the loop's thread. One sweep a second looks at all connections; a timer for each request would cost
as much as the rest of its parsing. A connection is always in one phase, and may stay in it for so long:

    FIRST    a new one, until its first byte              15 s
    IDLE     between two requests                         75 s
    HEADER   from a request's first byte to its header's  10 s
    BODY     from there to the end of its body            30 s
    ANSWER   until the answer is written                  no deadline here: an ack has its own
    LINGER   the last answer is sent; what still comes is thrown away unparsed, so that the client gets to read it

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
from typing import Any, ClassVar, NoReturn, cast

import httptools
import uvicorn
from uvicorn.server import ServerState

from ingest.access import OPEN_PATHS
from ingest.cycle import NO_ROUTE, Cycle, Exchange
from ingest.refusals import (
    BAD_TARGET,
    CHUNKS,
    CUT_SHORT,
    FAILED,
    FULL,
    LARGE_HEADER,
    LONG_URL,
    MAX_CHUNKS,
    MAX_EXTENSION_BYTES,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_URL_BYTES,
    NOT_HTTP,
    PIPELINED,
    TOO_SLOW,
    UPGRADE,
    Refusal,
)
from ingest.responses import App
from ingest.shortcut import Shortcut
from shared.timers import logged

log = logging.getLogger(__name__)

MAX_PIPELINED = 100
"""Requests of one connection that may wait for the answers of those before them."""
MAX_HELD_BYTES = 64 * 1024
"""Of a body that the application has not asked for yet; beyond, reading pauses."""
MAX_IGNORED_BYTES = 64 * 1024
"""Of a body that comes after the answer to its request, as of a GET with a body."""
MAX_WAITING_BYTES = 64 * 1024 * 1024
"""Of all answers in this process that wait for their clients, and all requests that wait behind others."""
MAX_RAW_HEADER_BYTES = MAX_HEADER_BYTES + 256
"""With method, version and line ends: a larger one is not parsed to its end."""
REQUEST_BYTES = 2048
"""What a waiting request takes besides its header, whose every byte may take eight: a field has 100 of its own."""
UNREAD_BYTES = 16 * 1024
"""Of one connection's answers; beyond, it is not worked for until its client has read them."""
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
ENCODED = b"/api/v1/persistence/sessions/"
"""Paths behind it hold ids, percent-encoded; no other path may have a percent sign."""
_ASGI = {"version": "3.0", "spec_version": "2.3"}


class Phase(Enum):
    FIRST = 15.0
    IDLE = 75.0
    HEADER = 10.0
    BODY = 30.0
    ANSWER = float("inf")
    LINGER = 2.0


_BETWEEN = (Phase.IDLE, Phase.FIRST)
"""No request is being read or answered."""


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

    Args: max_connections: of this worker, and max_surplus beyond them that are still listened to; shortcuts: by path;
    observe(route, status, seconds): told of every answer, status 0 where the client left before it; reject(records):
    told of refused requests, each as one record, by reason.
    """

    unread: ClassVar[dict[Protocol, int]] = {}
    """Connections whose clients do not keep up, and the bytes of their answers then; later they are at most as many."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],  # noqa: ARG002 -- uvicorn's signature
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        max_connections: int,
        max_surplus: int = MAX_SURPLUS,
        shortcuts: Mapping[bytes, Shortcut],
        observe: Callable[[str, int, float], None],
        reject: Callable[[Mapping[str, int]], None] = lambda _records: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._app = cast(App, config.loaded_app)
        self._server = server_state
        self._max_connections, self._max_surplus = max_connections, max_surplus
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
        self._body: list[bytes] = []
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._expects_continue = False
        self._started_at = 0.0
        self._line = b""
        """The end of a request line that has not come whole."""
        self._end = b""
        """The last bytes of a read: the end of a header may come in two."""
        self._header_bytes = 0
        self._length = 0
        """Of the last request's body, as it was announced; it is reserved on the short way."""
        self._to_come = 0
        """Of a body with a length. Of a chunked one, less than nothing: the bytes that have come."""
        self._chunks = 0
        self._wire_bytes = 0
        """Of a chunked body."""
        # The one that is being answered, and those behind it
        self._cycle: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._pipeline: deque[Cycle] = deque()
        self._pipeline_bytes = 0
        """What those since it was last empty take."""
        self._last: Refusal | None = None
        """The last answer, once there is one; nothing is parsed any more."""
        # The connection
        self.phase = Phase.FIRST
        self.since = Clock.now
        self.writable: asyncio.Future[None] | None = None
        self._stalled_at = 0.0
        self._read_paused = False
        self._discarded = 0
        """Bytes that were thrown away: of one body, and after the last answer."""
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
        self._transport.set_write_buffer_limits(UNREAD_BYTES)
        surplus = len(self._server.connections) - self._max_connections
        if surplus > 0:
            self._surplus = True
            if surplus > self._max_surplus:
                self._refuse(FULL)
                self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's signature
        self._server.connections.discard(self)
        # They hold us: without them all of it goes at once, with them when the collector comes by.
        del self._parser
        self._parsing = None
        if self._shortcut is not None:
            self._shortcut.release(self._length)
        cycle, self._cycle = self._cycle, None
        if cycle is not None:
            cycle.disconnect()
            self._observed(cycle)
            if self._task is not None and not cycle.more_body:
                self._task.cancel()  # whatever it waits for, nobody waits for it
        self._pipeline.clear()  # nobody has looked at these
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self.phase is Phase.LINGER or self._last is not None:
            self._discarded += len(data)
            if self._discarded > DISCARD_BYTES:
                self._transport.abort()
            return
        try:
            if self.phase in _BETWEEN and (end := self._end_of_only_header(data)):
                self._header_bytes = end
                self._parse(data)
                end += self._length
                self._header_bytes = 0
                if end < len(data) and self.phase is not Phase.BODY:
                    self._check_line(data, end)  # of a request that has just begun behind this one
                    self._header_bytes = len(data) - end
            else:
                self._feed(data)
        except httptools.HttpParserError as error:
            self._refuse(_refusal(error))
        except Refused as refused:
            self._refuse(refused.refusal)

    def _end_of_only_header(self, data: bytes) -> int:
        """Returns: where the header in a read between two requests ends, if there is one and all of it is plain; else
        0. What stands behind it is at most a body, not a chunked one."""
        line = data.find(b"\r\n")
        end = data.find(b"\r\n\r\n", line) + 4
        plain = (
            line > 0 and 3 < end <= MAX_HEADER_BYTES and data[line - 9 : line - 3] == b" HTTP/" and data[0] > 32
        )  # no CR, no LF
        return end if plain and data.find(b"\r", end) < 0 and not self._line else 0

    def _feed(self, data: bytes) -> None:
        """Hands a read to the parser in pieces that end where a header or a body does: what begins there is looked at
        before. Raises: Refused, HttpParserError."""
        start, size = 0, len(data)
        while start < size:
            in_body = self.phase is Phase.BODY
            chunked = in_body and self._to_come <= 0
            begin = start
            if not in_body and (self.phase is not Phase.HEADER or self._line):
                begin = self._check_line(data, start)
            end = min(size, start + self._to_come) if in_body and not chunked else self._end_of_block(data, begin)
            if chunked:
                self._wire_bytes += end - start
            elif not in_body:
                end = min(end, start + MAX_RAW_HEADER_BYTES + 1 - self._header_bytes)
                self._header_bytes += end - start
            self._parse(data[start:end])
            if chunked and self.phase is Phase.BODY:
                if self._wire_bytes + self._to_come > MAX_EXTENSION_BYTES + 16 * self._chunks:
                    raise Refused(CHUNKS)
            elif self.phase is not Phase.HEADER:
                self._header_bytes = 0
            elif self._header_bytes > MAX_RAW_HEADER_BYTES:
                raise Refused(LONG_URL if len(self._url) > MAX_URL_BYTES else LARGE_HEADER)
            start = end
        self._end = data[-3:] if size > 2 else (self._end + data)[-3:]

    def _end_of_block(self, data: bytes, start: int) -> int:
        """Where the next empty line ends: with it a header does, and a chunked body, since it may have no trailer."""
        if start == 0:
            # Its first bytes may have come with the read before.
            found = (self._end + data[:3]).find(b"\r\n\r\n")
            if found >= 0:
                return found + 4 - len(self._end)
        found = data.find(b"\r\n\r\n", start)
        return found + 4 if found >= 0 else len(data)

    def _check_line(self, data: bytes, start: int) -> int:
        """That a request line is HTTP's, and that at most two empty lines stand before it (RFC 9112, 2.2). The
        parser takes RTSP and ICE too, and passes over any CR and LF.

        Returns: where in `data` the request begins. Raises: Refused.
        """
        end = data.find(b"\n", start) + 1
        line = self._line + data[start : end or None]
        while end and line in (b"\r\n", b"\r\n\r\n"):
            start, end = end, data.find(b"\n", end) + 1
            line += data[start : end or None]
        text = line.removeprefix(b"\r\n").removeprefix(b"\r\n")
        if text in (b"", b"\r"):
            self._line = line
            return len(data)
        if text[0] in b"\r\n" or (end and text[-11:-5] != b" HTTP/"):
            raise Refused(NOT_HTTP)
        self._line = b"" if end else text[-16:]
        return start

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # Passed over, as RFC 9110, 7.8 allows: the connection goes on as it is.
                data = data[upgrade.args[0] :]
            else:
                return

    def eof_received(self) -> bool:
        """A client that sends no more may still read: it gets the answers that it waits for, and learns that its
        request was cut short. Returns: whether the transport must not close by itself; with TLS it does anyway."""
        self._ended = True
        if self._last is None:
            if self.phase is Phase.BODY:
                self._refuse(CUT_SHORT)
            elif self.phase is Phase.HEADER:
                self._refuse(NOT_HTTP)
            elif (newest := self._newest()) is not None:
                newest.keep_alive = False
        return self.phase is Phase.ANSWER and self._scheme == "http"

    def pause_writing(self) -> None:
        self._stalled_at = Clock.now
        if self.writable is None:
            self.writable = self._loop.create_future()
        self.unread[self] = self.waiting_bytes
        if sum(self.unread.values()) > MAX_WAITING_BYTES:
            bound_waiting(self.unread)

    def resume_writing(self) -> None:
        if self.writable is None:
            return
        if not self.writable.done():
            self.writable.set_result(None)
        self.writable = None
        self.unread.pop(self, None)
        if self._cycle is None and self._pipeline:
            self._start(self._pipeline.popleft())

    @property
    def waiting_bytes(self) -> int:
        """What the kernel has taken does not count."""
        return self._transport.get_write_buffer_size() + self._pipeline_bytes

    def abort(self) -> None:
        self.unread.pop(self, None)
        self._transport.abort()

    # The parser's side

    def on_message_begin(self) -> None:
        self.phase = Phase.HEADER
        self.since = Clock.now
        self._started_at = self._clock()
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
            (b"%" in path and not path.startswith(ENCODED))
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
                self._length = self._to_come = announced
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
        self._chunks = self._wire_bytes = self._discarded = 0
        # The parser lets only digits through.
        self._length = self._to_come = next((int(value) for name, value in headers if name == b"content-length"), 0)
        self._parsing = cycle = Cycle(self, scope, keep_alive, self._expects_continue, self._started_at)
        if self._cycle is None and self.writable is None:
            self._start(cycle)
        else:
            self._pipeline.append(cycle)
            self._pipeline_bytes += REQUEST_BYTES + 8 * self._header_bytes
            self.pause_reading()

    def _may_keep_alive(self) -> bool:
        keep: bool = self._parser.should_keep_alive()
        return keep and not (self._stopping or self._surplus)

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if self._chunks > MAX_CHUNKS + -self._to_come // 1024:
            raise Refused(CHUNKS)

    def on_body(self, body: bytes) -> None:
        self._to_come -= len(body)
        if self._shortcut is not None:
            self._body.append(body)
            return
        cycle = self._parsing
        if cycle is None:
            return
        if cycle.response_complete:
            self._discarded += len(body)
            if self._discarded > MAX_IGNORED_BYTES:
                raise Refused(NOT_HTTP)
            return
        cycle.feed(body)
        if cycle.held_bytes > MAX_HELD_BYTES:
            self.pause_reading()

    def on_message_complete(self) -> None:
        shortcut, self._shortcut = self._shortcut, None
        if shortcut is not None:
            self.phase = Phase.ANSWER
            self.since = Clock.now
            shortcut.release(self._length)
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self._body = []
            self._cycle = shortcut.take(self, body, self._may_keep_alive(), self._started_at)
            if self._cycle is not None:
                return
            self._begin_cycle(self._url, b"")
            self.on_body(body)
        self._to_come = 0
        if self._parsing is not None:
            self._parsing.end_of_body()
        # Without one under way its answer did not wait for its end.
        self.phase = Phase.IDLE if self._newest() is None else Phase.ANSWER
        self.since = Clock.now

    def _refusal_of_header(self, path: bytes) -> Refusal | None:
        if len(self._url) > MAX_URL_BYTES:
            return LONG_URL
        size = len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._headers)
        if len(self._headers) > MAX_HEADERS or size > MAX_HEADER_BYTES:
            return LARGE_HEADER
        if not path.startswith(b"/") or (b"%" in path and not path.startswith(ENCODED)) or b"#" in self._url:
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
            self._linger(unread=exchange.more_body)
        elif self._pipeline:
            if self.writable is None:
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
        if not self._pipeline:
            self._pipeline_bytes = 0
        self._cycle = cycle
        task = self._task = self._loop.create_task(cycle.run(self._app))
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    def _observed(self, exchange: Exchange) -> None:
        status = exchange.status if exchange.response_complete else 0
        self._observe(exchange.route, status, self._clock() - exchange.started_at)

    def _newest(self) -> Exchange | None:
        """Of the requests under way."""
        return self._pipeline[-1] if self._pipeline else self._cycle

    def _refuse(self, refusal: Refusal) -> None:
        """Nothing more is parsed. The requests that were read before keep their answers."""
        self._last = refusal
        if self._pipeline and self.phase is Phase.BODY:
            self._pipeline.pop()
            self.phase = Phase.HEADER
        if not self._pipeline and (self._cycle is None or self._cycle.more_body):
            self._send_last(refusal)
        else:
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
        self._linger(unread=True)

    def _linger(self, *, unread: bool) -> None:
        """Ends the connection. Where a part of a request is `unread` its client gets to read the answer before: closing
        now would reset the connection."""
        self.since = Clock.now
        self._pipeline.clear()
        if self._ended or not unread:
            self._transport.close()
            return
        self.phase = Phase.LINGER
        self._discarded = 0
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
        newest = self._newest()
        if newest is None:
            self._loop.call_later(LINGER_S, self._close_unused)
        else:
            newest.keep_alive = False

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


def bound_waiting(connections: Iterable[Protocol]) -> None:
    """Closes those with the most waiting bytes where all have over MAX_WAITING_BYTES, and some more, so that this is
    not done again for the next answer."""
    sizes = sorted(((one.waiting_bytes, number, one) for number, one in enumerate(connections)), reverse=True)
    total = sum(size for size, _, _ in sizes)
    if total <= MAX_WAITING_BYTES:
        return
    closed = 0
    for size, _, connection in sizes:
        connection.abort()
        closed += 1
        total -= size
        if total < MAX_WAITING_BYTES * 3 // 4:
            break
    log.warning(
        "too many answers are not read, or requests wait behind others: the %d largest connections were closed", closed
    )


async def sweep_slowly(connections: Collection[Any]) -> None:
    """All connections in about a second; some at a time, since thousands may be over their deadline together, and
    those that are not must not wait for them."""
    loop = asyncio.get_running_loop()
    waiting = list(connections)
    slices = min(MAX_SLICES, len(waiting) // SLICE + 1)
    for number in range(slices):
        sweep(waiting[number::slices], loop.time())
        await asyncio.sleep(SWEEP_S / slices)
    bound_waiting(one for one in connections if isinstance(one, Protocol))
