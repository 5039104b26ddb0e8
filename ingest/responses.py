"""Answers that every path shares: the contract's error document, and the header fields of all answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from http import HTTPStatus
from typing import Any, TypeAlias

import orjson

from ingest.forwarder import FlusherUnavailable, Rejected
from shared.validation import FieldError
from shared.wire import Reason

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON_TYPE = b"application/json"
CLOSE = (b"connection", b"close")
SITE_HEADERS = [("x-content-type-options", "nosniff"), ("cross-origin-resource-policy", "same-origin")]
"""Of every answer: a browser takes none for a script or an image, and gives none to a page of another site."""
_UNAVAILABLE_RETRY_AFTER_S = 1.0
_REASONS = {
    Reason.JOURNAL_FULL: "the journal is full: the database takes less than arrives",
    Reason.JOURNAL_NOT_WRITABLE: "the journal cannot be written",
}


class CutOff(Exception):
    """An answer that has begun cannot be completed: the connection closes, so that nobody takes it for a whole one."""


class ErrorResponse(Exception):
    """An answer other than success, as the contract's error document.

    Args: records: how many records it refuses, by reason; None: they were not counted, and count as one.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
        records: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.records = {code: 1} if records is None else records
        faults = [{"field": error.field, "message": error.message} for error in errors]
        self.body = orjson.dumps({**(more or {}), "detail": detail, "error_code": code, "errors": faults})
        self.fields = [(b"content-type", JSON_TYPE), (b"content-length", b"%d" % len(self.body))]
        self.fields += [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]


def encode_response(status: int, fields: Sequence[tuple[bytes, bytes]], body: bytes, *, keep_alive: bool) -> bytes:
    """A whole answer as it goes over the wire. The caller vouches that no field holds a line break."""
    lines = [b"HTTP/1.1 %d %b" % (status, HTTPStatus(status).phrase.encode())]
    lines += [f"{name}: {value}".encode() for name, value in SITE_HEADERS]
    lines += [b"%b: %b" % field for field in fields]
    if not keep_alive and CLOSE not in fields:
        lines.append(b"%b: %b" % CLOSE)
    return b"\r\n".join([*lines, b"", body])


def internal_error() -> ErrorResponse:
    return ErrorResponse(500, "INTERNAL_ERROR", "this is a fault of the service")


def too_many_connections() -> ErrorResponse:
    detail = "too many connections (service.max_connections)"
    return ErrorResponse(503, "TOO_MANY_CONNECTIONS", detail, headers={"Retry-After": "1"})


def unavailable(error: FlusherUnavailable | Rejected, records: int = 1) -> ErrorResponse:
    if isinstance(error, Rejected):
        after_s, code, detail = error.retry_after_s, error.reason.name, _REASONS[error.reason]
    else:
        after_s, code, detail = _UNAVAILABLE_RETRY_AFTER_S, "FLUSHER_UNAVAILABLE", str(error)
    headers = {"Retry-After": str(max(1, round(after_s)))}
    return ErrorResponse(503, code, detail, headers=headers, records={code: records})


def flush_incomplete(pending: int, timeout_s: float) -> ErrorResponse:
    detail = f"{pending} records could not be written within {timeout_s:g} s; they stay queued"
    more = {"status": "error", "pending": pending}
    return ErrorResponse(503, "FLUSH_INCOMPLETE", detail, headers={"Retry-After": "1"}, more=more)
