"""Access: by token or, without one, by address, by the Host that a request names, and by the site it comes from.

Without a token a browser on this machine is the way in for strangers: their page can send requests here, and their
domain can be made to point here (DNS rebinding).
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

from ingest.responses import ErrorResponse, Scope
from shared.addresses import is_loopback

OPEN_PATHS = frozenset(("/", "/health", "/ready", "/dashboard", "/docs"))
"""Answered without a token and under any name: what load balancers and supervisors ask, and the page that asks for the
token. None of them gives out a record."""
_SAME_SITE = (b"none", b"same-origin")


class Access:
    """Args: auth_token: one, or several separated by spaces; read_token: those that may only GET, None without others;
    allowed_hosts: names of this service."""

    def __init__(
        self,
        auth_token: str | None,
        *,
        read_token: str | None = None,
        protected_mode: bool,
        allowed_hosts: Collection[str],
    ) -> None:
        self._tokens = None if auth_token is None else auth_token.encode().split()
        self._read_tokens = (read_token or "").encode().split()
        self._protected = protected_mode
        self._allowed_hosts = frozenset(name.lower() for name in allowed_hosts)

    def check(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        """Raises: ErrorResponse, where the request is not answered."""
        if self._tokens is not None:
            if scope["path"] in OPEN_PATHS:
                return
            given = headers.get(b"authorization")
            if given is None:
                challenge = {"WWW-Authenticate": "Bearer"}
                raise ErrorResponse(
                    401, "TOKEN_MISSING", "this service takes Authorization: Bearer TOKEN", headers=challenge
                )
            if not has_token(given, self._tokens):
                if has_token(given, self._read_tokens):
                    if scope["method"] in ("GET", "HEAD"):
                        return
                    raise ErrorResponse(403, "TOKEN_READS_ONLY", "this token may only GET (read.auth_token)")
                raise ErrorResponse(403, "TOKEN_WRONG", "the token is not the one that this service takes")
            return
        if self._protected and not is_local(scope["client"]):
            raise ErrorResponse(
                403,
                "PROTECTED_MODE",
                "without a token only callers on the same machine are answered: set service.auth_token"
                " (SERVICE_AUTH_TOKEN), or service.protected_mode: false",
            )
        if scope["path"] not in OPEN_PATHS and not self._is_ours(headers.get(b"host", b"")):
            raise ErrorResponse(
                403,
                "HOST_NOT_ALLOWED",
                "without a token, Host must be an IP address, a name without a dot, or a name in service.allowed_hosts"
                " (SERVICE_ALLOWED_HOSTS)",
            )
        if is_cross_site(scope, headers):
            raise ErrorResponse(403, "CROSS_SITE", "without a token no requests from pages of other sites are answered")

    def admits(self, headers: Mapping[bytes, bytes], client: tuple[str, int] | None) -> bool:
        """Whether check() would pass a request that brings a Host and nothing that only browsers send."""
        if self._tokens is not None:
            return has_token(headers.get(b"authorization", b""), self._tokens)
        return (not self._protected or is_local(client)) and self._is_ours(headers[b"host"])

    def _is_ours(self, host: bytes) -> bool:
        name = ownable(host)
        return name is None or name in self._allowed_hosts


def has_token(authorization: bytes, tokens: Sequence[bytes]) -> bool:
    """Whether it is `Bearer` and one of the tokens. All are compared, each in constant time, so the time taken tells
    nothing about them."""
    scheme, _, given = authorization.partition(b" ")
    found = False
    for token in tokens:
        found |= hmac.compare_digest(given.strip(), token)
    return found and scheme.lower() == b"bearer"


def is_local(client: tuple[str, int] | None) -> bool:
    """Whether a peer is on this machine. One without an address was reset before it was accepted and may be anyone; its
    bytes can still be read."""
    return client is not None and is_loopback(client[0])


def is_cross_site(scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
    """Whether a browser says that the request comes from another site's page, and not from a person following a link.
    Other programs send neither field.

    Source: Fetch Metadata Request Headers, 2; RFC 6454, 7.
    """
    site = headers.get(b"sec-fetch-site", b"none")
    if site not in _SAME_SITE:
        followed = (headers.get(b"sec-fetch-mode"), headers.get(b"sec-fetch-dest")) == (b"navigate", b"document")
        return scope["method"] not in ("GET", "HEAD") or not followed
    origin = headers.get(b"origin")
    if origin is None:
        return False
    scheme, _, name = origin.partition(b"://")
    # Behind a proxy with TLS a browser knows better than we do which scheme is ours.
    ours = site == b"same-origin" or scheme.decode("latin-1") == scope["scheme"]
    return not ours or name != headers.get(b"host")


@lru_cache(maxsize=128)
def ownable(host: bytes) -> str | None:
    """The domain in a Host, in lower case, whose owner can make it point here; None for an IP address or a name without
    a dot, which nobody owns."""
    text = host.decode("latin-1").lower()
    name = text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name if "." in name or text.startswith("[") else None
    return None
