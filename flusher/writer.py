"""THE order of a write: prepare -> upsert -> commit -> answer. A child process of the flusher.

One JSON command a line on stdin, one JSON answer a line on stdout, so that it can be tried by hand:

    {"write": "/path/to/00000000000000000001.segment", "size": 4711}
    {"ping": true}

`size`: write only so many bytes of the file; default all. A command may be sent before the previous answer: a thread
prepares its segment (batch.py) while the database works on the other. Answers come in the order of commands.

It never touches the segment: the flusher unlinks it after a good answer. Before the answer every record is committed,
superseded by a newer committed one, or in the synced dead-letter file. When stdin closes the parent is gone: it ends at
once, even during a query, and the server rolls back.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec
import orjson

from flusher import dead_letters, segments
from flusher.answers import IDLE_PRIORITY, Alive, Failed, Written
from flusher.batch import Batch, Prepared, prepare
from flusher.dead_letters import DeadLetter, DeadLettersFull
from flusher.mysql_errors import ErrorClass
from flusher.sql import Insert, Row, Rows
from flusher.store import Store, StoreError
from shared import logs
from shared.config import load_or_exit
from shared.database import is_local
from shared.process import close_to_others
from shared.records import KIND_OF_CODE, KINDS, Kind, Rules
from shared.settings import Database

log = logging.getLogger(__name__)

NICE, PREPARING_NICE = 12, 19
"""Accepting goes before writing. Sending statements goes before preparing: it is a tenth of a writer's CPU time, and
the database waits for it."""
SWITCH_S = 0.00005
"""How long preparing may delay the next statement; Python's default of 5 ms is a third of one."""
SCHEMA_FAULT_ROWS = 10
"""If over half of a batch of at least this many rows is refused, it is not the rows."""


class Refused(msgspec.Struct, frozen=True):
    """A row that the database refuses, and why."""

    kind: Kind
    row: Row
    error: StoreError


class NotTheRows(StoreError):
    """Rows are refused but are no dead letters; the operator must look at the table or the server."""


