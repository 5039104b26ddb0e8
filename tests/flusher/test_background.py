"""Timers and tasks of the flusher: one failure is logged, and the thing goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from flusher import pinger, scheduler
from flusher.mysql_errors import ErrorClass
from flusher.syncer import Fsync
from flusher.triggers import FlushPolicy
from flusher.writers import WriterDied
from tests.support.flusher import Node, bodies_in, failed, written


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "WAKE_AGAIN_S", 0.01)
    monkeypatch.setattr(pinger, "FIRST_PING_S", 0.01)


class Fault:
    """A call that fails; `calls` counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: object) -> Any:
        self.calls += 1
        raise ZeroDivisionError


@pytest.fixture
def fault() -> Fault:
    return Fault()


@pytest.mark.node(policy=FlushPolicy(max_records=1000, interval_s=0.05))
async def test_a_look_that_fails_is_not_the_last(node: Node, monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    """The timer that flushes by age is set by the look before it."""
    node.submit(b"one")
    with monkeypatch.context() as patch:
        patch.setattr(node.journal, "next", fault)
        patch.setattr(pinger, "FIRST_PING_S", 3600.0)  # its answer would look, too
        node.clock.now += 0.06
        await node.until(lambda: fault.calls > 2)
    await node.until(lambda: node.figures.flushes == {"age": 1})


async def test_a_hand_over_that_fails_is_logged_and_tried_again(
    node: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    node.writers.answer = fault
    node.submit(b"one")
    node.ask_flush(0.01)
    await node.until(lambda: "a hand-over failed" in caplog.text)
    node.writers.answer = written
    node.clock.now += 60
    await node.until(lambda: node.writers.written_bodies == [b"one"])
    await node.until(lambda: not bodies_in(tmp_path))


async def test_a_caller_that_cannot_be_answered_keeps_no_other_from_its_answer(
    node: Node, caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    node.submit(b"one")
    heard: list[bytes] = []
    node.scheduler.when_committed(1, 1, fault)
    node.scheduler.when_committed(1, 2, heard.append)
    node.scheduler.flush(10, fault)
    assert (await node.ask_flush()).pending == 0
    assert len(heard) == 1
    assert "answering a flush failed" in caplog.text
    assert "telling of a commit failed" in caplog.text


@pytest.mark.parametrize("fails", ["ask", "shrink"])
async def test_a_ping_that_fails_is_not_the_last(
    node: Node, monkeypatch: pytest.MonkeyPatch, fault: Fault, fails: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(node.writers, fails, fault)
        await node.until(lambda: fault.calls > 2)
    assert not node.figures.database.bad
    await node.until(lambda: node.figures.database.bad)


async def test_what_waits_for_a_ping_is_written_although_its_writer_dies(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failure one command at a time is under way, and that was the ping."""
    monkeypatch.setattr(pinger, "PING_S", 3600.0)
    died: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    ask = node.writers.ask
    monkeypatch.setattr(node.writers, "ask", lambda command: ask(command) if "write" in command else died)
    node.figures.database.answered(0.0)
    await node.until(lambda: node.scheduler._pinger.under_way)
    node.scheduler._attempts = 1
    node.submit(b"one")
    node.ask_flush()
    assert node.journal.waiting == 0
    died.set_exception(WriterDied("killed"))
    await node.until(lambda: node.writers.written_bodies == [b"one"])


async def test_where_every_segment_fails_a_caller_of_a_commit_does_not_cost_one_each(node: Node) -> None:
    """An unknown error, or dead letters that are full, may last for hours."""
    node.writers.answer = lambda _: failed(ErrorClass.UNKNOWN)
    for number in range(scheduler.FAILED_AT_ONCE + 50):
        node.submit(b"%d" % number, want_commit=True)
        await node.settled()
    assert node.journal.waiting == scheduler.FAILED_AT_ONCE + 1
    assert sum(node.journal.records().values()) == scheduler.FAILED_AT_ONCE + 50
    node.clock.now += scheduler.FAILED_EACH_S
    await node.until(lambda: node.journal.waiting == scheduler.FAILED_AT_ONCE + 2)

    node.writers.answer = written
    assert (await node.ask_flush()).pending == 0


@pytest.mark.parametrize("fsync", [Fsync.ALWAYS, Fsync.INTERVAL])
async def test_a_sync_that_fails_for_a_fault_of_ours_proves_nothing_and_is_not_the_last(
    node: Node, monkeypatch: pytest.MonkeyPatch, fsync: Fsync
) -> None:
    monkeypatch.setattr("flusher.syncer.INTERVAL_S", 0.01)

    with monkeypatch.context() as patch:
        patch.setattr(node.disk, "synced_fds", None)  # append() to it fails
        node.submit(b"one")
        await node.until(lambda: node.syncer.last_error)
    if fsync is Fsync.ALWAYS:
        assert len(node.rejected()) == 1
        assert node.acked() == []
    await node.until(lambda: not node.syncer.failed)
    node.submit(b"two")
    await node.until(lambda: 2 in node.acked())
