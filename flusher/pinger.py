"""Pings the database while there is nothing to write, and ends idle writers.

Rules: belongs to the loop's thread. An answer updates the figures, then `answered` is called.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from flusher.answers import Failed
from flusher.figures import Figures
from flusher.journal import Journal
from flusher.state import DatabaseState
from flusher.writers import WriterDied, Writers
from shared.timers import logged

PING_S = 5.0
FIRST_PING_S = 0.2
"""Until the first answer."""
DEATHS = 3
"""Writers that die in a row before the state says so: one may have been killed."""


@dataclass(eq=False)
class Pinger:
    writers: Writers
    journal: Journal
    figures: Figures
    answered: Callable[[], None]
    wall: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self._deaths = 0
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    @property
    def under_way(self) -> bool:
        """Whether a writer is busy with a ping."""
        return self._task is not None

    def start(self) -> None:
        asyncio.get_running_loop().call_soon(self._tick)

    def stop(self) -> None:
        """No ping is started after this."""
        self._stopped = True

    def _tick(self) -> None:
        if self._stopped:
            return
        loop = asyncio.get_running_loop()
        unknown = self.figures.database.state is DatabaseState.UNKNOWN
        loop.call_later(FIRST_PING_S if unknown else PING_S, self._tick)
        self.writers.shrink(1 + self.journal.waiting // 4)
        if not self.journal.waiting and self._task is None:
            self._task = loop.create_task(self._ping())

    async def _ping(self) -> None:
        with logged("a ping"):
            try:
                answer = await self.writers.ask({"ping": True})
            except WriterDied as error:
                self.figures.error(f"a writer died: {error}", self.wall())
                self._deaths += 1
                if self._deaths >= DEATHS:
                    self.figures.database.not_asked(str(error), self.wall())
            else:
                self._deaths = 0
                if isinstance(answer, Failed):
                    self.figures.error(answer.message, self.wall())
                    self.figures.database.failed(answer, self.wall(), writing=False)
                else:
                    self.figures.database.answered(self.wall())
            finally:
                self._task = None
            self.answered()