class Writer:
    def __init__(self, store: Store, dead_letters_path: Path, dead_letters_max_bytes: int) -> None:
        self._store = store
        self._dead_letters_path = dead_letters_path
        self._dead_letters_max_bytes = dead_letters_max_bytes

    def write(self, path: Path, prepared: Prepared | Exception) -> Written | Failed:
        """Args: prepared: prepared(path). Blocks on the database."""
        statements_before = self._store.statements
        try:
            if isinstance(prepared, Exception):
                raise prepared
            batch = prepared.batch
            written, refused = self._upsert(prepared)
            letters = self._letters(batch, refused)
            if letters:
                dead_letters.append(self._dead_letters_path, letters, self._dead_letters_max_bytes)
        except StoreError as error:
            return self._failed(error)
        except DeadLettersFull as error:
            return self._at_fault(ErrorClass.STORAGE, -1, str(error))
        except OSError as error:
            file = Path(error.filename or path)
            why = f"{file}: {error.strerror}; {segments.advice(error, file)}"
            return self._at_fault(ErrorClass.STORAGE, error.errno or -1, why)
        except MemoryError:
            self._store.close()
            why = f"{path}: not enough memory for a writer: raise its limit (ulimit -v, the unit's MemoryMax)"
            return self._at_fault(ErrorClass.STORAGE, -1, why)
        except Exception as error:  # noqa: BLE001
            # Uncaught it would end every writer. Only the place is logged: the message may have record content.
            frames = reversed(traceback.extract_tb(error.__traceback__))
            where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
            log.critical("%s: a fault of ours, %s in %s", path.name, type(error).__name__, where)
            self._store.close()  # a statement may be half sent
            return self._at_fault(ErrorClass.UNKNOWN, -1, f"{path.name}: a fault of ours, {type(error).__name__}")
        dead = len(letters)
        return Written(
            rows={kind.name: count for kind, count in written.items()},
            records=batch.records,
            coalesced=max(0, batch.records - sum(written.values()) - dead),
            dead_lettered=dead,
            dead_arrivals=dict(Counter(letter.arrival for letter in letters)),
            damaged_bytes=batch.damaged_bytes,
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
        of_segment = isinstance(error, NotTheRows)
        return Failed(error.error_class, error.number, error.public, of_segment, self._store.connected)

    def _at_fault(self, error_class: ErrorClass, number: int, message: str) -> Failed:
        """For a fault outside the database."""
        return Failed(error_class, number, message, of_segment=True, connected=self._store.connected)

    def _upsert(self, prepared: Prepared) -> tuple[dict[Kind, int], list[Refused]]:
        """Writes every row that the database takes; of a refused row the next older state of its key is tried."""
        written = dict.fromkeys(KINDS, 0)
        refused: list[Refused] = []
        positions: set[tuple[int, int]] = set()
        batch, rows, ready = prepared.batch, prepared.rows, prepared.inserts
        while any(rows.values()):
            found = self._bisect(prepared, rows, ready)
            ready = None
            for kind, kind_rows in rows.items():
                written[kind] += len(kind_rows)
            for one in found:
                written[one.kind] -= 1
            refused += found
            positions |= {(one.row.entry, one.row.index) for one in found}
            keys = {(one.kind, one.kind.key_of(one.row.record)) for one in found}
            rows = {
                kind: [row for row in kind_rows if (kind, kind.key_of(row.record)) in keys]
                for kind, kind_rows in (batch.rows(positions) if found else {}).items()
            }
        return written, refused

    def _bisect(self, prepared: Prepared, rows: Rows, ready: Sequence[Insert] | None) -> list[Refused]:
        """One transaction; if a row is refused, one for each half, down to the row.

        Returns: the refused rows; all others are committed. Raises: StoreError for any fault that is not a row's;
        NotTheRows if most rows are refused (other than replayed dead letters, which may be refused again), and, after
        the others are written, for a single row over a limit of the server.
        """
        batch = prepared.batch
        total: int | None = None
        new = 0
        refused: list[Refused] = []
        over_limit: list[StoreError] = []
        todo = [rows]
        while todo:
            part = todo.pop()
            try:
                self._store.write(part, ready if part is rows else None)
                continue
            except StoreError as error:
                if error.error_class not in (ErrorClass.DATA, ErrorClass.TOO_BIG):
                    raise
                first, second = _halves(part)
                if second:
                    todo += [second, first]
                    continue
                if error.error_class is ErrorClass.TOO_BIG:
                    over_limit.append(error)
                    if len(over_limit) >= SCHEMA_FAULT_ROWS:
                        break
                    continue
                refused += [Refused(kind, row, error) for kind, kind_rows in first.items() for row in kind_rows]
                new += batch.count_new(first)
                if total is None:
                    total = batch.count_new(prepared.rows)
                if total >= SCHEMA_FAULT_ROWS and new * 2 > total:
                    raise NotTheRows(
                        ErrorClass.SCHEMA,
                        error.number,
                        f"over half of a batch of {total} rows is refused with error {error.number}:"
                        " the table is at fault, not the rows",
                    ) from error
        if over_limit:
            raise NotTheRows(ErrorClass.SCHEMA, over_limit[0].number, over_limit[0].detail) from over_limit[0]
        return refused

    def _letters(self, batch: Batch, refused: Sequence[Refused]) -> list[DeadLetter]:
        now = datetime.now(timezone.utc).isoformat(timespec="microseconds")
        letters = [
            DeadLetter(
                time=now,
                kind=one.kind.name,
                key=one.kind.key_of(one.row.record),
                error_code=one.error.number,
                error=one.error.detail,
                column=_column(one.error.detail),
                arrival=batch.entries[one.row.entry].arrival,
                record=_keepable(one.kind, batch.raw(one.kind, one.row)),
                rules=Rules.decode(batch.entries[one.row.entry].rules),
            )
            for one in refused
        ]
        for entry, why in batch.undecodable:
            kind = KIND_OF_CODE.get(entry.kind)
            body = bytes(entry.body).decode(errors="backslashreplace")
            name = kind.name if kind else str(entry.kind)
            letters.append(DeadLetter(now, name, (), -1, why, None, entry.arrival, body, Rules.decode(entry.rules)))
        return letters


def _keepable(kind: Kind, record: dict[str, Any]) -> dict[str, Any]:
    """A record as received; without its unknown fields if those are nested too deep to be kept and replayed."""
    try:
        orjson.dumps({kind.name: [record]})
    except TypeError:
        return {name: value for name, value in record.items() if name in kind.record.__struct_fields__}
    return record


def _column(detail: str) -> str | None:
    found = re.search(r"[Cc]olumn [`']?(?:[^`'.]*[`']?\.)*[`']?(\w+)", detail)
    return found[1] if found else None


def _halves(rows: Rows) -> tuple[Mapping[Kind, Sequence[Row]], Mapping[Kind, Sequence[Row]]]:
    """Splits all rows in the middle; the second half of a single row is empty."""
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


Command = tuple[Path, Prepared | Exception] | None
"""A segment to write, prepared; None: a ping."""


def _read_ahead(commands: SimpleQueue[Command], done: list[Command]) -> None:
    """Prepares each segment as soon as it is named.

    Frees finished batches on this thread: freeing takes milliseconds and would delay the next statement.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), PREPARING_NICE)  # on Linux, of this thread alone
        for line in sys.stdin.buffer:
            done.clear()
            command = orjson.loads(line)
            path = command.get("write")
            commands.put((Path(path), prepared(Path(path), command.get("size"))) if path is not None else None)
    except Exception:
        log.critical("the thread that prepares segments failed", exc_info=True)
        os._exit(1)  # the flusher starts another
    os._exit(0)  # the parent is gone; sys.exit would wait for the query


def prepared(path: Path, size: int | None = None) -> Prepared | Exception:
    """Returns: the argument of Writer.write(). Blocks while the file is read."""
    try:
        return prepare(path, size)
    except Exception as error:  # noqa: BLE001
        return error


def runs_idle(arguments: Sequence[str], database: Database) -> bool:
    """A database elsewhere leaves its cores to us: no need to yield them."""
    return IDLE_PRIORITY in arguments and is_local(database) and len(os.sched_getaffinity(0)) > 1


def main() -> None:
    close_to_others()
    config = load_or_exit()
    logging_config = config.logging
    logs.setup("writer", level=logging_config.level, format=logging_config.format, file=logging_config.file)
    os.nice(NICE)
    if runs_idle(sys.argv[1:], config.database):
        with suppress(PermissionError):  # in a sandbox
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    writer = Writer(
        Store(config.database),
        Path(config.state_directory, dead_letters.FILE_NAME),
        config.dead_letters.max_bytes,
    )
    sys.setswitchinterval(SWITCH_S)
    commands: SimpleQueue[Command] = SimpleQueue()
    done: list[Command] = []
    threading.Thread(target=_read_ahead, args=(commands, done), daemon=True).start()
    while True:
        command = commands.get()
        answer = writer.ping() if command is None else writer.write(*command)
        done.append(command)
        try:
            sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            os._exit(0)  # the parent is gone


if __name__ == "__main__":
    main()
