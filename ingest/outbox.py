"""Writes frames to the flusher: few system calls, and no wake-up latency for a lone request.

Rules: belongs to the loop's thread. It knows no frame and keeps none after it is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

SPIN_TURNS = 100
"""Of the loop, under 1 µs each. The flusher has often answered by then; waking a sleeping core takes longer."""
SPIN_BYTES = 16 * 1024
"""The largest request to spin for. With a larger one the flusher takes longer, and may need this very core."""
SPIN_PAUSE_REQUESTS = 100
"""Requests without spinning after it was in vain: the flusher syncs before it answers, or needs this very core."""


class Outbox:
    """Of one connection. Args: lone_bytes: size of the only request in flight; 0 with none or several."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, lone_bytes: Callable[[], int]
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._lone_bytes = lone_bytes
        self._unsent: list[bytes] = []
        self._spin_pause = 0

    def write(self, parts: Iterable[bytes]) -> None:
        if not self._unsent:
            self._loop.call_soon(self._coalesce_writes)
        self._unsent += parts

    def _coalesce_writes(self) -> None:
        """If one turn of the loop brought several frames, waits for the next turn's too. That adds some µs of latency
        and halves the flusher's reads."""
        if len(self._unsent) > 1:
            self._loop.call_soon(self._send)
        else:
            self._send()

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self._transport.is_closing():
            return  # its requests are sent again on the next connection
        self._transport.writelines(unsent)
        if self._spin_pause:
            self._spin_pause -= 1
        elif 0 < self._lone_bytes() <= SPIN_BYTES:
            self._spin(SPIN_TURNS)

    def _spin(self, turns: int) -> None:
        """Keeps the loop from sleeping while exactly one request is in flight. All other work goes on."""
        if not self._lone_bytes():
            return
        if turns:
            self._loop.call_soon(self._spin, turns - 1)
        else:
            self._spin_pause = SPIN_PAUSE_REQUESTS
