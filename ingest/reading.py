"""The read side's paths: hands the reader's answers through, piece by piece, each when the caller has taken the last.

Nothing of an answer but an error is looked at here. A reader that is away, or dies before its answer has begun, is a
503; one that dies later cuts the caller's connection off. Rules: belongs to the loop's thread; a Unix connection each
request.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from urllib.parse import unquote_to_bytes

import msgspec
import orjson
from falcon import mediatypes

from ingest.forwarder import FlusherUnavailable, Forwarder
from ingest.parameters import invalid_parameter, parse_timeout
from ingest.responses import CutOff, ErrorResponse, Receive, Scope, Send, flush_incomplete, unavailable
from shared.reading import (
    JSON_TYPE,
    LENGTH,
    MAX_PIECE_BYTES,
    NDJSON_TYPE,
    PREFIX,
    ROUTES,
    TASKS,
    Call,
    Head,
    InvalidRequest,
    parameters,
)

FRESH_TIMEOUT_S = 5.0
MAX_CALLS = 32
"""At once; the reader takes no more."""
MAX_IGNORED_BYTES = 64 * 1024
_SLACK_S = 5.0
"""The reader is waited for three times as long as a statement may take, since a call waits for others before it and may
need several, and so much longer."""
_BAD_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ZERO = re.compile(r"\s{0,9}q=0(\.0{0,3})?\s{0,9}", re.IGNORECASE)
_OF_EVERY_ANSWER = ((b"cache-control", b"no-store"), (b"vary", b"accept, accept-encoding"))


class Target(msgspec.Struct, frozen=True):
    """What a path names."""

    route: str
    session_id: str | None = None
    task_id: str | None = None


def target_of(raw_path: bytes) -> Target | None:
    """A path as it stands in the request -> what it names; None where it is none of the read side's.

    Ids are decoded once: `%2F` is a slash in an id, `%252F` is `%2F`. Raises: ErrorResponse for an id that is not
    percent-encoded UTF-8.
    """
    prefix, *parts = raw_path[len(PREFIX) :].split(b"/", 4)
    if not raw_path.startswith(PREFIX.encode()) or prefix or not all(parts) or parts[1:2] not in ([], [b"tasks"]):
        return None
    if len(parts) >= len(ROUTES):
        return None
    ids = [_decoded(part) for part in parts[::2]]
    return Target(ROUTES[len(parts)], *ids)


def _decoded(segment: bytes) -> str:
    try:
        if not _BAD_PERCENT.search(segment):
            return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        pass
    raise ErrorResponse(400, "INVALID_PATH", "an id in a path must be percent-encoded UTF-8")


class Reading:
    """ASGI. Args: path: the reader's socket, None where `read.enabled` is false; timeout_s: of a statement; cut_off():
    told of each answer that breaks off."""

    def __init__(
        self, path: str | None, forwarder: Forwarder, *, timeout_s: float, cut_off: Callable[[], None] = lambda: None
    ) -> None:
        self._path = path
        self._forwarder = forwarder
        self._timeout_s = 3 * timeout_s + _SLACK_S
        self._cut_off = cut_off
        self._calls = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises: ErrorResponse, CutOff."""
        if self._path is None:
            raise ErrorResponse(404, "READ_DISABLED", "reading is switched off (read.enabled)")
        await _pass_over_body(receive)
        target: Target = scope["target"]
        query = scope["query_string"].decode("latin-1")
        await self._freshen(query)
        call = Call(
            session_id=target.session_id,
            tasks=target.route == TASKS,
            task_id=target.task_id,
            query=query,
            stream=target.route == TASKS and _wants_stream(scope["headers"]),
            gzip=_takes_gzip(scope["headers"]),
            pending_records=await self._pending() if target.route in (PREFIX, TASKS) else None,
        )
        if self._calls >= MAX_CALLS:
            raise ErrorResponse(503, "READ_BUSY", f"{MAX_CALLS} reads are under way", headers=_SOON)
        self._calls += 1
        try:
            await self._call(self._path, call, send, head_only=scope["method"] == "HEAD")
        finally:
            self._calls -= 1

    async def _call(self, path: str, call: Call, send: Send, *, head_only: bool) -> None:
        try:
            stream, writer = await asyncio.open_unix_connection(path, limit=2 * MAX_PIECE_BYTES)
        except OSError as error:
            raise _away(error.strerror or str(error)) from error
        try:
            writer.write(msgspec.json.encode(call) + b"\n")
            await self._pass_on(stream, send, head_only=head_only)
        finally:
            writer.transport.abort()

    async def _freshen(self, query: str) -> None:
        """Where the caller asks for it, everything accepted before is in the database first. Raises: ErrorResponse."""
        try:
            given = parameters(query, None)
        except InvalidRequest as error:
            raise ErrorResponse(400, error.code, str(error)) from error
        fresh = given.get("fresh")
        timeout_s = parse_timeout(given.get("timeout"), FRESH_TIMEOUT_S)
        if fresh is None:
            return
        if fresh != "flushed":
            raise invalid_parameter("fresh", fresh, "flushed")
        try:
            pending = orjson.loads(await self._forwarder.flush(timeout_s))["pending"]
        except FlusherUnavailable as error:
            raise unavailable(error) from error
        if pending:
            raise flush_incomplete(pending, timeout_s)

    async def _pending(self) -> int | None:
        """Records of this node that the database has not yet; None while the flusher is away."""
        try:
            count: int = orjson.loads(await self._forwarder.stats(1.0))["at_risk"]["uncommitted_records"]
        except FlusherUnavailable:
            return None
        return count

    async def _pass_on(self, stream: asyncio.StreamReader, send: Send, *, head_only: bool) -> None:
        """A caller who leaves cancels us. Raises: ErrorResponse, the reader's own too; CutOff."""
        begun = False
        try:
            line = await asyncio.wait_for(stream.readline(), self._timeout_s)
            head = msgspec.json.decode(line, type=Head)
            if head.status >= 400:
                document = orjson.loads(await asyncio.wait_for(_piece(stream), self._timeout_s))
                soon = _SOON if head.status == 503 else None
                raise ErrorResponse(head.status, document["error_code"], document["detail"], headers=soon)
            headers = [(b"content-type", head.content_type.encode()), *_OF_EVERY_ANSWER]
            if head.gzip:
                headers.append((b"content-encoding", b"gzip"))
            if head.length is not None:
                headers.append((b"content-length", b"%d" % head.length))
            more = True
            while more:
                body = await asyncio.wait_for(_piece(stream), self._timeout_s)
                if not begun:
                    begun = True
                    await send({"type": "http.response.start", "status": head.status, "headers": headers})
                more = len(body) > 0
                await send({"type": "http.response.body", "body": body, "more_body": more})
                if head_only and head.length is None and more:
                    more = False
                    await send({"type": "http.response.body", "body": b""})
        except (OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
            if begun:
                self._cut_off()
                raise CutOff(f"the reader's answer broke off ({type(error).__name__})") from error
            raise _away("it gave no answer") from error


async def _pass_over_body(receive: Receive) -> None:
    """A GET may have a body; a caller who leaves before it has come would not be noticed later.

    Raises: ErrorResponse.
    """
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ErrorResponse(400, "BODY_CUT_SHORT", "the connection ended before the body did")
        more = message.get("more_body", False)
        size += len(message.get("body", b""))
        if size > MAX_IGNORED_BYTES:
            raise ErrorResponse(413, "BODY_TOO_LARGE", f"the body of a GET may have {MAX_IGNORED_BYTES} bytes")


async def _piece(stream: asyncio.StreamReader) -> bytes:
    """Raises: EOFError, ValueError."""
    (length,) = LENGTH.unpack(await stream.readexactly(LENGTH.size))
    if length > MAX_PIECE_BYTES:
        raise ValueError(length)
    return await stream.readexactly(length)


def _wants_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    accept = _field(headers, b"accept")
    try:
        return bool(accept) and mediatypes.best_match((JSON_TYPE, NDJSON_TYPE), accept) == NDJSON_TYPE
    except ValueError:
        return False


def _takes_gzip(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """RFC 9110, 12.5.3; only where it is named."""
    for choice in _field(headers, b"accept-encoding").split(","):
        coding, _, weight = choice.partition(";")
        if coding.strip().lower() in ("gzip", "x-gzip"):
            return _ZERO.fullmatch(weight) is None
    return False


def _field(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> str:
    return b",".join(value for name, value in headers if name == wanted).decode("latin-1")


_SOON = {"Retry-After": "1"}


def _away(why: str) -> ErrorResponse:
    return ErrorResponse(
        503, "READER_UNAVAILABLE", f"the reader cannot be reached: {why}; writing goes on", headers=_SOON
    )
