"""One request and its answer: ASGI's receive() and send(), as lean as they can be in Python.

uvicorn's own cycle costs as much as validation and forwarding together (docs/PERFORMANCE.md). This one writes header
and body of an answer at once, copies no body that came in one piece, adds a Content-Length where the whole body is at
hand, and sends an answer whose length nobody knows in chunks.

Rules: belongs to the loop's thread. Its protocol feeds it, and is told when the answer is complete.
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import Protocol

from ingest.responses import App, CutOff, Message, Scope

log = logging.getLogger(__name__)

NO_ROUTE = "none"
"""Stands for the path of what no application has seen."""
NO_OTHER_SITE = b"x-content-type-options: nosniff\r\ncross-origin-resource-policy: same-origin\r\n"
"""Of every answer: a browser takes none for a script or an image, and hands none to a page of another site."""
_FIRST_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() + NO_OTHER_SITE for status in HTTPStatus
}
_DISCONNECT: Message = {"type": "http.disconnect"}


class Connection(Protocol):
    """What a cycle asks of the connection that it belongs to."""

    writable: asyncio.Future[None] | None
    """Done when the client has read enough of what was written; None while it keeps up."""

    def write(self, data: bytes) -> None: ...

    def resume_reading(self) -> None: ...

    def answered(self, exchange: Exchange) -> None:
        """The answer is complete."""
        ...

    def failed(self) -> None:
        """There will be no answer."""
        ...


class Exchange:
    """A request and its answer, as far as its connection has to know. `status` is 0 until the answer begins;
    `disconnected` once nobody is there to read it."""

    __slots__ = ("disconnected", "keep_alive", "more_body", "response_complete", "started_at", "status")

    def __init__(self, keep_alive: bool, started_at: float) -> None:
        self.keep_alive = keep_alive
        self.started_at = started_at
        self.more_body = True
        self.status = 0
        self.response_complete = False
        self.disconnected = False

    @property
    def route(self) -> str:
        """For the metrics."""
        return NO_ROUTE

    def disconnect(self) -> None:
        self.disconnected = True


class Cycle(Exchange):
    """The long way: an ASGI application answers."""

    __slots__ = ("_chunks", "_connection", "_headers", "_left", "_waiter", "expects_continue", "held_bytes", "scope")

    def __init__(
        self, connection: Connection, scope: Scope, keep_alive: bool, expects_continue: bool, started_at: float
    ) -> None:
        super().__init__(keep_alive, started_at)
        self._connection = connection
        self.scope = scope
        self.expects_continue = expects_continue
        self.held_bytes = 0
        self._chunks: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._headers: list[tuple[bytes, bytes]] | None = None
        self._left = 0

    @property
    def route(self) -> str:
        route: str = self.scope.get("route", NO_ROUTE)
        return route

    async def run(self, app: App) -> None:
        """The application's turn. A fault of ours is logged and ends the connection, after a 500 if there is time."""
        try:
            await app(self.scope, self.receive, self.send)
            if not (self.response_complete or self.disconnected):
                log.error("%s: the application did not answer", self.scope["path"])
                self._connection.failed()
        except CutOff as error:
            log.warning("%s: the answer was cut off: %s", self.scope["route"], error)
            self._connection.failed()
        except Exception:
            extra = {"request_id": self.scope["request_id"]} if "request_id" in self.scope else None
            log.exception("%s failed", self.scope["path"], extra=extra)
            self._connection.failed()

    # Fed by the protocol

    def feed(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self.held_bytes += len(chunk)
        self._wake()

    def end_of_body(self) -> None:
        self.more_body = False
        self._wake()

    def disconnect(self) -> None:
        self.disconnected = True
        self._wake()

    # ASGI's side

    async def receive(self) -> Message:
        if self.expects_continue:
            self.expects_continue = False
            if self.more_body and not self.disconnected and not self.status:
                self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while self.more_body and not self._chunks and not self.disconnected and not self.response_complete:
            self._connection.resume_reading()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self.disconnected or self.response_complete:
            return _DISCONNECT
        chunks = self._chunks
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self._chunks = []
        self.held_bytes = 0
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: Message) -> None:
        if self._connection.writable is not None:
            await asyncio.shield(self._connection.writable)
        if self.disconnected:
            return
        if message["type"] == "http.response.body":
            self._send_body(message.get("body", b""), more=message.get("more_body", False))
            return
        if self.status:
            raise RuntimeError("the answer has begun already")
        self.status = message["status"]
        self._left = -1
        headers = []
        for name, value in message["headers"]:
            if name == b"content-length":
                self._left = int(value)
            elif name == b"connection" and value == b"close":
                self.keep_alive = False
            else:
                headers.append((name, value))
        if "request_id" in self.scope:
            headers.append((b"x-request-id", self.scope["request_id"].encode()))
        self._headers = headers

    def _send_body(self, body: bytes, *, more: bool) -> None:
        if not self.status or self.response_complete:
            raise RuntimeError("a body has no place here")
        if self._left < 0 and not more and self._headers is not None:
            self._left = len(body)
        length = self._left
        if length >= 0:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("an answer must have as many bytes as it says")
        else:
            body = self._chunk(body, more=more)
        if self.scope["method"] == "HEAD":
            body = b""
        if self._headers is not None:
            if length < 0 and self.scope["http_version"] == "1.1":
                self._headers.append((b"transfer-encoding", b"chunked"))
            head = encode_head(self.status, self._headers, length=length, keep_alive=self.keep_alive)
            self._headers = None
            self._connection.write(head + body)
        elif body:
            self._connection.write(body)
        if not more:
            self.response_complete = True
            self._wake()
            self._connection.answered(self)

    def _chunk(self, body: bytes, *, more: bool) -> bytes:
        """RFC 9112, 7.1; to HTTP/1.0 the end of the connection is the end of the answer."""
        if self.scope["http_version"] != "1.1":
            self.keep_alive = False
            return body
        return (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"" if more else b"0\r\n\r\n")

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def encode_head(status: int, headers: list[tuple[bytes, bytes]], *, length: int, keep_alive: bool) -> bytes:
    """Status line and header of an answer with a body of `length` bytes, -1 where nobody knows how many.

    Raises: RuntimeError, where a field would be more than one.
    """
    parts = [_FIRST_LINES[status]]
    for name, value in headers:
        parts.append(b"%b: %b\r\n" % (name, value))
    if not keep_alive:
        parts.append(b"connection: close\r\n")
    if length >= 0:
        parts.append(b"content-length: %d\r\n" % length)
    parts.append(b"\r\n")
    head = b"".join(parts)
    lines = len(parts) + 2
    if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head:
        raise RuntimeError("a header of the answer has a line break in it")
    return head
