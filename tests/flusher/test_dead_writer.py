from __future__ import annotations

import asyncio

import pytest
import uvloop

from flusher.writers import WriterDied, Writers


def test_a_writer_that_died_before_it_was_asked_is_reported_as_dead() -> None:
    """Its pipe is closed then, and uvloop's write() to a closed pipe is a RuntimeError."""

    async def ask_the_dead() -> None:
        writers = Writers(5.0, command=("true",))
        child = await writers._start()
        assert child.stdin is not None
        await child.wait()
        while not child.stdin.is_closing():
            await asyncio.sleep(0)
        writers._take_idle = lambda: child  # type: ignore[method-assign]
        with pytest.raises(WriterDied):
            await writers.ask({"ping": True})
        assert writers.busy == 0

    uvloop.run(asyncio.wait_for(ask_the_dead(), 60))
