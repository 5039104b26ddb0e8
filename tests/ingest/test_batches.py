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

    def __init__(self, body: bytes) -> None:
        self.scope = {"body": body}


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The bodies that were given to the slow path."""
    found: list[bytes] = []
    validate = Validator.validate

    def counting(self: Validator, body: bytes, now_s: float) -> Iterator[None]:
        found.append(body)
        return validate(self, body, now_s)

    monkeypatch.setattr(Validator, "validate", counting)
    monkeypatch.setattr(batches, "time", Clock())
    return found


def post(body: bytes) -> int:
    """Returns: the turns that another task had until the answer."""
    keeper = Access(None, protected_mode=True, allowed_hosts=())
    batch = BatchRoute(
        Validator(TASKS, POLICY),
        cast(Forwarder, None),
        keeper,
        max_body_bytes=10_000_000,
        reject=lambda _records: None,
        wall=lambda: 2e9,
    )

    async def run() -> int:
        turns = 0
        answer = asyncio.ensure_future(batch.on_post(cast(Any, Request(body)), cast(Any, None)))
        while not answer.done():
            turns += 1
            await asyncio.sleep(0)
        with pytest.raises(ErrorResponse) as raised:
            await answer
        assert raised.value.status == 422
        return turns

    return asyncio.run(run())


def test_other_tasks_have_a_turn_every_few_milliseconds(looks: list[bytes]) -> None:
    records = [task(row_index="7")] * 200 + [task(status="done")]
    turns = post(body_of(TASKS, *records))
    assert turns > 200 * 0.001 / batches.TURN_S / 2
    assert len(looks) == 1


def test_a_body_of_many_invalid_records_is_looked_at_once(looks: list[bytes]) -> None:
    post(body_of(TASKS, *[task(status="done")] * 500))
    assert len(looks) == 1
