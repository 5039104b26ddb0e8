"""uvicorn's HTTP protocol with limits and deadlines, and one system call for an answer instead of two.

Rules: belongs to the loop's thread. One sweep a second looks at all connections; a timer for each request would cost
as much as the rest of its parsing. A connection is always in one phase, and may stay in it for so long:

    FIRST    a new one, until its first byte              15 s
    IDLE     between two requests                         75 s
    HEADER   from a request's first byte to its header's  10 s
    BODY     from there to the end of its body            30 s
    ANSWER   until the answer is written                  no deadline here: an ack has its own
    LINGER   the last answer is sent, what still comes is thrown away, so that the client gets to read it

What is refused here no application has seen, or not all of it. It gets the last answer of its connection, after those
of the requests before it. If no application has seen any of it, it is counted under the path "none".
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from enum import Enum
from typing import Any, ClassVar, NoReturn, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ingest.guard import OPEN_PATHS
from ingest.refusals import (
    BAD_TARGET,
    CUT_SHORT,
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

log = logging.getLogger(__name__)

MAX_PIPELINED = 100
"""Requests of one connection that may wait for the answers of those before them."""
MAX_SURPLUS = 64
"""Connections over the limit that are still listened to, each for one request; those beyond are closed at once."""
SURPLUS_S = 2.0
UNREAD_S = 30.0
"""How long an answer may wait for its client to read it."""
DISCARD_BYTES = 64 * 1024 * 1024
LINGER_S = 0.5
"""How long a connection without a request stays when the worker stops: one may be on its way."""


_OPEN_TARGETS = frozenset(path.encode() for path in OPEN_PATHS)


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


class NoTrailers(list[tuple[bytes, bytes]]):
    """Takes the place of the list of header fields once that is complete: fields behind a chunked body would be kept
    without a limit, and nobody reads them."""

    def append(self, field: tuple[bytes, bytes]) -> NoReturn:
        raise ValueError(field[0])


NO_TRAILERS = NoTrailers()


class JoiningTransport:
    """Holds the header of an answer back until its body comes, and writes both at once."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held = b""
        # Everything but write() and close() is the transport's own.
        self.is_closing = transport.is_closing
        self.get_extra_info = transport.get_extra_info
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.set_protocol = transport.set_protocol
        self.get_write_buffer_size = transport.get_write_buffer_size
        self.can_write_eof = transport.can_write_eof
        self.write_eof = transport.write_eof
        self.abort = transport.abort

    def write(self, data: bytes) -> None:
        if self._held:
            data = self._held + data
            self._held = b""
        elif data.endswith(b"\r\n\r\n") and not data.startswith(b"HTTP/1.1 1"):
            self._held = data
            return
        self._transport.write(data)

    def flush(self) -> None:
        """For an answer that has no body."""
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held)

    def close(self) -> None:
        self.flush()
        self._transport.close()


