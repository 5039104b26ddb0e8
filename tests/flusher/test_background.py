"""Timers and tasks of the flusher: one failure is logged, and the thing goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from flusher import pinger, scheduler
from flusher.mysql_errors import ErrorClass
from flusher.syncer import Fsync
from flusher.triggers import FlushPolicy
from flusher.writers import WriterDied
from tests.support.flusher import Node, bodies_in, failed, written


def run(test: Callable[[Node], Awaitable[None]], directory: Path, **settings: object) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        node = Node(directory, **settings)  # type: ignore[arg-type]
        try:
            await test(node)
        finally:
            await node.close()

    asyncio.run(main())


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


def test_a_look_that_fails_is_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    """The timer that flushes by age is set by the look before it."""

    async def test(node: Node) -> None:
        node.submit(b"one")
        with monkeypatch.context() as patch:
            patch.setattr(node.journal, "next", fault)
            patch.setattr(pinger, "FIRST_PING_S", 3600.0)  # its answer would look, too
            node.clock.now += 0.06
            await node.until(lambda: fault.calls > 2)
        await node.until(lambda: node.figures.flushes == {"age": 1})

    run(test, tmp_path, policy=FlushPolicy(max_records=1000, interval_s=0.05))


def test_a_hand_over_that_fails_is_logged_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    async def test(node: Node) -> None:
        node.writers.answer = fault
        node.submit(b"one")
        node.ask_flush(0.01)
        await node.until(lambda: "a hand-over failed" in caplog.text)
        node.writers.answer = written
        node.clock.now += 60
        await node.until(lambda: node.writers.written_bodies == [b"one"])
        await node.until(lambda: not bodies_in(tmp_path))

    run(test, tmp_path)


def test_a_caller_that_cannot_be_answered_keeps_no_other_from_its_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    async def test(node: Node) -> None:
        node.submit(b"one")
        heard: list[bytes] = []
        node.scheduler.when_committed(1, 1, fault)
        node.scheduler.when_committed(1, 2, heard.append)
        node.scheduler.flush(10, fault)
        assert (await node.ask_flush()).pending == 0
        assert len(heard) == 1
        assert "answering a flush failed" in caplog.text
        assert "telling of a commit failed" in caplog.text

    run(test, tmp_path)


@pytest.mark.parametrize("fails", ["ask", "shrink"])
def test_a_ping_that_fails_is_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, fails: str
) -> None:
    async def test(node: Node) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(node.writers, fails, fault)
            await node.until(lambda: fault.calls > 2)
        assert not node.figures.database.bad
        await node.until(lambda: node.figures.database.bad)

    run(test, tmp_path)


def test_what_waits_for_a_ping_is_written_although_its_writer_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failure one command at a time is under way, and that was the ping."""
    monkeypatch.setattr(pinger, "PING_S", 3600.0)

    async def test(node: Node) -> None:
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

    run(test, tmp_path)


def test_where_every_segment_fails_a_caller_of_a_commit_does_not_cost_one_each(tmp_path: Path) -> None:
    """An unknown error, or dead letters that are full, may last for hours."""

    async def test(node: Node) -> None:
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

    run(test, tmp_path)


@pytest.mark.parametrize("fsync", [Fsync.ALWAYS, Fsync.INTERVAL])
def test_a_sync_that_fails_for_a_fault_of_ours_proves_nothing_and_is_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Fsync
) -> None:
    monkeypatch.setattr("flusher.syncer.INTERVAL_S", 0.01)

    async def test(node: Node) -> None:
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

    run(test, tmp_path, fsync=fsync)
