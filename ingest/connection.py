"""One HTTP/1.1 connection: uvicorn's, with limits, deadlines and a fast path for batches.

uvicorn's class makes connections, collects headers and runs ASGI cycles. This one decides what is parsed and when:

- Requests are answered one after the other. Bytes behind a request wait unparsed until it is answered, and reading
  pauses meanwhile.
- A batch with nothing special in its header takes the fast path past ASGI and Falcon (ingest/batches.py).
- A request that cannot be parsed, is over a limit or comes too slowly gets an error from here, its connection's last
  answer. Then the connection lingers: closing it with unread bytes would reset it under the answer.
- A connection is always in one phase (ingest/deadlines.py). It belongs to the loop's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any, ClassVar

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from ingest.access import OPEN_PATHS
from ingest.batches import BatchRoute, FastPathRequest
from ingest.cycle import NO_ROUTE, Cycle
from ingest.deadlines import LAST_REQUEST_S, UNREAD_S, Clock, Phase, bound_unread, limit_s
from ingest.framing import MAX_HEADERS, Chunks, check_header, end_of_header, parser_error
from ingest.headers import body_length, invalid_http
from ingest.responses import ErrorResponse, encode_response, internal_error, too_many_connections

MAX_IGNORED_BYTES = 64 * 1024  # of a body that comes after the answer to its request, as of a GET with a body
MAX_DISCARDED_BYTES = 64 * 1024 * 1024  # after the last answer
UNREAD_BYTES = 16 * 1024
"""Of one connection's answers; beyond, no further request of it is begun until its client has read them."""
MAX_SURPLUS = 64
"""Connections over the limit that may still ask one of the open paths; those beyond are closed at once."""