class Protocol(HttpToolsProtocol):
    """Args: max_connections: of this worker; observe(path, status, seconds): told of every refusal."""

    phase = Phase.FIRST
    since = 0.0
    stopping = False
    surplus = False
    header_bytes = 0
    """Of all data that the header of a request is in."""
    header_only_bytes = 0
    """Of data that is nothing but a part of a header."""
    refusal = NOT_HTTP
    last: Refusal | None = None
    """The last answer, once there is one; nothing is parsed any more."""
    stalled_at = 0.0
    discarded = 0
    ended = False
    """Whether the client has said that it sends no more."""
    refused: ClassVar[Counter[str]] = Counter()
    """Of all connections, since the last sweep, by error code."""

    def __init__(
        self, *args: Any, max_connections: int, observe: Callable[[str, int, float], None], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.max_connections = max_connections
        self.observe = observe

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.since = Clock.now
        super().connection_made(cast(asyncio.Transport, JoiningTransport(transport)))
        surplus = len(self.connections) - self.max_connections
        if surplus > 0:
            self.surplus = True
            if surplus > MAX_SURPLUS:
                self._refuse(FULL)
                self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self.last is not None:
            self.discarded += len(data)
            if self.discarded > DISCARD_BYTES:
                self.transport.abort()
            return
        if self.phase is Phase.HEADER:
            self.header_bytes += len(data)
            self.header_only_bytes += len(data)
        else:
            self.header_bytes = len(data)
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # Passed over, as RFC 9110, 7.8 allows: the connection goes on as it is.
                data = data[upgrade.args[0] :]
            except httptools.HttpParserError:
                self._refuse(self.refusal)
                return
            else:
                break
        if self.phase is Phase.HEADER and self.header_only_bytes > MAX_HEADER_BYTES:
            self._refuse(LONG_URL if len(self.url) > MAX_URL_BYTES else LARGE_HEADER)

    def on_message_begin(self) -> None:
        self.phase = Phase.HEADER
        self.since = Clock.now
        self.header_only_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        url = self.url
        if (
            b"%" in url
            or url[:1] != b"/"
            or b"#" in url
            or self.header_bytes > MAX_URL_BYTES
            or len(self.headers) > MAX_HEADERS
            or self.parser.should_upgrade()
            or self.surplus
            or len(self.pipeline) >= MAX_PIPELINED
        ):
            refusal = self._refusal_of_header()
            if refusal is not None:
                self.refusal = refusal
                raise ValueError(refusal.code)
        super().on_headers_complete()
        self.phase = Phase.BODY
        self.since = Clock.now
        self.headers = cast(Any, NO_TRAILERS)
        if self.stopping or self.surplus:
            self.cycle.keep_alive = False

    def _refusal_of_header(self) -> Refusal | None:
        path = self.url.partition(b"?")[0]
        if len(self.url) > MAX_URL_BYTES:
            return LONG_URL
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if len(self.headers) > MAX_HEADERS or size > MAX_HEADER_BYTES:
            return LARGE_HEADER
        if not path.startswith(b"/") or b"%" in path or b"#" in self.url:
            return BAD_TARGET
        if self.parser.should_upgrade() and any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip(b" 0"))
            for name, value in self.headers
        ):
            return UPGRADE  # the parser would take the body for the next request
        if len(self.pipeline) >= MAX_PIPELINED:
            return PIPELINED
        return FULL if self.surplus and path not in _OPEN_TARGETS else None

    def on_message_complete(self) -> None:
        self.phase = Phase.IDLE if self.cycle.response_complete else Phase.ANSWER
        self.since = Clock.now
        super().on_message_complete()

    def on_response_complete(self) -> None:
        cast(JoiningTransport, self.transport).flush()
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self.since = Clock.now
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif self.last is not None:
            self._send_last(self.last)
        elif self.phase is Phase.ANSWER:
            self.phase = Phase.IDLE
            self.since = Clock.now

    def _is_answering(self) -> bool:
        """Whether a request that was read to its end waits for its answer."""
        if self.phase is Phase.BODY:
            return bool(self.pipeline)
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, refusal: Refusal) -> None:
        """Nothing more is parsed. The requests that were read before keep their answers."""
        self.last = refusal
        answering = self._is_answering()
        if self.phase is Phase.BODY:
            if answering:
                self.pipeline.popleft()
            else:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
        if answering:
            self.phase = Phase.ANSWER
        else:
            self._send_last(refusal)

    def _send_last(self, refusal: Refusal) -> None:
        if self.phase is not Phase.BODY:
            self.observe("none", refusal.status, 0.0)
            self.transport.write(refusal.data)
        elif not self.cycle.response_started:
            self.transport.write(refusal.data)  # and the guard counts it as one that went without an answer of its own
        self.refused[refusal.code] += 1
        self.phase = Phase.LINGER
        self.since = Clock.now
        if self.ended:
            self.transport.close()
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()

    def pause_writing(self) -> None:
        self.stalled_at = Clock.now
        super().pause_writing()

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that sends no more may still read: it gets the answers that it waits for, and learns that its
        request was cut short. Returns: whether the transport must not close by itself."""
        self.ended = True
        if self.last is None:
            if self.phase is Phase.BODY:
                self._refuse(CUT_SHORT)
            elif self.phase is Phase.HEADER:
                self._refuse(NOT_HTTP)
            elif self.phase is Phase.ANSWER:
                self.cycle.keep_alive = False
        return self.phase is Phase.ANSWER and self.scheme == "http"

    def shutdown(self) -> None:
        """The request under way, or the one that may have left its client before it could know, is the last.

        uvicorn closes a connection without a request at once, and so resets those that were accepted but not read yet.
        """
        if self.stopping:
            return
        self.stopping = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(LINGER_S, self._close_unused)
        else:
            self.cycle.keep_alive = False

    def _close_unused(self) -> None:
        if self.phase in (Phase.FIRST, Phase.IDLE):
            self.transport.close()

    def check_deadline(self, now: float) -> None:
        waited_s = now - self.since
        if self.flow.write_paused or self.transport.is_closing():
            # Its client does not read.
            if now - max(self.since, self.stalled_at) > UNREAD_S:
                self.transport.abort()
            return
        phase = self.phase
        limit_s = SURPLUS_S if self.surplus and phase in (Phase.FIRST, Phase.HEADER) else phase.value
        if waited_s <= limit_s:
            if phase is Phase.IDLE and waited_s > UNREAD_S and self.transport.get_write_buffer_size():
                self.transport.abort()
        elif phase not in (Phase.HEADER, Phase.BODY):
            self.since = now
            self.transport.close()
        elif self._is_answering():
            self.since = now  # its turn has not come
        else:
            self._refuse(TOO_SLOW)


def sweep(connections: Any, now: float) -> None:
    """Closes the connections that are over their deadline. Call it about once a second."""
    Clock.now = now
    for connection in list(connections):
        if isinstance(connection, Protocol):
            connection.check_deadline(now)
    if Protocol.refused:
        log.warning("refused: %s", ", ".join(f"{count} {code}" for code, count in Protocol.refused.items()))
        Protocol.refused.clear()
