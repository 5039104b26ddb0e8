"""uvicorn's HTTP protocol with deadlines, and one system call for an answer instead of two.

Rules: belongs to the loop's thread. One sweep a second looks at all connections; a timer for each request would cost
as much as the rest of its parsing. A connection is always in one phase, and may stay in it for so long:

    FIRST    until the first byte of a request            KEEP_ALIVE_S
    HEADER   from there to the end of its header          HEADER_S
    BODY     from there to the end of its body            BODY_S
    ANSWER   until the answer is written                  no deadline here: an ack has its own
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

KEEP_ALIVE_S = 75.0
HEADER_S = 10.0
BODY_S = 30.0
LINGER_S = 0.5
"""How long a connection without a request stays when the worker stops: one may be on its way."""


def _last_answer(status: bytes, code: bytes, detail: bytes) -> bytes:
    """An answer that no application gives, since it never saw the request, or not all of it."""
    document = b'{"detail":"%b","error_code":"%b","errors":[]}' % (detail, code)
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        len(document),
        document,
    )


_TOO_SLOW_ANSWER = _last_answer(b"408 Request Timeout", b"REQUEST_TOO_SLOW", b"the request did not come in time")
_CUT_SHORT_ANSWER = _last_answer(b"400 Bad Request", b"BODY_CUT_SHORT", b"the connection ended before the body did")
_NOT_HTTP_ANSWER = _last_answer(b"400 Bad Request", b"INVALID_HTTP", b"this is no valid HTTP request")


class Phase(Enum):
    FIRST = KEEP_ALIVE_S
    HEADER = HEADER_S
    BODY = BODY_S
    ANSWER = float("inf")


class Clock:
    """Seconds, as of the last sweep: exact to a second and free."""

    now = 0.0


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
    phase = Phase.FIRST
    since = 0.0
    stopping = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.since = Clock.now
        super().connection_made(cast(asyncio.Transport, JoiningTransport(transport)))

    def on_message_begin(self) -> None:
        self.phase = Phase.HEADER
        self.since = Clock.now
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self.phase = Phase.BODY
        self.since = Clock.now
        super().on_headers_complete()
        if self.stopping:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        self.phase = Phase.ANSWER
        super().on_message_complete()

    def on_response_complete(self) -> None:
        cast(JoiningTransport, self.transport).flush()
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif self.phase is Phase.ANSWER:
            self.phase = Phase.FIRST
            self.since = Clock.now

    def eof_received(self) -> None:
        """A client that sends no more may still read: it learns that its body was cut short. The transport then closes
        by itself."""
        if self.phase is Phase.BODY and not self.pipeline and not self.cycle.response_started:
            self.transport.write(_CUT_SHORT_ANSWER)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 -- uvicorn's signature
        self.transport.write(_NOT_HTTP_ANSWER)
        self.transport.close()

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
        if self.phase is Phase.FIRST:
            self.transport.close()

    def check_deadline(self, now: float) -> None:
        if now - self.since <= self.phase.value:
            return
        if self.phase is not Phase.FIRST and not (self.cycle and self.cycle.response_started):
            self.transport.write(_TOO_SLOW_ANSWER)
        self.transport.close()


def sweep(connections: Any, now: float) -> None:
    """Closes the connections that are over their deadline. Call it about once a second."""
    Clock.now = now
    for connection in list(connections):
        if isinstance(connection, Protocol):
            connection.check_deadline(now)
