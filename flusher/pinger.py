"""Asks the database while there is nothing to write, and lets writers go that have nothing to do.

Rules: belongs to the loop's thread. An answer changes the figures, then `answered` is called.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from flusher.answers import Failed
from flusher.backlog import Backlog
from flusher.state import DatabaseState
from flusher.stats import Figures
from flusher.writers import WriterDied, Writers
from shared.timers import logged

PING_S = 5.0
DEATHS = 3
"""Of writers in a row, before it is told: one may have been killed."""
FIRST_PING_S = 0.2
"""Until the database's state is known for the first time."""


class Pinger:
    def __init__(
        self,
        writers: Writers,
        backlog: Backlog,
        figures: Figures,
        *,
        answered: Callable[[], None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._writers = writers
        self._backlog = backlog
        self._figures = figures
        self._answered = answered
        self._wall = wall
        self._deaths = 0
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    @property
    def under_way(self) -> bool:
        """Whether a ping has a writer for itself."""
        return self._task is not None

    def start(self) -> None:
        asyncio.get_running_loop().call_soon(self._ping)

    def stop(self) -> None:
        """No ping is started after this."""
        self._stopped = True

    def _ping(self) -> None:
        if self._stopped:
            return
        loop = asyncio.get_running_loop()
        unknown = self._figures.database.state is DatabaseState.UNKNOWN
        loop.call_later(FIRST_PING_S if unknown else PING_S, self._ping)
        self._writers.shrink(1 + len(self._backlog) // 4)
        if not len(self._backlog) and self._task is None:
            self._task = loop.create_task(self._ask())

    async def _ask(self) -> None:
        with logged("a ping"):
            await self._learn()

    async def _learn(self) -> None:
        try:
            answer = await self._writers.ask({"ping": True})
        except WriterDied as error:
            self._figures.error(f"a writer died: {error}", self._wall())
            self._deaths += 1
            if self._deaths >= DEATHS:
                self._figures.database.not_asked(str(error), self._wall())
        else:
            self._deaths = 0
            if isinstance(answer, Failed):
                self._figures.error(answer.message, self._wall())
                self._figures.database.failed(answer, self._wall(), writing=False)
            else:
                self._figures.database.answered(self._wall())
        finally:
            self._task = None
        self._answered()
