"""Where headers and bodies end in the bytes of a connection. Sans-IO: bytes in, positions out.

The parser (llhttp) takes several requests out of one read, RTSP and ICE for HTTP, and any CR and LF before a request.
So every read is cut before it is parsed: a piece ends where a header or a body does.
"""

from __future__ import annotations

import logging
import re

from httptools import HttpParserCallbackError, HttpParserError

from ingest.headers import Fields, body_length, check_target, invalid_http
from ingest.responses import ErrorResponse, internal_error

log = logging.getLogger(__name__)

MAX_URL_BYTES = 8 * 1024
MAX_HEADERS = 100
MAX_HEADER_BYTES = 16 * 1024
"""Request line and line ends included."""
MAX_CHUNKS = 4096
"""Of one body, and one more for each KiB of it. A chunk costs as much as a header field, however little it brings."""
MAX_EXTENSION_BYTES = 16 * 1024
"""Chunk extensions of one body (as in Go's net/http)."""
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}")
_CAPITALS = range(ord("A"), ord("Z") + 1)


def url_too_long() -> ErrorResponse:
    return ErrorResponse(414, "URL_TOO_LONG", f"a URL may have {MAX_URL_BYTES} bytes")


def header_too_large() -> ErrorResponse:
    detail = f"a header may have {MAX_HEADERS} fields and {MAX_HEADER_BYTES} bytes"
    return ErrorResponse(431, "HEADER_TOO_LARGE", detail)


def too_many_chunks() -> ErrorResponse:
    limits = f"{MAX_CHUNKS} chunks and one more for each KiB, with {MAX_EXTENSION_BYTES} bytes of extensions"
    return ErrorResponse(400, "TOO_MANY_CHUNKS", f"a body may come in {limits}: send larger chunks")


def parser_error(error: HttpParserError) -> ErrorResponse:
    """The client's own mistake or, where one of our callbacks has failed, ours, which is logged."""
    if not isinstance(error, HttpParserCallbackError):
        return invalid_http()
    if isinstance(error.__context__, ErrorResponse):
        return error.__context__
    log.error("a request could not be taken", exc_info=error.__context__)
    return internal_error()


def check_header(url: bytes, fields: Fields, *, upgrade: bool) -> None:
    """What can be said of a complete header. Raises: ErrorResponse."""
    if len(url) > MAX_URL_BYTES:
        raise url_too_long()
    if len(fields) > MAX_HEADERS:
        raise header_too_large()
    check_target(url)
    if upgrade and body_length(fields) != 0:
        # The parser would take the body for the next request.
        raise invalid_http("a request with Upgrade must not have a body: send HTTP/1.1 as it is")


def end_of_header(data: bytes, start: int) -> int:
    """Returns: the end of the header that begins at `start`, after at most two empty lines (RFC 9112, 2.2); 0 while it
    is incomplete. Raises: ErrorResponse."""
    begin = start
    while begin < start + 4 and data.startswith(b"\r\n", begin):
        begin += 2
    if len(data) - begin < 2 and data[begin:] in (b"", b"\r"):
        return 0
    if data[begin] not in _CAPITALS:
        raise invalid_http()
    line_end = data.find(b"\r\n", begin)
    end = data.find(b"\r\n\r\n", begin) + 4
    if (end if end > 3 else len(data)) - begin > MAX_HEADER_BYTES:
        _, _, target = data[begin : line_end if line_end > 0 else None].partition(b" ")
        if not target:
            raise invalid_http()
        raise url_too_long() if len(target.partition(b" ")[0]) > MAX_URL_BYTES else header_too_large()
    if line_end > 0 and data[line_end - 9 : line_end - 3] != b" HTTP/":
        raise invalid_http()
    if end > 3:
        return end
    if data.count(b"\n", begin) != data.count(b"\r\n", begin):
        raise invalid_http()
    return 0


class Chunks:
    """What is still to come of a chunked body."""

    __slots__ = ("_bytes", "_chunks", "_extension_bytes", "_is_last", "_left")

    def __init__(self) -> None:
        self._left = 0
        """Of a chunk with its line and line ends."""
        self._is_last = False
        self._chunks = self._bytes = self._extension_bytes = 0

    def end_of_piece(self, data: bytes, start: int) -> int:
        """Returns: how far the data may be parsed, at most to the end of the body; `start` while a chunk's line is
        incomplete. Raises: ErrorResponse."""
        at, size = start, len(data)
        while at < size and (self._left or self._begin_chunk(data, at)):
            step = min(self._left, size - at)
            self._left -= step
            at += step
            if self._is_last:
                break
        return at

    def _begin_chunk(self, data: bytes, start: int) -> bool:
        """Reads a chunk's line. Returns: whether it is complete. The last one is not without the empty line behind it:
        what stands there instead would be a trailer, which has no limit and no reader."""
        line_end = data.find(b"\n", start, start + MAX_EXTENSION_BYTES)
        if line_end < 0:
            if len(data) - start > MAX_EXTENSION_BYTES:
                raise too_many_chunks()
            return False
        line, end = data[start : line_end - 1], line_end + 1
        digits, _, extension = line.partition(b";")
        if data[line_end - 1] != ord("\r") or b"\r" in extension or _CHUNK_SIZE.fullmatch(digits) is None:
            raise invalid_http()
        size = int(digits, 16)
        if size == 0:
            behind = data[end : end + 2]
            if not b"\r\n".startswith(behind):
                raise invalid_http()
            if len(behind) < 2:
                return False
            self._is_last = True
        self._chunks += 1
        self._bytes += size
        self._extension_bytes += len(line) - len(digits)
        if self._chunks > MAX_CHUNKS + self._bytes // 1024 or self._extension_bytes > MAX_EXTENSION_BYTES:
            raise too_many_chunks()
        self._left = end - start + size + 2
        return True
