"""Ids of requests: the caller's own X-Request-Id, or one that is made when it is needed first.

Most requests bring none and are answered well, so nothing is made for them. Whoever brings one, and whoever gets a 5xx,
finds it in the answer; log lines about a request have it.
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
"""Characters of a path in a log line: strangers choose it."""


def take(scope: MutableMapping[str, Any], given: bytes) -> None:
    """Keeps the caller's id; one that could not stand in a header or a log line is replaced."""
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


def log_problem(scope: MutableMapping[str, Any], problem: ErrorResponse) -> None:
    """A line for what the service could not do. What the caller did wrong is the caller's matter: at DEBUG only."""
    level = logging.WARNING if problem.status >= 500 else logging.DEBUG
    if log.isEnabledFor(level):
        extra = {"request_id": request_id(scope)}
        path = scope["path"][:_SHOWN_PATH]
        log.log(level, "%s %s: %d %s", scope["method"], path, problem.status, problem.code, extra=extra)
