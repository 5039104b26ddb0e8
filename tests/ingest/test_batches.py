"""The closer look at a batch: in steps between turns of the loop, one large body at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, cast

import pytest

from ingest.resources import LARGE_BODY_BYTES, Batch
from shared.records import TASKS


class Looks:
    """A validator that writes down whose step each is."""

    kind = TASKS

    def __init__(self) -> None:
        self.steps: list[int] = []

    def validate(self, body: bytes, _now_s: float) -> Generator[None, None, int]:
        for _ in range(3):
            self.steps.append(body[0])
            yield
        return 1


@pytest.mark.parametrize(
    ("size", "steps"), [(LARGE_BODY_BYTES + 1, [0, 0, 0, 1, 1, 1]), (LARGE_BODY_BYTES, [0, 1, 0, 1, 0, 1])]
)
def test_large_bodies_are_looked_at_one_after_the_other(
    size: int, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or four callers would hold up everybody else for four steps at each turn."""
    monkeypatch.setattr("ingest.resources.TURN_S", -1)
    looks = Looks()

    async def main() -> None:
        batch = Batch(cast(Any, looks), cast(Any, None))
        await asyncio.gather(*(batch._validate(bytes([number]) * size) for number in (0, 1)))

    asyncio.run(main())
    assert looks.steps == steps
