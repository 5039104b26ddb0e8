"""A segment made ready for the database: read -> decode -> coalesce -> SQL. Needs no connection, only the file.

The merge rule in memory: of two records with the same key the one with the later updated_at wins, whole; on a tie the
later arrival. sql.py has the same rule in SQL; a property test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec

from flusher import segments
from flusher.sql import Insert, Row, Rows, inserts, with_values
from shared.bodies import InvalidBody, decode, decode_raw
from shared.clock import EPOCH
from shared.records import KIND_OF_CODE, KINDS, UTC, Kind, Record, utc

MAX_ARRIVAL = (datetime.max.replace(tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
"""The last that a DATETIME holds."""


def coalesce(
    entries: Iterable[tuple[int, int, Sequence[Record]]],
    kind: Kind,
    refused: AbstractSet[tuple[int, int]] = frozenset(),
) -> list[Row]:
    """The winners of one kind, sorted by primary key, so that overlapping writers never deadlock.

    Args:
        entries: (number in the segment, arrival in µs up to MAX_ARRIVAL, records), in the order of arrival.
        refused: (entry, index) of records to skip, so that an older state of their key takes their place.
    """
    winners: dict[str | tuple[str, ...], Row] = {}
    key_of = attrgetter(*kind.key)
    for number, arrival, records in entries:
        arrived = EPOCH + timedelta(microseconds=arrival)
        for index, record in enumerate(records):
            if refused and (number, index) in refused:
                continue
            updated_at = record.updated_at
            if updated_at is None:
                updated_at = arrived
            elif updated_at.tzinfo is not UTC:
                updated_at = utc(updated_at).replace(tzinfo=UTC)
            key = key_of(record)
            held = winners.get(key)
            if held is None or updated_at >= held.updated_at:
                winners[key] = Row(updated_at, record, number, index)
    return [winners[key] for key in sorted(winners)]


class Batch:
    """A segment's decoded entries. `undecodable` ones become dead letters as they are."""

    def __init__(self, entries: Sequence[segments.Entry], damaged_bytes: int = 0, floor: int = 0) -> None:
        self.entries = entries
        self._floor = floor
        self.damaged_bytes = damaged_bytes
        self.by_kind: dict[Kind, list[tuple[int, int, Sequence[Record]]]] = {kind: [] for kind in KINDS}
        self.records = 0
        self.undecodable: list[tuple[segments.Entry, str]] = []
        for number, entry in enumerate(entries):
            kind = KIND_OF_CODE.get(entry.kind)
            self.records += entry.count
            if kind is None:
                self.undecodable.append((entry, f"kind {entry.kind} is not known"))
            elif entry.arrival > MAX_ARRIVAL:
                self.undecodable.append((entry, "its arrival lies after the year 9999"))
            else:
                try:
                    self.by_kind[kind].append((number, entry.arrival, decode(kind, entry.body, entry.rules)))
                except (InvalidBody, ValueError, msgspec.ValidationError) as error:
                    self.undecodable.append((entry, f"does not decode: {type(error).__name__}"))

    def rows(self, refused: AbstractSet[tuple[int, int]] = frozenset()) -> Rows:
        """Args: refused: as in coalesce()."""
        return {kind: with_values(kind, coalesce(entries, kind, refused)) for kind, entries in self.by_kind.items()}

    def count_new(self, rows: Rows) -> int:
        """Counts rows other than replayed dead letters, whose arrivals are from before the segment was opened."""
        return sum(self.entries[row.entry].arrival > self._floor for kind_rows in rows.values() for row in kind_rows)

    def raw(self, kind: Kind, row: Row) -> Any:
        return decode_raw(kind, self.entries[row.entry].body)[row.index]


class Prepared(msgspec.Struct, frozen=True):
    """A batch, its rows, and their inserts; None if a row has no form in SQL."""

    batch: Batch
    rows: Rows
    inserts: Sequence[Insert] | None


def prepare(path: Path, size: int | None) -> Prepared:
    """Args: size: as in segments.read(). Blocks while the file is read. Raises: OSError."""
    contents = segments.read(path, size)
    batch = Batch(contents.entries, contents.damaged_bytes, contents.floor)
    rows = batch.rows()
    try:
        return Prepared(batch, rows, inserts(rows))
    except ValueError:
        return Prepared(batch, rows, None)
