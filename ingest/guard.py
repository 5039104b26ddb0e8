"""The outermost ASGI layer: checks a request before a byte of its body is read, and reads the body.

Order: form of the header -> access -> path and method -> type, encoding and announced size -> room -> body, counted as
it comes, compared with its announced size, unpacked under the same limit. The application gets the body in the scope.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from ingest.access import Access
from ingest.headers import check_form, is_host, is_json
from ingest.reading import target_of
from ingest.request_ids import accept_client_id, log_error, request_id
from ingest.responses import CLOSE, JSON_TYPE, App, ErrorResponse, Message, Receive, Scope, Send
from ingest.unpacking import MEMBER_WORK, PIECE_BYTES, SMALL_BODY_BYTES, gunzip, too_large

MAX_READING_BYTES = 128 * 1024 * 1024
"""Bodies of all requests that are being read or answered in this process, as far as they have come."""
UNKNOWN_ROUTE = "other"
_GZIP = (b"gzip", b"x-gzip")
_ENCODINGS = (b"identity", *_GZIP)


class ClientGone(Exception):
    """The client left in the middle of its body: nobody reads an answer."""


class Guard:
    """Args: reading: answers the paths that target_of() names; routes: methods by path; posts_with_body: paths whose
    POST has a JSON body; reject(records): told of refused records, by reason."""

    def __init__(
        self,
        app: App,
        access: Access,
        *,
        reading: App | None = None,
        routes: Mapping[str, frozenset[str]],
        posts_with_body: frozenset[str],
        max_body_bytes: int,
        max_reading_bytes: int = MAX_READING_BYTES,
        reject: Callable[[Mapping[str, int]], None] = lambda _records: None,
    ) -> None:
        self._app = app
        self._access = access
        self._reading = reading
        self._routes = routes
        self._posts_with_body = posts_with_body
        self._max_body_bytes = max_body_bytes
        self._max_reading_bytes = max_reading_bytes
        self._reject = reject
        self._reading_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        # For the metrics. Unknown paths share a name: clients must not be able to make new series.
        scope["route"] = path if path in self._routes else UNKNOWN_ROUTE
        headers = dict(scope["headers"])
        held = 0
        unread = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        try:
            if b"x-request-id" in headers:
                accept_client_id(scope, headers[b"x-request-id"])
            if (
                len(headers) != len(scope["headers"])
                or not is_host(headers.get(b"host", b"?"))
                or b"transfer-encoding" in headers
                or scope["http_version"] != "1.1"
            ):
                check_form(scope, headers)
            self._access.check(scope, headers)
            app = self._route(scope)
            if scope["method"] == "HEAD" and app is self._app:
                # uvicorn's cycle reads the method from its own scope: no body may follow.
                request_id(scope)
                scope = {**scope, "method": "GET"}
            if path in self._posts_with_body and scope["method"] == "POST":
                gzipped, announced = self._check_headers(headers)
                body = await self._read(receive, announced)
                held = len(body)
                unread = False
                receive = _nothing_left
                if gzipped:
                    body = await self._unpack(body)
                    held += len(body)
                scope["body"] = body
            await app(scope, receive, send)
        except ErrorResponse as error:
            error.__traceback__ = None  # Falcon's frames refer to the error: the body would stay until gc runs
            self._report(scope, error)
            fields = error.fields if CLOSE in error.fields or not unread else [*error.fields, CLOSE]
            await send({"type": "http.response.start", "status": error.status, "headers": fields})
            await send({"type": "http.response.body", "body": error.body})
        except ClientGone:
            return
        finally:
            self._reading_bytes -= held
            scope.pop("body", None)  # its connection keeps the scope until the next request

    def _report(self, scope: Scope, error: ErrorResponse) -> None:
        """Logs it, and counts the records that it refuses: a batch may come by a wrong path or method too."""
        log_error(scope, error)
        route = scope["route"]
        takes_none = "POST" in self._routes.get(route, ()) and route not in self._posts_with_body
        if scope["method"] not in ("GET", "HEAD") and not takes_none:
            self._reject(error.records)

    def _route(self, scope: Scope) -> App:
        """Which application answers. Raises: ErrorResponse."""
        app = self._app
        if self._reading is not None and scope["path"] not in self._posts_with_body:
            target = target_of(scope["raw_path"])
            if target is not None:
                scope["route"], scope["target"] = target.route, target
                app = self._reading
        methods = self._routes.get(scope["route"])
        if methods is None:
            raise ErrorResponse(404, "NOT_FOUND", "there is nothing at this path")
        allowed = methods | {"HEAD"} if "GET" in methods else methods
        if scope["method"] not in allowed:
            allow = ", ".join(sorted(allowed))
            raise ErrorResponse(405, "METHOD_NOT_ALLOWED", f"this path takes {allow}", headers={"Allow": allow})
        return app

    def _check_headers(self, headers: Mapping[bytes, bytes]) -> tuple[bool, int | None]:
        """Returns: whether the body is gzipped, and its announced length. Raises: ErrorResponse."""
        content_type = headers.get(b"content-type", b"")
        if content_type != JSON_TYPE and not is_json(content_type):
            raise ErrorResponse(415, "UNSUPPORTED_MEDIA_TYPE", "the body must be application/json in UTF-8")
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding not in _ENCODINGS:
            accept = {"Accept-Encoding": "gzip"}
            detail = "Content-Encoding may be identity or gzip"
            raise ErrorResponse(415, "UNSUPPORTED_ENCODING", detail, headers=accept)
        length = headers.get(b"content-length")
        announced = None if length is None else int(length)  # the HTTP parser lets only digits through
        if announced is not None and announced > self._max_body_bytes:
            raise too_large(self._max_body_bytes)
        return encoding in _GZIP, announced

    def _check_room(self, size: int, to_come: int = 0) -> None:
        """Args: size: of one body, counted in already but for `to_come` bytes. Raises: ErrorResponse."""
        if size > SMALL_BODY_BYTES and self._reading_bytes + to_come > self._max_reading_bytes:
            detail = "too many large requests at once"
            raise ErrorResponse(503, "TOO_MANY_BYTES_IN_FLIGHT", detail, headers={"Retry-After": "1"})

    async def _read(self, receive: Receive, announced: int | None) -> bytes:
        """The whole body, counted in as it comes: an announcement alone holds nothing. The connection bounds the time.

        Raises: ErrorResponse, ClientGone; then nothing is counted in.
        """
        if announced is not None:
            self._check_room(announced, to_come=announced)
        parts: list[bytes] = []
        size = 0
        more = True
        try:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                parts.append(message.get("body", b""))
                more = message.get("more_body", False)
                size += len(parts[-1])
                self._reading_bytes += len(parts[-1])
                if size > self._max_body_bytes:
                    raise too_large(self._max_body_bytes)
                self._check_room(size)
            if announced is not None and size != announced:
                raise ErrorResponse(400, "BODY_CUT_SHORT", f"{announced} bytes were announced, {size} came")
        except BaseException:
            self._reading_bytes -= size
            raise
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _unpack(self, body: bytes) -> bytes:
        """Unpacks gzip, counted in piece by piece. Raises: ErrorResponse; then nothing more is counted in."""
        unpacked = bytearray()
        work = 0
        try:
            for piece in gunzip(body, self._max_body_bytes):
                unpacked += piece
                self._reading_bytes += len(piece)
                self._check_room(len(unpacked))
                work += len(piece) + MEMBER_WORK
                if work > PIECE_BYTES:
                    work = 0
                    await asyncio.sleep(0)  # the loop's other tasks have their turn
        except BaseException:
            self._reading_bytes -= len(unpacked)
            raise
        return bytes(unpacked)


async def _nothing_left() -> Message:
    """Falcon asks for a first message even where nobody reads the body."""
    return {"type": "http.request", "body": b"", "more_body": False}
