"""The closer look at a batch gives the loop's other tasks their turns, and every body is looked at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, cast

import pytest

from ingest import batches
from ingest.access import Access
from ingest.batches import BatchRoute
from ingest.forwarder import Forwarder
from ingest.responses import ErrorResponse
from shared.records import TASKS
from shared.validation import Validator
from tests.support.bodies import POLICY, body_of
from tests.support.service import task


class Clock:
    """A millisecond passes between two looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 0.001
        return self.now

    def time(self) -> float:
        return 2e9


class Request:
    query_string = ""

    def __init__(self, body: bytes, record_count: int | None) -> None:
        self.scope = {"body": body, "record_count": record_count}


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How a body was looked at."""
    found: list[str] = []
    validate, count = Validator.validate, Validator.count

    def validating(self: Validator, body: bytes, now_s: float) -> Iterator[None]:
        found.append("validate")
        return validate(self, body, now_s)

    def counting(self: Validator, body: bytes, now_s: float) -> int:
        found.append("count")
        return count(self, body, now_s)

    monkeypatch.setattr(Validator, "validate", validating)
    monkeypatch.setattr(Validator, "count", counting)
    monkeypatch.setattr(batches, "time", Clock())
    return found


def post(body: bytes, record_count: int | None = None) -> int:
    """Returns: the turns that another task had until the answer."""
    keeper = Access(None, protected_mode=True, allowed_hosts=())
    validator, forwarder = Validator(TASKS, POLICY), cast(Forwarder, None)
    batch = BatchRoute(
        validator, forwarder, keeper, max_body_bytes=10**7, reject=lambda _records: None, wall=lambda: 2e9
    )
    request = cast(Any, Request(body, record_count))

    async def run() -> int:
        turns = 0
        answer = asyncio.ensure_future(batch.on_post(request, cast(Any, None)))
        while not answer.done():
            turns += 1
            await asyncio.sleep(0)
        with pytest.raises(ErrorResponse) as raised:
            await answer
        assert raised.value.status == 422
        return turns

    return asyncio.run(run())


def test_other_tasks_have_a_turn_every_few_milliseconds(looks: list[str]) -> None:
    records = [task(row_index="7")] * 200 + [task(status="done")]
    turns = post(body_of(TASKS, *records))
    assert turns > 200 * 0.001 / batches.TURN_S / 2
    assert looks == ["count", "validate"]


def test_a_body_of_many_invalid_records_is_looked_at_once_by_both_doors_together(looks: list[str]) -> None:
    """The fast path counts it before (tests/ingest/test_fast_path.py)."""
    post(body_of(TASKS, *[task(status="done")] * 500), record_count=0)
    assert looks == ["validate"]
