"""Between ingest and reader: one Unix connection a request. Bytes in, messages out; opens no socket.

    call   := JSON of a Call "\\n"
    answer := JSON of a Head "\\n" piece* end
    piece  := length:u32 body:u8[length]      -- little-endian, 1 to MAX_PIECE_BYTES
    end    := 0:u32

An answer is complete only if `end` was read; if the connection closes earlier, the answer must not be used as a whole.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from urllib.parse import parse_qsl

import msgspec

PREFIX = "/api/v1/persistence/sessions"
SESSION, TASKS, TASK = (
    f"{PREFIX}/{{session_id}}",
    f"{PREFIX}/{{session_id}}/tasks",
    f"{PREFIX}/{{session_id}}/tasks/{{task_id}}",
)
ROUTES = (PREFIX, SESSION, TASKS, TASK)
SOCKET_NAME = "run/reader.sock"
"""Under PERSISTENCE_STATE_DIR."""
MAX_CALL_BYTES = 32 * 1024
MAX_PIECE_BYTES = 64 * 1024
LENGTH = struct.Struct("<I")
END = LENGTH.pack(0)
JSON_TYPE = "application/json"
NDJSON_TYPE = "application/x-ndjson"
MAX_VALUE_CHARACTERS = 4096
"""Of a parameter."""


class InvalidRequest(Exception):
    """The caller must ask otherwise: a parameter is unknown, its value is wrong, or there is no such record."""

    def __init__(self, detail: str, code: str = "INVALID_PARAMETER", status: int = 400) -> None:
        super().__init__(detail)
        self.code = code
        self.status = status


class Call(msgspec.Struct, frozen=True):
    """A request: a page of sessions if `session_id` is None, a page of tasks if `tasks`, or else one record.

    `query` is the URL's, still percent-encoded. `pending_records`: records of this node that are not in the database
    yet, None if unknown.
    """

    session_id: str | None = None
    tasks: bool = False
    task_id: str | None = None
    query: str = ""
    stream: bool = False
    gzip: bool = False
    pending_records: int | None = None


class Head(msgspec.Struct, frozen=True):
    """`length` is None for a stream, and for a body that is packed as it goes."""

    status: int
    content_type: str = JSON_TYPE
    length: int | None = None
    gzip: bool = False


def piece(body: bytes) -> bytes:
    return LENGTH.pack(len(body)) + body


def parameters(query: str, allowed: Collection[str] | None) -> Mapping[str, str]:
    """The parameters of a query string, each at most once. Args: allowed: None for all. Raises: InvalidRequest."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict", max_num_fields=16)
    except ValueError:
        raise InvalidRequest("the query must be name=value&… in percent-encoded UTF-8") from None
    given = dict(pairs)
    if len(given) != len(pairs):
        raise InvalidRequest("each parameter may stand in the query once")
    for name, value in pairs:
        if allowed is not None and name not in allowed:
            raise InvalidRequest(f"{name[:64]!r} is no parameter here; allowed: {', '.join(allowed)}")
        if len(value) > MAX_VALUE_CHARACTERS:
            raise InvalidRequest(f"{name}: may have {MAX_VALUE_CHARACTERS} characters, {len(value)} were sent")
    return given
