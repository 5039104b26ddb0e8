"""Values of query parameters."""

from __future__ import annotations

import math
import re

from ingest.responses import ErrorResponse

DEFAULT_TIMEOUT_S = 10.0
MAX_TIMEOUT_S = 60.0
_NUMBER = re.compile(r"[+-]?(\d{1,20}\.?\d{0,20}|\.\d{1,20})([eE][+-]?\d{1,3})?", re.ASCII)


def invalid_parameter(name: str, value: str, allowed: str) -> ErrorResponse:
    shown = value if len(value) <= 40 else f"{value[:40]}… ({len(value)} characters)"
    return ErrorResponse(400, "INVALID_PARAMETER", f"{name}={shown}: {allowed} are allowed")


def parse_number(value: str) -> float:
    """A number as JSON has it, nan for all else: float() also takes white space, 1_0 and other digits."""
    return float(value) if _NUMBER.fullmatch(value) else math.nan


def parse_timeout(value: str | None, default_s: float = DEFAULT_TIMEOUT_S) -> float:
    """`?timeout=SECONDS`. Raises: ErrorResponse."""
    if value is None:
        return default_s
    timeout_s = parse_number(value)
    if not 0 <= timeout_s <= MAX_TIMEOUT_S:
        raise invalid_parameter("timeout", value, f"seconds from 0 to {MAX_TIMEOUT_S:g}")
    return timeout_s
