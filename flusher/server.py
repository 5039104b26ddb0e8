"""The Unix socket: bytes <-> messages. Decides nothing.

Rules: belongs to the loop's thread. Only peers of our own user are served.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import orjson

from flusher.callers import FlushResult
from flusher.intake import Intake
from flusher.placement import Placement
from flusher.scheduler import Scheduler
from shared.process import peer_of
from shared.records import KIND_OF_CODE, KINDS
from shared.wire import Answer, FlushRequest, Inbox, Message, ProtocolError, StatsRequest, Submit, encode

log = logging.getLogger(__name__)

AFFINITY_MIN_READ_BYTES = 16 * 1024
"""After a smaller read the placement stays: a small request is answered sooner on ingest's own core."""


class Connections:
    """The connected peers. `gone` is set while there are none."""

    def __init__(self) -> None:
        self._transports: set[asyncio.Transport] = set()
        self.gone = asyncio.Event()
        self.gone.set()

    def __len__(self) -> int:
        return len(self._transports)

    def add(self, transport: asyncio.Transport) -> None:
        self._transports.add(transport)
        self.gone.clear()

    def discard(self, transport: asyncio.Transport) -> None:
        self._transports.discard(transport)
        if not self._transports:
            self.gone.set()

    def close(self) -> None:
        for transport in list(self._transports):
            transport.close()


class Listener:
    """The listening socket."""

    def __init__(self, protocol: Callable[[], FlusherProtocol]) -> None:
        self._protocol = protocol
        self._server: asyncio.AbstractServer | None = None

    async def listen(self, path: Path) -> None:
        """Makes the socket, or replaces it. Raises: OSError."""
        self.close()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._protocol, path=str(path), backlog=1024)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


class FlusherProtocol(asyncio.BufferedProtocol):
    def __init__(
        self,
        connections: Connections,
        intake: Intake,
        scheduler: Scheduler,
        stats: Callable[[], dict[str, Any]],
        placement: Placement,
    ) -> None:
        self._connections = connections
        self._intake = intake
        self._scheduler = scheduler
        self._stats = stats
        self._placement = placement
        self._pid = 0
        self._inbox = Inbox()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._pid, uid = peer_of(transport.get_extra_info("socket"))
        if uid != os.getuid():
            log.error("socket: a peer of user %d was refused", uid)
            transport.abort()
            return
        self._transport = transport
        self._connections.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's signature
        if self._transport is not None:
            self._connections.discard(self._transport)
            self._transport = None
            self._scheduler.forget(self._reply)

    def pause_writing(self) -> None:
        """A peer that does not read its answers is not read either."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self._inbox.room()

    def buffer_updated(self, nbytes: int) -> None:
        if self._transport is None:
            return
        if nbytes >= AFFINITY_MIN_READ_BYTES and len(self._connections) == 1:
            self._placement.look(self._pid)
        try:
            self._take(self._inbox.received(nbytes))
        except ProtocolError as error:
            log.error("socket: a peer was disconnected: %s", error)
            if self._transport is not None:
                self._transport.abort()

    def _take(self, messages: list[Message]) -> None:
        """Accepts the submits of one read together; a flush covers those sent before it. Raises: ProtocolError."""
        submits: list[Submit] = []
        for message in messages:
            if isinstance(message, Submit):
                if message.kind not in KIND_OF_CODE or not message.body:
                    raise ProtocolError(f"submit of kind {message.kind}, {len(message.body)} bytes")
                submits.append(message)
                continue
            if submits:
                self._intake.accept(submits, self._reply)
                submits = []
            if isinstance(message, FlushRequest):
                self._start_flush(message)
            elif isinstance(message, StatsRequest):
                self._reply(encode(Answer(message.seq, orjson.dumps(self._stats()))))
            else:
                raise ProtocolError(f"{type(message).__name__} is not for the flusher")
        if submits:
            self._intake.accept(submits, self._reply)

    def _start_flush(self, message: FlushRequest) -> None:
        def done(result: FlushResult) -> None:
            answer = {f"{kind.name}_written": result.rows.get(kind.name, 0) for kind in KINDS}
            answer |= {
                "coalesced": result.coalesced,
                "dead_lettered": result.dead_lettered,
                "duration_ms": result.duration_ms,  # type: ignore[dict-item]
                "pending": result.pending,
            }
            self._reply(encode(Answer(message.seq, orjson.dumps(answer))))

        self._scheduler.flush(message.timeout_s, done)

    def _reply(self, frames: bytes) -> None:
        if self._transport is not None and frames:
            self._transport.write(frames)
