"""When to seal, which segment goes to which writer, and what follows its answer.

Rules: belongs to the loop's thread. consider() decides and acts at once; it is called after every append, answer and
due time. A segment leaves the directory only here, and only after a Written answer (invariant 2).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from flusher import segments, triggers
from flusher.answers import Failed, Written
from flusher.backlog import Backlog, Segment
from flusher.callers import Callers, FlushResult
from flusher.journal import Journal, JournalWriteFailed, Leftover, SegmentFile
from flusher.mysql_errors import ErrorClass
from flusher.pinger import Pinger
from flusher.state import HANGING_S, NO_DATABASE_ERROR, Cause, Condition
from flusher.stats import Figures
from flusher.syncer import Syncer
from flusher.triggers import FlushPolicy, FlushReason
from flusher.writers import COMMANDS_EACH, PATIENCE_S, WriterDied, Writers

log = logging.getLogger(__name__)

_OF_THE_SEGMENT = {ErrorClass.RETRY, ErrorClass.TOO_BIG, ErrorClass.DATA, ErrorClass.UNKNOWN}
"""Failures after which other segments may still be tried at once; all others hold everything back."""
DEADLY_ATTEMPTS = 2
"""Failures of a segment, after which it is itself at fault if a writer dies of it."""
DRAIN_ATTEMPTS = 3
"""Failures of the whole database in a row, after which a stopping flusher leaves the rest in the journal."""
_LOG_AGAIN_S = 30.0
WAKE_AGAIN_S = 1.0
FAILED_AT_ONCE, FAILED_EACH_S = 100, 0.01
"""Of more segments that wait after a failure, each keeps the active one open for so long: a caller of a commit may not
cost a segment, when none is written. Each costs every append, and is tried again."""


class Flush:
    def __init__(
        self,
        journal: Journal,
        backlog: Backlog,
        writers: Writers,
        syncer: Syncer,
        figures: Figures,
        *,
        policy: FlushPolicy,
        writers_at_once: int,
        pool_size: int,
        random: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._journal = journal
        self._backlog = backlog
        self._writers = writers
        self._syncer = syncer
        self._figures = figures
        self._policy = policy
        self._writers_at_once = writers_at_once
        self._pool_size = pool_size
        self._random = random
        self._clock = clock
        self._wall = wall
        self._under_way: set[asyncio.Task[None]] = set()
        self._writing_since: dict[int, float] = {}
        self._reasons: dict[int, FlushReason] = {}
        self._asked_upto = 0
        self._callers = Callers(backlog, clock=clock)
        self._pinger = Pinger(writers, backlog, figures, answered=self.consider, wall=wall)
        self._paused_until = 0.0
        self._attempts = 0
        self._doubtful = False
        """Whether the last segments were at fault themselves: perhaps the next ones are too."""
        self._trying_since: float | None = None
        """Since when writers try, and no commit has come of it."""
        self._last_failure: str | None = None
        """The last of those tries."""
        self._draining = False
        self._timer: asyncio.TimerHandle | None = None
        self._logged: tuple[str, float] = ("", 0.0)
        self._drained = asyncio.Event()
        self._stopped = False

    def start(self, leftovers: list[Leftover], floor: int) -> None:
        """Queues what an earlier run left, and opens the first segment if the disk lets it."""
        for left in leftovers:
            segment = Segment(int(left.path.stem), left.path, size=left.size, recovered=True)
            self._reasons[segment.sequence] = FlushReason.RECOVERY
            self._backlog.seal(segment)
        self.floor = floor
        self._open_next()
        self._pinger.start()
        self.consider()

    def open_segment(self) -> None:
        """Makes sure that there is an active segment. Raises: JournalWriteFailed."""
        if self._backlog.active is None:
            self._journal.open(self.floor)
            opened = self._journal.active
            assert opened is not None
            self._backlog.active = Segment(opened.sequence, opened.path, size=opened.size)

    floor = 0
    """The last arrival given out; the next segment's header keeps it."""

    def consider(self) -> None:
        """Seals and hands over whatever is due now."""
        if self._stopped:
            return
        now = self._clock()
        active = self._backlog.active
        due: FlushReason | None = None
        if active is not None and active.total:
            due = triggers.flush_reason(
                self._policy,
                records=active.total,
                age_s=now - active.opened_at,
                asked=self._asked_upto >= active.sequence,
                draining=self._draining,
            )
            if triggers.is_full(self._policy, records=active.total, size=active.size) and self.seal(
                due or FlushReason.SIZE
            ):
                due = None
        while self._may_write(now):
            segment = self._backlog.next(now)
            if segment is None:
                if due is None or now < self._open_until() or not self.seal(due):
                    break
                due = None
                continue
            segment.busy = True
            task = asyncio.get_running_loop().create_task(self._hand_over(segment))
            self._under_way.add(task)
            task.add_done_callback(partial(self._handed_over, segment))
        if self._draining:
            hopeless = self._attempts >= DRAIN_ATTEMPTS
            self._drained.clear() if self._backlog.last_sequence() and not hopeless else self._drained.set()
        self._arm(now, due)

    def _open_until(self) -> float:
        active, failed = self._backlog.active, len(self._backlog) - len(self._under_way)
        assert active is not None
        return active.opened_at + FAILED_EACH_S * (failed - FAILED_AT_ONCE) if failed > FAILED_AT_ONCE else 0.0

    def seal(self, reason: FlushReason, *, anyhow: bool = False) -> bool:
        """Queues the active segment for a writer, and opens the next one if the disk lets it.

        Returns: False where its file has gone and no other can be made yet: it stays, unless `anyhow`.
        """
        segment, file = self._backlog.active, self._journal.active
        assert segment is not None
        assert file is not None
        if not self._journal.in_place(file) and not self._rescue(file, segment) and not anyhow:
            return False
        self._backlog.active = None
        self._syncer.sealed(self._journal.seal())
        self._backlog.seal(segment)
        self._reasons[segment.sequence] = reason
        self._open_next()
        return True

    def look_after_active(self) -> None:
        """Takes the active segment out of use if somebody has removed or replaced its file."""
        file = self._journal.active
        if file is not None and not self._journal.in_place(file) and self.seal(FlushReason.SIZE):
            self.consider()

    def _rescue(self, file: SegmentFile, segment: Segment) -> bool:
        tried = file.torn
        try:
            self._journal.rescue(file)
        except JournalWriteFailed as error:
            if not tried:
                log.error("journal: %s was removed or replaced, its records cannot be kept yet: %s", file.path, error)
            return False
        segment.path = file.path
        return True

    def _open_next(self) -> None:
        try:
            self.open_segment()
        except JournalWriteFailed as error:
            log.error("journal: no new segment can be opened, nothing is accepted: %s", error)

    def cut_off(self, segment: SegmentFile, size: int) -> None:
        """Takes a segment that could not be synced out of use, cut back to what was promised."""
        if segment is self._journal.active:
            self.seal(FlushReason.SIZE, anyhow=True)
        counted = next((one for one in self._backlog if one.sequence == segment.sequence), None)
        if counted is None:
            return  # its records are in the database, its bytes are counted out
        self._journal.truncate(segment, size)
        counted.size = size

    def flush(self, timeout_s: float, done: Callable[[FlushResult], None]) -> None:
        """Writes everything accepted so far, then calls `done` once; after `timeout_s` in any case."""
        self._asked_upto = max(self._asked_upto, self._backlog.last_sequence())
        self._callers.wait_for_flush(self._backlog.last_sequence(), timeout_s, done)
        self._hurry()
        self.consider()
        self._callers.settle()

    def hasten(self) -> None:
        """The journal is full: what is in the active segment goes now."""
        self._asked_upto = max(self._asked_upto, self._backlog.last_sequence())
        self.consider()

    def when_committed(self, sequence: int, arrival: int, reply: Callable[[bytes], None]) -> None:
        """Brings the segment's flush forward, and tells the peer when it has left the journal."""
        self._asked_upto = max(self._asked_upto, sequence)
        self._callers.wait_for_commit(sequence, arrival, reply)

    def forget(self, reply: Callable[[bytes], None]) -> None:
        """That peer has gone: nothing is kept for it."""
        self._callers.forget(reply)

    def start_draining(self) -> None:
        """From now on whatever comes is written at once."""
        self._draining = True
        self._attempts = 0
        self._hurry()
        self.consider()

    async def drain(self, timeout_s: float) -> None:
        """Waits until everything is written, or the database is found to be away, for at most `timeout_s`.

        The rest stays in the journal.
        """
        self.start_draining()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._drained.wait(), timeout_s)

    def longest_write_s(self, now: float) -> float:
        """How long the oldest write has been under way: a database that hangs reports no error."""
        return max((now - since for since in self._writing_since.values()), default=0.0)

    def look(self) -> None:
        """Notices that nothing is committed although it is tried: a database that hangs reports no error."""
        if self._trying_since is not None and self._clock() - self._trying_since >= HANGING_S:
            self._figures.database.held_up(self._last_failure, self._wall())

    def stop(self) -> None:
        """No write is started after this."""
        self._stopped = True
        self._pinger.stop()
        if self._timer is not None:
            self._timer.cancel()

    def _hurry(self) -> None:
        """Somebody waits: what failed earlier is tried now instead of at its time."""
        self._paused_until = 0.0
        for segment in self._backlog:
            segment.not_before = 0.0

    def _may_write(self, now: float) -> bool:
        if now < self._paused_until:
            return False
        return len(self._under_way) + self._pinger.under_way < triggers.segments_at_once(
            waiting=len(self._backlog),
            writers=self._writers_at_once,
            pool_size=self._pool_size,
            each=COMMANDS_EACH,
            healthy=not self._attempts and not self._doubtful,
            held_up=self.longest_write_s(now) >= PATIENCE_S,
        )

    def _arm(self, now: float, due: FlushReason | None) -> None:
        """Wakes consider() when the next thing is due; a wake-up too many does no harm."""
        at = math.inf
        active = self._backlog.active
        if active is not None and active.total and due is None:
            at = active.opened_at + self._policy.interval_s
        if now < self._paused_until:
            if due is not None or len(self._backlog):
                at = min(at, self._paused_until)
        elif len(self._backlog) > len(self._under_way):
            # Looked at only while writers are free: an append must not cost more the more there is to write.
            if self._may_write(now):
                at = min(at, self._backlog.next_at())
                if due is not None and self._open_until() > now:
                    at = min(at, self._open_until())
            elif self.longest_write_s(now) < PATIENCE_S:
                at = min(at, min(self._writing_since.values(), default=math.inf) + PATIENCE_S)
        if at not in (math.inf, self._wake_at):
            self._set_timer(at, max(0.0, at - now) + 0.001)

    _wake_at = math.inf

    def _wake(self) -> None:
        self._timer = None
        self._wake_at = math.inf
        try:
            self.consider()
        except BaseException:
            self._wake_after_fault()
            raise

    def _wake_after_fault(self) -> None:
        """A fault of ours must not be the last that happens here: what is due is looked at again."""
        if not self._stopped:
            self._set_timer(self._clock() + WAKE_AGAIN_S, WAKE_AGAIN_S)

    def _set_timer(self, at: float, delay_s: float) -> None:
        if self._timer is not None:
            if self._wake_at <= at:
                return
            self._timer.cancel()
        self._wake_at = at
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._wake)

    async def _hand_over(self, segment: Segment) -> None:
        started_at = self._writing_since[segment.sequence] = self._clock()
        if self._trying_since is None:
            self._trying_since = started_at
        try:
            answer = await self._writers.ask({"write": str(segment.path), "size": segment.size})
            if isinstance(answer, Written):
                await asyncio.get_running_loop().run_in_executor(
                    None, segments.remove, segment.path, answer.damaged_bytes > 0
                )
        except WriterDied as error:
            error_class = ErrorClass.UNKNOWN if segment.attempts >= DEADLY_ATTEMPTS else ErrorClass.RECONNECT
            deadly = error_class is ErrorClass.UNKNOWN
            answer = Failed(error_class, NO_DATABASE_ERROR, f"a writer died: {error}", of_segment=deadly)
        except OSError as error:
            why = f"{segment.path}: {error.strerror}; {segments.advice(error, segment.path)}"
            answer = Failed(ErrorClass.STORAGE, error.errno or -1, why, of_segment=True)
        finally:
            # Not in _handed_over(): that runs only after consider() may have handed the segment over again.
            del self._writing_since[segment.sequence]
        self._under_way.discard(asyncio.current_task())
        if isinstance(answer, Written):
            self._written(segment, answer, self._clock() - started_at)
        else:
            assert isinstance(answer, Failed)
            if answer.of_segment and segments.has_vanished(segment.path):
                self._vanished(segment)
            else:
                self._failed(segment, answer)
        self.consider()

    def _handed_over(self, segment: Segment, task: asyncio.Task[None]) -> None:
        """Not even a fault of ours may strand a segment: it is tried again like after any unknown failure."""
        self._under_way.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.critical("a hand-over failed", exc_info=task.exception())
            self._wake_after_fault()
            if segment.busy and not self._stopped:
                self._failed(segment, Failed(ErrorClass.UNKNOWN, NO_DATABASE_ERROR, repr(task.exception())))

    def _vanished(self, segment: Segment) -> None:
        """Somebody has taken the file away: nothing that is tried again would bring it back."""
        log.error(
            "journal: %s has vanished with %d records, %d bytes; if you have the file, put it back and restart the"
            " flusher, or else what was not written before is lost",
            segment.path,
            segment.total,
            segment.size,
        )
        self._reasons.pop(segment.sequence)
        self._gone(segment)
        if not self._under_way:
            self._trying_since = None
        self._figures.vanished += 1
        self._figures.damaged_bytes += segment.size
        self._callers.lost(segment.sequence, segment.total)

    def _gone(self, segment: Segment) -> None:
        self._backlog.done(segment)
        self._journal.forget(segment.size)
        self._syncer.gone(segment.sequence)

    def _written(self, segment: Segment, answer: Written, duration_s: float) -> None:
        figures = self._figures
        reason = self._reasons.pop(segment.sequence)
        now = self._clock()
        self._gone(segment)
        if answer.records or answer.damaged_bytes:
            figures.written(answer, reason.value, duration_s, self._wall())
            figures.drain_rate.freed(segment.size, duration_s, now)
        if answer.damaged_bytes:
            self._journal.set_aside += 1
            log.error(
                "journal: %s had %d unreadable bytes; its %d readable records are written, the file is kept as %s",
                segment.path.name,
                answer.damaged_bytes,
                answer.records,
                segment.path.name + segments.BROKEN_SUFFIX,
            )
        if answer.dead_lettered:
            figures.error(answer.last_error or "", self._wall())
            log.error("%d records went to the dead letters: %s", answer.dead_lettered, answer.last_error)
        if answer.statements:
            figures.database.committed(self._wall())
            self._attempts = 0
            self._doubtful = False
            self._paused_until = 0.0
            self._last_failure = None
            self._trying_since = now if self._under_way else None
        elif not self._under_way:
            self._trying_since = None
        self._callers.written(segment.sequence, answer)

    def _failed(self, segment: Segment, answer: Failed) -> None:
        segment.busy = False
        segment.attempts += 1
        now = self._clock()
        of_segment = answer.of_segment or answer.error_class in _OF_THE_SEGMENT
        self._figures.failed(answer, self._wall())
        if of_segment:
            since = self._wall() if segment.alarm is None else segment.alarm.since
            segment.alarm = Condition(answer.message, since, Cause.SEGMENT) if answer.alarming else None
            self._doubtful |= answer.of_segment
            delay = triggers.retry_delay(answer.error_class, segment.attempts, self._random())
            segment.not_before = now + delay
        else:
            if now >= self._paused_until:  # else it was tried together with one that has failed already
                self._attempts += 1
                delay = triggers.retry_delay(answer.error_class, self._attempts, self._random())
                self._paused_until = now + delay
            delay = self._paused_until - now
            self._figures.database.failed(answer, self._wall(), writing=True)
        if answer.of_segment:
            self._trying_since = now if self._under_way else None
        else:
            self._last_failure = answer.message
        self._backlog.put_back(segment)
        if self._logged[0] != answer.message or now - self._logged[1] > _LOG_AGAIN_S:
            self._logged = (answer.message, now)
            level = logging.ERROR if answer.alarming else logging.WARNING
            log.log(level, "flush failed, everything is kept, next try in %.1f s: %s", delay, answer.message)
