"""What the database's nodes hold. All functions block, and raise MySQLdb.Error."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import MySQLdb
import MySQLdb.cursors

from scripts.galera import NODES, Galera
from tests.system.chaos.model import COLUMNS, KEYS, TABLES, fetched, select_updated_at

ANSWER_S = 8
"""A node that has just been cut off waits, with a read that must see all, for those that it cannot see."""


def connect(cluster: Galera, number: int, **options: Any) -> Any:
    """Its reads wait until the node has applied all that was committed anywhere before (wsrep_sync_wait)."""
    db = cluster.connect(number, **{"read_timeout": ANSWER_S, **options})
    db.query("SET SESSION wsrep_sync_wait=1")
    return db


def stored_at(cluster: Galera, kind: str, keys: Sequence[str]) -> dict[str, datetime]:
    """The updated_at of those keys that have a row, from the first node that can tell."""
    failed: MySQLdb.Error | None = None
    for number in NODES:
        try:
            db = connect(cluster, number)
            try:
                cursor = db.cursor()
                cursor.execute(*select_updated_at(kind, keys))
                return dict(cursor.fetchall())
            finally:
                db.close()
        except MySQLdb.Error as error:
            failed = error
    assert failed is not None
    raise failed


def rows(cluster: Galera, number: int, kind: str) -> Iterator[tuple[Any, ...]]:
    """Every row of a kind's table, by key, in the form of model.row()."""
    for values in _raw(cluster, number, kind):
        yield fetched(kind, values)


def digest(cluster: Galera, number: int) -> str:
    """Of every byte of both tables but created_at."""
    sha = hashlib.sha256()
    for kind in TABLES:
        for values in _raw(cluster, number, kind):
            sha.update(repr(values).encode())
    return sha.hexdigest()


def clear(cluster: Galera) -> None:
    db = connect(cluster, NODES[0], read_timeout=60)
    for table in TABLES.values():
        db.query(f"DELETE FROM {table}")
    db.close()


def _raw(cluster: Galera, number: int, kind: str) -> Iterator[tuple[Any, ...]]:
    db = connect(cluster, number, read_timeout=60, cursorclass=MySQLdb.cursors.SSCursor)
    try:
        cursor = db.cursor()
        cursor.execute(f"SELECT {','.join(COLUMNS[kind])} FROM {TABLES[kind]} ORDER BY {','.join(KEYS[kind])}")
        yield from cursor
    finally:
        db.close()
