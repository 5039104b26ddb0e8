"""What a request's header says: whether everybody on the way reads it alike, who asks, and of what type the body is."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping, Sequence
from functools import lru_cache

from ingest.cycle import Scope
from ingest.resources import Problem

JSON_TYPE = b"application/json"
_SINGLE_FIELDS = (
    b"host",
    b"content-length",
    b"content-type",
    b"content-encoding",
    b"transfer-encoding",
    b"authorization",
)


def check_form(scope: Scope, headers: Mapping[bytes, bytes]) -> None:
    """What the parser lets pass, and what a proxy on the way may read in another way. Raises: Problem."""
    version = scope["http_version"]
    names = [name for name, _ in scope["headers"]]
    twice = [name.decode() for name in _SINGLE_FIELDS if names.count(name) > 1]
    encoding = headers.get(b"transfer-encoding")
    if version not in ("1.0", "1.1"):
        detail = "HTTP/1.1 and HTTP/1.0 are spoken here"
    elif twice:
        detail = f"{twice[0]} stands in the header twice"
    elif version == "1.1" and b"host" not in headers:
        detail = "HTTP/1.1 wants a Host"
    elif encoding is not None and (version == "1.0" or encoding.strip().lower() != b"chunked"):
        detail = "Transfer-Encoding may be chunked, in HTTP/1.1"
    else:
        return
    raise Problem(400, "INVALID_HTTP", detail, headers={"Connection": "close"})


def has_token(authorization: bytes, tokens: Sequence[bytes]) -> bool:
    """Whether it is `Bearer` and one of the tokens. All are compared, each in constant time: how long it takes says
    neither which nor how much is right."""
    scheme, _, given = authorization.partition(b" ")
    found = False
    for token in tokens:
        found |= hmac.compare_digest(given.strip(), token)
    return found and scheme.lower() == b"bearer"


def is_local(client: tuple[str, int] | None) -> bool:
    """Whether a peer is on this machine. One without an address was reset before it was accepted: nobody knows, and
    what it has sent can be read all the same."""
    return client is not None and is_loopback(client[0])


def is_cross_site(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a browser says that the request comes from a page that is not ours. Others say neither.

    Source: Fetch Metadata Request Headers, 2.3; RFC 6454, 7.
    """
    if headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
        return True
    origin = headers.get(b"origin")
    return origin is not None and origin.partition(b"://")[2] != headers.get(b"host")


@lru_cache(maxsize=1024)
def is_loopback(host: str) -> bool:
    """Whether a peer's address is this machine's own."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def is_json(content_type: bytes) -> bool:
    """application/json, in UTF-8 if it says so. Other parameters mean nothing (RFC 8259, 11)."""
    name, *parameters = content_type.lower().split(b";")
    charsets = [value for name, _, value in (one.strip().partition(b"=") for one in parameters) if name == b"charset"]
    return name.strip() == JSON_TYPE and all(value.strip(b'"') in (b"utf-8", b"utf8") for value in charsets)
