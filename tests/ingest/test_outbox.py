"""What becomes of frames that wait for their turn."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from ingest.outbox import Outbox


def test_frames_that_wait_while_the_connection_ends_are_not_written() -> None:
    """uvloop raises for a transport that is closed; the forwarder sends them again on the next connection."""
    written: list[bytes] = []
    transport: Any = SimpleNamespace(writelines=written.extend, is_closing=lambda: closing)

    async def write(frame: bytes) -> None:
        Outbox(asyncio.get_running_loop(), transport, lambda: 0).write([frame])
        await asyncio.sleep(0)

    closing = False
    asyncio.run(write(b"sent"))
    closing = True
    asyncio.run(write(b"lost"))

    assert written == [b"sent"]
