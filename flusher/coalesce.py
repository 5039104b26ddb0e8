"""Entries -> rows: the merge rule in memory. Pure functions.

Of two records with the same key the one with the later updated_at wins, whole; on a tie the later arrival. The same
rule stands in the upsert (upsert.py); a property test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from operator import attrgetter

from flusher.rows import Row
from shared.records import UTC, Kind, Record, utc

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_ARRIVAL = (datetime.max.replace(tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
"""The last that a DATETIME holds."""


def coalesce(
    entries: Iterable[tuple[int, int, Sequence[Record]]],
    kind: Kind,
    refused: AbstractSet[tuple[int, int]] = frozenset(),
) -> list[Row]:
    """Winners of one kind, sorted by key as the primary key is: overlapping writers then never deadlock.

    Args:
        entries: (number in the segment, arrival in µs up to MAX_ARRIVAL, records), in the order of arrival.
        refused: (entry, index) of records to pass over, so that an older state of their key takes their place.
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
