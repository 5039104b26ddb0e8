"""A segment made ready for the database: read -> decode -> coalesce -> SQL. Needs no connection, only the file."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import msgspec

from flusher import segments
from flusher.coalesce import MAX_ARRIVAL, coalesce
from flusher.rows import Row, Rows, with_values
from flusher.upsert import Insert, inserts
from shared.bodies import InvalidBody, decode, decode_raw
from shared.records import KIND_OF_CODE, KINDS, Kind, Record


class Batch:
    """A segment's entries, decoded; those that no longer decode become dead letters as they are."""

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
                continue
            if entry.arrival > MAX_ARRIVAL:
                self.undecodable.append((entry, "its arrival lies after the year 9999"))
                continue
            try:
                self.by_kind[kind].append((number, entry.arrival, decode(kind, entry.body, entry.rules)))
            except (InvalidBody, ValueError, msgspec.ValidationError) as error:
                self.undecodable.append((entry, f"does not decode: {type(error).__name__}"))

    def rows(self, refused: AbstractSet[tuple[int, int]] = frozenset()) -> Rows:
        """Args: refused: (entry, index) of records to pass over."""
        return {kind: with_values(kind, coalesce(entries, kind, refused)) for kind, entries in self.by_kind.items()}

    def count_new(self, rows: Rows) -> int:
        """How many of the rows are no replayed dead letters: those have arrivals from before the segment was opened."""
        return sum(self.entries[row.entry].arrival > self._floor for kind_rows in rows.values() for row in kind_rows)

    def raw(self, kind: Kind, row: Row) -> Any:
        return decode_raw(kind, self.entries[row.entry].body)[row.index]


class Prepared(msgspec.Struct, frozen=True):
    """What is to be written first of a batch: its rows, and their inserts, None where a row has no form in SQL."""

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
