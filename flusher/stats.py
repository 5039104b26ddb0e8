"""The document that GET /stats, /health, /metrics, the dashboard and ctl show."""

from __future__ import annotations

import time
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any

from flusher.figures import Figures
from flusher.intake import Intake
from flusher.journal import Journal
from flusher.scheduler import Scheduler
from flusher.state import BACKLOG_DEGRADED_PERCENT, OVERLOADED, Cause, Condition, date_of, iso, verdict
from flusher.syncer import Syncer
from flusher.writers import Writers
from shared.records import KIND_OF_CODE

_GUESSED_RECORD_BYTES = 512


@dataclass(frozen=True, slots=True)
class Stats:
    """Args: peers: connected ingest processes; clock: monotonic seconds; wall: seconds since 1970."""

    figures: Figures
    journal: Journal
    syncer: Syncer
    scheduler: Scheduler
    intake: Intake
    writers: Writers
    peers: Sized
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time

    def document(self) -> dict[str, Any]:
        figures, journal, scheduler, intake = self.figures, self.journal, self.scheduler, self.intake
        now, wall = self.clock(), self.wall()
        intake.look()
        scheduler.check_hanging()
        waiting = journal.records()
        total = sum(waiting.values())
        counts = {f"{KIND_OF_CODE[code].name}_count": count for code, count in waiting.items() if code in KIND_OF_CODE}
        records_in = sum(figures.records_in.values())
        record_bytes = figures.bytes_in / records_in if records_in else _GUESSED_RECORD_BYTES
        rows = sum(figures.rows_written.values())
        flushes = figures.flush_count
        oldest_at = journal.oldest_at()
        oldest_s = 0.0 if oldest_at is None else max(0.0, now - oldest_at)
        active = journal.active
        next_flush_s = active.opened_at + scheduler.policy.interval_s - now if active and active.total else None
        usage_percent = round(100 * journal.bytes / intake.max_bytes, 2)
        backed_up = None
        if usage_percent > BACKLOG_DEGRADED_PERCENT:
            why = f"the backlog takes over half of journal.max_bytes: {OVERLOADED}"
            backed_up = Condition(why, wall - oldest_s, Cause.BACKLOG)
        database, of_segment = figures.database, journal.alarm()
        status, wrong = verdict(intake.refusing, database, of_segment, backed_up)
        alarm = database.reason if database.alarming else None if of_segment is None else of_segment.reason
        return {
            "buffer": {
                **counts,
                "total_count": total,
                "capacity": int(intake.max_bytes / record_bytes),
                "usage_percent": usage_percent,
                "journal_bytes": journal.bytes,
                "journal_max_bytes": intake.max_bytes,
                "journal_segments": journal.waiting + (active is not None),
            },
            "flush_info": {
                "flush_interval_seconds": scheduler.policy.interval_s,
                "last_flush_time": iso(figures.last_flush_at),
                "next_flush_time": iso(None if next_flush_s is None else wall + max(0.0, next_flush_s)),
                "flush_count_today": figures.flushed_today if figures.today == date_of(wall) else 0,
                "average_flush_duration_ms": round(1000 * figures.flush_duration_s / flushes, 3) if flushes else 0.0,
                "total_flush_duration_seconds": round(figures.flush_duration_s, 6),
                "flushes_by_reason": figures.flushes,
            },
            "performance": {
                **{f"total_{name}_written": count for name, count in figures.rows_written.items()},
                "total_flush_count": flushes,
                "average_batch_size": round(figures.records_written / flushes, 2) if flushes else 0.0,
                "uptime_seconds": round(now - figures.started_at, 3),
                "statements": figures.statements,
                "writers": self.writers.processes,
                "database_connections": self.writers.connected,
            },
            "at_risk": {
                "unsynced_records": self.syncer.unsynced_records,
                "uncommitted_records": total,
                "oldest_uncommitted_seconds": round(oldest_s, 3),
            },
            "coalescing": {
                "records_in": figures.records_written,
                "rows_written": rows,
                "coalesced": figures.coalesced,
                "ratio": round(rows / figures.records_written, 4) if figures.records_written else 1.0,
            },
            "dead_letters": {
                "count": figures.dead_letters_waiting,
                "total": figures.dead_lettered,
                "last_error": figures.last_dead_letter,
                "last_at": iso(figures.last_dead_letter_at),
            },
            "accepted": {KIND_OF_CODE[code].name: count for code, count in figures.records_in.items()},
            "failures": figures.failures,
            "failures_by_code": figures.failures_by_code,
            "damage": {
                "bytes": figures.damaged_bytes,
                "segments_set_aside": journal.set_aside,
                "segments_vanished": figures.vanished,
            },
            "state": {
                "status": status,
                "reason": None if wrong is None else wrong.reason,
                "cause": None if wrong is None else wrong.cause.value,
                "since": None if wrong is None else iso(wrong.since),
                "database": database.state.value,
                "acceptance": intake.acceptance.value,
                "alarm": alarm,
                "last_error": figures.last_error,
                "last_error_at": iso(figures.last_error_at),
                "longest_write_seconds": round(scheduler.longest_write_s(now), 3),
                "connections": len(self.peers),
            },
            "histograms": {
                "flush_seconds": figures.flush_seconds.document(),
                "flush_records": figures.flush_records.document(),
            },
        }
