"""Ids of requests: the client's own X-Request-Id, or one that is made when it is first needed.

Most requests bring none and succeed, so none is made for them. A client that brings one, or gets a 5xx, finds it in the
answer; log lines about the request have it.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import MutableMapping
from typing import Any

from ingest.responses import ErrorResponse

log = logging.getLogger(__name__)

_VALID = re.compile(rb"[A-Za-z0-9._~:/+=@-]{1,128}")
_SHOWN_PATH = 100
"""Characters of a path in a log line: clients choose it."""


def accept_client_id(scope: MutableMapping[str, Any], given: bytes) -> None:
    """Keeps the client's id; one that is unfit for a header or a log line is replaced."""
    if _VALID.fullmatch(given):
        scope["request_id"] = given.decode()
    else:
        request_id(scope)


def request_id(scope: MutableMapping[str, Any]) -> str:
    """The request's id, made now if it has none yet."""
    if "request_id" not in scope:
        scope["request_id"] = secrets.token_hex(16)
    found: str = scope["request_id"]
    return found


def log_error(scope: MutableMapping[str, Any], error: ErrorResponse) -> None:
    """One line, at WARNING if the service failed, at DEBUG if the client did."""
    level = logging.WARNING if error.status >= 500 else logging.DEBUG
    if log.isEnabledFor(level):
        extra = {"request_id": request_id(scope)}
        path = scope["path"][:_SHOWN_PATH]
        log.log(level, "%s %s: %d %s", scope["method"], path, error.status, error.code, extra=extra)
