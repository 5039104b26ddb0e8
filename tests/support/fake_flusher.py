"""A flusher whose every answer the test decides, and a forwarder connected to it by a real Unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from ingest.forwarder import Forwarder
from shared.wire import Answer, Inbox, Message, StatsRequest, Submit, encode
from tests.support.wire import read

T = TypeVar("T")
LONG_S = 30.0
"""Far over what any step takes; only what hangs meets it."""


class FakeFlusher:
    """Takes frames down, in order, and sends what it is told to."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.received: asyncio.Queue[Message] = asyncio.Queue()
        self.connections: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
        self.lost = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def stop(self) -> None:
        """Drops every connection and leaves the socket's file behind, as a kill -9 does."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self.connections.put_nowait(writer)
        inbox = Inbox()
        try:
            while data := await reader.read(65536):
                for message in read(inbox, data):
                    self.received.put_nowait(message)
        except ConnectionError:
            pass
        self.lost.set()
        writer.close()

    def stop_reading(self) -> None:
        """As one that is stopped, or waits for its disk."""
        transport = self._writers[-1].transport
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()

    async def next(self) -> Message:
        return await asyncio.wait_for(self.received.get(), LONG_S)

    async def submit(self) -> Submit:
        message = await self.next()
        assert isinstance(message, Submit)
        return message

    async def connected(self) -> asyncio.StreamWriter:
        return await asyncio.wait_for(self.connections.get(), LONG_S)

    def send(self, *messages: Message) -> None:
        self._writers[-1].write(b"".join(map(encode, messages)))


def run(
    short_path: Path,
    test: Callable[[FakeFlusher, Forwarder], Awaitable[None]],
    *,
    ack_timeout_s: float = LONG_S,
    window_bytes: int = 1 << 20,
    running: bool = True,
) -> None:
    async def main() -> None:
        flusher = FakeFlusher(short_path / "s")
        forwarder = Forwarder(flusher.path, ack_timeout_s=ack_timeout_s, window_bytes=window_bytes)
        if running:
            await flusher.start()
        forwarder.start()
        if running:
            await flusher.connected()
            # The server may know of the connection before the client does.
            while not forwarder.connected:
                await asyncio.sleep(0)
        try:
            await test(flusher, forwarder)
        finally:
            await forwarder.close()
            await flusher.stop()

    asyncio.run(asyncio.wait_for(main(), 3 * LONG_S))


def soon(awaitable: Awaitable[T]) -> asyncio.Future[T]:
    return asyncio.ensure_future(awaitable)


async def result(awaitable: Awaitable[T]) -> T:
    return await asyncio.wait_for(awaitable, LONG_S)


async def barrier(flusher: FakeFlusher, forwarder: Forwarder) -> None:
    """Everything that was sent before has been received; what was not sent by now is being held back."""
    stats = soon(forwarder.stats(LONG_S))
    message = await flusher.next()
    assert isinstance(message, StatsRequest), f"{message} was not held back"
    flusher.send(Answer(message.seq, b"{}"))
    await result(stats)
