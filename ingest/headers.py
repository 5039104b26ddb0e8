"""What a request's header says: its target, whether a proxy could read it differently, and the type of its body."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from ingest.responses import JSON_TYPE, ErrorResponse, Scope

Fields = Sequence[tuple[bytes, bytes]]

_ENCODED = b"/api/v1/persistence/sessions/"
"""Paths below it hold ids, percent-encoded; no other path may have a percent sign."""
_SINGLE_FIELDS = (
    *(b"host", b"content-length", b"content-type", b"content-encoding", b"transfer-encoding", b"authorization"),
    *(b"origin", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest"),
)
_LENGTH_DIGITS = 20
"""The parser takes any number of zeros; int() takes 4300 digits."""
_HOST_BYTES = 300
_HOST = re.compile(rb"(?:(?:[\w.~!$&'()*+,;=-]|%[0-9A-Fa-f]{2}){0,255}|\[[0-9A-Fa-f:.]{1,45}\])(?::[0-9]{0,5})?")


def invalid_http(detail: str = "this is no valid HTTP request") -> ErrorResponse:
    return ErrorResponse(400, "INVALID_HTTP", detail, headers={"Connection": "close"})


def check_target(url: bytes) -> None:
    """Raises: ErrorResponse."""
    path = url.partition(b"?")[0]
    if path[:1] != b"/" or b"#" in url or (b"%" in path and not path.startswith(_ENCODED)):
        raise invalid_http("the target must be a plain path; only an id in it may have percent signs")


def body_length(fields: Fields) -> int | None:
    """None if the body is chunked. The parser lets only digits through, and not both fields. Raises: ErrorResponse."""
    for name, value in fields:
        if name == b"content-length":
            if len(value) > _LENGTH_DIGITS:
                raise invalid_http(f"Content-Length may have {_LENGTH_DIGITS} digits")
            return int(value)
        if name == b"transfer-encoding":
            return None
    return 0


def check_form(scope: Scope, headers: Mapping[bytes, bytes]) -> None:
    """Refuses what the parser lets pass, and what a proxy may read in another way. Raises: ErrorResponse."""
    version = scope["http_version"]
    names = [name for name, _ in scope["headers"]]
    twice = [name.decode() for name in _SINGLE_FIELDS if names.count(name) > 1]
    encoding = headers.get(b"transfer-encoding")
    if version not in ("1.0", "1.1"):
        raise invalid_http("HTTP/1.1 and HTTP/1.0 are spoken here")
    if twice:
        raise invalid_http(f"{twice[0]} stands in the header twice")
    if version == "1.1" and b"host" not in headers:
        raise invalid_http("HTTP/1.1 wants a Host")
    if not is_host(headers.get(b"host", b"")):
        raise invalid_http("Host must be a name or an address, with a port where it has one")
    if encoding is not None and (version == "1.0" or encoding.strip().lower() != b"chunked"):
        raise invalid_http("Transfer-Encoding may be chunked, in HTTP/1.1")


@lru_cache(maxsize=128)
def is_host(value: bytes) -> bool:
    """Whether it is a Host (RFC 9110, 7.2; RFC 3986, 3.2.2)."""
    return len(value) <= _HOST_BYTES and _HOST.fullmatch(value) is not None


def is_json(content_type: bytes) -> bool:
    """application/json, in UTF-8 if it says so. Other parameters mean nothing (RFC 8259, 11)."""
    name, *parameters = content_type.lower().split(b";")
    charsets = [value for name, _, value in (one.strip().partition(b"=") for one in parameters) if name == b"charset"]
    return name.strip() == JSON_TYPE and all(value.strip(b'"') in (b"utf-8", b"utf8") for value in charsets)
