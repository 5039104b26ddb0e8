"""The phases of connections, and the sweep over all connections of a worker: deadlines, and the memory held together.

    FIRST    a new one, until its first byte              15 s
    IDLE     between two requests                         75 s
    HEADER   a part of a header has come                  10 s
    BODY     the header is complete, the body is not      30 s
    ANSWER   the request is complete, its answer is not   no deadline here: an ack has its own
    LINGER   the last answer is sent, input is discarded   2 s

One sweep a second checks all deadlines; a timer for each request costs as much as parsing it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping
from enum import Enum
from typing import Any, Protocol

from shared.timers import logged

log = logging.getLogger(__name__)

MAX_HELD_BYTES = 64 * 1024 * 1024
"""Of all connections together: answers that wait for their clients, and requests that wait behind others."""
UNREAD_S = 30.0
"""How long an answer may wait for its client to read it."""
SURPLUS_S = 2.0
"""How long a connection over the limit may take to ask."""
LAST_REQUEST_S = 0.5
"""How long a connection without a request stays when the worker stops: one may be on its way."""
SWEEP_S = 1.0
SLICE = 20
MAX_SLICES = 50


class Phase(Enum):
    FIRST = 15.0
    IDLE = 75.0
    HEADER = 10.0
    BODY = 30.0
    ANSWER = float("inf")
    LINGER = 2.0


def limit_s(phase: Phase, *, is_surplus: bool) -> float:
    return SURPLUS_S if is_surplus and phase in (Phase.FIRST, Phase.HEADER) else phase.value


class Clock:
    """Seconds, as of the last sweep: exact to a second and free."""

    now = 0.0


class Swept(Protocol):
    @property
    def held_bytes(self) -> int: ...

    def check_deadline(self, now: float) -> None: ...

    def abort(self) -> None: ...


def sweep(connections: Iterable[Swept], now: float) -> None:
    Clock.now = now
    for connection in connections:
        with logged("the deadline of a connection"):
            connection.check_deadline(now)


async def sweep_slowly(connections: Collection[Any]) -> None:
    """Sweeps all in about a second, some at a time: thousands may be over their deadline together."""
    loop = asyncio.get_running_loop()
    waiting = list(connections)
    slices = min(MAX_SLICES, len(waiting) // SLICE + 1)
    for number in range(slices):
        sweep(waiting[number::slices], loop.time())
        await asyncio.sleep(SWEEP_S / slices)
    bound_held(connections)


def bound_held(connections: Iterable[Swept]) -> None:
    """Closes the connections that hold most once all hold over MAX_HELD_BYTES, down to three quarters of it, so that
    the next answer does not cause the same again."""
    sizes = sorted(((one.held_bytes, number, one) for number, one in enumerate(connections)), reverse=True)
    total = sum(size for size, _, _ in sizes)
    if total <= MAX_HELD_BYTES:
        return
    closed = 0
    for size, _, connection in sizes:
        connection.abort()
        closed += 1
        total -= size
        if total < MAX_HELD_BYTES * 3 // 4:
            break
    log.warning(
        "too many answers are not read, or requests wait behind others: the %d largest connections were closed", closed
    )


def bound_unread(unread: Mapping[Any, int]) -> None:
    """The same by numbers that are known, where one more client has stopped reading."""
    if sum(unread.values()) > MAX_HELD_BYTES:
        bound_held(unread)
