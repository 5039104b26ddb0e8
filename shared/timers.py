"""Work that repeats on a loop: a step that fails is logged, and the next step runs all the same."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def logged(what: str) -> Iterator[None]:
    """Logs an exception of its block instead of raising it. For blocks of which one may not stop the others."""
    try:
        yield
    except Exception:
        log.exception("%s failed; the next one runs all the same", what)


async def repeat(what: str, interval_s: float, step: Callable[[], Awaitable[None] | None]) -> None:
    """Runs `step` and then rests for `interval_s`, until it is cancelled. A step that raises is logged as `what`."""
    while True:
        with logged(what):
            done = step()
            if done is not None:
                await done
        await asyncio.sleep(interval_s)
