"""Deletes old sessions with their tasks: a portion a transaction, tasks first, so that it may end at any moment and go
on with the next run. A session that has changed since it was chosen stays.

Rules: no state; who calls it owns the Store. Everything here blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from flusher import segments
from flusher.store import Store
from shared.bodies import InvalidBody, decode_raw
from shared.records import KIND_OF_CODE, SESSIONS, TASKS

PORTION = 1000
"""Tasks in one transaction."""
MAX_SESSIONS = 100_000
"""Of one run; the oldest come first."""
_MAX_PAUSE_S = 10.0


class Purge(msgspec.Struct, frozen=True):
    """Which sessions go: those in one of `statuses` whose updated_at, in UTC, lies before."""

    statuses: Sequence[str]
    before: datetime

    @property
    def _condition(self) -> str:
        return f"status IN ({','.join(map(_text, self.statuses))}) AND updated_at < '{self.before}'"

    def sessions(self, store: Store) -> list[str]:
        """Ids, the oldest of each status first. Raises: StoreError."""
        found: list[str] = []
        for status in self.statuses:
            rows = store.select(
                f"SELECT session_id FROM {SESSIONS.table} FORCE INDEX (ix_sessions_status)"  # noqa: S608 -- quoted below
                f" WHERE status = {_text(status)} AND updated_at < '{self.before}'"
                f" ORDER BY updated_at LIMIT {MAX_SESSIONS - len(found)}"
            )
            found += [session_id for (session_id,) in rows]
        return found

    def delete(self, store: Store, session_id: str) -> Iterator[tuple[int, int]]:
        """Deletes a session, a portion at each step. Yields: tasks and sessions deleted. Raises: StoreError."""
        key = f"session_id = {_text(session_id)}"
        old = f"SELECT 1 FROM {SESSIONS.table} WHERE {key} AND {self._condition} FOR UPDATE"  # noqa: S608
        tasks = f"DELETE FROM {TASKS.table} WHERE {key} AND EXISTS ({old}) ORDER BY task_id LIMIT {PORTION}"  # noqa: S608
        rest = f"SELECT 1 FROM {TASKS.table} WHERE {key}"  # noqa: S608
        session = f"DELETE FROM {SESSIONS.table} WHERE {key} AND {self._condition} AND NOT EXISTS ({rest})"  # noqa: S608
        while True:
            deleted_tasks, deleted_sessions = store.change([tasks, session])
            yield deleted_tasks, deleted_sessions
            if deleted_sessions or not deleted_tasks:
                return


def tasks_of(store: Store, session_ids: Sequence[str]) -> int:
    """How many tasks they have. Raises: StoreError."""
    count = 0
    for first in range(0, len(session_ids), PORTION):
        ids = ",".join(map(_text, session_ids[first : first + PORTION]))
        ((some,),) = store.select(f"SELECT COUNT(*) FROM {TASKS.table} WHERE session_id IN ({ids})")  # noqa: S608
        count += some
    return count


def pause_s(store: Store, took_s: float) -> float:
    """How long to leave the server to others after a portion: so long as it took, for each statement that runs there.
    Raises: StoreError."""
    ((_, running),) = store.select("SHOW GLOBAL STATUS LIKE 'Threads_running'")
    return min(_MAX_PAUSE_S, took_s * max(1, int(running)))


def journaled(directory: Path) -> set[str]:
    """Sessions of which the journal holds records: they are not in the database yet. Raises: OSError."""
    found: set[str] = set()
    # Not glob(): it finds nothing, and says nothing, where the directory is missing or may not be read.
    for path in sorted(path for path in directory.iterdir() if path.suffix == segments.SUFFIX):
        try:
            entries = segments.read(path).entries
        except FileNotFoundError:
            continue  # written since
        for entry in entries:
            found.update(map(_session_of, _records(entry)))
    return found


def _records(entry: segments.Entry) -> list[Any]:
    try:
        return decode_raw(KIND_OF_CODE[entry.kind], entry.body)
    except (InvalidBody, KeyError):
        return []  # a dead letter, or a later version's


def _session_of(record: Any) -> str:
    return str(record.get("session_id")) if isinstance(record, dict) else ""


def _text(value: str) -> str:
    """A text as SQL, whatever is in it."""
    return f"_utf8mb4 x'{value.encode().hex()}'"
