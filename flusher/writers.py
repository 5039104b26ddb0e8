"""The child processes that write: started when needed, replaced when dead, reduced when idle.

Rules: belongs to the loop's thread. A child has at most two commands in flight: it prepares one segment while the
database works on the other. A child that dies or does not answer in time is killed; its segments are still in the
journal, and the next child writes them.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Sequence

import msgspec
import orjson

from flusher.answers import IDLE_PRIORITY, Answer, Failed

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "flusher.writer")
MAX_COMMANDS_IN_FLIGHT = 2
SLOW_COMMAND_S = 1.0
"""A child whose command takes longer (behind a lock, for instance) gets no second one."""
_MAX_ANSWER_BYTES = 16 * 1024 * 1024


class WriterDied(Exception):
    """A child ended, or was killed for its silence, before it answered."""


class _Child:
    """`asked`: commands in flight. `since`: when the first of them began. `connected`: to the database, at the last
    answer. The holder of `turn` reads the next answer."""

    def __init__(self, now: float, arguments: Sequence[str]) -> None:
        self.arguments = arguments
        self.process: asyncio.subprocess.Process | None = None
        self.starting = asyncio.Lock()
        self.turn = asyncio.Lock()
        self.asked = 0
        self.since = now
        self.connected = False


class Writers:
    def __init__(
        self,
        answer_timeout_s: float,
        command: Sequence[str] = COMMAND,
        *,
        slow_command_s: float = SLOW_COMMAND_S,
    ) -> None:
        self._answer_timeout_s = answer_timeout_s
        self._command = command
        self._slow_command_s = slow_command_s
        self._children: list[_Child] = []

    @property
    def busy(self) -> int:
        return sum(child.asked > 0 for child in self._children)

    @property
    def processes(self) -> int:
        return len(self._children)

    @property
    def connected(self) -> int:
        """Children that had a connection to the database at their last answer."""
        return sum(child.connected for child in self._children)

    async def ask(self, command: dict[str, object]) -> Answer:
        """Gives a command to a child, a new one if none is free, and waits for its answer. Raises: WriterDied."""
        child = self._choose()
        child.asked += 1
        try:
            await self._send(child, command)
            async with child.turn:
                child.since = time.monotonic()
                answer = await asyncio.wait_for(self._receive(child), self._answer_timeout_s)
        except asyncio.TimeoutError:
            raise await self._kill_and_reap(child, f"no answer in {self._answer_timeout_s:g} s") from None
        except (OSError, EOFError, ValueError) as error:
            raise await self._kill_and_reap(child, repr(error)) from error
        except asyncio.CancelledError:
            await self._kill_and_reap(child, "cancelled")
            raise
        finally:
            child.asked -= 1
        child.connected = not isinstance(answer, Failed) or answer.connected
        return answer

    def shrink(self, keep: int) -> None:
        """Ends idle children over `keep` by closing their stdin."""
        for child in [child for child in self._children if not child.asked][: max(0, len(self._children) - keep)]:
            self._children.remove(child)
            if child.process is not None and child.process.stdin is not None:
                child.process.stdin.close()

    async def terminate(self) -> None:
        """Kills all children and waits for them; their segments stay in the journal."""
        for child in list(self._children):
            await self._kill_and_reap(child, "")

    def _choose(self) -> _Child:
        """A busy child that can take another command, else an idle one: each busy child takes a core."""
        now = time.monotonic()
        for child in list(self._children):
            if child.process is not None and child.process.returncode is not None and not child.asked:
                log.warning("writer %d ended while idle, status %s", child.process.pid, child.process.returncode)
                self._children.remove(child)
            elif 0 < child.asked < MAX_COMMANDS_IN_FLIGHT and now - child.since < self._slow_command_s:
                return child
        idle = [child for child in self._children if not child.asked]
        if not idle:
            # Further children serve a backlog, or replace one that is held up, perhaps because it gets no core.
            idle.append(_Child(now, () if self._children else (IDLE_PRIORITY,)))
            self._children += idle
        idle[-1].since = now
        return idle[-1]

    async def _send(self, child: _Child, command: dict[str, object]) -> None:
        async with child.starting:
            if child not in self._children:
                raise EOFError("another command could not start it")
            if child.process is None:
                child.process = await self._start(child.arguments)
        assert child.process.stdin is not None
        try:
            child.process.stdin.write(orjson.dumps(command) + b"\n")
        except RuntimeError as error:
            # uvloop has closed the pipe: it sees the child's end before its status.
            raise EOFError("ended before it was asked") from error

    async def _start(self, arguments: Sequence[str]) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self._command,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_MAX_ANSWER_BYTES,
        )

    @staticmethod
    async def _receive(child: _Child) -> Answer:
        assert child.process is not None
        assert child.process.stdout is not None
        line = await child.process.stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError("ended before it answered")
        answer: Answer = msgspec.json.decode(line, type=Answer)
        return answer

    async def _kill_and_reap(self, child: _Child, why: str) -> WriterDied:
        """Idempotent: logs only the first time. Returns: the exception to raise."""
        known = child in self._children
        if known:
            self._children.remove(child)
        process = child.process
        if process is None:
            return WriterDied(f"cannot be started: {why}")
        if process.returncode is None:
            try:
                process.kill()
            except ProcessLookupError:
                pass  # it was quicker
        await process.wait()
        if process.stdin is not None:
            process.stdin.close()
            try:
                await process.stdin.wait_closed()
            except OSError:
                pass  # the last command could not be written
        if why and known:
            log.warning("writer %d: %s; it is replaced", process.pid, why)
        return WriterDied(why)
