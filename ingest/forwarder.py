"""To the flusher and back: pipelined frames, a window by unacknowledged bytes, reconnection, a deadline on every ask.

Rules: belongs to the loop's thread. A request stays in `_pending`, in the order of asking, until its answer, its
deadline or close(); after a reconnection everything pending is sent again. That is safe because the merge rule makes
a second write harmless. The connection is lost and found without its callers noticing more than latency.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec

from shared.timers import repeat
from shared.wire import (
    SUBMIT_BYTES,
    Ack,
    Committed,
    Flush,
    Flushed,
    Inbox,
    ProtocolError,
    Reason,
    Reject,
    Stats,
    StatsIs,
    encode,
    encode_submit_header,
)

log = logging.getLogger(__name__)

WINDOW_BYTES = 32 * 1024 * 1024
SOCKET_BYTES = 256 * 1024
"""Asked of the kernel, which makes it twice as many: with large bodies ingest and flusher take turns half as often."""
_RECONNECT_S = (0.02, 0.5)
_SWEEP_S = 0.1
_SMALL_BODY_BYTES = 64 * 1024
ATTENDED_TURNS = 100
"""Of the loop, under 1 µs each: the flusher has often answered by then, and a core that sleeps takes longer to wake."""
ATTENDED_BYTES = 16 * 1024
"""Of a lone request, at most: with a larger one the flusher takes longer than that, and may want this very core."""
UNATTENDED = 100
"""Times that nothing is attended to after one in vain: the flusher syncs before it answers, or wants this very core."""


class FlusherUnavailable(Exception):
    """No answer within the deadline. Whether the records were accepted is not known; sending them again is safe."""


class Rejected(Exception):
    """The flusher does not accept now. Nothing of the request is stored."""

    def __init__(self, reason: Reason, retry_after_s: float) -> None:
        super().__init__(reason.name)
        self.reason = reason
        self.retry_after_s = retry_after_s


class Pending(msgspec.Struct):
    """A request under way. `parts` are its bytes, kept to be sent again; `done` gets the answer, or the exception in
    its place, once."""

    parts: tuple[bytes, ...]
    size: int
    deadline: float
    done: Callable[[Any], None]


class Commit(msgspec.Struct):
    """Somebody waits for a commit: of what arrived then, 0 before the ack. `dead`: how many of its records are dead
    letters, None where nobody knows any more."""

    dead: asyncio.Future[int | None]
    arrival: int = 0


class Forwarder:
    def __init__(
        self, path: str, *, ack_timeout_s: float, rules: bytes = b"", window_bytes: int = WINDOW_BYTES
    ) -> None:
        """Args: rules: of all bodies (records.Rules)."""
        self._path = path
        self._rules = rules
        self._ack_timeout_s = ack_timeout_s
        self._window_bytes = window_bytes
        self._loop: asyncio.AbstractEventLoop
        self._transport: asyncio.Transport | None = None
        self._lost = asyncio.Event()
        self._seq = 0
        self._pending: dict[int, Pending] = {}
        self._committing: dict[int, Commit] = {}
        self._in_flight_bytes = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._unsent: list[bytes] = []
        self._unattended = 0
        self._runner: asyncio.Task[None] | None = None
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        return self._transport is not None

    def start(self) -> None:
        """Starts connecting, and goes on until close()."""
        self._loop = asyncio.get_running_loop()
        connect = repeat("the connection to the flusher", _RECONNECT_S[1], self._keep_connected)
        self._runner = self._loop.create_task(connect)
        self._sweeper = self._loop.create_task(repeat("the sweep of acks' deadlines", _SWEEP_S, self._sweep))

    async def close(self) -> None:
        """Gives up what is pending and disconnects."""
        if self._runner is not None:
            self._runner.cancel()
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._give_up(list(self._pending), "ingest is stopping")
        if self._transport is not None:
            self._transport.close()

    async def submit(self, kind: int, count: int, body: bytes, *, want_commit: bool = False) -> tuple[int, int]:
        """Hands a validated body over. Blocks (asynchronously) until the flusher has it in its journal.

        Returns: its arrival in µs since 1970 UTC, and the number to ask committed() about.
        Raises: Rejected, FlusherUnavailable.
        """
        size = len(body) + SUBMIT_BYTES
        if self._in_flight_bytes + size > self._window_bytes and self._in_flight_bytes:
            await self._window(size)
        seq = self._next_seq()
        head = encode_submit_header(seq, kind, count, len(body), want_commit=want_commit, rules=self._rules)
        parts = _frame(head, body)
        if want_commit:
            self._committing[seq] = Commit(self._loop.create_future())
        try:
            return await self._answer(seq, parts, size, self._ack_timeout_s), seq
        except BaseException:
            self.forget(seq)
            raise

    def submit_now(self, kind: int, count: int, body: bytes, done: Callable[[int | Exception], None]) -> bool:
        """submit() without a task: `done` gets the arrival, Rejected or FlusherUnavailable.

        Returns: False where the window is full; then nothing was sent, and `done` is not called.
        """
        size = len(body) + SUBMIT_BYTES
        if self._in_flight_bytes + size > self._window_bytes:
            return False
        seq = self._next_seq()
        head = encode_submit_header(seq, kind, count, len(body), rules=self._rules)
        self._ask(seq, _frame(head, body), size, self._ack_timeout_s, done)
        return True

    async def committed(self, seq: int, timeout_s: float) -> int | None:
        """Waits until the records of a submit with want_commit have left the journal, for at most `timeout_s`.

        Returns: how many of them are dead letters, all others are in the database; None if that is not known in time.
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
        seq = self._next_seq()
        frame = encode(Flush(seq, timeout_s))
        result: bytes = await self._answer(seq, (frame,), len(frame), timeout_s + 2.0)
        return result

    async def stats(self, timeout_s: float = 2.0) -> bytes:
        """Returns: the flusher's JSON. Raises: FlusherUnavailable, at once where there is no connection."""
        if self._transport is None:
            raise FlusherUnavailable("the flusher is not connected")
        seq = self._next_seq()
        frame = encode(Stats(seq))
        result: bytes = await self._answer(seq, (frame,), len(frame), timeout_s)
        return result

    def _next_seq(self) -> int:
        self._seq = (self._seq + 1) & 0xFFFFFFFF
        return self._seq

    def _answer(self, seq: int, parts: tuple[bytes, ...], size: int, timeout_s: float) -> asyncio.Future[Any]:
        answer = self._loop.create_future()

        def done(result: Any) -> None:
            if answer.done():
                return  # whoever waited was cancelled
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)

        self._ask(seq, parts, size, timeout_s, done)
        return answer

    def _ask(
        self, seq: int, parts: tuple[bytes, ...], size: int, timeout_s: float, done: Callable[[Any], None]
    ) -> None:
        """`done` is called by answer, deadline or close(); until then the frame is sent to whoever is there."""
        self._pending[seq] = Pending(parts, size, self._loop.time() + timeout_s, done)
        self._in_flight_bytes += size
        if self._transport is not None:
            if not self._unsent:
                self._loop.call_soon(self._gather)
            self._unsent += parts

    def _settle(self, seq: int, result: Any) -> None:
        """Takes a request out and hands it its answer, or an exception."""
        pending = self._pending.pop(seq, None)
        if pending is None:
            return  # its deadline was first
        self._in_flight_bytes -= pending.size
        if self._waiting:
            self._admit()
        try:
            pending.done(result)
        except Exception:
            # A fault of ours with one answer may not take the others, nor the connection that they come on.
            log.exception("an answer of the flusher could not be handed on")

    def _give_up(self, seqs: Sequence[int], why: str) -> None:
        for seq in seqs:
            self._settle(seq, FlusherUnavailable(why))

    def _gather(self) -> None:
        """Where a turn of the loop has brought several frames, the next one is awaited too: it costs each of them some
        microseconds, and the flusher half of its work, which it does for each read."""
        if len(self._unsent) > 1:
            self._loop.call_soon(self._send)
        else:
            self._send()

    def _send(self) -> None:
        """What has come together goes with one system call, and wakes the flusher once."""
        unsent, self._unsent = self._unsent, []
        if self._transport is not None:
            self._transport.writelines(unsent)
            if self._unattended:
                self._unattended -= 1
            elif len(self._pending) == 1 and self._in_flight_bytes <= ATTENDED_BYTES:
                self._attend(ATTENDED_TURNS)

    def _attend(self, turns: int) -> None:
        """Keeps the loop from sleeping while a lone request is at the flusher; all else goes on as ever."""
        if len(self._pending) != 1:
            return
        if turns:
            self._loop.call_soon(self._attend, turns - 1)
        else:
            self._unattended = UNATTENDED

    async def _window(self, size: int) -> None:
        """Waits, first come first served, until `size` more bytes may be under way."""
        deadline = self._loop.time() + self._ack_timeout_s
        place = self._waiting.append
        while self._in_flight_bytes + size > self._window_bytes and self._in_flight_bytes:
            turn = self._loop.create_future()
            place(turn)
            place = self._waiting.appendleft  # who was first stays first
            try:
                await asyncio.wait_for(turn, deadline - self._loop.time())
            except asyncio.TimeoutError:
                pass
            finally:
                if turn in self._waiting:
                    self._waiting.remove(turn)
            if self._loop.time() >= deadline:
                self._admit()
                raise FlusherUnavailable("too much waits for the flusher's answer")
        self._admit()

    def _admit(self) -> None:
        if self._waiting and self._in_flight_bytes < self._window_bytes:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)

    def _sweep(self) -> None:
        """Ends what has waited too long. One timer for all: a timer a request would cost as much as the request."""
        now = self._loop.time()
        late = [seq for seq, pending in self._pending.items() if pending.deadline <= now]
        self._give_up(late, "the flusher did not answer in time")
        if late and self._transport is not None and self._transport.get_write_buffer_size() > self._window_bytes:
            # It does not read, and what nobody waits for any more would stay in memory, one window after another.
            log.warning("flusher: it has read nothing for long, the connection is made anew")
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
                    log.warning("flusher: not reachable (%s), trying on", error.strerror or error)
            else:
                if attempt:
                    log.warning("flusher: reachable again")
                made_at = self._loop.time()
                await self._lost.wait()
                if self._loop.time() - made_at >= longest:
                    attempt = 0
                    continue
                # One that refuses us, or the frame that it is sent again each time, is not asked at once.
            attempt += 1
            ceiling = min(longest, first * 2 ** min(attempt, 10))
            await asyncio.sleep(ceiling * (0.5 + 0.5 * random.random()))  # noqa: S311

    def connection_made(self, transport: asyncio.Transport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        self._transport = transport
        self._unsent.clear()
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
        if type(message) is Ack:
            arrival = message.arrival
            for seq in range(message.seq, message.seq + message.count):
                if seq in self._committing:
                    self._committing[seq].arrival = arrival
                self._settle(seq, arrival)
                arrival += 1
        elif type(message) is Committed:
            for commit in self._committing.values():
                if message.first <= commit.arrival <= message.last and not commit.dead.done():
                    commit.dead.set_result(message.dead.get(commit.arrival, 0))
        elif type(message) is Reject:
            self._settle(message.seq, Rejected(message.reason, message.retry_after_s))
        elif type(message) is Flushed:
            self._settle(message.seq, message.result)
        elif type(message) is StatsIs:
            self._settle(message.seq, message.stats)
        else:
            raise ProtocolError(f"{type(message).__name__} is not for ingest")


def _frame(head: bytes, body: bytes) -> tuple[bytes, ...]:
    """What is cheaper to copy than to send as a further piece is one piece."""
    return (head + body,) if len(body) < _SMALL_BODY_BYTES else (head, body)


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
