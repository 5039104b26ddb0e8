"""Who waits until something is written: callers of a flush, with what it has done so far, and callers of one commit.

Rules: belongs to the loop's thread. flush.py says which segment is written; nobody is called twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from flusher.answers import Written
from flusher.backlog import Backlog


@dataclass(slots=True)
class FlushResult:
    """What a flush did up to now. `pending` records are still waiting."""

    rows: dict[str, int] = field(default_factory=dict)
    coalesced: int = 0
    dead_lettered: int = 0
    duration_ms: float = 0.0
    pending: int = 0


@dataclass(slots=True)
class _FlushCaller:
    upto: int
    started_at: float
    done: Callable[[FlushResult], None]
    result: FlushResult = field(default_factory=FlushResult)
    timer: asyncio.TimerHandle | None = None


class Callers:
    def __init__(self, backlog: Backlog, *, clock: Callable[[], float]) -> None:
        self._backlog = backlog
        self._clock = clock
        self._of_flushes: list[_FlushCaller] = []
        self._of_commits: dict[int, list[tuple[int, Callable[[bool], None]]]] = {}

    def wait_for_flush(self, upto: int, timeout_s: float, done: Callable[[FlushResult], None]) -> None:
        """Calls `done` once nothing up to that segment waits any more, and after `timeout_s` in any case."""
        caller = _FlushCaller(upto, self._clock(), done)
        caller.timer = asyncio.get_running_loop().call_later(timeout_s, self._give_up, caller)
        self._of_flushes.append(caller)

    def wait_for_commit(self, sequence: int, arrival: int, done: Callable[[bool], None]) -> None:
        """Calls `done(written)` when that segment has left the journal; False where the entry had a dead letter."""
        self._of_commits.setdefault(sequence, []).append((arrival, done))

    def written(self, sequence: int, answer: Written) -> None:
        """That segment has left the journal."""
        for caller in self._of_flushes:
            if sequence <= caller.upto:
                for name, count in answer.rows.items():
                    caller.result.rows[name] = caller.result.rows.get(name, 0) + count
                caller.result.coalesced += answer.coalesced
                caller.result.dead_lettered += answer.dead_lettered
        for arrival, done in self._of_commits.pop(sequence, ()):
            done(arrival not in answer.dead_arrivals)
        self.settle()

    def settle(self) -> None:
        """Answers the callers of a flush for whom nothing is left to wait."""
        for caller in [caller for caller in self._of_flushes if not self._backlog.holds(caller.upto)]:
            self._finish(caller)

    def _give_up(self, caller: _FlushCaller) -> None:
        # At least 1: the caller is here because something it waits for is still in the journal.
        caller.result.pending = max(1, self._backlog.pending_up_to(caller.upto))
        self._finish(caller)

    def _finish(self, caller: _FlushCaller) -> None:
        self._of_flushes.remove(caller)
        if caller.timer is not None:
            caller.timer.cancel()
        caller.result.duration_ms = round(1000 * (self._clock() - caller.started_at), 3)
        caller.done(caller.result)
