"""A writer's argument, and its answers: one JSON object a line, told apart by `answer`."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from flusher.mysql_errors import ALARMING, ALARMING_NUMBERS, ErrorClass

IDLE_PRIORITY = "--idle-priority"
"""A writer's argument: run at SCHED_IDLE beside a database on this machine, so that ingest and flusher always get a
core first. If other programs keep all cores busy the writer starves; a second one at normal priority takes over."""


class Written(msgspec.Struct, frozen=True, tag_field="answer", tag="written"):
    """The segment may be removed. `rows` by kind's name; `dead_arrivals`: refused records by their entry's arrival."""

    rows: dict[str, int]
    records: int
    coalesced: int
    dead_lettered: int
    dead_arrivals: dict[int, int]
    damaged_bytes: int
    statements: int
    last_error: str | None


class Failed(msgspec.Struct, frozen=True, tag_field="answer", tag="failed"):
    """The segment must stay. `message` has no record content; `of_segment`: others may still be written;
    `connected`: to the database."""

    error_class: ErrorClass
    number: int
    message: str
    of_segment: bool = False
    connected: bool = False

    @property
    def alarming(self) -> bool:
        """Whether it lasts until an operator acts."""
        return self.error_class in ALARMING or self.number in ALARMING_NUMBERS


class Alive(msgspec.Struct, frozen=True, tag_field="answer", tag="alive"):
    """The database answers."""

    host: str
    version: str


Answer: TypeAlias = Written | Failed | Alive
