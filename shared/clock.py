"""Times as text, and time zones by name or offset."""

from __future__ import annotations

import difflib
import re
from datetime import datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, available_timezones

_OFFSET = re.compile(r"([+-])([01]\d|2[0-3]):([0-5]\d)")


EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def iso(time_us: int) -> str:
    """µs since 1970 UTC, as in 2026-11-23T10:15:30.123456Z."""
    seconds, fraction = divmod(time_us, 1_000_000)
    return f"{_to_the_second(seconds)}.{fraction:06}Z"


@lru_cache(maxsize=16)
def _to_the_second(seconds: int) -> str:
    return (EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")


def time_zone(name: str) -> tzinfo:
    """An IANA name or `+08:00`. Blocks: reads the zone's file once. Raises: ValueError, which says what is allowed."""
    if name == "UTC":
        return timezone.utc  # needs no file
    if offset := _OFFSET.fullmatch(name):
        sign, hours, minutes = offset.groups()
        return timezone(timedelta(hours=int(sign + hours), minutes=int(sign + minutes)))
    try:
        return ZoneInfo(name)
    except (LookupError, OSError, ValueError):
        near = difflib.get_close_matches(name, available_timezones(), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        allowed = f"must be an IANA name such as Asia/Shanghai, or an offset such as '+08:00', in quotes{hint}"
        raise ValueError(allowed) from None
