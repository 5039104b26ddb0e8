"""Answers that no application gives, since it never saw the request, or not all of it: each ends its connection."""

from __future__ import annotations

from ingest.cycle import NO_OTHER_SITE

MAX_URL_BYTES = 8 * 1024
MAX_HEADERS = 100
MAX_HEADER_BYTES = 16 * 1024
MAX_CHUNKS = 4096
"""Of one body, and one more for each KiB of it. A chunk costs as much as a header field, however little it brings."""
MAX_EXTENSION_BYTES = 16 * 1024
"""Of a chunked body: what is neither content nor 16 bytes a chunk (as in Go's net/http)."""


class Refusal:
    """An answer that no application gives."""

    def __init__(self, status: bytes, code: str, detail: bytes, header: bytes = b"") -> None:
        document = b'{"detail":"%b","error_code":"%b","errors":[]}' % (detail, code.encode())
        self.status = int(status[:3])
        self.code = code
        self.data = (
            b"HTTP/1.1 %b\r\n%bcontent-type: application/json\r\nconnection: close\r\n%bcontent-length: %d\r\n\r\n%b"
            % (status, NO_OTHER_SITE, header, len(document), document)
        )


NOT_HTTP = Refusal(b"400 Bad Request", "INVALID_HTTP", b"this is no valid HTTP request")
BAD_TARGET = Refusal(
    b"400 Bad Request",
    "INVALID_HTTP",
    b"the target must be a plain path; only an id in it may have percent signs",
)
UPGRADE = Refusal(
    b"400 Bad Request", "INVALID_HTTP", b"a request with Upgrade must not have a body: send HTTP/1.1 as it is"
)
PIPELINED = Refusal(b"400 Bad Request", "TOO_MANY_PIPELINED", b"too many requests were sent ahead of their answers")
CHUNKS = Refusal(
    b"400 Bad Request",
    "TOO_MANY_CHUNKS",
    b"a body may come in %d chunks and one more for each KiB, with %d bytes of extensions: send larger chunks"
    % (MAX_CHUNKS, MAX_EXTENSION_BYTES),
)
CUT_SHORT = Refusal(b"400 Bad Request", "BODY_CUT_SHORT", b"the connection ended before the body did")
TOO_SLOW = Refusal(b"408 Request Timeout", "REQUEST_TOO_SLOW", b"the request did not come in time")
LONG_URL = Refusal(b"414 URI Too Long", "URL_TOO_LONG", b"a URL may have %d bytes" % MAX_URL_BYTES)
LARGE_HEADER = Refusal(
    b"431 Request Header Fields Too Large",
    "HEADER_TOO_LARGE",
    b"a header may have %d fields and %d bytes" % (MAX_HEADERS, MAX_HEADER_BYTES),
)
FULL = Refusal(
    b"503 Service Unavailable",
    "TOO_MANY_CONNECTIONS",
    b"too many connections (service.max_connections)",
    b"retry-after: 1\r\n",
)
FAILED = Refusal(b"500 Internal Server Error", "INTERNAL_ERROR", b"this is a fault of the service")
