"""When to seal, which segment goes to which writer, and what follows its answer.

Rules: belongs to the loop's thread. schedule() decides and acts at once; it runs after every append, answer and due
time. A segment leaves the directory only here, and only after a Written answer (invariant 2).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import msgspec

from flusher import segments, triggers
from flusher.answers import Failed, Written
from flusher.callers import FlushResult, FlushWaiters
from flusher.figures import Figures
from flusher.journal import Journal, Segment
from flusher.mysql_errors import ErrorClass
from flusher.pinger import Pinger
from flusher.state import HANGING_S, NO_DATABASE_ERROR, Cause, Condition
from flusher.syncer import Syncer
from flusher.triggers import FlushPolicy, FlushReason
from flusher.writers import MAX_COMMANDS_IN_FLIGHT, SLOW_COMMAND_S, WriterDied, Writers

log = logging.getLogger(__name__)

_OF_THE_SEGMENT = {ErrorClass.RETRY, ErrorClass.TOO_BIG, ErrorClass.DATA, ErrorClass.UNKNOWN}
"""Failures that do not delay other segments; all others pause writing."""
DEADLY_ATTEMPTS = 2
"""A segment that failed so often is itself at fault if a writer dies of it."""
DRAIN_ATTEMPTS = 3
"""A drain gives up after so many failures of the database in a row."""
_LOG_AGAIN_S = 30.0
WAKE_AGAIN_S = 1.0
FAILED_AT_ONCE, FAILED_EACH_S = 100, 0.01
"""Each further failed segment keeps the active one open for so long: else callers of a commit make a segment each."""


@dataclass(eq=False)
class Scheduler:
    journal: Journal
    writers: Writers
    syncer: Syncer
    figures: Figures
    policy: FlushPolicy
    writers_at_once: int
    pool_size: int
    random: Callable[[], float]
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self._callers = FlushWaiters(self.journal, clock=self.clock)
        self._pinger = Pinger(self.writers, self.journal, self.figures, self.schedule, self.wall)
        self._under_way: set[asyncio.Task[None]] = set()
        self._writing_since: dict[int, float] = {}
        self._asked_upto = 0
        self._paused_until = 0.0
        self._attempts = 0  # failures of the database in a row
        self._doubtful = False  # the last segments were themselves at fault, so the next may be too
        self._trying_since: float | None = None  # since when writers have tried without a commit
        self._last_failure: str | None = None
        self._draining = False
        self._drained = asyncio.Event()
        self._stopped = False
        self._timer: asyncio.TimerHandle | None = None
        self._wake_at = math.inf
        self._logged: tuple[str, float] = ("", 0.0)

    def start(self) -> None:
        self._pinger.start()
        self.schedule()

    def stop(self) -> None:
        """No write is started after this."""
        self._stopped = True
        self._pinger.stop()
        if self._timer is not None:
            self._timer.cancel()

    def flush(self, timeout_s: float, done: Callable[[FlushResult], None]) -> None:
        """Writes everything accepted so far, then calls `done` once; after `timeout_s` in any case."""
        self._callers.wait_for_flush(self.journal.last_sequence(), timeout_s, done)
        self._retry_now()
        self.flush_soon()
        self._callers.settle()

    def flush_soon(self) -> None:
        """Writes everything accepted so far; does not wait for it."""
        self._asked_upto = max(self._asked_upto, self.journal.last_sequence())
        self.schedule()

    def when_committed(self, sequence: int, arrival: int, reply: Callable[[bytes], None]) -> None:
        """Brings the segment's flush forward, and tells the peer when the segment has left the journal."""
        self._asked_upto = max(self._asked_upto, sequence)
        self._callers.wait_for_commit(sequence, arrival, reply)

    def forget(self, reply: Callable[[bytes], None]) -> None:
        """That peer has disconnected."""
        self._callers.forget(reply)

    def start_draining(self) -> None:
        """From now on every record is written at once."""
        self._draining = True
        self._attempts = 0
        self._retry_now()
        self.schedule()

    async def drain(self, timeout_s: float) -> None:
        """Waits until everything is written or the database is found to be away, at most `timeout_s`."""
        self.start_draining()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._drained.wait(), timeout_s)

    def longest_write_s(self, now: float) -> float:
        """How long the oldest write has been under way: a database that hangs reports no error."""
        return max((now - since for since in self._writing_since.values()), default=0.0)

    def check_hanging(self) -> None:
        """Reports a database that has committed nothing for HANGING_S although writers try."""
        if self._trying_since is not None and self.clock() - self._trying_since >= HANGING_S:
            self.figures.database.held_up(self._last_failure, self.wall())

    def schedule(self) -> None:
        """Seals and hands over everything that is due now."""
        if self._stopped:
            return
        now = self.clock()
        active = self.journal.active
        due: FlushReason | None = None
        if active is not None and active.total:
            due = triggers.flush_reason(
                self.policy,
                records=active.total,
                age_s=now - active.opened_at,
                asked=self._asked_upto >= active.sequence,
                draining=self._draining,
            )
            is_full = triggers.is_full(self.policy, records=active.total, size=active.size)
            if is_full and self.journal.seal(due or FlushReason.SIZE):
                due = None
        while self._may_write(now):
            segment = self.journal.next(now)
            if segment is not None:
                segment.busy = True
                task = asyncio.get_running_loop().create_task(self._hand_over(segment))
                self._under_way.add(task)
                task.add_done_callback(partial(self._handed_over, segment))
            elif due is not None and now >= self._open_until() and self.journal.seal(due):
                due = None
            else:
                break
        if self._draining:
            hopeless = self._attempts >= DRAIN_ATTEMPTS
            self._drained.clear() if self.journal.last_sequence() and not hopeless else self._drained.set()
        self._set_timer(now, due)

    def _may_write(self, now: float) -> bool:
        if now < self._paused_until:
            return False
        return len(self._under_way) + self._pinger.under_way < triggers.segments_at_once(
            waiting=self.journal.waiting,
            writers=self.writers_at_once,
            pool_size=self.pool_size,
            each=MAX_COMMANDS_IN_FLIGHT,
            healthy=not self._attempts and not self._doubtful,
            held_up=self.longest_write_s(now) >= SLOW_COMMAND_S,
        )

    def _open_until(self) -> float:
        active, failed = self.journal.active, self.journal.waiting - len(self._under_way)
        assert active is not None
        return active.opened_at + FAILED_EACH_S * (failed - FAILED_AT_ONCE) if failed > FAILED_AT_ONCE else 0.0

    def _retry_now(self) -> None:
        """Clears all back-off delays, because a caller waits."""
        self._paused_until = 0.0
        for segment in self.journal:
            segment.not_before = 0.0

    def _set_timer(self, now: float, due: FlushReason | None) -> None:
        """Wakes schedule() when the next thing is due; a wake-up too many does no harm."""
        at = math.inf
        active = self.journal.active
        if active is not None and active.total and due is None:
            at = active.opened_at + self.policy.interval_s
        if now < self._paused_until:
            if due is not None or self.journal.waiting:
                at = min(at, self._paused_until)
        elif self.journal.waiting > len(self._under_way):
            # next_at() reads the whole backlog: only while writers are free, so that appends stay cheap.
            if self._may_write(now):
                at = min(at, self.journal.next_at())
                if due is not None and self._open_until() > now:
                    at = min(at, self._open_until())
            elif self.longest_write_s(now) < SLOW_COMMAND_S:
                at = min(at, min(self._writing_since.values(), default=math.inf) + SLOW_COMMAND_S)
        if at not in (math.inf, self._wake_at):
            self._wake_after(at, max(0.0, at - now) + 0.001)

    def _wake_after(self, at: float, delay_s: float) -> None:
        if self._timer is not None:
            if self._wake_at <= at:
                return
            self._timer.cancel()
        self._wake_at = at
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._wake_at = math.inf
        try:
            self.schedule()
        except BaseException:
            self._wake_after_fault()
            raise

    def _wake_after_fault(self) -> None:
        """After a fault of ours schedule() runs again."""
        if not self._stopped:
            self._wake_after(self.clock() + WAKE_AGAIN_S, WAKE_AGAIN_S)

    async def _hand_over(self, segment: Segment) -> None:
        started_at = self._writing_since[segment.sequence] = self.clock()
        if self._trying_since is None:
            self._trying_since = started_at
        try:
            size = segment.size
            answer = await self.writers.ask({"write": str(segment.path), "size": size})
            if isinstance(answer, Written) and 0 < answer.damaged_bytes == size - segment.size:
                # A failed sync has cut it off meanwhile: no damage.
                answer = msgspec.structs.replace(answer, damaged_bytes=0)
            if isinstance(answer, Written):
                await asyncio.get_running_loop().run_in_executor(
                    None, segments.remove, segment.path, answer.damaged_bytes > 0
                )
        except WriterDied as error:
            deadly = segment.attempts >= DEADLY_ATTEMPTS
            error_class = ErrorClass.UNKNOWN if deadly else ErrorClass.RECONNECT
            answer = Failed(error_class, NO_DATABASE_ERROR, f"a writer died: {error}", of_segment=deadly)
        except OSError as error:
            why = f"{segment.path}: {error.strerror}; {segments.advice(error, segment.path)}"
            answer = Failed(ErrorClass.STORAGE, error.errno or -1, why, of_segment=True)
        finally:
            # Not in _handed_over(): it may run after schedule() has handed the segment over again.
            del self._writing_since[segment.sequence]
        self._under_way.discard(asyncio.current_task())
        if isinstance(answer, Written):
            self._written(segment, answer, self.clock() - started_at)
        else:
            assert isinstance(answer, Failed)
            if answer.of_segment and segments.has_vanished(segment.path):
                self._vanished(segment)
            else:
                self._failed(segment, answer)
        self.schedule()

    def _handed_over(self, segment: Segment, task: asyncio.Task[None]) -> None:
        """After a fault of ours the segment is retried as after an unknown error."""
        self._under_way.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.critical("a hand-over failed", exc_info=task.exception())
            self._wake_after_fault()
            if segment.busy and not self._stopped:
                self._failed(segment, Failed(ErrorClass.UNKNOWN, NO_DATABASE_ERROR, repr(task.exception())))

    def _written(self, segment: Segment, answer: Written, duration_s: float) -> None:
        figures = self.figures
        now = self.clock()
        self.journal.forget(segment)
        self.syncer.forget(segment)
        if answer.records or answer.damaged_bytes:
            figures.written(answer, segment.reason.value, duration_s, self.wall())
            figures.drain_rate.freed(segment.size, duration_s, now)
        if answer.damaged_bytes:
            self.journal.set_aside += 1
            log.error(
                "journal: %s had %d unreadable bytes; its %d readable records are written, the file is kept as %s",
                segment.path.name,
                answer.damaged_bytes,
                answer.records,
                segment.path.name + segments.BROKEN_SUFFIX,
            )
        if answer.dead_lettered:
            figures.error(answer.last_error or "", self.wall())
            log.error("%d records went to the dead letters: %s", answer.dead_lettered, answer.last_error)
        if answer.statements:
            figures.database.committed(self.wall())
            self._attempts = 0
            self._doubtful = False
            self._paused_until = 0.0
            self._last_failure = None
            self._trying_since = now if self._under_way else None
        elif not self._under_way:
            self._trying_since = None
        self._callers.written(segment.sequence, answer)

    def _vanished(self, segment: Segment) -> None:
        """Its file was removed by somebody; no retry would bring it back."""
        log.error(
            "journal: %s has vanished with %d records, %d bytes; if you have the file, put it back and restart the"
            " flusher, or else what was not written before is lost",
            *(segment.path, segment.total, segment.size),
        )
        self.journal.forget(segment)
        self.syncer.forget(segment)
        if not self._under_way:
            self._trying_since = None
        self.figures.vanished += 1
        self.figures.damaged_bytes += segment.size
        self._callers.lost(segment.sequence, segment.total)

    def _failed(self, segment: Segment, answer: Failed) -> None:
        segment.busy = False
        segment.attempts += 1
        now = self.clock()
        self.figures.failed(answer, self.wall())
        if answer.of_segment or answer.error_class in _OF_THE_SEGMENT:
            since = self.wall() if segment.alarm is None else segment.alarm.since
            segment.alarm = Condition(answer.message, since, Cause.SEGMENT) if answer.alarming else None
            self._doubtful |= answer.of_segment
            self.figures.database.refused_one(answer, self.wall())
            delay = triggers.retry_delay(answer.error_class, segment.attempts, self.random())
            segment.not_before = now + delay
        else:
            if now >= self._paused_until:  # else it was tried together with one that has failed already
                self._attempts += 1
                delay = triggers.retry_delay(answer.error_class, self._attempts, self.random())
                self._paused_until = now + delay
            delay = self._paused_until - now
            self.figures.database.failed(answer, self.wall(), writing=True)
        if answer.of_segment:
            self._trying_since = now if self._under_way else None
        else:
            self._last_failure = answer.message
        self.journal.put_back(segment)
        if self._logged[0] != answer.message or now - self._logged[1] > _LOG_AGAIN_S:
            self._logged = (answer.message, now)
            level = logging.ERROR if answer.alarming else logging.WARNING
            log.log(level, "flush failed, everything is kept, next try in %.1f s: %s", delay, answer.message)
