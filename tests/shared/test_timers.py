from __future__ import annotations

import asyncio

import pytest

from shared.timers import logged, repeat


@pytest.mark.parametrize("kind", ["function", "coroutine"])
def test_a_step_that_fails_is_logged_and_the_next_ones_run(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    steps = 0
    enough = asyncio.Event()

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == 1:
            raise RuntimeError("once")
        enough.set()

    async def later() -> None:
        await asyncio.sleep(0)
        step()

    async def main() -> None:
        task = asyncio.ensure_future(repeat("a look", 0.0, step if kind == "function" else later))
        await enough.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(main(), 30))
    (record,) = caplog.records
    assert "a look failed" in record.getMessage()
    assert record.exc_info


def test_a_cancellation_is_not_swallowed() -> None:
    with pytest.raises(asyncio.CancelledError), logged("a look"):
        raise asyncio.CancelledError
