"""The state of database and acceptance: what sets it, how long it lasts, and what comes first of several troubles."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from flusher import pinger
from flusher.answers import Alive, Answer
from flusher.mysql_errors import ErrorClass
from flusher.segments import ENTRY_HEADER_BYTES, SEGMENT_HEADER_BYTES
from flusher.state import (
    HANGING_S,
    NO_DATABASE_ERROR,
    OVERLOADED,
    Acceptance,
    Cause,
    Condition,
    Database,
    DatabaseState,
    verdict,
)
from tests.support.flusher import Node, failed, written

UP, DOWN, NOT_WRITABLE = DatabaseState.UP, DatabaseState.DOWN, DatabaseState.NOT_WRITABLE
BAD = Condition("reason", 5.0)


pytestmark = pytest.mark.node(ping=Alive("host", "10.11"))


def test_before_the_first_answer_the_state_is_unknown_and_no_fault() -> None:
    database = Database(since=1.0)
    assert (database.state, database.bad) == (DatabaseState.UNKNOWN, False)
    assert verdict(None, database, None, None) == (
        "degraded",
        Condition("the database has not answered yet", 1.0, Cause.STARTING),
    )
    database.answered(2.0)
    assert (database.state, database.reason, database.since) == (UP, None, 2.0)


@pytest.mark.parametrize(
    ("error_class", "number", "state", "cause"),
    [
        (ErrorClass.RECONNECT, 2002, DOWN, "unreachable"),
        (ErrorClass.RECONNECT, 2013, DOWN, "unreachable"),
        (ErrorClass.RECONNECT, 1053, DOWN, "unreachable"),
        (ErrorClass.RECONNECT, 1040, NOT_WRITABLE, "busy"),
        (ErrorClass.RECONNECT, 1129, NOT_WRITABLE, "busy"),
        (ErrorClass.READ_ONLY, 1290, NOT_WRITABLE, "read_only"),
        (ErrorClass.SCHEMA, 1045, NOT_WRITABLE, "rights"),
        (ErrorClass.SCHEMA, 1142, NOT_WRITABLE, "rights"),
        (ErrorClass.SCHEMA, 1146, NOT_WRITABLE, "tables"),
        (ErrorClass.STORAGE, 1021, NOT_WRITABLE, "disk"),
        (ErrorClass.UNKNOWN, 9999, NOT_WRITABLE, "unknown"),
    ],
)
def test_a_database_that_was_reached_is_not_writable_rather_than_down(
    error_class: ErrorClass, number: int, state: DatabaseState, cause: str
) -> None:
    database = Database(since=1.0)
    database.failed(failed(error_class, number), 2.0, writing=True)
    assert (database.state, database.since, database.cause) == (state, 2.0, cause)
    assert str(database.reason).startswith(f"error {number} ({error_class.value}); ")
    assert "ctl.sh db check" in str(database.reason)


def test_what_a_write_has_found_lasts_until_a_commit_whatever_a_ping_says() -> None:
    database = Database(since=1.0)
    database.failed(failed(ErrorClass.RECONNECT, 2002), 2.0, writing=True)
    database.failed(failed(ErrorClass.SCHEMA, 1146), 3.0, writing=True)
    for _ in range(3):
        database.answered(4.0)
        assert (database.state, database.since) == (NOT_WRITABLE, 2.0)
    database.committed(5.0)
    assert (database.state, database.reason, database.since) == (UP, None, 5.0)


def test_what_only_a_ping_has_found_ends_with_a_ping_since_there_may_be_nothing_to_commit() -> None:
    database = Database(since=1.0)
    database.failed(failed(ErrorClass.RECONNECT, 2002), 2.0, writing=False)
    assert database.state is DOWN
    database.answered(3.0)
    assert database.state is UP


def test_a_writer_that_dies_says_nothing_of_the_database() -> None:
    database = Database(since=1.0)
    database.answered(1.0)
    database.failed(failed(ErrorClass.RECONNECT, NO_DATABASE_ERROR), 2.0, writing=True)
    assert database.state is UP


def test_the_gravest_trouble_is_told_first() -> None:
    database = Database(since=1.0)
    database.failed(failed(ErrorClass.SCHEMA, 1146), 2.0, writing=True)
    found = Condition(str(database.reason), 2.0, Cause.TABLES)
    assert verdict(BAD, database, BAD, BAD) == ("unhealthy", BAD)
    assert verdict(None, database, BAD, BAD) == ("degraded", found)
    database.committed(3.0)
    assert verdict(None, database, BAD, None) == verdict(None, database, None, BAD) == ("degraded", BAD)
    assert verdict(None, database, None, None) == ("healthy", None)


def test_a_full_journal_says_why_it_does_not_drain() -> None:
    database = Database(since=1.0)
    full = Condition("the journal is full", 3.0, Cause.JOURNAL_FULL)
    database.answered(1.0)
    _, why = verdict(full, database, None, None)
    assert why == full._replace(reason=f"the journal is full: {OVERLOADED}")
    database.failed(failed(ErrorClass.SCHEMA, 1146), 2.0, writing=True)
    _, why = verdict(full, database, None, None)
    assert why == full._replace(reason=f"the journal is full: {database.reason}")


@pytest.mark.parametrize("answer", ["none", "lock wait"])
async def test_a_locked_table_is_not_writable_from_then_until_a_commit_and_never_in_between(
    node: Node, answer: str
) -> None:
    """Every write waits for its lock, fails, and is tried again; healthy during the next try would be a lie."""
    database = node.figures.database
    database.answered(0.0)
    held: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    node.writers.answer = lambda path: held if answer == "none" else failed(ErrorClass.RETRY, 1205)
    node.submit(b"body")
    node.ask_flush(0.01)
    await node.until(lambda: node.writers.asked)
    await node.settled()
    states = []
    for _ in range(60):
        node.pass_time(1)
        await node.settled()
        node.scheduler.check_hanging()
        states.append(database.state)
    first = states.index(NOT_WRITABLE)
    assert first + 1 == HANGING_S
    assert set(states[first:]) == {NOT_WRITABLE}
    assert ("1205" in str(database.reason)) == (answer == "lock wait")

    node.writers.answer = written
    if not held.done():
        held.set_result(failed(ErrorClass.RETRY, 1205))
    await node.settled()
    await node.ask_flush()
    assert database.state is UP
    node.clock.now += 60
    node.scheduler.check_hanging()
    assert database.state is UP


async def test_one_segment_that_is_at_fault_itself_does_not_make_the_database_bad(node: Node) -> None:
    node.figures.database.answered(0.0)
    node.writers.answer = lambda path: failed(ErrorClass.STORAGE, 5, of_segment=True)
    node.submit(b"body")
    for _ in range(5):
        asked = len(node.writers.asked)
        node.ask_flush()
        await node.until(lambda asked=asked: len(node.writers.asked) > asked and node.alarm)
        node.clock.now += 10
        node.scheduler.check_hanging()
    assert node.figures.database.state is UP
    assert node.alarm == "error 5 (storage)"


async def test_a_database_that_refuses_one_segment_is_not_down(node: Node) -> None:
    """It was, and has been reached since: a row over max_allowed_packet is the reason now, not the lost connection."""
    database = node.figures.database
    answers = [failed(ErrorClass.RECONNECT, 2006), failed(ErrorClass.SCHEMA, 1153, of_segment=True)]
    node.writers.answer = lambda path: answers[min(len(node.writers.asked), 2) - 1]
    node.submit(b"body")
    node.ask_flush()
    await node.until(lambda: database.state is DOWN)
    node.clock.now += 10
    node.ask_flush()
    await node.until(lambda: database.state is not DOWN)
    assert database.state is NOT_WRITABLE
    assert "1153" in str(database.reason)


async def test_a_full_journal_is_full_until_a_segment_has_gone(node: Node) -> None:
    body = b"x" * 100
    node.intake.max_bytes = SEGMENT_HEADER_BYTES + 3 * (ENTRY_HEADER_BYTES + len(body)) - 50
    node.writers.answer = lambda path: failed(ErrorClass.RECONNECT, 2002)
    node.submit(body, body, body)
    await node.settled()
    since = node.intake.refusing
    for _ in range(3):
        node.clock.now += 60
        node.submit(b"small")  # it still fits, and changes nothing
        node.intake.probe()
        assert node.intake.acceptance is Acceptance.FULL
        assert node.intake.refusing is since
    assert node.acked()[:3] == [1, 2, 4]

    node.writers.answer = written
    await node.ask_flush()
    node.intake.look()
    assert node.intake.acceptance is Acceptance.ACCEPTING


@pytest.mark.node(max_bytes=1000)
async def test_a_body_that_never_fits_does_not_make_an_empty_journal_full(node: Node) -> None:
    """No segment would ever go, and a balancer sends nothing while /ready says no."""
    node.submit(b"x" * 1000)
    assert len(node.rejected()) == 1
    assert node.intake.acceptance is Acceptance.ACCEPTING


async def test_a_segment_that_has_vanished_is_no_write_that_is_held_up(node: Node) -> None:
    node.figures.database.answered(0.0)

    def take_away(path: Path) -> Answer:
        path.unlink()
        return failed(ErrorClass.STORAGE, 2, of_segment=True)

    node.writers.answer = take_away
    node.submit(b"body")
    await node.ask_flush()
    assert node.figures.vanished == 1
    node.clock.now += 2 * HANGING_S
    node.scheduler.check_hanging()
    assert node.figures.database.state is UP


async def test_a_journal_that_cannot_be_written_is_tried_although_nobody_sends(node: Node, tmp_path: Path) -> None:
    """A balancer sends nothing while /ready says no."""
    node.disk.full = True
    node.submit(b"body")
    refusing = node.intake.refusing
    assert refusing is not None
    assert "make room on its disk" in refusing.reason
    node.intake.look()
    assert node.intake.acceptance is Acceptance.NOT_WRITABLE

    node.disk.full = False
    node.intake.probe()
    assert node.intake.refusing is None
    assert list(tmp_path.glob("probe*")) == []


async def test_writers_that_die_one_after_another_are_told_although_nothing_is_to_be_written(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinger, "FIRST_PING_S", 0.01)
    monkeypatch.setattr(pinger, "PING_S", 0.01)

    node.writers.dies = True
    await node.until(lambda: node.figures.database.state is NOT_WRITABLE)
    assert node.figures.database.reason == "no writer can work: killed; the log says more"
    node.writers.dies = False
    await node.until(lambda: node.figures.database.state is UP)
