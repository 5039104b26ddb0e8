"""Answers those that wait for segments to be written: callers of a flush, and peers that asked for a commit.

Rules: belongs to the loop's thread. scheduler.py reports written segments; each waiter is answered once. For commits a
segment keeps one range of arrivals and the peers that asked, however many callers they have: memory does not grow with
the number of callers during an outage of the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from flusher.answers import Written
from flusher.journal import Journal
from shared.timers import logged
from shared.wire import Committed, encode

MAX_FLUSH_CALLERS = 1000
"""Further callers are told at once how many records are pending. The flush goes on for the others."""


@dataclass(slots=True)
class FlushResult:
    """The progress of a flush. `pending` records are not written yet."""

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


@dataclass(slots=True)
class _Wanted:
    """The range of arrivals in one segment for whose commit peers wait, and how to reply to them."""

    first: int
    last: int
    replies: set[Callable[[bytes], None]] = field(default_factory=set)


class FlushWaiters:
    def __init__(self, journal: Journal, *, clock: Callable[[], float]) -> None:
        self._journal = journal
        self._clock = clock
        self._of_flushes: list[_FlushCaller] = []
        self._of_commits: dict[int, _Wanted] = {}

    def wait_for_flush(self, upto: int, timeout_s: float, done: Callable[[FlushResult], None]) -> None:
        """Calls `done` once every segment up to `upto` is written, at the latest after `timeout_s`."""
        caller = _FlushCaller(upto, self._clock(), done)
        if len(self._of_flushes) >= MAX_FLUSH_CALLERS:
            timeout_s = 0.0
        caller.timer = asyncio.get_running_loop().call_later(timeout_s, self._give_up, caller)
        self._of_flushes.append(caller)

    def wait_for_commit(self, sequence: int, arrival: int, reply: Callable[[bytes], None]) -> None:
        """Sends `reply` a Committed frame that covers `arrival` when the segment has left the journal."""
        wanted = self._of_commits.get(sequence)
        if wanted is None:
            wanted = self._of_commits[sequence] = _Wanted(arrival, arrival)
        wanted.last = arrival
        wanted.replies.add(reply)

    def forget(self, reply: Callable[[bytes], None]) -> None:
        """The peer has disconnected."""
        for sequence, wanted in list(self._of_commits.items()):
            wanted.replies.discard(reply)
            if not wanted.replies:
                del self._of_commits[sequence]

    def written(self, sequence: int, answer: Written) -> None:
        """The segment is written and has left the journal."""
        for caller in self._of_flushes:
            if sequence <= caller.upto:
                for name, count in answer.rows.items():
                    caller.result.rows[name] = caller.result.rows.get(name, 0) + count
                caller.result.coalesced += answer.coalesced
                caller.result.dead_lettered += answer.dead_lettered
        wanted = self._of_commits.pop(sequence, None)
        if wanted is not None:
            dead = {at: n for at, n in answer.dead_arrivals.items() if wanted.first <= at <= wanted.last}
            frame = encode(Committed(wanted.first, wanted.last, dead))
            for reply in wanted.replies:
                with logged("telling of a commit"):
                    reply(frame)
        self.settle()

    def lost(self, sequence: int, records: int) -> None:
        """The segment has vanished unwritten: flush callers see its records as pending, commit waiters time out."""
        self._of_commits.pop(sequence, None)
        for caller in [caller for caller in self._of_flushes if sequence <= caller.upto]:
            caller.result.pending = max(1, records)
            self._finish(caller)

    def settle(self) -> None:
        """Answers the callers of a flush whose segments are all written."""
        for caller in [caller for caller in self._of_flushes if not self._journal.holds(caller.upto)]:
            self._finish(caller)

    def _give_up(self, caller: _FlushCaller) -> None:
        # At least 1: the caller is here because something it waits for is still in the journal.
        caller.result.pending = max(1, self._journal.pending_up_to(caller.upto))
        self._finish(caller)

    def _finish(self, caller: _FlushCaller) -> None:
        self._of_flushes.remove(caller)
        if caller.timer is not None:
            caller.timer.cancel()
        caller.result.duration_ms = round(1000 * (self._clock() - caller.started_at), 3)
        with logged("answering a flush"):
            caller.done(caller.result)
