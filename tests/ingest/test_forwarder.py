"""The forwarder against a flusher whose every answer the test decides, on a real Unix socket."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from ingest.forwarder import SOCKET_BYTES, FlusherUnavailable, Forwarder, Rejected
from ingest.outbox import SPIN_BYTES, SPIN_PAUSE_REQUESTS, SPIN_TURNS, Outbox
from shared.wire import (
    Ack,
    Answer,
    Committed,
    FlushRequest,
    Reason,
    Reject,
    StatsRequest,
    Submit,
)
from tests.support.fake_flusher import LONG_S, FakeFlusher, barrier, result, run, soon


def test_a_submit_is_one_frame_with_the_bodys_own_bytes_and_returns_the_arrival(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        submitted = soon(forwarder.submit(2, 7, b'{"tasks":[]}'))
        frame = await flusher.submit()
        assert frame == Submit(frame.seq, 2, 7, b'{"tasks":[]}', arrival=0, want_commit=False)
        assert not submitted.done()
        flusher.send(Ack(frame.seq, 1234567))
        assert await result(submitted) == (1234567, frame.seq)

    run(short_path, test)


def test_a_large_body_arrives_whole(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        body = bytes(range(256)) * 2000
        submitted = soon(forwarder.submit(1, 1, body))
        frame = await flusher.submit()
        assert frame.body == body
        flusher.send(Ack(frame.seq, 5))
        await result(submitted)

    run(short_path, test)


def test_the_socket_holds_some_large_bodies(short_path: Path) -> None:
    most = int(Path("/proc/sys/net/core/wmem_max").read_text())

    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        assert forwarder._transport is not None
        sock = forwarder._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * min(SOCKET_BYTES, most)

    run(short_path, test)


def test_frames_are_pipelined_and_answers_find_their_asker_in_any_order(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        submitted = [soon(forwarder.submit(2, 1, b"%d" % number)) for number in range(50)]
        frames = [await flusher.submit() for _ in submitted]  # all came before any answer
        assert [bytes(frame.body) for frame in frames] == [b"%d" % number for number in range(50)]
        assert len({frame.seq for frame in frames}) == 50
        flusher.send(*[Ack(frame.seq, int(bytes(frame.body))) for frame in reversed(frames)])
        assert [(await result(one))[0] for one in submitted] == list(range(50))

    run(short_path, test)


def test_the_loop_spins_for_a_lone_request_and_pauses_after_spinning_in_vain(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[int] = []
    spin = Outbox._spin

    def counted(outbox: Outbox, left: int) -> None:
        turns.append(left)
        spin(outbox, left)

    monkeypatch.setattr(Outbox, "_spin", counted)

    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        async def ask() -> None:
            submitted = soon(forwarder.submit(2, 1, b"a"))
            frame = await flusher.submit()
            flusher.send(Ack(frame.seq, 1))
            await result(submitted)

        in_vain = soon(forwarder.submit(2, 1, b"a"))
        frame = await flusher.submit()
        while not turns or turns[-1]:
            await asyncio.sleep(0)
        flusher.send(Ack(frame.seq, 1))
        await result(in_vain)
        assert turns == list(range(SPIN_TURNS, -1, -1))

        turns.clear()
        for _ in range(SPIN_PAUSE_REQUESTS):
            await ask()
        assert not turns
        await ask()
        assert turns[0] == SPIN_TURNS
        assert turns[-1] > 0

    run(short_path, test)


def test_the_loop_does_not_spin_for_several_requests(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[int] = []
    monkeypatch.setattr(Outbox, "_spin", lambda _, left: turns.append(left))

    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        submitted = [soon(forwarder.submit(2, 1, b"a")) for _ in range(2)]
        frames = [await flusher.submit() for _ in submitted]
        flusher.send(*[Ack(frame.seq, 1) for frame in frames])
        await asyncio.gather(*submitted)
        assert not turns

    run(short_path, test)


@pytest.mark.parametrize(("size", "spins"), [(SPIN_BYTES - 64, True), (SPIN_BYTES + 1, False)])
def test_the_loop_does_not_spin_for_a_large_request(
    short_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, spins: bool
) -> None:
    turns: list[int] = []
    monkeypatch.setattr(Outbox, "_spin", lambda _, left: turns.append(left))

    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        submitted = soon(forwarder.submit(2, 1, bytes(size)))
        flusher.send(Ack((await flusher.submit()).seq, 1))
        await result(submitted)
        assert turns == [SPIN_TURNS] * spins

    run(short_path, test)


def test_a_reject_carries_its_reason_and_time_to_that_asker_alone(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        first, second = soon(forwarder.submit(2, 1, b"a")), soon(forwarder.submit(2, 1, b"b"))
        frames = [await flusher.submit(), await flusher.submit()]
        flusher.send(Reject(frames[0].seq, Reason.JOURNAL_FULL, 17.0), Ack(frames[1].seq, 1))
        with pytest.raises(Rejected) as rejected:
            await result(first)
        assert rejected.value.reason is Reason.JOURNAL_FULL
        assert rejected.value.retry_after_s == 17.0
        assert (await result(second))[0] == 1

    run(short_path, test)


def test_the_window_holds_back_what_would_exceed_it_until_an_ack_makes_room(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        submitted = [soon(forwarder.submit(2, 1, bytes([number]) * 400)) for number in range(5)]
        frames = [await flusher.submit(), await flusher.submit()]  # two of 426 bytes fit into 1000
        await barrier(flusher, forwarder)
        for number in (2, 3, 4):
            flusher.send(Ack(frames.pop(0).seq, number))
            frames.append(await flusher.submit())
            assert bytes(frames[-1].body[:1]) == bytes([number])  # first come, first served
            await barrier(flusher, forwarder)
        flusher.send(*[Ack(frame.seq, 9) for frame in frames])
        await result(asyncio.gather(*submitted))

    run(short_path, test, window_bytes=1000)


def test_a_reject_makes_room_in_the_window_too(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        first, second = soon(forwarder.submit(2, 1, b"a" * 900)), soon(forwarder.submit(2, 1, b"b" * 900))
        frame = await flusher.submit()
        await barrier(flusher, forwarder)
        flusher.send(Reject(frame.seq, Reason.JOURNAL_FULL, 1.0))
        with pytest.raises(Rejected):
            await result(first)
        flusher.send(Ack((await flusher.submit()).seq, 1))
        await result(second)

    run(short_path, test, window_bytes=1000)


def test_a_body_larger_than_the_window_goes_alone(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        submitted = soon(forwarder.submit(2, 1, b"x" * 5000))
        flusher.send(Ack((await flusher.submit()).seq, 1))
        await result(submitted)

    run(short_path, test, window_bytes=1000)


def test_whoever_waits_too_long_for_the_window_is_told_and_was_never_sent(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        submitted = [soon(forwarder.submit(2, 1, b"%d" % number * 900)) for number in range(3)]
        await flusher.submit()
        for one in submitted:
            with pytest.raises(FlusherUnavailable):
                await result(one)
        assert flusher.received.empty()

    run(short_path, test, window_bytes=1000, ack_timeout_s=0.3)


def test_the_deadline_ends_an_ask_that_is_not_answered_and_a_late_answer_harms_nobody(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        submitted = soon(forwarder.submit(2, 1, b"a"))
        frame = await flusher.submit()
        with pytest.raises(FlusherUnavailable, match="in time"):
            await result(submitted)
        flusher.send(Ack(frame.seq, 1), Reject(frame.seq, Reason.JOURNAL_FULL, 1.0))
        await barrier(flusher, forwarder)
        again = soon(forwarder.submit(2, 1, b"b"))
        flusher.send(Ack((await flusher.submit()).seq, 2))
        assert (await result(again))[0] == 2

    run(short_path, test, ack_timeout_s=0.3)


def test_of_two_answers_at_once_the_first_counts(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        submitted = soon(forwarder.submit(2, 1, b"a"))
        frame = await flusher.submit()
        flusher.send(Ack(frame.seq, 1), Ack(frame.seq, 2), Reject(frame.seq, Reason.JOURNAL_FULL, 1.0))
        assert (await result(submitted))[0] == 1
        await barrier(flusher, forwarder)
        assert flusher.connections.empty()  # still the first connection

    run(short_path, test)


def test_the_deadline_holds_where_there_is_no_flusher_at_all(short_path: Path) -> None:
    async def test(_flusher: FakeFlusher, forwarder: Forwarder) -> None:
        assert not forwarder.connected
        with pytest.raises(FlusherUnavailable):
            await result(forwarder.submit(2, 1, b"a"))
        with pytest.raises(FlusherUnavailable, match="not connected"):
            await result(forwarder.stats())

    run(short_path, test, ack_timeout_s=0.2, running=False)


def test_what_was_asked_before_the_flusher_came_is_sent_when_it_does(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        submitted = [soon(forwarder.submit(2, 1, b"%d" % number)) for number in range(3)]
        await asyncio.sleep(0)
        await flusher.start()
        frames = [await flusher.submit() for _ in submitted]
        assert [bytes(frame.body) for frame in frames] == [b"0", b"1", b"2"]
        flusher.send(*[Ack(frame.seq, 7) for frame in frames])
        await result(asyncio.gather(*submitted))

    run(short_path, test, running=False)


@pytest.mark.parametrize("size", [10, 200_000])
def test_a_new_connection_brings_again_what_was_not_answered_and_nothing_else(short_path: Path, size: int) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        submitted = [soon(forwarder.submit(2, number, b"%d" % number * size)) for number in range(4)]
        frames = [await flusher.submit() for _ in submitted]
        flusher.send(Ack(frames[0].seq, 10), Ack(frames[2].seq, 12))
        await result(submitted[0])
        await result(submitted[2])
        await flusher.stop()
        await flusher.start()
        again = [await flusher.submit(), await flusher.submit()]
        assert [(one.seq, one.count, bytes(one.body)) for one in again] == [
            (one.seq, one.count, bytes(one.body)) for one in (frames[1], frames[3])
        ]
        flusher.send(Ack(again[0].seq, 11), Ack(again[1].seq, 13))
        assert [(await result(one))[0] for one in submitted] == [10, 11, 12, 13]
        await barrier(flusher, forwarder)

    run(short_path, test)


def test_it_reconnects_as_often_as_the_flusher_goes(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        submitted = soon(forwarder.submit(2, 1, b"a"))
        for _ in range(4):
            await flusher.submit()
            await flusher.stop()
            await flusher.start()
        flusher.send(Ack((await flusher.submit()).seq, 5))
        assert (await result(submitted))[0] == 5

    run(short_path, test)


def test_a_flusher_that_drops_every_connection_is_not_asked_at_once(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of another user, or of another version: thousands of connections and log lines a second."""
    waits: list[float] = []

    def random() -> float:
        waits.append(0.0)
        return 0.0

    monkeypatch.setattr("ingest.forwarder._RECONNECT_S", (0.001, 30.0))
    monkeypatch.setattr("random.random", random)

    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        for made in range(4):
            assert len(waits) == made
            flusher._writers[-1].close()
            await flusher.connected()

    run(short_path, test)


