"""THE order of acceptance: reserve -> append -> count -> (sync) -> ack. Nothing is acknowledged in any other way.

Rules: belongs to the loop's thread; called with all submits that one read from a socket brought, so that one write
and one answer serve them together. Their bodies lie where the next read goes: they are in the journal before accept()
returns, and later only their lengths are asked for. A refusal leaves nothing behind. Counting comes before the sync,
because a flush may take the segment while the sync runs; should the sync fail, what was not acknowledged is counted out
again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from flusher import triggers
from flusher.backlog import Backlog, Segment
from flusher.flush import Flush
from flusher.journal import Journal, JournalWriteFailed, SegmentFile
from flusher.segments import ENTRY_HEADER_BYTES, SEGMENT_HEADER_BYTES, Entry
from flusher.state import Acceptance, Cause, Condition
from flusher.stats import Figures
from flusher.syncer import Syncer, Waiter
from shared.wire import Reason, Reject, Submit, acks, encode

log = logging.getLogger(__name__)

_NOT_WRITABLE_RETRY_AFTER_S = 5.0
_PROBE_BYTES = (64 * 1024, 16 * 1024 * 1024)
"""Room for some small requests at least; more than that would keep the loop."""


class Intake:
    def __init__(
        self,
        journal: Journal,
        backlog: Backlog,
        syncer: Syncer,
        flush: Flush,
        figures: Figures,
        *,
        max_bytes: int,
        last_arrival: int,
        clock: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._journal = journal
        self._backlog = backlog
        self._syncer = syncer
        self._flush = flush
        self._figures = figures
        self._max_bytes = max_bytes
        self._last_arrival = last_arrival
        self._clock = clock
        self._wall_ns = wall_ns
        self._full_at: int | None = None
        """How many segments had left the journal when a body was refused for want of room."""
        self._not_written_bytes = 0
        self.acceptance = Acceptance.ACCEPTING
        self.refusing: Condition | None = None
        """Why nothing is accepted; None while it is."""

    def accept(self, submits: Sequence[Submit], reply: Callable[[bytes], None]) -> None:
        """Takes or refuses each submit; `reply` gets the frames that say so, now or when the disk has them."""
        admitted = self._reserve(submits, reply)
        if not admitted:
            return
        entries = self._stamp(admitted)
        try:
            segment = self._open_segment()
            start = segment.size
            self._journal.append(entries)
        except JournalWriteFailed:
            self._not_written_bytes = sum(map(_entry_bytes, admitted))
            self._refuse(admitted, Reason.JOURNAL_NOT_WRITABLE, reply)
            return
        counted = self._count(entries, segment.size)
        self._syncer.appended(segment, sum(entry.count for entry in entries), segment.size - start)
        answers = acks([one.seq for one in admitted], [entry.arrival for entry in entries])
        ack = b"".join(map(encode, answers))
        if self._syncer.holds_acks():
            self._syncer.wait(
                Waiter(
                    segment,
                    start,
                    segment.size,
                    synced=lambda: reply(ack),
                    failed=lambda: self._unaccept(admitted, entries, counted, reply),
                )
            )
        else:
            reply(ack)
        for one, entry in zip(admitted, entries, strict=True):
            if one.want_commit:
                self._flush.when_committed(segment.sequence, entry.arrival, reply)
        self._flush.consider()

    def probe(self) -> None:
        """Tries whether what could not be written can be now: nobody may send while /ready says no."""
        if self._journal.active is None or self._journal.fault is not None:
            try:
                self._open_segment()
                self._journal.probe(min(max(_PROBE_BYTES[0], self._not_written_bytes), _PROBE_BYTES[1]))
            except JournalWriteFailed:
                pass  # `fault` says why
            self._flush.consider()  # what could be sealed again
        self.look()

    def look(self) -> None:
        """Notices what has begun, or ceased, to be in the way of accepting."""
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
            self.refusing = Condition(why, self._wall_ns() / 1e9, cause)
            log.error("refusing records (%s): %s", acceptance.value, why)

    def _judgement(self) -> tuple[Acceptance, str]:
        journal = self._journal
        if self._syncer.failed:
            return Acceptance.NOT_WRITABLE, f"{self._syncer.last_error}; its records are being written to new pages"
        if journal.active is None or journal.fault is not None:
            return Acceptance.NOT_WRITABLE, f"the journal cannot be written: {journal.fault or 'no segment is open'}"
        if self._full_at == journal.gone or journal.bytes + ENTRY_HEADER_BYTES >= self._max_bytes:
            return Acceptance.FULL, f"the journal is full (journal.max_bytes = {self._max_bytes})"
        return Acceptance.ACCEPTING, ""

    def _reserve(self, submits: Sequence[Submit], reply: Callable[[bytes], None]) -> Sequence[Submit]:
        """The submits for which there is room; the others are refused."""
        if self._syncer.failed:
            self._refuse(submits, Reason.JOURNAL_NOT_WRITABLE, reply)
            return ()
        room = self._max_bytes - self._journal.bytes
        needed = sum(map(_entry_bytes, submits))
        if needed <= room:
            return submits
        admitted: list[Submit] = []
        refused: list[Submit] = []
        for one in submits:
            size = _entry_bytes(one)
            if size <= room:
                room -= size
                admitted.append(one)
            else:
                refused.append(one)
        if admitted or self._backlog.last_sequence():  # else nothing will go, and a smaller one is welcome
            self._full_at = self._journal.gone
        self._refuse(refused, Reason.JOURNAL_FULL, reply)
        self._flush.hasten()
        return admitted

    def _stamp(self, submits: Sequence[Submit]) -> list[Entry]:
        """Gives arrivals in µs since 1970 UTC, strictly rising even when the clock steps back; a replayed dead letter
        keeps its own, which is none that was never given out, whatever has become of its file."""
        arrival = max(self._wall_ns() // 1000, self._last_arrival + 1)
        entries = []
        for one in submits:
            if one.arrival:
                entries.append(Entry(one.kind, one.count, min(one.arrival, arrival), one.body, one.rules))
            else:
                entries.append(Entry(one.kind, one.count, arrival, one.body, one.rules))
                self._last_arrival = self._flush.floor = arrival
                arrival += 1
        return entries

    def _open_segment(self) -> SegmentFile:
        """Usually one is open; not after the disk refused it. Raises: JournalWriteFailed."""
        active = self._journal.active
        if active is not None and active.torn:
            self._flush.seal(triggers.FlushReason.SIZE)
        if self._journal.active is None:
            self._flush.open_segment()
        segment = self._journal.active
        assert segment is not None
        if segment.torn:
            raise JournalWriteFailed(self._journal.fault)  # until its file is made anew
        return segment

    def _count(self, entries: Sequence[Entry], size: int) -> Segment:
        segment = self._backlog.active
        assert segment is not None
        if not segment.total:
            segment.opened_at = self._clock()
        for entry in entries:
            segment.add(entry.kind, entry.count)
            self._figures.records_in[entry.kind] += entry.count
            self._figures.bytes_in += len(entry.body)
        segment.size = size
        if self.refusing is not None:
            self.look()
        return segment

    def _unaccept(
        self,
        submits: Sequence[Submit],
        entries: Sequence[Entry],
        segment: Segment,
        reply: Callable[[bytes], None],
    ) -> None:
        """Their sync has failed and they are cut off: they were never accepted."""
        for entry in entries:
            segment.records[entry.kind] -= entry.count
            self._figures.records_in[entry.kind] -= entry.count
            self._figures.bytes_in -= len(entry.body)
        self._refuse(submits, Reason.JOURNAL_NOT_WRITABLE, reply)

    def _refuse(self, submits: Sequence[Submit], reason: Reason, reply: Callable[[bytes], None]) -> None:
        now = self._clock()
        self.look()
        if reason is Reason.JOURNAL_FULL:
            missing = sum(map(_entry_bytes, submits)) + SEGMENT_HEADER_BYTES
            missing += max(0, self._journal.bytes - self._max_bytes)
            after_s = triggers.retry_after(missing, self._figures.drain_rate.bytes_per_s(now))
        else:
            after_s = _NOT_WRITABLE_RETRY_AFTER_S
        reply(b"".join([encode(Reject(one.seq, reason, after_s)) for one in submits]))


def _entry_bytes(submit: Submit) -> int:
    return ENTRY_HEADER_BYTES + len(submit.rules) + len(submit.body)
