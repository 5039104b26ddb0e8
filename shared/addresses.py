"""Names and addresses of machines."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

_HOST = re.compile(
    r"(?:\[([0-9A-Fa-f:.]{1,45})\]|([^\[\]:\s@]{1,255}))(?::(\d{1,5}))?|([0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f.]{0,15}){2,8})"
)


def host_and_port(text: str, port: int) -> tuple[str, int]:
    """Splits an entry of database.host: "db:3307" -> ("db", 3307), "[::1]" and "::1" -> ("::1", port).

    Raises: ValueError with what is allowed.
    """
    match = _HOST.fullmatch(text)
    number = int(match[3] or port) if match else 0
    if "@" in text:
        raise ValueError("must be a host without user and password; set user and password in keys of their own")
    if match is None or not 0 < number < 65536:
        raise ValueError(
            "must be a name or an address, with a :PORT of 1 to 65535 or none, as in db, db:3307, [::1]:3307"
        )
    return match[1] or match[2] or match[4], number


@lru_cache(maxsize=1024)
def is_loopback(host: str) -> bool:
    """Whether it is an address of this machine itself; a name never is."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def is_this_machine(host: str) -> bool:
    """Whether a configured host is this machine itself. Names other than localhost are not resolved."""
    return host == "localhost" or is_loopback(host)