class Connection(HttpToolsProtocol):
    """Args: max_connections: of this worker, and max_surplus beyond them; batches: fast paths by target; observe(route,
    status, seconds): told of every answer, status 0 where the client left before it; reject(records): told of requests
    refused here, each as one record, by reason.
    """

    cycle: Cycle
    unread: ClassVar[dict[Connection, int]] = {}
    """Connections whose clients do not keep up, and the bytes that they held then."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        max_connections: int,
        max_surplus: int = MAX_SURPLUS,
        batches: Mapping[bytes, BatchRoute],
        observe: Callable[[str, int, float], None],
        reject: Callable[[Mapping[str, int]], None],
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.parser = httptools.HttpRequestParser(self)  # a strict one: uvicorn's is lenient
        self._max_connections, self._max_surplus = max_connections, max_surplus
        self._batches = batches
        self._observe = observe
        self._reject = reject
        self.phase = Phase.FIRST
        self.since = Clock.now
        self._held = b""
        """Bytes that wait: a part of a header or of a chunk's line, or requests behind the current one."""
        self._left = 0
        """Bytes to come of a body with a length."""
        self._chunks: Chunks | None = None
        self._fast: FastPathRequest | None = None
        """The current request, if it takes the fast path; otherwise `cycle` answers it."""
        self._discarded = 0
        """Bytes thrown away: of one body, and after the last answer."""
        self._started_at = self._stalled_at = 0.0
        self._keep_alive = True
        self._is_surplus = self._client_ended = self._stopping = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.write, self.is_closing = transport.write, transport.is_closing
        transport.set_write_buffer_limits(UNREAD_BYTES)
        surplus = len(self.connections) - self._max_connections
        self._is_surplus = surplus > 0
        if surplus > self._max_surplus:
            self._refuse(too_many_connections())
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        fast, self._fast = self._fast, None
        if fast is not None:
            fast.release()
            self._observed(fast.route.path, 0)
        elif self.cycle is not None and not self.cycle.response_complete:
            self.cycle.cancel()
            self._observed(self.cycle.route, 0)
        self.unread.pop(self, None)
        self.phase, self._held = Phase.LINGER, b""
        super().connection_lost(exc)
        self.cycle = None  # type: ignore[assignment]  # it refers to us: both would stay until gc runs

    def data_received(self, data: bytes) -> None:
        if self.phase is Phase.LINGER:
            self._discarded += len(data)
            if self._discarded > MAX_DISCARDED_BYTES:
                self.transport.abort()
            return
        self._held = self._held + data if self._held else data
        self._parse_held()

    def _parse_held(self) -> None:
        """Parses up to the end of a request; bytes behind it wait until it is answered."""
        data, self._held = self._held, b""
        view = memoryview(data)
        start = 0
        try:
            while start < len(data):
                end = self._end_of_piece(data, start)
                if end <= start:
                    break
                try:
                    self.parser.feed_data(view[start:end])
                except httptools.HttpParserUpgrade:
                    pass  # ignored, as RFC 9110, 7.8 allows
                start = end
        except (ErrorResponse, httptools.HttpParserError) as error:
            self._refuse(error if isinstance(error, ErrorResponse) else parser_error(error))
        else:
            self._held = data[start:]
            if self._client_ended:
                self._end_input()

    def _end_of_piece(self, data: bytes, start: int) -> int:
        """Returns: how far the data may be parsed now; `start` or less if not at all. Raises: ErrorResponse."""
        if self.phase is Phase.BODY:
            if self._chunks is not None:
                return self._chunks.end_of_piece(data, start)
            end = min(len(data), start + self._left)
            self._left -= end - start
            return end
        if self.phase is Phase.ANSWER or self.flow.write_paused:
            self.flow.pause_reading()
            return start
        end = end_of_header(data, start)
        if not end and self.phase is not Phase.HEADER and data[start : start + 5].strip(b"\r\n"):
            self._enter(Phase.HEADER)
        return end

    def eof_received(self) -> bool:  # type: ignore[override]
        """Returns: whether the transport must stay open: the client may still read. With TLS it closes anyway."""
        self._client_ended = True
        self._end_input()
        return self.scheme == "http" and (self.phase is Phase.ANSWER or bool(self._held))

    def _end_input(self) -> None:
        """The client gets the answers that it waits for, and learns that its last request was cut short."""
        if self.phase is Phase.BODY:
            self._refuse(ErrorResponse(400, "BODY_CUT_SHORT", "the connection ended before the body did"))
        elif self.phase is Phase.HEADER:
            self._refuse(invalid_http())
        elif self.phase is Phase.ANSWER:
            if not self._held:
                self._make_last()
        elif not self.flow.write_paused:
            self.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled_at = Clock.now
        self.unread[self] = self.held_bytes
        bound_unread(self.unread)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.unread.pop(self, None)
        if self.phase in (Phase.FIRST, Phase.IDLE, Phase.HEADER):
            self._go_on()

    @property
    def held_bytes(self) -> int:
        """Answers that the kernel has not taken, and bytes that wait to be parsed."""
        return self.transport.get_write_buffer_size() + len(self._held)

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._started_at = perf_counter()

    def on_headers_complete(self) -> None:
        parser, headers = self.parser, self.headers
        batch = self._batches.get(self.url)
        if batch is None or len(headers) > MAX_HEADERS or parser.should_upgrade() or self._is_surplus:
            check_header(self.url, headers, upgrade=parser.should_upgrade())
            if self._is_surplus and self.url.partition(b"?")[0].decode() not in OPEN_PATHS:
                raise too_many_connections()
        is_1_1 = parser.get_http_version() == "1.1"
        self._keep_alive = is_1_1 and parser.should_keep_alive() and not (self._stopping or self._is_surplus)
        if batch is not None and is_1_1 and not self.expect_100_continue and parser.get_method() == b"POST":
            self._fast = batch.admit(headers, self.client)
        if self._fast is None:
            length = body_length(headers)
            self._left, self._chunks = length or 0, Chunks() if length is None else None
            self._start_cycle()
        else:
            self._left, self._chunks = self._fast.size, None
        self._enter(Phase.BODY)

    def _start_cycle(self, record_count: int | None = None) -> None:
        """The slow path. Args: record_count: of a body that the fast path has counted."""
        self._discarded = 0
        self.cycle = Cycle(self, self, self._keep_alive, record_count, failed=lambda: self._refuse(internal_error()))
        self._start_asgi_task(self.cycle, self.app)

    def on_body(self, body: bytes) -> None:
        if self._fast is not None:
            self._fast.parts.append(body)
            return
        if self.cycle.response_complete:
            self._discarded += len(body)
            if self._discarded > MAX_IGNORED_BYTES:
                raise invalid_http()
        super().on_body(body)

    def on_message_complete(self) -> None:
        fast = self._fast
        if fast is None:
            self._enter(Phase.IDLE if self.cycle.response_complete else Phase.ANSWER)
        else:
            self._enter(Phase.ANSWER)
            if fast.submit(self._answer_fast):
                return
            self._fast = None
            self._start_cycle(fast.count)
            super().on_body(fast.body)
        super().on_message_complete()
        self.flow.resume_reading()  # a large body has paused it, and a client that leaves must be noticed

    def _answer_fast(self, arrival: int | Exception) -> None:
        """Args: arrival: µs since 1970 UTC, or why there is none."""
        fast, self._fast = self._fast, None
        if fast is not None:  # the client has not left
            status, answer = fast.route.answer(arrival, fast.count, keep_alive=self._keep_alive)
            self.transport.write(answer)
            self._finish(fast.route.path, status)

    def on_response_complete(self) -> None:
        self._keep_alive = self.cycle.keep_alive
        self._finish(self.cycle.route, self.cycle.status)

    def _finish(self, route: str, status: int) -> None:
        self.server_state.total_requests += 1
        self._observe(route, status, perf_counter() - self._started_at)
        if not self._keep_alive:
            self.close()
            return
        if self.phase is Phase.ANSWER:
            self._enter(Phase.IDLE)
        if self._held or self.flow.read_paused:
            self._go_on()

    def _go_on(self) -> None:
        self.flow.resume_reading()
        if self._held:
            self._parse_held()

    def abort(self) -> None:
        self.unread.pop(self, None)
        self.transport.abort()

    def close(self) -> None:
        """Ends the connection after its last answer. A client that still sends gets time to read it."""
        phase, waiting = self.phase, self._held
        if phase is Phase.LINGER:
            return
        self._enter(Phase.LINGER)
        self._held, self._discarded = b"", 0
        if self._client_ended or (phase is Phase.ANSWER and not waiting):
            self.transport.close()
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()

    def _refuse(self, error: ErrorResponse) -> None:
        """Answers the current request instead of the application, unless its answer has begun, and closes."""
        fast, self._fast = self._fast, None
        begun = False
        if fast is not None:
            fast.release()
            self._observed(fast.route.path, error.status)
        elif self.cycle is not None and self.phase in (Phase.BODY, Phase.ANSWER):
            cycle = self.cycle
            begun = cycle.response_started
            if not cycle.response_complete:
                cycle.response_complete = cycle.disconnected = True  # the application finds its client gone
                cycle.message_event.set()
                self._observed(cycle.route, cycle.status or error.status)
        else:
            self._observe(NO_ROUTE, error.status, 0.0)
        if not begun:
            self.transport.write(encode_response(error.status, error.fields, error.body, keep_alive=False))
            self._reject(error.records)
        self.close()

    def shutdown(self) -> None:
        """The current request, or one that may be on its way, is the last. uvicorn closes a connection without a
        request at once, and so resets those that were accepted and not read yet."""
        if not self._stopping:
            self._stopping = True
            self._make_last()
            self.loop.call_later(LAST_REQUEST_S, self._close_unused)

    def _make_last(self) -> None:
        self._keep_alive = False
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def _close_unused(self) -> None:
        if self.phase in (Phase.FIRST, Phase.IDLE):
            self.transport.close()

    def check_deadline(self, now: float) -> None:
        waited_s = now - self.since
        if self.flow.write_paused or self.transport.is_closing():
            if now - max(self.since, self._stalled_at) > UNREAD_S:
                self.transport.abort()
        elif waited_s <= limit_s(self.phase, is_surplus=self._is_surplus):
            if self.phase is Phase.IDLE and waited_s > UNREAD_S and self.transport.get_write_buffer_size():
                self.transport.abort()
        elif self.phase in (Phase.HEADER, Phase.BODY):
            self._refuse(ErrorResponse(408, "REQUEST_TOO_SLOW", "the request did not come in time"))
        else:
            self.since = now
            self.transport.close()

    def _observed(self, route: str, status: int) -> None:
        self._observe(route, status, perf_counter() - self._started_at)

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self.since = Clock.now
