from __future__ import annotations

import asyncio
import struct
import zlib
from pathlib import Path

import pytest

from flusher import pinger, scheduler, segments
from flusher.answers import Answer
from flusher.mysql_errors import ErrorClass
from flusher.state import DatabaseState
from flusher.syncer import Fsync
from flusher.triggers import FlushPolicy, FlushReason
from shared.wire import Committed, encode
from tests.support.flusher import Node, bodies_in, failed, running, written

NEVER_BY_ITSELF = FlushPolicy(max_records=1_000_000, interval_s=3600.0)
OF_THE_SEGMENT = [ErrorClass.RETRY, ErrorClass.TOO_BIG, ErrorClass.DATA, ErrorClass.UNKNOWN]
OF_THE_DATABASE = [one for one in ErrorClass if one not in OF_THE_SEGMENT]


pytestmark = pytest.mark.node(policy=NEVER_BY_ITSELF)


def name(sequence: int) -> str:
    return f"{sequence:020}.segment"


def seal(node: Node, body: bytes) -> None:
    """Makes a sealed segment of one body, which waits for a writer."""
    node.submit(body)
    node.journal.seal(FlushReason.SIZE)


def answers_by_hand(node: Node) -> dict[str, asyncio.Future[Answer]]:
    """What the writers will answer, by the name of the segment: the test sets it."""
    answers: dict[str, asyncio.Future[Answer]] = {}

    def answer(path: Path) -> asyncio.Future[Answer]:
        return answers.setdefault(path.name, asyncio.get_running_loop().create_future())

    node.writers.answer = answer
    return answers


@pytest.mark.node(policy=FlushPolicy(max_records=3, interval_s=3600.0))
async def test_reaching_the_size_seals_the_segment_and_hands_it_over(node: Node, tmp_path: Path) -> None:
    node.submit(b"one", b"two")
    await node.settled()
    assert node.writers.asked == []
    node.submit(b"three")
    await node.until(lambda: node.writers.written_bodies == [b"one", b"two", b"three"])
    await node.until(lambda: node.figures.flushes == {"size": 1})
    assert not bodies_in(tmp_path)


@pytest.mark.node(policy=FlushPolicy(max_records=1000, interval_s=0.05))
async def test_the_age_of_the_oldest_record_triggers_a_flush_without_any_further_request(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinger, "FIRST_PING_S", 3600.0)  # the answer to a ping would look at the time, too

    node.submit(b"one")
    await node.settled()
    assert node.writers.asked == []
    node.clock.now += 0.06
    await node.until(lambda: node.figures.flushes == {"age": 1})


async def test_a_segment_is_unlinked_only_after_its_writer_said_written(node: Node, tmp_path: Path) -> None:
    answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    node.writers.answer = lambda path: answered
    node.submit(b"body")
    flushed = node.ask_flush()
    await node.until(lambda: node.writers.asked)
    await node.settled()
    assert bodies_in(tmp_path) == [b"body"]
    assert not flushed.done()

    answered.set_result(written(tmp_path / name(1)))
    result = await flushed
    assert bodies_in(tmp_path) == []
    assert (result.pending, result.rows["tasks"]) == (0, 1)


@pytest.mark.parametrize("error_class", ErrorClass)
async def test_no_failure_of_any_class_removes_a_segment(node: Node, tmp_path: Path, error_class: ErrorClass) -> None:
    node.writers.answer = lambda path: failed(error_class)
    node.submit(b"body")
    result = await node.ask_flush(0.05)

    assert result.pending == 1
    assert bodies_in(tmp_path) == [b"body"]
    assert node.figures.failures == {error_class.value: len(node.writers.asked)}
    assert node.figures.last_error == f"error 1 ({error_class.value})"


async def test_a_writer_that_dies_leaves_its_segment_to_the_next_one(node: Node, tmp_path: Path) -> None:
    node.writers.dies = True
    node.submit(b"body")
    node.ask_flush(0.01)
    await node.until(lambda: node.figures.failures)
    assert bodies_in(tmp_path) == [b"body"]

    node.writers.dies = False
    assert (await node.ask_flush()).pending == 0
    assert node.writers.written_bodies == [b"body"]


