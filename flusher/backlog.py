"""What waits to be written: counts of the active segment, the sealed ones in order. Pure data: no clock, no file.

Only counts are held, never a body, so memory does not depend on what waits beyond a few hundred bytes a segment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flusher.state import Condition
from shared.records import KINDS


def no_records() -> dict[int, int]:
    return {kind.code: 0 for kind in KINDS}


@dataclass(slots=True)
class Segment:
    """One buffer generation. `records` by kind's code; `opened_at`: when the oldest of them came, monotonic, 0 while it
    is unknown; `alarm`: why it, and it alone, waits for an operator."""

    sequence: int
    path: Path
    opened_at: float = 0.0
    records: dict[int, int] = field(default_factory=no_records)
    size: int = 0
    recovered: bool = False
    busy: bool = False
    attempts: int = 0
    not_before: float = 0.0
    alarm: Condition | None = None

    @property
    def total(self) -> int:
        return sum(self.records.values())

    def add(self, kind: int, count: int) -> None:
        self.records[kind] = self.records.get(kind, 0) + count


class Backlog:
    """`active` is None only while no segment could be opened."""

    def __init__(self) -> None:
        self.active: Segment | None = None
        self._sealed: dict[int, Segment] = {}

    def __len__(self) -> int:
        return len(self._sealed)

    def __iter__(self) -> Iterator[Segment]:
        """Every segment, the active one last."""
        yield from self._sealed.values()
        if self.active is not None:
            yield self.active

    def seal(self, segment: Segment) -> None:
        """Queues a segment behind the others. The caller has taken it out of `active`."""
        self._sealed[segment.sequence] = segment

    def next(self, now: float) -> Segment | None:
        """The oldest segment that nobody writes and whose time has come."""
        for segment in self._sealed.values():
            if not segment.busy and segment.not_before <= now:
                return segment
        return None

    def next_at(self) -> float:
        """When the next segment's time comes; infinity where none waits."""
        return min((segment.not_before for segment in self._sealed.values() if not segment.busy), default=math.inf)

    def done(self, segment: Segment) -> None:
        del self._sealed[segment.sequence]

    def put_back(self, segment: Segment) -> None:
        """A failed segment goes behind the others, so that it cannot hold them up."""
        del self._sealed[segment.sequence]
        self._sealed[segment.sequence] = segment

    def holds(self, sequence: int) -> bool:
        """Whether any record up to and including that segment still waits."""
        return any(segment.sequence <= sequence and (segment.total or segment.recovered) for segment in self)

    def last_sequence(self) -> int:
        """The newest segment that has records; 0 where nothing waits."""
        return max((segment.sequence for segment in self if segment.total or segment.recovered), default=0)

    def records(self) -> dict[int, int]:
        """Waiting records by kind's code."""
        totals = no_records()
        for segment in self:
            for kind, count in segment.records.items():
                totals[kind] = totals.get(kind, 0) + count
        return totals

    def oldest_at(self) -> float | None:
        """When the oldest waiting record came, monotonic; None where nothing waits."""
        return min((segment.opened_at for segment in self if segment.opened_at and segment.total), default=None)

    def alarm(self) -> Condition | None:
        """Of the first segment that has one."""
        return next((segment.alarm for segment in self if segment.alarm), None)

    def pending_up_to(self, sequence: int) -> int:
        return sum(segment.total for segment in self if segment.sequence <= sequence)
