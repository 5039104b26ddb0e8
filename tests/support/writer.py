"""A writer of this process on a real database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flusher import dead_letters
from flusher.answers import Failed, Written
from flusher.dead_letters import DeadLetter
from flusher.mysql_errors import ErrorClass
from flusher.segments import Entry
from flusher.store import Store, StoreError
from flusher.writer import Writer, prepared
from tests.support.mariadb import MariaDB
from tests.support.segments import filled

ARRIVAL = 1_700_000_000_000_000
MAX_BYTES = 1 << 20


class Place:
    """A writer of this process on the real database, its journal and its dead letters."""

    def __init__(self, directory: Path, mariadb: MariaDB, database: str) -> None:
        self.mariadb = mariadb
        self.database = database
        self.store = Store(mariadb.server(database))
        self.dead_letters = directory / "dead_letters.jsonl"
        self.directory = directory

    def segment(self, *bodies: bytes, kind: int = 2, count: int = 1) -> Path:
        entries = [Entry(kind, count, ARRIVAL + number, body) for number, body in enumerate(bodies)]
        return self.segment_of(entries)

    def segment_of(self, entries: Sequence[Entry], floor: int = 0) -> Path:
        return filled(self.directory, entries, floor)

    def write(self, path: Path, max_bytes: int = MAX_BYTES) -> Written | Failed:
        return Writer(self.store, self.dead_letters, max_bytes).write(path, prepared(path))

    def refuse(self, condition: str, name: str = "poison") -> None:
        self.execute(f"ALTER TABLE translation_tasks ADD CONSTRAINT {name} CHECK (NOT ({condition}))")

    def accept_again(self, name: str = "poison") -> None:
        self.execute(f"ALTER TABLE translation_tasks DROP CONSTRAINT {name}")

    def execute(self, statement: str) -> list[Any]:
        return self.mariadb.execute(statement, (), self.database)

    def tasks(self) -> dict[str, str]:
        return dict(self.execute("SELECT task_id, source_text FROM translation_tasks"))

    def letters(self) -> list[DeadLetter]:
        return [letter for _, letter in dead_letters.read(self.dead_letters)]


def is_written(answer: Written | Failed) -> Written:
    assert isinstance(answer, Written), answer
    return answer


def is_failed(answer: Written | Failed) -> Failed:
    assert isinstance(answer, Failed), answer
    return answer


@contextmanager
def refused(error_class: ErrorClass, number: int) -> Iterator[pytest.ExceptionInfo[StoreError]]:
    """The block ends with a StoreError of that class and number."""
    with pytest.raises(StoreError) as caught:
        yield caught
    assert (caught.value.error_class, caught.value.number) == (error_class, number)
