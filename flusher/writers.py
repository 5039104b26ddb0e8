"""The child processes that write: started when needed, replaced when dead, reduced when idle.

Rules: belongs to the loop's thread. A child has at most one command under way. One that dies or does not answer in
time is killed; its segment is still in the journal, so the next one writes it.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from weakref import WeakSet

import msgspec
import orjson

from flusher.answers import Answer, Failed

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "flusher.writer")
_MAX_ANSWER_BYTES = 16 * 1024 * 1024


class WriterDied(Exception):
    """A child ended, or was killed for its silence, before it answered."""


class Writers:
    def __init__(self, answer_timeout_s: float, command: Sequence[str] = COMMAND) -> None:
        self._answer_timeout_s = answer_timeout_s
        self._command = command
        self._idle: list[asyncio.subprocess.Process] = []
        self._busy: set[asyncio.subprocess.Process] = set()
        self._connected: WeakSet[asyncio.subprocess.Process] = WeakSet()

    @property
    def busy(self) -> int:
        return len(self._busy)

    @property
    def processes(self) -> int:
        return len(self._idle) + len(self._busy)

    @property
    def connected(self) -> int:
        """Children that had a connection to the database at their last answer."""
        return sum(child in self._connected for child in (*self._idle, *self._busy))

    async def ask(self, command: dict[str, object]) -> Answer:
        """Gives one command to an idle child, or to a new one. Raises: WriterDied."""
        child = self._take_idle()
        if child is None:
            child = await self._start()
        self._busy.add(child)
        try:
            answer = await asyncio.wait_for(self._exchange(child, command), self._answer_timeout_s)
        except asyncio.TimeoutError:
            raise await self._bury(child, f"no answer in {self._answer_timeout_s:g} s") from None
        except (OSError, EOFError, ValueError) as error:
            raise await self._bury(child, repr(error)) from error
        except asyncio.CancelledError:
            await self._bury(child, "cancelled")
            raise
        finally:
            self._busy.discard(child)
        self._idle.append(child)
        if isinstance(answer, Failed) and not answer.connected:
            self._connected.discard(child)
        else:
            self._connected.add(child)
        return answer

    def shrink(self, keep: int) -> None:
        """Ends idle children over `keep`: their stdin closes, they leave."""
        while len(self._idle) > 0 and self.processes > keep:
            self._close(self._idle.pop(0))

    async def terminate(self) -> None:
        """Kills all children and waits for them; what they were writing stays in the journal."""
        children = [*self._idle, *self._busy]
        self._idle.clear()
        for child in children:
            await self._bury(child, "")

    def _take_idle(self) -> asyncio.subprocess.Process | None:
        while self._idle:
            child = self._idle.pop()
            if child.returncode is None:
                return child
            log.warning("writer %d ended while idle, status %s", child.pid, child.returncode)
        return None

    async def _start(self) -> asyncio.subprocess.Process:
        try:
            return await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_MAX_ANSWER_BYTES,
            )
        except OSError as error:
            raise WriterDied(f"cannot be started: {error}") from error

    @staticmethod
    async def _exchange(child: asyncio.subprocess.Process, command: dict[str, object]) -> Answer:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(orjson.dumps(command) + b"\n")
        except RuntimeError as error:
            # uvloop's answer to a pipe that it has closed, when the child's end was seen before its status.
            raise EOFError("ended before it was asked") from error
        line = await child.stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError("ended before it answered")
        answer: Answer = msgspec.json.decode(line, type=Answer)
        return answer

    async def _bury(self, child: asyncio.subprocess.Process, why: str) -> WriterDied:
        if child.returncode is None:
            try:
                child.kill()
            except ProcessLookupError:
                pass  # it was quicker
        await child.wait()
        if why:
            log.warning("writer %d: %s; it is replaced", child.pid, why)
        return WriterDied(why)

    @staticmethod
    def _close(child: asyncio.subprocess.Process) -> None:
        if child.stdin is not None:
            child.stdin.close()
