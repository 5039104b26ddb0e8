"""What a caller asks for -> which rows to read next, and the cursor that says where a page ended. Pure.

A cursor is opaque to callers: base64url(json([version, what was asked for, position]) + crc32). The checksum finds
cursors that were cut, altered or made for something else; it is no signature, since a cursor gives no right that its
caller has not already.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Collection
from datetime import datetime
from zlib import crc32

import msgspec

from shared.reading import InvalidRequest, parameters
from shared.records import SESSIONS, TASKS, Kind, utc

MAX_LIMIT = {SESSIONS: 200, TASKS: 1000}
DEFAULT_LIMIT = {SESSIONS: 20, TASKS: 200}
MAX_NAMES = 64
"""Statuses or fields in one request."""
MAX_FILTER_BYTES = 2048
"""As it stands in a cursor, which must fit into a URL."""
_VERSION = 1


class Query(msgspec.Struct, frozen=True, array_like=True):
    """What is asked for, page after page: it stands in the cursor, so that a cursor can be sent alone.

    Times are naive UTC. `batch_id` is None for any; no status means every status.
    """

    statuses: tuple[str, ...] = ()
    batch_id: str | None = None
    updated_after: datetime | None = None
    updated_before: datetime | None = None
    fields: tuple[str, ...] = ()


Position = tuple[str, ...]
"""The key of the last row of a page, behind its updated_at where the page is in that order; () before the first."""


_POSITION = {SESSIONS: 2, TASKS: 1}


class _Cursor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: int
    where: str
    query: Query
    position: Position


class Page(msgspec.Struct, frozen=True):
    query: Query
    position: Position
    limit: int


def encode_cursor(where: str, query: Query, position: Position) -> str:
    """Args: where: what the cursor is good for: "sessions", or the session whose tasks are read."""
    data = msgspec.json.encode(_Cursor(_VERSION, where, query, position))
    return base64.urlsafe_b64encode(data + crc32(data).to_bytes(4, "big")).decode().rstrip("=")


def decode_cursor(where: str, text: str) -> tuple[Query, Position]:
    """Raises: InvalidRequest for a text that encode_cursor() has not given for `where`."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        data, check = raw[:-4], raw[-4:]
        cursor = msgspec.json.decode(data, type=_Cursor)
        if check == crc32(data).to_bytes(4, "big") and (cursor.version, cursor.where) == (_VERSION, where):
            return cursor.query, cursor.position
    except (binascii.Error, msgspec.DecodeError, ValueError):
        pass
    raise InvalidRequest("cursor: is not one that this service has given for this path", "INVALID_CURSOR")


def parse_page(
    kind: Kind,
    where: str,
    query: str,
    *,
    statuses: Collection[str],
    to_utc: Callable[[str], datetime],
    also: Collection[str] = (),
    limited: bool = True,
) -> Page:
    """A query string as a page of `kind`.

    Args: query: as it stands in the URL; statuses: those that are configured; to_utc: reads a time, or raises
    ValueError; also: names that somebody else reads; limited: whether `limit` and `cursor` have a meaning here.
    Raises: InvalidRequest.
    """
    allowed = ["status", *(("updated_after", "updated_before") if kind is SESSIONS else ("batch_id", "fields"))]
    if limited:
        allowed += ["limit", "cursor"]
    given = {name: value for name, value in parameters(query, (*allowed, *also)).items() if name in allowed}
    limit = DEFAULT_LIMIT[kind]
    if "limit" in given:
        limit = _number("limit", given.pop("limit"), MAX_LIMIT[kind])
    cursor = given.pop("cursor", None)
    asked = Query(
        statuses=tuple(sorted(_names("status", given.get("status"), statuses))),
        batch_id=given.get("batch_id"),
        updated_after=_time("updated_after", given.get("updated_after"), to_utc),
        updated_before=_time("updated_before", given.get("updated_before"), to_utc),
        fields=_names("fields", given.get("fields"), None),
    )
    if len(msgspec.json.encode(asked)) > MAX_FILTER_BYTES:
        raise InvalidRequest(f"the parameters take over {MAX_FILTER_BYTES} bytes together")
    if cursor is None:
        return Page(asked, (), limit)
    held, position = decode_cursor(where, cursor)
    if len(position) != _POSITION[kind] or not set(held.statuses) <= set(statuses):
        raise InvalidRequest("cursor: is not one that this service gives now", "INVALID_CURSOR")
    if given and asked != held:
        raise InvalidRequest("cursor: belongs to another filter; send it alone or with the same", "INVALID_CURSOR")
    return Page(held, position, limit)


def _names(name: str, value: str | None, allowed: Collection[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    names = tuple(dict.fromkeys(value.split(",")))
    if not all(names) or len(names) > MAX_NAMES:
        raise InvalidRequest(f"{name}: takes 1 to {MAX_NAMES} names, separated by commas")
    unknown = [one for one in names if allowed is not None and one not in allowed]
    if unknown:
        raise InvalidRequest(f"{name}: {unknown[0][:64]!r} is none of {', '.join(allowed or ())}")
    return names


def _number(name: str, value: str, most: int) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 9 and 1 <= int(value) <= most):
        raise InvalidRequest(f"{name}: must be a number from 1 to {most}, not {value[:64]!r}")
    return int(value)


def _time(name: str, value: str | None, to_utc: Callable[[str], datetime]) -> datetime | None:
    if value is None:
        return None
    try:
        return utc(to_utc(value))
    except ValueError as error:
        plus = "; write + as %2B" if " " in value[11:] else ""
        raise InvalidRequest(f"{name}: {error}, not {value[:64]!r}{plus}") from None
