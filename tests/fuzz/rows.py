"""The differential target: what ingest accepts, the flusher decodes to the same rows, and the database takes without an
error or a warning and gives back as it was sent."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
import orjson

from flusher.sql import Row
from flusher.store import Store
from shared.records import Kind, Record, utc
from shared.settings import Database
from tests.fuzz import targets
from tests.fuzz.draw import Draw

SOCKET = "FUZZ_DB_SOCKET"
DATABASE = "FUZZ_DB_DATABASE"


class WatchedStore(Store):
    """Takes a warning for what it is: a value that was changed on its way."""

    def _query(self, db: Any, statement: bytes) -> None:
        super()._query(db, statement)
        if db.warning_count():
            db.query("SHOW WARNINGS")
            raise AssertionError(f"the database warns: {db.store_result().fetch_row(0)}")


class Differential:
    def __init__(self, socket: str, database: str) -> None:
        self.store = WatchedStore(Database(socket=socket, database=database, connect_timeout=10))
        self.rows = 0

    def __call__(self, data: bytes) -> None:
        kind, body = Draw(data).body()
        rows = targets.accepted(kind, body)
        if not rows:
            return
        self.rows += len(rows)
        db = self.store._reach().db
        db.query(f"DELETE FROM {kind.table}")
        for _ in range(2):  # the second time every row is there already
            self.store.write({kind: rows})
            self.compare(kind, rows)

    def compare(self, kind: Kind, rows: Sequence[Row]) -> None:
        names = (*kind.record.__struct_fields__, "extra")
        db = self.store._reach().db
        db.query(f"SELECT {', '.join(names)} FROM {kind.table}")
        key_of = operator.itemgetter(*map(names.index, kind.key), 0)
        stored = {key_of(found)[:-1]: found for found in db.store_result().fetch_row(0)}
        db.rollback()
        assert set(stored) == {kind.key_of(row.record) for row in rows}
        for row in rows:
            found = stored[kind.key_of(row.record)]
            for name, value in zip(names, found, strict=True):
                expected = utc(row.updated_at) if name == "updated_at" else as_stored(row.record, name)
                if isinstance(expected, dict):
                    value = orjson.loads(value)  # noqa: PLW2901 -- the same value, read
                assert type(value) is type(expected), f"{name}: {value!r} is stored for {expected!r}"
                assert value == expected, f"{name}: {value!r} is stored for {expected!r}"


def as_stored(record: Record, name: str) -> Any:
    value = getattr(record, name)
    if isinstance(value, msgspec.Raw):
        return orjson.loads(memoryview(value))
    if isinstance(value, datetime):
        return utc(value)
    if isinstance(value, float) or (name == "confidence" and value is not None):
        return Decimal(f"{value:.4f}")
    return value


def from_environment() -> Differential:
    """On the database that the campaign has started."""
    return Differential(os.environ[SOCKET], os.environ[DATABASE])
