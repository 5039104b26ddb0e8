"""Once a second: checks the lock, the socket, the journal's files, the dead letters, the disk and a hanging database.

Rules: belongs to the loop's thread. A check that fails is logged once per reason, and does not stop the others.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from flusher.dead_letters import FILE_NAME, Count
from flusher.figures import Figures
from flusher.intake import Intake
from flusher.journal import Journal
from flusher.scheduler import Scheduler
from flusher.segments import advice, count_broken
from flusher.writers import Writers
from shared.process import lock
from shared.wire import SOCKET_NAME

log = logging.getLogger(__name__)

EVERY_S = 1.0
LOCK_NAME = "flusher.lock"
_LOOKS_AT_LETTERS = 10
"""Dead letters are counted only while no writer is busy, whose answer would count its letters again; after so many
skipped looks in any case."""


def socket_path(state_directory: Path) -> Path:
    """The socket's path, in a directory that is closed to other users. Raises: SystemExit, OSError."""
    path = state_directory / SOCKET_NAME
    if len(os.fsencode(path)) > 107:
        sys.exit(f"flusher: {path}: a socket's path may have 107 bytes (unix(7)); shorten PERSISTENCE_STATE_DIR")
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.parent.chmod(0o700)
    path.unlink(missing_ok=True)
    return path


def reason(error: OSError) -> str:
    """The file, its fault, and the operator's step."""
    if error.filename is None:
        return str(error.strerror)
    return f"{error.filename}: {error.strerror}; {advice(error, Path(error.filename))}"


@dataclass(eq=False)
class Watch:
    """Args: listen(path): makes the socket, anew if there was one."""

    state_directory: Path
    lock_fd: int
    journal: Journal
    intake: Intake
    scheduler: Scheduler
    figures: Figures
    writers: Writers
    listen: Callable[[Path], Awaitable[None]]
    stop: Callable[[], None]

    def __post_init__(self) -> None:
        self._socket: os.stat_result | None = None
        self._letters = Count(self.state_directory / FILE_NAME)
        self._skipped = 0
        self._said: dict[str, str] = {}

    async def start(self) -> None:
        """Listens for the first time. Raises: SystemExit."""
        try:
            await self._keep_socket()
        except OSError as error:
            sys.exit(f"flusher: {reason(error)}")

    async def look(self) -> None:
        for what, step in (
            ("the journal", self._look_at_journal),
            ("the lock", self._keep_lock),
            ("the socket", self._keep_socket),
            ("the dead letters", self._count_letters),
        ):
            try:
                await step()
                self._said.pop(what, None)
            except OSError as error:
                why = reason(error)
                if self._said.get(what) != why:
                    self._said[what] = why
                    log.error("%s: %s", what, why)

    async def _look_at_journal(self) -> None:
        self.journal.check_active_file()
        self.intake.probe()
        self.scheduler.check_hanging()
        self.journal.cut_again()
        if self.journal.set_aside:
            self.journal.set_aside = await asyncio.to_thread(count_broken, self.journal.directory)

    async def _keep_lock(self) -> None:
        path = self.state_directory / LOCK_NAME
        if _is_same(path, os.fstat(self.lock_fd)):
            return
        try:
            lock_fd = lock(self.state_directory, "flusher")
        except BlockingIOError:
            log.critical("%s was removed, and another flusher has taken it: stopping, so that there is one", path)
            self.stop()
            return
        os.close(self.lock_fd)
        self.lock_fd = lock_fd
        log.error("%s was removed or replaced by somebody; it is locked anew", path)

    async def _keep_socket(self) -> None:
        """Listens again if the socket's name was removed or replaced. Raises: OSError."""
        path = self.state_directory / SOCKET_NAME
        known = self._socket
        if known is not None and _is_same(path, known):
            return
        await self.listen(socket_path(self.state_directory))
        if known is not None:
            log.error("%s was removed or replaced by somebody; it is made anew", path)
        self._socket = path.stat()

    async def _count_letters(self) -> None:
        self._skipped += 1
        if self.writers.busy and self._skipped < _LOOKS_AT_LETTERS:
            return
        self._skipped = 0
        before = self.figures.dead_lettered
        letters = await asyncio.to_thread(self._letters.look)
        if before == self.figures.dead_lettered:
            self.figures.dead_letters_waiting = letters


def _is_same(path: Path, known: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), known)
    except FileNotFoundError:
        return False