async def test_a_segment_that_is_tried_again_at_once_is_written_and_gone(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next hand-over begins before asyncio has told that the one before is done."""
    monkeypatch.setattr(scheduler.triggers, "retry_delay", lambda *_: 0.0)
    first: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    second: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    answers = iter((first, second))
    node.writers.answer = lambda path: next(answers)
    node.submit(b"body")
    flushed = node.ask_flush()
    await node.until(lambda: len(node.writers.asked) == 1)
    first.set_result(failed(ErrorClass.RETRY))
    await node.until(lambda: len(node.writers.asked) == 2)
    await node.settled()
    second.set_result(written(tmp_path / name(1)))

    assert (await flushed).pending == 0
    assert node.figures.failures == {"retry": 1}
    assert bodies_in(tmp_path) == []


@pytest.mark.parametrize("error_class", OF_THE_SEGMENT)
async def test_a_segment_that_fails_for_itself_does_not_hold_up_the_others(
    node: Node, tmp_path: Path, error_class: ErrorClass
) -> None:
    node.writers.answer = lambda path: failed(error_class) if path.name == name(1) else written(path)
    for body in (b"bad", b"good", b"good too"):
        seal(node, body)
    node.scheduler.schedule()
    await node.until(lambda: node.writers.written_bodies == [b"good", b"good too"])
    await node.until(lambda: bodies_in(tmp_path) == [b"bad"])
    assert node.writers.asked == [name(1), name(2), name(3)]

    node.writers.answer = written
    node.pass_time(60)
    await node.until(lambda: not bodies_in(tmp_path))


@pytest.mark.parametrize("error_class", OF_THE_DATABASE)
async def test_a_fault_of_the_database_pauses_every_segment_until_its_time_has_come(
    node: Node, error_class: ErrorClass
) -> None:
    node.writers.answer = lambda path: failed(error_class)
    for body in (b"one", b"two", b"three"):
        seal(node, body)
    node.scheduler.schedule()
    await node.until(lambda: node.figures.failures)
    await node.settled()
    node.scheduler.schedule()
    await node.settled()
    # Two at once for one writer, which fail as one attempt.
    assert node.writers.asked == [name(1), name(2)]
    assert node.scheduler._attempts == 1
    assert node.figures.database.bad

    node.pass_time(60)
    await node.settled()
    assert node.writers.asked[2:] == [name(3)]  # one, to see whether it is back
    assert node.scheduler._attempts == 2

    node.pass_time(60)
    await node.settled()
    # The failed one stands behind the others now.
    assert node.writers.asked[3:] == [name(1)]


@pytest.mark.parametrize("error_class", ErrorClass)
async def test_an_alarm_is_raised_for_what_does_not_pass_by_itself_and_ends_with_the_cause(
    node: Node, error_class: ErrorClass
) -> None:
    alarming = error_class in (
        ErrorClass.SCHEMA,
        ErrorClass.STORAGE,
        ErrorClass.UNKNOWN,
        ErrorClass.READ_ONLY,
    )

    node.writers.answer = lambda path: failed(error_class)
    node.submit(b"body")
    await node.ask_flush(0.01)
    assert (node.alarm is not None) is alarming

    node.writers.answer = written
    await node.ask_flush()
    assert node.alarm is None
    assert node.figures.database.state is DatabaseState.UP


@pytest.mark.parametrize("error_class", [ErrorClass.RETRY, ErrorClass.RECONNECT])
async def test_what_has_failed_is_tried_again_by_itself(node: Node, error_class: ErrorClass) -> None:
    node.writers.answer = lambda path: failed(error_class)
    seal(node, b"body")
    node.scheduler.schedule()
    await node.until(lambda: node.figures.failures)
    node.writers.answer = written
    node.clock.now += 60  # the timer that was set is of real time
    await node.until(lambda: node.writers.written_bodies == [b"body"])


async def test_a_blocked_host_is_an_alarm_although_it_is_retried_like_a_lost_connection(node: Node) -> None:
    node.writers.answer = lambda path: failed(ErrorClass.RECONNECT, 1129)
    node.submit(b"body")
    await node.ask_flush(0.01)
    assert node.alarm is not None


@pytest.mark.node(policy=FlushPolicy(max_records=1000, interval_s=0.5))
async def test_a_segment_that_is_itself_at_fault_holds_up_no_other_and_its_alarm_stays_until_it_is_gone(
    node: Node,
) -> None:
    bad = node.active
    assert bad is not None
    node.writers.answer = lambda path: (
        failed(ErrorClass.STORAGE, 5, of_segment=True) if path == bad.path else written(path)
    )
    node.submit(b"bad")
    assert (await node.ask_flush(0.01)).pending == 1
    for number in range(20):  # a record a second, without a flush by hand
        node.submit(b"%d" % number)
        node.pass_time(1)
        await node.until(lambda count=number + 1: len(node.writers.written_bodies) == count)
        await node.settled()
        assert node.alarm == "error 5 (storage)"
    assert node.writers.written_bodies == [b"%d" % number for number in range(20)]
    assert node.writers.asked.count(bad.path.name) > 2

    node.writers.answer = written
    await node.ask_flush()
    assert node.writers.written_bodies[-1] == b"bad"
    assert node.alarm is None


async def test_after_a_segment_at_fault_one_is_tried_at_a_time_until_one_is_written(node: Node) -> None:
    node.writers.answer = lambda path: failed(ErrorClass.SCHEMA, of_segment=True)
    for number in range(9):
        seal(node, b"%d" % number)
    node.scheduler.schedule()
    await node.until(lambda: len(node.writers.asked) == 9)
    never: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    node.writers.answer = lambda path: never
    node.pass_time(60)
    await node.settled()
    assert len(node.writers.asked) == 10
    never.set_result(failed(ErrorClass.SCHEMA, of_segment=True))


async def test_a_segment_of_which_writer_after_writer_dies_is_at_fault(node: Node) -> None:
    node.submit(b"deadly")
    node.writers.dies = True
    for deaths in range(1, 4):
        await node.ask_flush(0.01)
        assert node.figures.failures["reconnect"] == min(deaths, 2)
        assert (node.alarm is not None) is (deaths == 3)
    node.writers.dies = False
    node.submit(b"good")
    await node.ask_flush()
    assert sorted(node.writers.written_bodies) == [b"deadly", b"good"]
    assert node.alarm is None


async def test_a_flush_that_cannot_finish_answers_at_its_timeout_with_what_is_pending(
    node: Node, tmp_path: Path
) -> None:
    answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    node.writers.answer = lambda path: answered
    node.submit(b"one", count=7)
    result = await node.ask_flush(0.02)

    assert result.pending == 7
    assert bodies_in(tmp_path) == [b"one"]
    answered.set_result(written(tmp_path / name(1)))


async def test_a_flush_covers_what_was_accepted_before_it_and_waits_for_nothing_later(
    node: Node, tmp_path: Path
) -> None:
    answers = answers_by_hand(node)
    node.submit(b"before")
    flushed = node.ask_flush()
    await node.until(lambda: node.writers.asked)
    node.submit(b"after")
    answers[name(1)].set_result(written(tmp_path / name(1)))

    result = await flushed
    assert (result.pending, result.rows) == (0, {"sessions": 0, "tasks": 1})
    assert bodies_in(tmp_path) == [b"after"]


async def test_what_was_accepted_after_a_flush_was_asked_for_does_not_count_for_it(node: Node) -> None:
    node.writers.answer = lambda path: failed(ErrorClass.RETRY) if path.name == name(1) else written(path)
    node.submit(b"before")
    flushed = node.ask_flush()
    await node.until(lambda: node.figures.failures)
    seal(node, b"after")
    node.scheduler.schedule()
    await node.until(lambda: node.figures.records_written == 1)
    node.writers.answer = written
    node.pass_time(60)

    assert (await flushed).rows == {"sessions": 0, "tasks": 1}


async def test_a_flush_called_while_another_runs_waits_for_its_own_records(node: Node, tmp_path: Path) -> None:
    answers = answers_by_hand(node)
    node.submit(b"one")
    first = node.ask_flush()
    await node.until(lambda: node.writers.asked)
    node.submit(b"two", b"three")
    second = node.ask_flush()
    answers[name(1)].set_result(written(tmp_path / name(1)))
    assert (await first).rows["tasks"] == 1
    await node.until(lambda: len(node.writers.asked) == 2)
    assert not second.done()
    answers[name(2)].set_result(written(tmp_path / name(2), coalesced=1, dead_lettered=2))

    result = await second
    # The first segment was still under way when the second caller came, so both count for it.
    assert (result.rows["tasks"], result.coalesced, result.dead_lettered) == (3, 1, 2)


@pytest.mark.node(policy=FlushPolicy(max_records=2, interval_s=3600.0, segment_max_records=2))
async def test_a_segment_over_its_cap_is_sealed_even_while_no_writer_is_free(node: Node, tmp_path: Path) -> None:
    node.writers.answer = lambda path: failed(ErrorClass.RECONNECT)
    for number in range(6):
        node.submit(b"%d" % number)
        await node.settled()

    paths = sorted(tmp_path.glob("*.segment"))
    assert [len(segments.read(path).entries) for path in paths] == [2, 2, 2, 0]


@pytest.mark.node(writers_at_once=3, pool_size=10)
async def test_more_writers_join_only_while_there_is_a_backlog_and_the_database_takes_it(
    node: Node, tmp_path: Path
) -> None:
    answers: list[asyncio.Future[Answer]] = []

    def answer(path: Path) -> asyncio.Future[Answer]:
        answers.append(asyncio.get_running_loop().create_future())
        return answers[-1]

    node.writers.answer = answer
    seal(node, b"first")
    node.scheduler.schedule()
    await node.until(lambda: len(answers) == 1)
    for number in range(15):
        seal(node, b"%d" % number)
    node.scheduler.schedule()
    await node.until(lambda: len(answers) == 6)
    await node.settled()
    assert len(answers) == 6  # two for each of three writers, for 16 segments that wait

    node.writers.answer = written
    for number, one in enumerate(answers):
        one.set_result(written(tmp_path / name(number + 1)))
    await node.until(lambda: not bodies_in(tmp_path))


async def test_segments_of_an_earlier_run_are_written_oldest_first_while_new_records_are_accepted(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as node:
        node.writers.answer = lambda path: failed(ErrorClass.RECONNECT)
        seal(node, b"one")
        seal(node, b"two")
    assert bodies_in(tmp_path) == [b"one", b"two"]
    async with running(tmp_path) as node:
        node.submit(b"new")
        assert node.acked() == [1]
        assert node.intake.refusing is None
        assert (await node.ask_flush()).pending == 0
        assert node.writers.written_bodies == [b"one", b"two", b"new"]
        assert node.figures.flushes["recovery"] == 2
        assert bodies_in(tmp_path) == []


async def test_a_damaged_segment_is_written_and_then_kept_under_another_name(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        node.submit(b"one", b"two", b"three")
    (path,) = tmp_path.glob("*.segment")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    async with running(tmp_path) as node:
        assert (await node.ask_flush()).pending == 0
        assert node.writers.written_bodies == [b"one", b"three"]
        assert node.journal.set_aside == 1
        assert node.figures.damaged_bytes > 0

    assert not path.exists()
    assert path.with_name(path.name + ".broken").read_bytes() == bytes(data)


async def test_a_segment_of_another_version_is_set_aside_and_not_lost(tmp_path: Path) -> None:
    # From the grammar: version 2, whatever its entries look like.
    head = b"PSJ\xff" + struct.pack("<BBHQ", 2, 0, 0, 0)
    data = head + struct.pack("<I", zlib.crc32(head)) + b"entries of a kind that this version cannot read"
    path = tmp_path / name(1)
    path.write_bytes(data)

    async with running(tmp_path) as node:
        assert (await node.ask_flush()).pending == 0
        assert node.journal.set_aside == 1
    assert path.with_name(path.name + ".broken").read_bytes() == data


async def test_drain_writes_what_is_left_and_keeps_what_it_could_not(node: Node, tmp_path: Path) -> None:
    node.writers.answer = lambda path: failed(ErrorClass.RECONNECT)
    node.submit(b"one", b"two")
    await node.scheduler.drain(0.05)
    assert bodies_in(tmp_path) == [b"one", b"two"]

    node.writers.answer = written
    await node.scheduler.drain(10.0)
    assert bodies_in(tmp_path) == []


async def test_a_drain_does_not_wait_for_a_database_that_is_away(node: Node, tmp_path: Path) -> None:
    node.writers.answer = lambda path: failed(ErrorClass.RECONNECT)
    node.submit(b"kept")
    draining = asyncio.ensure_future(node.scheduler.drain(3600.0))
    while not draining.done():
        node.pass_time(60.0)
        for _ in range(20):  # turns of the loop, not time: what follows an attempt has happened before the next
            await asyncio.sleep(0)
    assert bodies_in(tmp_path) == [b"kept"]
    assert node.figures.failures == {"reconnect": scheduler.DRAIN_ATTEMPTS}


async def test_a_drain_waits_for_what_was_accepted_after_an_earlier_empty_moment(node: Node, tmp_path: Path) -> None:
    node.scheduler.start_draining()
    node.submit(b"late")
    await node.scheduler.drain(10.0)
    assert node.writers.written_bodies == [b"late"]
    assert bodies_in(tmp_path) == []


async def test_after_stop_no_write_is_started(node: Node, tmp_path: Path) -> None:
    node.scheduler.stop()
    node.submit(b"kept")
    node.ask_flush(0.01)
    await node.settled()
    assert node.writers.asked == []
    assert bodies_in(tmp_path) == [b"kept"]


async def test_commit_callers_hear_of_their_own_segment_only_and_only_once_it_is_written(node: Node) -> None:
    heard: list[bytes] = []
    node.writers.answer = lambda path: failed(ErrorClass.RETRY)
    seal(node, b"one")
    seal(node, b"two")
    for sequence, arrival in ((1, 5), (2, 6), (2, 7)):
        node.scheduler.when_committed(sequence, arrival, heard.append)
    node.scheduler.schedule()
    await node.until(lambda: node.figures.failures == {"retry": 2})
    assert heard == []

    node.writers.answer = lambda path: (
        written(path, dead_arrivals={7: 1, 8: 1}) if path.name == name(2) else failed(ErrorClass.RETRY)
    )
    node.pass_time(60)
    await node.until(lambda: heard)
    assert heard == [encode(Committed(6, 7, {7: 1}))]

    node.writers.answer = written
    node.pass_time(60)
    await node.until(lambda: len(heard) == 2)
    assert heard[-1] == encode(Committed(5, 5))


async def test_journal_bytes_and_segments_return_to_those_of_the_open_segment(node: Node) -> None:
    empty = node.journal.bytes
    for number in range(5):
        seal(node, b"%d" % number)
    assert len(list(node.journal)) == 6
    await node.ask_flush()

    assert (node.journal.bytes, len(list(node.journal))) == (empty, 1)
    assert node.figures.records_written == 5


@pytest.mark.parametrize("fsync", [Fsync.ALWAYS, Fsync.INTERVAL])
async def test_a_segment_may_be_written_before_it_is_synced(node: Node, fsync: Fsync) -> None:
    node.disk.hold_syncs()
    node.submit(b"body")
    assert (await node.ask_flush()).pending == 0
    node.disk.let_syncs_go()
    await node.until(lambda: node.acked() == [1])
