"""What a writer answers to a command: one JSON object a line, told apart by `answer`; and how it may be started."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from flusher.mysql_errors import ALARMING, ALARMING_NUMBERS, ErrorClass

YIELDING = "--yielding"
"""A writer's argument: at idle priority where there is more than one core. Whoever of ingest and flusher wakes finds a
core at once then, even if all are at work. Others that keep every core busy leave it next to nothing; what it is held
up with goes to a further writer, which has no such argument."""


class Written(msgspec.Struct, frozen=True, tag_field="answer", tag="written"):
    """The segment may go. `rows` by kind's name; `dead_arrivals`: arrivals of entries -> how many of their records were
    refused."""

    rows: dict[str, int]
    records: int
    coalesced: int
    dead_lettered: int
    dead_arrivals: dict[int, int]
    damaged_bytes: int
    statements: int
    last_error: str | None


class Failed(msgspec.Struct, frozen=True, tag_field="answer", tag="failed"):
    """The segment must stay. `message` has no record content; `of_segment`: others may be written all the same;
    `connected`: whether the database still is."""

    error_class: ErrorClass
    number: int
    message: str
    of_segment: bool = False
    connected: bool = False

    @property
    def alarming(self) -> bool:
        """Whether nothing gets better before somebody acts."""
        return self.error_class in ALARMING or self.number in ALARMING_NUMBERS


class Alive(msgspec.Struct, frozen=True, tag_field="answer", tag="alive"):
    """The database answers."""

    host: str
    version: str


Answer: TypeAlias = Written | Failed | Alive
