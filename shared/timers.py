"""Repeated work on a loop: a failed step is logged, and the next step runs anyway."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def logged(what: str) -> Iterator[None]:
    """Logs an exception of its block instead of raising it, for blocks that must not stop others."""
    try:
        yield
    except Exception:
        log.exception("%s failed; the next one runs all the same", what)


async def repeat(what: str, interval_s: float, step: Callable[[], Awaitable[None] | None]) -> None:
    """Runs `step`, then sleeps for `interval_s`, until cancelled. A step that raises is logged as `what`."""
    while True:
        with logged(what):
            done = step()
            if done is not None:
                await done
        await asyncio.sleep(interval_s)