def test_a_peer_that_speaks_another_protocol_is_left_and_tried_again(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        submitted = soon(forwarder.submit(2, 1, b"a"))
        await flusher.submit()
        flusher._writers[-1].write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await flusher.connected()
        flusher.send(Ack((await flusher.submit()).seq, 5))
        assert (await result(submitted))[0] == 5

    run(short_path, test)


def test_a_message_that_only_the_flusher_may_get_ends_the_connection(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        submitted = soon(forwarder.submit(2, 1, b"a"))
        frame = await flusher.submit()
        flusher.send(FlushRequest(frame.seq, 1.0))
        await flusher.connected()
        flusher.send(Ack((await flusher.submit()).seq, 5))
        await result(submitted)

    run(short_path, test)


@pytest.mark.parametrize("dead", [0, 3])
def test_a_commit_is_waited_for_and_says_how_many_records_are_dead_letters(short_path: Path, dead: int) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        submitted = soon(forwarder.submit(2, 1, b"a", want_commit=True))
        frame = await flusher.submit()
        assert frame.want_commit
        flusher.send(Ack(frame.seq, 5))
        _, seq = await result(submitted)
        waiting = soon(forwarder.committed(seq, LONG_S))
        flusher.send(Committed(1, 4), Committed(6, 9, {5: 1}))  # those of others
        await barrier(flusher, forwarder)
        assert not waiting.done()
        flusher.send(Committed(4, 6, {4: 1, 5: dead} if dead else {}))
        assert await result(waiting) == dead
        forwarder.forget(seq)
        assert forwarder._committing == {}

    run(short_path, test)


def test_a_commit_that_comes_with_its_ack_is_not_missed(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        submitted = soon(forwarder.submit(2, 1, b"a", want_commit=True))
        frame = await flusher.submit()
        flusher.send(Ack(frame.seq, 5), Committed(5, 5))
        _, seq = await result(submitted)
        assert await result(forwarder.committed(seq, LONG_S)) == 0

    run(short_path, test)


def test_a_commit_that_does_not_come_in_time_is_none(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        submitted = soon(forwarder.submit(2, 1, b"a", want_commit=True))
        frame = await flusher.submit()
        flusher.send(Ack(frame.seq, 5))
        _, seq = await result(submitted)
        assert await result(forwarder.committed(seq, 0.01)) is None
        forwarder.forget(seq)
        flusher.send(Committed(5, 5))  # late: nobody asks any more
        await barrier(flusher, forwarder)

    run(short_path, test)


def test_a_lost_connection_ends_the_wait_for_a_commit_without_claiming_it(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        submitted = soon(forwarder.submit(2, 1, b"a", want_commit=True))
        frame = await flusher.submit()
        flusher.send(Ack(frame.seq, 5))
        _, seq = await result(submitted)
        waiting = soon(forwarder.committed(seq, LONG_S))
        await asyncio.sleep(0)
        await flusher.stop()
        assert await result(waiting) is None

    run(short_path, test)


def test_flush_and_stats_return_the_flushers_own_bytes(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        flushed = soon(forwarder.flush(2.5))
        frame = await flusher.next()
        assert isinstance(frame, FlushRequest)
        assert frame.timeout_s == 2.5
        stats = soon(forwarder.stats())
        asked = await flusher.next()
        assert isinstance(asked, StatsRequest)
        flusher.send(Answer(asked.seq, b'{"a":1}'), Answer(frame.seq, b'{"pending":0}'))
        assert await result(stats) == b'{"a":1}'
        assert await result(flushed) == b'{"pending":0}'

    run(short_path, test)


def test_a_flush_follows_the_submits_that_came_before_it(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        asked = [
            soon(forwarder.submit(2, 1, b"a")),
            soon(forwarder.submit(2, 1, b"b" * 200_000)),
            soon(forwarder.flush(1)),
        ]
        frames = [await flusher.next() for _ in asked]
        assert [type(frame) for frame in frames] == [Submit, Submit, FlushRequest]
        flusher.send(Ack(frames[0].seq, 1), Ack(frames[1].seq, 2), Answer(frames[2].seq, b"{}"))
        await result(asyncio.gather(*asked))

    run(short_path, test)


def test_stats_have_a_deadline(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        with pytest.raises(FlusherUnavailable):
            await result(forwarder.stats(0.1))
        assert isinstance(await flusher.next(), StatsRequest)

    run(short_path, test)


def test_what_a_flusher_that_reads_nothing_was_sent_does_not_pile_up(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        flusher.stop_reading()
        for _ in range(2):
            with pytest.raises(FlusherUnavailable):
                await result(forwarder.submit(1, 1, bytes(900_000)))
        await flusher.connected()  # a new connection, on which nothing waits
        while not forwarder.connected:
            await asyncio.sleep(0)
        submitted = soon(forwarder.submit(1, 1, b"{}"))
        frame = await flusher.submit()
        assert frame.body == b"{}"
        flusher.send(Ack(frame.seq, 1))
        await result(submitted)

    run(short_path, test, ack_timeout_s=0.3)


def test_a_commit_that_is_asked_for_and_refused_leaves_nothing_behind(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        submitted = soon(forwarder.submit(1, 1, b"{}", want_commit=True))
        frame = await flusher.submit()
        flusher.send(Reject(frame.seq, Reason.JOURNAL_FULL, 1.0))
        with pytest.raises(Rejected):
            await result(submitted)
        assert forwarder._committing == {}

    run(short_path, test)


def test_close_gives_up_what_is_pending_and_disconnects(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        submitted = soon(forwarder.submit(2, 1, b"a"))
        await flusher.submit()
        await forwarder.close()
        with pytest.raises(FlusherUnavailable, match="stopping"):
            await result(submitted)
        await result(flusher.lost.wait())

    run(short_path, test)


def test_a_caller_that_is_cancelled_holds_its_room_until_the_flusher_has_answered(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        first, second = soon(forwarder.submit(2, 1, b"a" * 900)), soon(forwarder.submit(2, 1, b"b" * 900))
        sent = await flusher.submit()
        first.cancel()
        await barrier(flusher, forwarder)
        flusher.send(Ack(sent.seq, 1))
        flusher.send(Ack((await flusher.submit()).seq, 2))
        assert (await result(second))[0] == 2

    run(short_path, test, window_bytes=1000)


# ---- faults of ours


def raises(*_: object) -> None:
    raise RuntimeError("a fault of ours")


def test_an_answer_that_cannot_be_handed_on_takes_no_other_with_it(
    short_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One ack for two, of which the first has nobody to take it: the second gets its own, on the same connection."""

    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        assert forwarder.submit_now(2, 1, b"a", raises)
        second = asyncio.ensure_future(forwarder.submit(2, 1, b"b"))
        first = await flusher.submit()
        await flusher.submit()
        flusher.send(Ack(first.seq, 1000, 2))
        assert (await second)[0] == 1001
        assert flusher.connections.empty()
        assert not flusher.lost.is_set()

    run(short_path, test)
    assert "could not be handed on" in caplog.text


def test_a_deadline_that_cannot_be_handed_on_does_not_stop_those_after_it(short_path: Path) -> None:
    async def test(_: FakeFlusher, forwarder: Forwarder) -> None:
        for _ in range(2):
            assert forwarder.submit_now(2, 1, b"a", raises)
            with pytest.raises(FlusherUnavailable):
                await forwarder.submit(2, 1, b"b")

    run(short_path, test, ack_timeout_s=0.05)


def test_the_connection_is_made_anew_where_making_it_has_failed_for_a_fault_of_ours(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.forwarder._RECONNECT_S", (0.001, 0.001))

    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        with monkeypatch.context() as broken:
            failed = asyncio.Event()

            def connect(*_: object) -> None:
                failed.set()
                raise RuntimeError

            broken.setattr(forwarder._loop, "create_unix_connection", connect)
            flusher._writers[-1].close()
            await failed.wait()
        await flusher.connected()

    run(short_path, test)
