"""The forwarder against a flusher that does what a test tells it, on a real Unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ingest.forwarder import FlusherUnavailable, Forwarder, Rejected
from shared.wire import Ack, Committed, Decoder, Flush, Flushed, Reason, Reject, Stats, StatsIs, Submit, encode


class FakeFlusher:
    """Collects what arrives; answers only when told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages: list[Any] = []
        self.arrived = asyncio.Event()
        self.connections = 0
        self._writer: asyncio.StreamWriter | None = None
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writer = writer
        decoder = Decoder()
        while data := await reader.read(1 << 20):
            self.messages += decoder.feed(data)
            self.arrived.set()
        writer.close()

    async def got(self, count: int) -> list[Any]:
        while len(self.messages) < count:
            self.arrived.clear()
            await asyncio.wait_for(self.arrived.wait(), 20)
        return self.messages

    def answer(self, *messages: Any) -> None:
        assert self._writer is not None
        self._writer.write(b"".join(encode(message) for message in messages))

    def hang_up(self) -> None:
        assert self._writer is not None
        self._writer.close()

    async def stop(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()


def run(
    directory: Path, test: Callable[[FakeFlusher, Forwarder], Awaitable[None]], *, start: bool = True, **settings: Any
) -> None:
    async def main() -> None:
        flusher = FakeFlusher(directory / "flusher.sock")
        forwarder = Forwarder(str(flusher.path), **{"ack_timeout_s": 20.0, **settings})
        if start:
            await flusher.start()
        forwarder.start()
        try:
            await asyncio.wait_for(test(flusher, forwarder), 60)
        finally:
            await forwarder.close()
            await flusher.stop()

    asyncio.run(main())


def test_submits_are_pipelined_and_each_gets_its_own_answer(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        asks = [asyncio.ensure_future(forwarder.submit(2, 1, b"body%d" % number)) for number in range(3)]
        first, second, third = await flusher.got(3)
        assert [bytes(message.body) for message in flusher.messages] == [b"body0", b"body1", b"body2"]
        flusher.answer(Ack(third.seq, 30), Reject(second.seq, Reason.JOURNAL_FULL, 7.0), Ack(first.seq, 10))
        assert (await asks[0])[0] == 10
        assert (await asks[2])[0] == 30
        with pytest.raises(Rejected) as rejected:
            await asks[1]
        assert (rejected.value.reason, rejected.value.retry_after_s) == (Reason.JOURNAL_FULL, 7.0)

    run(short_path, test)


def test_what_is_unanswered_is_sent_again_on_the_next_connection_and_what_is_answered_is_not(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        answered = asyncio.ensure_future(forwarder.submit(2, 1, b"answered"))
        lost = asyncio.ensure_future(forwarder.submit(2, 1, b"lost"))
        messages = await flusher.got(2)
        flusher.answer(Ack(messages[0].seq, 1))
        await answered
        flusher.hang_up()
        again = (await flusher.got(3))[2]
        assert (again.seq, bytes(again.body)) == (messages[1].seq, b"lost")
        assert flusher.connections == 2
        flusher.answer(Ack(again.seq, 2))
        assert (await lost)[0] == 2

    run(short_path, test)


def test_a_flusher_that_comes_within_the_deadline_costs_no_error(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        asked = asyncio.ensure_future(forwarder.submit(1, 1, b"early"))
        await asyncio.sleep(0)
        await flusher.start()
        (message,) = await flusher.got(1)
        flusher.answer(Ack(message.seq, 5))
        assert (await asked)[0] == 5

    run(short_path, test, start=False)


def test_no_answer_within_the_deadline_is_an_error_and_a_late_one_is_ignored(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        asked = asyncio.ensure_future(forwarder.submit(1, 1, b"slow"))
        (message,) = await flusher.got(1)
        with pytest.raises(FlusherUnavailable):
            await asked
        flusher.answer(Ack(message.seq, 1))
        after = asyncio.ensure_future(forwarder.submit(1, 1, b"next"))
        second = (await flusher.got(2))[1]
        flusher.answer(Ack(second.seq, 2))
        assert (await after)[0] == 2

    run(short_path, test, ack_timeout_s=0.2)


def test_unanswered_bytes_never_exceed_the_window_and_who_waits_goes_in_order(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        asks = [asyncio.ensure_future(forwarder.submit(2, 1, bytes([65 + n]) * 400)) for n in range(5)]
        await flusher.got(2)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert len(flusher.messages) == 2
        for number in range(5):
            messages = await flusher.got(number + 1)
            flusher.answer(Ack(messages[number].seq, number))
            await asks[number]
        assert [bytes(message.body)[:1] for message in flusher.messages] == [b"A", b"B", b"C", b"D", b"E"]

    run(short_path, test, window_bytes=1000)


def test_a_body_larger_than_the_window_goes_alone(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        asked = asyncio.ensure_future(forwarder.submit(2, 1, b"x" * 300_000))
        (message,) = await flusher.got(1)
        flusher.answer(Ack(message.seq, 1))
        assert (await asked)[0] == 1

    run(short_path, test, window_bytes=1000)


def test_whoever_waits_for_the_window_gives_up_at_the_deadline(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        first = asyncio.ensure_future(forwarder.submit(2, 1, b"x" * 900))
        second = asyncio.ensure_future(forwarder.submit(2, 1, b"y" * 900))
        for asked in (first, second):
            with pytest.raises(FlusherUnavailable):
                await asked
        assert forwarder._in_flight_bytes == 0

    run(short_path, test, window_bytes=1000, ack_timeout_s=0.2)


def test_a_commit_is_reported_after_its_ack_or_given_up(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        for written in (True, False):
            asked = asyncio.ensure_future(forwarder.submit(2, 1, b"body", want_commit=True))
            message = (await flusher.got(len(flusher.messages) + 1))[-1]
            assert isinstance(message, Submit)
            assert message.want_commit
            flusher.answer(Ack(message.seq, 1))
            _, seq = await asked
            flusher.answer(Committed(seq, written))
            assert await forwarder.committed(seq, 20) is written
            forwarder.forget(seq)
        asked = asyncio.ensure_future(forwarder.submit(2, 1, b"body", want_commit=True))
        message = (await flusher.got(3))[-1]
        flusher.answer(Ack(message.seq, 1))
        _, seq = await asked
        assert await forwarder.committed(seq, 0.01) is False

    run(short_path, test)


def test_flush_and_stats_bring_back_the_flushers_json(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        with pytest.raises(FlusherUnavailable):
            await Forwarder("nowhere", ack_timeout_s=1.0).stats()
        flush = asyncio.ensure_future(forwarder.flush(3.5))
        (asked,) = await flusher.got(1)
        assert asked == Flush(asked.seq, 3.5)
        flusher.answer(Flushed(asked.seq, b'{"pending":0}'))
        assert await flush == b'{"pending":0}'
        stats = asyncio.ensure_future(forwarder.stats())
        asked = (await flusher.got(2))[1]
        assert isinstance(asked, Stats)
        flusher.answer(StatsIs(asked.seq, b"{}"))
        assert await stats == b"{}"

    run(short_path, test)


def test_garbage_from_the_flusher_ends_the_connection_and_nothing_else(short_path: Path) -> None:
    async def test(flusher: FakeFlusher, forwarder: Forwarder) -> None:
        asked = asyncio.ensure_future(forwarder.submit(2, 1, b"body"))
        await flusher.got(1)
        assert flusher._writer is not None
        flusher._writer.write(b"\xff" * 64)
        again = (await flusher.got(2))[1]
        flusher.answer(Ack(again.seq, 9))
        assert (await asked)[0] == 9

    run(short_path, test)
