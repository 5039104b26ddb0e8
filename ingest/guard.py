"""The outermost ASGI layer: what a request must pass before a byte of its body is read, and how it is read.

Order: whether everybody on the way reads the header alike -> who asks (ingest/access.py) -> path and method ->
type, encoding and declared size -> room -> body, counted as it comes, compared with what was declared, unpacked under
the same limit. The body is then handed on in the scope, so that nothing behind has to know how it came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence

from ingest.access import Access
from ingest.headers import check_form, is_host, is_json
from ingest.reading import target_of
from ingest.request_ids import log_problem, request_id, take
from ingest.responses import JSON_TYPE, App, ErrorResponse, Message, Receive, Scope, Send
from ingest.unpacking import MEMBER_WORK, PIECE_BYTES, SMALL_BODY_BYTES, gunzip, too_large

MAX_READING_BYTES = 128 * 1024 * 1024
"""Bodies of all requests that are being read or answered in this process, as far as they have come."""
MAX_SHORTCUT_BYTES = 32 * 1024 * 1024
"""Bodies over SMALL_BODY_BYTES on the short way (ingest/shortcut.py), as announced; more take the long way."""
UNKNOWN_ROUTE = "other"
_GZIP = (b"gzip", b"x-gzip")
_ENCODINGS = (b"identity", *_GZIP)


class ClientGone(Exception):
    """The client has left in the middle of its body: there is nobody to answer."""


class Guard:
    """Args: reading: answers what target_of() names; routes: methods by path; posts_with_body: the paths whose POST has
    a JSON body; reject(records): told of refused records, by reason."""

    def __init__(
        self,
        app: App,
        *,
        reading: App | None = None,
        routes: Mapping[str, frozenset[str]],
        posts_with_body: frozenset[str],
        auth_token: str | None,
        read_token: str | None = None,
        protected_mode: bool,
        allowed_hosts: Collection[str] = (),
        max_body_bytes: int,
        max_reading_bytes: int = MAX_READING_BYTES,
        reject: Callable[[Mapping[str, int]], None] = lambda _records: None,
    ) -> None:
        self._app = app
        self._reading = reading
        self._routes = routes
        self._posts_with_body = posts_with_body
        self._access = Access(
            auth_token, read_token=read_token, protected_mode=protected_mode, allowed_hosts=allowed_hosts
        )
        self._max_body_bytes = max_body_bytes
        self._max_reading_bytes = max_reading_bytes
        self._reject = reject
        self._reading_bytes = 0
        self._shortcut_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        # For the metrics. Paths that don't exist share a name: strangers must not be able to make new series.
        scope["route"] = path if path in self._routes else UNKNOWN_ROUTE
        held = 0
        read = False
        headers: dict[bytes, bytes] = {}
        try:
            headers = dict(scope["headers"])
            if b"x-request-id" in headers:
                take(scope, headers[b"x-request-id"])
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
                # The server knows from its own scope, which must stay as it is, that no body may follow.
                request_id(scope)
                scope = {**scope, "method": "GET"}
            if path in self._posts_with_body and scope["method"] == "POST":
                gzipped, declared = self._check_headers(headers)
                body = await self._read(receive, declared)
                held = len(body)
                read = True
                receive = _nothing_left
                if gzipped:
                    body = await self._unpack(body)
                    held += len(body)
                scope["body"] = body
            await app(scope, receive, send)
        except ErrorResponse as problem:
            self.report(scope, problem)
            has_body = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
            await _answer(problem, send, unread=has_body and not read)
        except ClientGone:
            return
        finally:
            self._reading_bytes -= held

    def report(self, scope: Scope, problem: ErrorResponse) -> None:
        """Logs it, and counts the records that it refuses: a batch may come by a wrong path or method too."""
        log_problem(scope, problem)
        route = scope["route"]
        takes_none = "POST" in self._routes.get(route, ()) and route not in self._posts_with_body
        if scope["method"] not in ("GET", "HEAD") and not takes_none:
            self._reject(problem.records)

    def is_plain(
        self, fields: Sequence[tuple[bytes, bytes]], headers: Mapping[bytes, bytes], client: tuple[str, int] | None
    ) -> bool:
        """Whether a POST of a batch with this header passes all that is checked above and below, at a glance.

        A no means a closer look. Args: fields: of the header; headers: the same by name.
        """
        if (
            len(headers) != len(fields)
            or b"host" not in headers
            or b"transfer-encoding" in headers
            or b"content-encoding" in headers
            or b"x-request-id" in headers
            or b"origin" in headers
            or b"sec-fetch-site" in headers
            or headers.get(b"content-type") != JSON_TYPE
            or not is_host(headers[b"host"])
        ):
            return False
        return self._access.admits(headers, client)

    def reserve(self, size: int) -> bool:
        """Whether a body of `size` bytes may come by the short way; if so, release() must follow."""
        if size > self._max_body_bytes:
            return False
        if size > SMALL_BODY_BYTES:
            if self._shortcut_bytes + size > MAX_SHORTCUT_BYTES:
                return False
            self._shortcut_bytes += size
        return True

    def release(self, size: int) -> None:
        if size > SMALL_BODY_BYTES:
            self._shortcut_bytes -= size

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
            detail = f"this path takes {allow}"
            raise ErrorResponse(405, "METHOD_NOT_ALLOWED", detail, headers={"Allow": allow})
        return app

    def _check_headers(self, headers: Mapping[bytes, bytes]) -> tuple[bool, int | None]:
        """Returns: whether the body is gzipped, and its declared length."""
        content_type = headers.get(b"content-type", b"")
        if content_type != JSON_TYPE and not is_json(content_type):
            raise ErrorResponse(415, "UNSUPPORTED_MEDIA_TYPE", "the body must be application/json in UTF-8")
        encoding = headers.get(b"content-encoding", b"identity")
        if encoding != b"identity" and encoding.strip().lower() not in _ENCODINGS:
            raise ErrorResponse(
                415,
                "UNSUPPORTED_ENCODING",
                "Content-Encoding may be identity or gzip",
                headers={"Accept-Encoding": "gzip"},
            )
        length = headers.get(b"content-length")
        declared = int(length) if length is not None else None  # the HTTP parser lets only digits through
        if declared is not None and declared > self._max_body_bytes:
            raise too_large(self._max_body_bytes)
        return encoding.strip().lower() in _GZIP, declared

    def _check_room(self, size: int, to_come: int = 0) -> None:
        """Args: size: of one body, counted in already but for `to_come` bytes."""
        if size > SMALL_BODY_BYTES and self._reading_bytes + to_come > self._max_reading_bytes:
            detail = "too many large requests at once"
            raise ErrorResponse(503, "TOO_MANY_BYTES_IN_FLIGHT", detail, headers={"Retry-After": "1"})

    async def _read(self, receive: Receive, declared: int | None) -> bytes:
        """The whole body, counted in as it comes; who only announces much holds nothing.

        The protocol below bounds the time. Raises: ErrorResponse, ClientGone; then nothing is counted in.
        """
        if declared is not None:
            self._check_room(declared, to_come=declared)
        parts: list[bytes] = []
        size = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part: bytes = message.get("body", b"")
                size += len(part)
                self._reading_bytes += len(part)
                if size > self._max_body_bytes:
                    raise too_large(self._max_body_bytes)
                self._check_room(size)
                if not message.get("more_body"):
                    break
                parts.append(part)
            if declared is not None and size != declared:
                raise ErrorResponse(400, "BODY_CUT_SHORT", f"{declared} bytes were announced, {size} came")
        except BaseException:
            self._reading_bytes -= size
            raise
        return b"".join([*parts, part]) if parts else part

    async def _unpack(self, body: bytes) -> bytes:
        """The body out of gzip, counted in piece by piece. Raises: ErrorResponse; then nothing more is counted in."""
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
    """What Falcon receives: it asks for the first message of the body even where nobody reads it."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def _answer(problem: ErrorResponse, send: Send, *, unread: bool) -> None:
    """Sends a problem. Where the body is unread the connection ends with it."""
    headers = list(problem.fields)
    if unread and (b"connection", b"close") not in headers:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": problem.body})
