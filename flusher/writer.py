"""THE order of a write: read -> coalesce -> upsert -> commit -> answer. A child process of the flusher.

One JSON command a line on stdin, one JSON answer a line on stdout, so that it can be tried by hand:

    {"write": "/path/to/00000000000000000001.segment"}
    {"ping": true}

It never touches the segment: the flusher unlinks it after a good answer. Before the answer every record of the segment
is committed, superseded by a newer one that is committed, or in the synced dead-letter file. When stdin closes, its
parent is gone, and it ends at once, even in the middle of a query; the server then rolls back.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec
import orjson

from flusher import dead_letters, journal
from flusher.answers import Alive, Failed, Written
from flusher.coalesce import MAX_ARRIVAL, coalesce
from flusher.dead_letters import DeadLetter, DeadLettersFull
from flusher.mysql_errors import ErrorClass
from flusher.store import Row, Rows, Server, Store, StoreError
from shared import logs
from shared.config import Database, load_or_exit
from shared.process import close_to_others
from shared.records import KIND_OF_CODE, KINDS, InvalidBody, InvalidRecord, Kind, Record, decode, decode_raw

log = logging.getLogger(__name__)

NICE = 10
"""Accepting goes before writing where both want the same core."""
SCHEMA_FAULT_ROWS = 10
"""If over half of a batch of at least this many rows is refused, it is not the rows."""


class Refused(msgspec.Struct, frozen=True):
    """A row that the database does not take, and why."""

    kind: Kind
    row: Row
    error: StoreError


class Entries:
    """A segment's entries, decoded; those that no longer decode become dead letters as they are."""

    def __init__(self, entries: Sequence[journal.Entry]) -> None:
        self.entries = entries
        self.by_kind: dict[Kind, list[tuple[int, int, Sequence[Record]]]] = {kind: [] for kind in KINDS}
        self.records = 0
        self.undecodable: list[tuple[journal.Entry, str]] = []
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
                self.by_kind[kind].append((number, entry.arrival, decode(kind, entry.body)))
            except (InvalidBody, InvalidRecord) as error:
                self.undecodable.append((entry, f"does not decode: {type(error).__name__}"))

    def rows(self, refused: set[tuple[int, int]]) -> Rows:
        return {kind: coalesce(entries, kind, refused) for kind, entries in self.by_kind.items()}

    def raw(self, kind: Kind, row: Row) -> Any:
        return decode_raw(kind, self.entries[row.entry].body)[row.index]


