"""THE order of acceptance: reserve -> append -> (sync) -> ack. Nothing is acknowledged in any other way.

Rules: belongs to the loop's thread. accept() gets all submits that one read from a socket brought: one write and one
answer serve them together. Their bodies lie in the read buffer: after accept() only their lengths are valid. A refusal
leaves nothing behind. Records are counted before the sync, because a flush may take the segment while the sync runs; if
it fails, records that were not acknowledged are counted out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flusher import triggers
from flusher.figures import Figures
from flusher.journal import Journal, JournalWriteFailed, Segment
from flusher.scheduler import Scheduler
from flusher.segments import ENTRY_HEADER_BYTES, SEGMENT_HEADER_BYTES, Entry
from flusher.state import Acceptance, Cause, Condition
from flusher.syncer import Syncer, SyncWaiter
from shared.wire import Reason, Reject, Submit, acks, encode

log = logging.getLogger(__name__)

_NOT_WRITABLE_RETRY_AFTER_S = 5.0
_PROBE_BYTES = (64 * 1024, 16 * 1024 * 1024)
"""Least and most room that a probe asks for; writing more would hold up the loop."""


@dataclass(eq=False)
class Intake:
    """`refusing`: why nothing is accepted; None while it is."""

    journal: Journal
    syncer: Syncer
    scheduler: Scheduler
    figures: Figures
    max_bytes: int
    clock: Callable[[], float] = time.monotonic
    wall_ns: Callable[[], int] = time.time_ns

    def __post_init__(self) -> None:
        self.acceptance = Acceptance.ACCEPTING
        self.refusing: Condition | None = None
        self._full_at: int | None = None  # `journal.removed` when a body was refused for want of room
        self._not_written_bytes = 0

    def accept(self, submits: Sequence[Submit], reply: Callable[[bytes], None]) -> None:
        """Accepts or refuses each submit; `reply` gets the ack and reject frames, now or after the sync."""
        admitted = self._reserve(submits, reply)
        if not admitted:
            return
        entries = self._stamp(admitted)
        try:
            segment = self.journal.writable()
            start = segment.size
            self.journal.append(entries, self.clock())
        except JournalWriteFailed:
            self._not_written_bytes = sum(map(_entry_bytes, admitted))
            self._refuse(admitted, Reason.JOURNAL_NOT_WRITABLE, reply)
            return
        self._count(entries)
        self.syncer.appended(segment, sum(entry.count for entry in entries), segment.size - start)
        answers = acks([submit.seq for submit in admitted], [entry.arrival for entry in entries])
        ack = b"".join(map(encode, answers))
        if self.syncer.holds_acks():
            self.syncer.wait(
                SyncWaiter(
                    segment,
                    start,
                    segment.size,
                    synced=lambda: reply(ack),
                    failed=lambda: self._unaccept(admitted, entries, segment, reply),
                )
            )
        else:
            reply(ack)
        for submit, entry in zip(admitted, entries, strict=True):
            if submit.want_commit:
                self.scheduler.when_committed(segment.sequence, entry.arrival, reply)
        self.scheduler.schedule()

    def _reserve(self, submits: Sequence[Submit], reply: Callable[[bytes], None]) -> Sequence[Submit]:
        """Returns: the submits that fit into the journal; the others are refused."""
        if self.syncer.failed:
            self._refuse(submits, Reason.JOURNAL_NOT_WRITABLE, reply)
            return ()
        room = self.max_bytes - self.journal.bytes
        needed = sum(map(_entry_bytes, submits))
        if needed <= room:
            return submits
        admitted: list[Submit] = []
        refused: list[Submit] = []
        for submit in submits:
            size = _entry_bytes(submit)
            if size <= room:
                room -= size
                admitted.append(submit)
            else:
                refused.append(submit)
        if admitted or self.journal.last_sequence():  # else nothing will leave, and a smaller body is welcome
            self._full_at = self.journal.removed
        self._refuse(refused, Reason.JOURNAL_FULL, reply)
        self.scheduler.flush_soon()
        return admitted

    def _stamp(self, submits: Sequence[Submit]) -> list[Entry]:
        """Gives arrivals: µs since 1970 UTC, strictly rising even if the clock steps back.

        A replayed dead letter keeps its arrival, capped at the current one, even if its file was edited.
        """
        arrival = max(self.wall_ns() // 1000, self.journal.last_arrival + 1)
        entries = []
        for submit in submits:
            if submit.arrival:
                kept = min(submit.arrival, arrival)
                entries.append(Entry(submit.kind, submit.count, kept, submit.body, submit.rules))
            else:
                entries.append(Entry(submit.kind, submit.count, arrival, submit.body, submit.rules))
                self.journal.last_arrival = arrival
                arrival += 1
        return entries

    def _count(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self.figures.records_in[entry.kind] += entry.count
            self.figures.bytes_in += len(entry.body)
        if self.refusing is not None:
            self.look()

    def _unaccept(
        self, submits: Sequence[Submit], entries: Sequence[Entry], segment: Segment, reply: Callable[[bytes], None]
    ) -> None:
        """Their sync failed and they are cut off: counts them out and refuses them."""
        for entry in entries:
            segment.records[entry.kind] -= entry.count
            self.figures.records_in[entry.kind] -= entry.count
            self.figures.bytes_in -= len(entry.body)
        self._refuse(submits, Reason.JOURNAL_NOT_WRITABLE, reply)

    def _refuse(self, submits: Sequence[Submit], reason: Reason, reply: Callable[[bytes], None]) -> None:
        self.look()
        after_s = _NOT_WRITABLE_RETRY_AFTER_S
        if reason is Reason.JOURNAL_FULL:
            missing = sum(map(_entry_bytes, submits)) + SEGMENT_HEADER_BYTES
            missing += max(0, self.journal.bytes - self.max_bytes)
            after_s = triggers.retry_after(missing, self.figures.drain_rate.bytes_per_s(self.clock()))
        reply(b"".join([encode(Reject(submit.seq, reason, after_s)) for submit in submits]))

    def probe(self) -> None:
        """Tries to write after a failed write: nobody may send while /ready says no."""
        if self.journal.active is None or self.journal.fault is not None:
            try:
                self.journal.writable()
                self.journal.probe(min(max(_PROBE_BYTES[0], self._not_written_bytes), _PROBE_BYTES[1]))
            except JournalWriteFailed:
                pass  # `fault` says why
        self.scheduler.schedule()
        self.look()

    def look(self) -> None:
        """Updates and logs whether records are accepted, and why not."""
        acceptance, why = self._judgement()
        if acceptance is self.acceptance:
            return
        self.acceptance = acceptance
        if acceptance is Acceptance.ACCEPTING:
            self.refusing = None
            log.warning("accepting again")
        else:
            full = acceptance is Acceptance.FULL
            cause = Cause.JOURNAL_FULL if full else Cause.JOURNAL_NOT_WRITABLE
            self.refusing = Condition(why, self.wall_ns() / 1e9, cause)
            log.error("refusing records (%s): %s", acceptance.value, why)

    def _judgement(self) -> tuple[Acceptance, str]:
        journal = self.journal
        if self.syncer.failed:
            return Acceptance.NOT_WRITABLE, f"{self.syncer.last_error}; its records are being written to new pages"
        if journal.active is None or journal.fault is not None:
            return Acceptance.NOT_WRITABLE, f"the journal cannot be written: {journal.fault or 'no segment is open'}"
        if self._full_at == journal.removed or journal.bytes + ENTRY_HEADER_BYTES >= self.max_bytes:
            return Acceptance.FULL, f"the journal is full (journal.max_bytes = {self.max_bytes})"
        return Acceptance.ACCEPTING, ""


def _entry_bytes(submit: Submit) -> int:
    return ENTRY_HEADER_BYTES + len(submit.rules) + len(submit.body)
