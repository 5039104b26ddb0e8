"""Sends requests to the flusher: pipelined, in a window of unacknowledged bytes, each with a deadline.

Rules: belongs to the loop's thread. A request stays in `_pending`, in the order of sending, until its answer, its
deadline or close(). After a reconnection everything pending is sent again, which is safe because the merge rule makes
a second write harmless. Callers notice a reconnection only as latency.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Callable, Iterable
from typing import Any, cast

import msgspec

from ingest.outbox import Outbox
from shared.timers import repeat
from shared.wire import (
    SUBMIT_BYTES,
    Ack,
    Answer,
    Committed,
    FlushRequest,
    Inbox,
    ProtocolError,
    Reason,
    Reject,
    StatsRequest,
    encode,
    encode_submit_header,
)

log = logging.getLogger(__name__)

WINDOW_BYTES = 32 * 1024 * 1024
SOCKET_BYTES = 256 * 1024
"""Requested send buffer; the kernel doubles it. Large bodies then need half as many turns of ingest and flusher."""
_RECONNECT_S = (0.02, 0.5)
_SWEEP_S = 0.1
_COPIED_BODY_BYTES = 64 * 1024
"""Copying a smaller body behind its header costs less than sending another piece."""


class FlusherUnavailable(Exception):
    """No answer within the deadline. Whether the records were accepted is not known; sending them again is safe."""


class Rejected(Exception):
    """The flusher does not accept now. Nothing of the request is stored."""

    def __init__(self, reason: Reason, retry_after_s: float) -> None:
        super().__init__(reason.name)
        self.reason = reason
        self.retry_after_s = retry_after_s


class Pending(msgspec.Struct):
    """A request in flight. `parts` are its bytes, kept to be sent again; `done` is called once, with the answer or an
    exception."""

    parts: tuple[bytes, ...]
    size: int
    deadline: float
    done: Callable[[Any], None]


class Commit(msgspec.Struct):
    """A caller waits for the commit of a body. `arrival`: 0 before the ack; `dead`: how many of its records became dead
    letters, None if the connection was lost."""

    dead: asyncio.Future[int | None]
    arrival: int = 0


class Forwarder:
    """Args: rules: of all bodies (records.Rules)."""

    def __init__(
        self, path: str, *, ack_timeout_s: float, rules: bytes = b"", window_bytes: int = WINDOW_BYTES
    ) -> None:
        self._path = path
        self._rules = rules
        self._ack_timeout_s = ack_timeout_s
        self._window_bytes = window_bytes
        self._loop: asyncio.AbstractEventLoop
        self._transport: asyncio.Transport | None = None
        self._outbox: Outbox
        self._lost = asyncio.Event()
        self._seq = 0
        self._pending: dict[int, Pending] = {}
        self._committing: dict[int, Commit] = {}
        self._in_flight_bytes = 0
        self._turn = asyncio.Lock()
        """Held by the first of the submits that wait for room in the window."""
        self._room = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def connected(self) -> bool:
        return self._transport is not None

    def start(self) -> None:
        """Connects, and reconnects until close()."""
        self._loop = asyncio.get_running_loop()
        connect = repeat("the connection to the flusher", _RECONNECT_S[1], self._keep_connected)
        sweep = repeat("the sweep of deadlines", _SWEEP_S, self._sweep)
        self._tasks = [self._loop.create_task(connect), self._loop.create_task(sweep)]

    async def close(self) -> None:
        """Fails everything pending and disconnects."""
        for task in self._tasks:
            task.cancel()
        self._give_up(list(self._pending), "ingest is stopping")
        if self._transport is not None:
            self._transport.close()

    async def submit(self, kind: int, count: int, body: bytes, *, want_commit: bool = False) -> tuple[int, int]:
        """Hands a validated body over. Blocks (asynchronously) until the flusher has it in its journal.

        Returns: its arrival in µs since 1970 UTC, and the number to ask committed() about.
        Raises: Rejected, FlusherUnavailable.
        """
        if self._is_full(len(body)):
            await self._wait_for_room(len(body))
        answer, done = self._awaited()
        seq = self._submit(kind, count, body, done, want_commit=want_commit)
        if want_commit:
            self._committing[seq] = Commit(self._loop.create_future())
        try:
            return await answer, seq
        except BaseException:
            self.forget(seq)
            raise
        finally:
            del answer, done  # an exception in it refers to this frame, which would keep the body until gc runs

    def submit_now(self, kind: int, count: int, body: bytes, done: Callable[[int | Exception], None]) -> bool:
        """submit() without a task: `done` gets the arrival, Rejected or FlusherUnavailable.

        Returns: False if the window is full; then nothing was sent, and `done` is not called.
        """
        if self._is_full(len(body)):
            return False
        self._submit(kind, count, body, done)
        return True

    async def committed(self, seq: int, timeout_s: float) -> int | None:
        """Waits until the records of a submit with want_commit have left the journal, for at most `timeout_s`.

        Returns: how many of them became dead letters, all others are in the database; None if unknown by then.
        """
        try:
            return await asyncio.wait_for(self._committing[seq].dead, timeout_s)
        except asyncio.TimeoutError:
            return None

    def forget(self, seq: int) -> None:
        """Must follow every submit with want_commit that has returned."""
        self._committing.pop(seq, None)

    async def flush(self, timeout_s: float) -> bytes:
        """Returns: the flusher's JSON, after at most `timeout_s` there. Raises: FlusherUnavailable."""
        return await self._ask(FlushRequest(self._next_seq(), timeout_s), timeout_s + 2.0)

    async def stats(self, timeout_s: float = 2.0) -> bytes:
        """Returns: the flusher's JSON. Raises: FlusherUnavailable, at once if there is no connection."""
        if self._transport is None:
            raise FlusherUnavailable("the flusher is not connected")
        return await self._ask(StatsRequest(self._next_seq()), timeout_s)

    def _next_seq(self) -> int:
        self._seq = (self._seq + 1) & 0xFFFFFFFF
        return self._seq

    def _submit(
        self, kind: int, count: int, body: bytes, done: Callable[[Any], None], *, want_commit: bool = False
    ) -> int:
        """Returns: its seq."""
        seq = self._next_seq()
        size = len(body)
        head = encode_submit_header(seq, kind, count, size, want_commit=want_commit, rules=self._rules)
        parts = (head + body,) if size < _COPIED_BODY_BYTES else (head, body)
        self._send(seq, parts, size + SUBMIT_BYTES, self._ack_timeout_s, done)
        return seq

    async def _ask(self, question: FlushRequest | StatsRequest, timeout_s: float) -> bytes:
        frame = encode(question)
        answer, done = self._awaited()
        self._send(question.seq, (frame,), len(frame), timeout_s, done)
        return await answer  # type: ignore[no-any-return]

    def _awaited(self) -> tuple[asyncio.Future[Any], Callable[[Any], None]]:
        """A future, and what sets it to an answer or an exception."""
        answer = self._loop.create_future()

        def done(result: Any) -> None:
            if answer.done():
                return  # the caller was cancelled
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)

        return answer, done

    def _send(
        self, seq: int, parts: tuple[bytes, ...], size: int, timeout_s: float, done: Callable[[Any], None]
    ) -> None:
        self._pending[seq] = Pending(parts, size, self._loop.time() + timeout_s, done)
        self._in_flight_bytes += size
        if self._transport is not None:
            self._outbox.write(parts)

    def _settle(self, seq: int, result: Any) -> None:
        """Ends a request with its answer or an exception."""
        pending = self._pending.pop(seq, None)
        if pending is None:
            return  # its deadline has passed
        self._in_flight_bytes -= pending.size
        self._room.set()
        try:
            pending.done(result)
        except Exception:
            # A fault of ours in one answer must not affect the others on the connection.
            log.exception("an answer of the flusher could not be handed on")

    def _give_up(self, seqs: Iterable[int], why: str) -> None:
        for seq in seqs:
            self._settle(seq, FlusherUnavailable(why))

    def _lone_bytes(self) -> int:
        return self._in_flight_bytes if len(self._pending) == 1 else 0

    def _is_full(self, size: int) -> bool:
        """A body larger than the window goes alone."""
        return self._in_flight_bytes > 0 and self._in_flight_bytes + size + SUBMIT_BYTES > self._window_bytes

    async def _wait_for_room(self, size: int) -> None:
        """Waits in turn until `size` more bytes fit into the window. Raises: FlusherUnavailable after ack_timeout_s."""
        give_up_at = self._loop.time() + self._ack_timeout_s
        async with self._turn:
            while self._loop.time() < give_up_at:
                if not self._is_full(size):
                    return
                self._room.clear()
                await self._room.wait()  # every answer and every sweep sets it
        raise FlusherUnavailable("too many bytes wait for the flusher's answer")

    def _sweep(self) -> None:
        """Ends overdue requests. One timer for all: a timer for each would cost as much as the request."""
        now = self._loop.time()
        late = [seq for seq, pending in self._pending.items() if pending.deadline <= now]
        self._give_up(late, "the flusher did not answer in time")
        self._room.set()
        if late and self._transport is not None and self._transport.get_write_buffer_size() > self._window_bytes:
            # Otherwise the bytes of requests that were given up would fill the memory, one window after another.
            log.warning("flusher is not reading; reconnecting")
            self._transport.abort()

    async def _keep_connected(self) -> None:
        first, longest = _RECONNECT_S
        attempt = 0
        while True:
            self._lost.clear()
            try:
                await self._loop.create_unix_connection(lambda: _Connection(self), self._path)
            except OSError as error:
                # ENOENT: not started yet; ECONNREFUSED: a stale file; EAGAIN: its queue is full.
                if attempt == 0:
                    log.warning("flusher: not reachable (%s), retrying", error.strerror or error)
            else:
                if attempt:
                    log.warning("flusher: reachable again")
                made_at = self._loop.time()
                await self._lost.wait()
                if self._loop.time() - made_at >= longest:
                    attempt = 0
                    continue
                # A flusher that refuses us, or a frame that is sent again each time, is not asked again at once.
            attempt += 1
            ceiling = min(longest, first * 2 ** min(attempt, 10))
            await asyncio.sleep(ceiling * (0.5 + 0.5 * random.random()))  # noqa: S311

    def connection_made(self, transport: asyncio.Transport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        self._transport = transport
        self._outbox = Outbox(self._loop, transport, self._lone_bytes)
        for pending in self._pending.values():
            transport.writelines(pending.parts)

    def connection_lost(self) -> None:
        if self._transport is not None:
            log.warning("flusher: connection lost, %d requests wait for the next", len(self._pending))
        self._transport = None
        for commit in self._committing.values():
            if not commit.dead.done():
                commit.dead.set_result(None)
        self._lost.set()

    def answered(self, message: Any) -> None:
        """Raises: ProtocolError."""
        if type(message) is Ack:
            for at in range(message.count):
                seq, arrival = message.seq + at, message.arrival + at
                if seq in self._committing:
                    self._committing[seq].arrival = arrival
                self._settle(seq, arrival)
        elif type(message) is Committed:
            for commit in self._committing.values():
                if message.first <= commit.arrival <= message.last and not commit.dead.done():
                    commit.dead.set_result(message.dead.get(commit.arrival, 0))
        elif type(message) is Reject:
            self._settle(message.seq, Rejected(message.reason, message.retry_after_s))
        elif type(message) is Answer:
            self._settle(message.seq, message.json)
        else:
            raise ProtocolError(f"{type(message).__name__} is not for ingest")


class _Connection(asyncio.BufferedProtocol):
    """One connection's inbox; all other state outlives the connection."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder
        self._inbox = Inbox()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._forwarder.connection_made(self._transport)

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self._inbox.room()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for message in self._inbox.received(nbytes):
                self._forwarder.answered(message)
        except ProtocolError as error:
            log.error("flusher: the connection was closed: %s", error)
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's signature
        self._forwarder.connection_lost()
