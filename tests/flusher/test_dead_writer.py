from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import uvloop

from flusher.answers import Failed
from flusher.mysql_errors import ErrorClass
from flusher.writer import Writer
from flusher.writers import WriterDied, Writers, _Child


def test_a_writer_that_died_before_it_was_asked_is_reported_as_dead() -> None:
    """Its pipe is closed then, and uvloop's write() to a closed pipe is a RuntimeError."""

    async def ask_the_dead() -> None:
        writers = Writers(5.0, command=("true",))
        child = _Child(0.0, ())
        child.process = await writers._start(child.arguments)
        assert child.process.stdin is not None
        await child.process.wait()
        while not child.process.stdin.is_closing():
            await asyncio.sleep(0)
        writers._choose = lambda: child  # type: ignore[method-assign] -- chosen before its end was seen
        with pytest.raises(WriterDied):
            await writers.ask({"ping": True})
        assert writers.busy == 0

    uvloop.run(asyncio.wait_for(ask_the_dead(), 60))


def test_a_writer_without_memory_keeps_its_segment_says_so_and_lives(tmp_path: Path) -> None:
    class Store:
        statements = 0
        connected = True
        closed = False

        def close(self) -> None:
            self.closed = True

    store = Store()
    answer = Writer(store, tmp_path / "letters", 1).write(tmp_path / "1.segment", MemoryError())  # type: ignore[arg-type]
    assert isinstance(answer, Failed)
    assert "not enough memory" in answer.message
    assert (answer.error_class, answer.of_segment, store.closed) == (ErrorClass.STORAGE, True, True)