class Writer:
    def __init__(self, store: Store, dead_letters_path: Path, dead_letters_max_bytes: int) -> None:
        self._store = store
        self._dead_letters_path = dead_letters_path
        self._dead_letters_max_bytes = dead_letters_max_bytes

    def write(self, path: Path) -> Written | Failed:
        """Blocks for as long as the database does."""
        statements_before = self._store.statements
        try:
            contents = journal.read(path)
            entries = Entries(contents.entries)
            written, refused = self._upsert(entries)
            letters = self._letters(entries, refused)
            if letters:
                dead_letters.append(self._dead_letters_path, letters, self._dead_letters_max_bytes)
        except StoreError as error:
            return self._failed(error)
        except DeadLettersFull as error:
            return Failed(ErrorClass.STORAGE, -1, str(error), self._store.connected)
        except OSError as error:
            message = f"{error.filename or path}: {error.strerror}"
            return Failed(ErrorClass.STORAGE, error.errno or -1, message, self._store.connected)
        dead = len(letters)
        return Written(
            rows={kind.name: count for kind, count in written.items()},
            records=entries.records,
            coalesced=max(0, entries.records - sum(written.values()) - dead),
            dead_lettered=dead,
            dead_arrivals=sorted({letter.arrival for letter in letters}),
            damaged_bytes=contents.damaged_bytes,
            statements=self._store.statements - statements_before,
            last_error=refused[-1].error.public if refused else None,
        )

    def ping(self) -> Alive | Failed:
        try:
            self._store.ping()
        except StoreError as error:
            return self._failed(error)
        return Alive(self._store.host, self._store.version)

    def _failed(self, error: StoreError) -> Failed:
        return Failed(error.error_class, error.number, error.public, self._store.connected)

    def _upsert(self, entries: Entries) -> tuple[dict[Kind, int], list[Refused]]:
        """Writes every row that the database takes. Where one is refused, an older state of its key gets its turn."""
        written = dict.fromkeys(KINDS, 0)
        refused: list[Refused] = []
        positions: set[tuple[int, int]] = set()
        rows = entries.rows(positions)
        total = sum(map(len, rows.values()))
        while any(rows.values()):
            found = self._bisect(rows, total)
            for kind, kind_rows in rows.items():
                written[kind] += len(kind_rows)
            for one in found:
                written[one.kind] -= 1
            refused += found
            positions |= {(one.row.entry, one.row.index) for one in found}
            keys = {(one.kind, _key(one.kind, one.row)) for one in found}
            rows = {
                kind: [row for row in kind_rows if (kind, _key(kind, row)) in keys]
                for kind, kind_rows in (entries.rows(positions) if found else {}).items()
            }
        return written, refused

    def _bisect(self, rows: Rows, total: int) -> list[Refused]:
        """One transaction; where a row is refused, one for each half, down to the row (log2 steps for one bad row).

        Returns: the refused rows; all others are committed. Raises: StoreError for any fault that is not a row's,
        and for a batch of which most rows are refused.
        """
        refused: list[Refused] = []
        todo = [rows]
        while todo:
            part = todo.pop()
            try:
                self._store.write(part)
                continue
            except StoreError as error:
                if error.error_class not in (ErrorClass.DATA, ErrorClass.TOO_BIG):
                    raise
                first, second = _halves(part)
                if second:
                    todo += [second, first]
                    continue
                refused += [Refused(kind, row, error) for kind, kind_rows in first.items() for row in kind_rows]
                if total >= SCHEMA_FAULT_ROWS and len(refused) * 2 > total:
                    raise StoreError(
                        ErrorClass.SCHEMA,
                        error.number,
                        f"over half of a batch of {total} rows is refused with error {error.number}:"
                        " the table is at fault, not the rows",
                    ) from error
        return refused

    def _letters(self, entries: Entries, refused: Sequence[Refused]) -> list[DeadLetter]:
        now = datetime.now(timezone.utc).isoformat(timespec="microseconds")
        letters = [
            DeadLetter(
                time=now,
                kind=one.kind.name,
                key=_key(one.kind, one.row),
                error_code=one.error.number,
                error=one.error.detail,
                column=_column(one.error.detail),
                arrival=entries.entries[one.row.entry].arrival,
                record=entries.raw(one.kind, one.row),
            )
            for one in refused
        ]
        for entry, why in entries.undecodable:
            kind = KIND_OF_CODE.get(entry.kind)
            body = bytes(entry.body).decode(errors="backslashreplace")
            name = kind.name if kind else str(entry.kind)
            letters.append(DeadLetter(now, name, "", -1, why, None, entry.arrival, body))
        return letters


def _key(kind: Kind, row: Row) -> str:
    key: str = getattr(row.record, kind.key)
    return key


def _column(detail: str) -> str | None:
    found = re.search(r"[Cc]olumn [`']?(?:[^`'.]*[`']?\.)*[`']?(\w+)", detail)
    return found[1] if found else None


def _halves(rows: Rows) -> tuple[Mapping[Kind, Sequence[Row]], Mapping[Kind, Sequence[Row]]]:
    """Splits in the middle of all rows; the second half of a single row is empty."""
    total = sum(map(len, rows.values()))
    middle = (total + 1) // 2
    first: dict[Kind, Sequence[Row]] = {}
    second: dict[Kind, Sequence[Row]] = {}
    for kind, kind_rows in rows.items():
        taken = min(middle, len(kind_rows))
        middle -= taken
        if taken:
            first[kind] = kind_rows[:taken]
        if taken < len(kind_rows):
            second[kind] = kind_rows[taken:]
    return first, second


def server_of(database: Database) -> Server:
    return Server(
        hosts=database.host,
        port=database.port,
        socket=database.socket,
        user=database.user,
        password=database.password,
        database=database.database,
        connect_timeout_s=database.connect_timeout,
        read_timeout_s=database.read_timeout,
        write_timeout_s=database.write_timeout,
        recycle_s=database.pool_recycle,
        ssl_mode=database.ssl_mode,
        ssl_ca=database.ssl_ca,
        ssl_cert=database.ssl_cert,
        ssl_key=database.ssl_key,
    )


def _read_commands(commands: SimpleQueue[bytes]) -> None:
    for line in sys.stdin.buffer:
        commands.put(line)
    os._exit(0)  # the parent is gone; sys.exit would wait for the query under way


def main() -> None:
    close_to_others()
    config = load_or_exit()
    logging_config = config.logging
    logs.setup("writer", level=logging_config.level, format=logging_config.format, file=logging_config.file)
    os.nice(NICE)
    writer = Writer(
        Store(server_of(config.database)),
        Path(config.state_directory, dead_letters.FILE_NAME),
        config.dead_letters.max_bytes,
    )
    commands: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read_commands, args=(commands,), daemon=True).start()
    while True:
        command = orjson.loads(commands.get())
        answer = writer.write(Path(command["write"])) if "write" in command else writer.ping()
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
