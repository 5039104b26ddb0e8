"""What the clients sent and what was acknowledged, and what must therefore stand in the tables. Pure.

A record is a pure function of its key and its version, so nothing but version numbers is remembered, and a row can be
checked in every column: one whose columns come from two versions is as wrong as one that nobody sent. Version v has
the updated_at `started_at + v µs`; later versions win.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

TASKS = "tasks"
SESSIONS = "sessions"
TABLES = {SESSIONS: "translation_sessions", TASKS: "translation_tasks"}
KEYS = {SESSIONS: ("session_id",), TASKS: ("session_id", "task_id")}
"""Columns; a task's key is written "session_id/task_id" here."""
COLUMNS = {
    SESSIONS: (
        *("session_id", "filename", "file_path", "status", "llm_provider", "game_info", "metadata", "total_tasks"),
        *("completed_tasks", "failed_tasks", "processing_tasks", "updated_at"),
    ),
    TASKS: (
        *("session_id", "task_id", "batch_id", "sheet_name", "column_name", "row_index", "source_text", "status"),
        *("target_text", "context", "error_message", "confidence", "retry_count", "start_time", "end_time"),
        *("duration_ms", "updated_at"),
    ),
}
LARGE = "large"
"""Keys that begin with it have a long text, to fill the journal with few records."""
_OBJECTS = ("game_info", "metadata")
_TIMES = ("start_time", "end_time", "updated_at")
_EXAMPLES = 20


def last_version(kind: str, key: str) -> int:
    """How many updates the life of this session or task has."""
    return 3 + _number(key) % (4 if kind == TASKS else 20)


def record(kind: str, key: str, version: int, started_at: datetime) -> dict[str, Any]:
    """The state that a client sends, as JSON takes it."""
    number = _number(key)
    last = last_version(kind, key)
    status = "pending" if version == 1 else "processing" if version < last else "completed"
    if version >= last and number % 7 == 0:
        status = "failed"
    text = f"{key} v{version} 你好，世界 😀 'q' \"d\" \\ % \n"
    updated_at = _iso(started_at + timedelta(microseconds=version))
    if kind == SESSIONS:
        return {
            "session_id": key,
            "filename": f"{key}.xlsx",
            "file_path": f"/data/{number}/{key}.xlsx",
            "status": status,
            "llm_provider": ("openai", "anthropic", "local")[version % 3],
            "game_info": {"title": text, "version": version, "langs": ["zh", "en", None, {"n": number}]},
            "metadata": None if version % 2 else {"version": version},
            "total_tasks": last,
            "completed_tasks": version,
            "failed_tasks": version % 5,
            "processing_tasks": last - min(version, last),
            "updated_at": updated_at,
        }
    session_id, _, task_id = key.partition("/")
    return {
        "session_id": session_id,
        "task_id": task_id,
        "batch_id": f"b{number % 1000}",
        "sheet_name": "工作表1",
        "column_name": "ABC"[number % 3],
        "row_index": number % 100_000,
        "source_text": "x" * 60_000 if key.startswith(LARGE) else f"{key} " * (1 + number % 8),
        "status": status,
        "target_text": None if version == 1 else text,
        "context": text if version % 3 == 0 else None,
        "error_message": text if status == "failed" else None,
        "confidence": (version * 37 + number) % 10_001 / 10_000,
        "retry_count": version,
        "start_time": None if version == 1 else _iso(started_at + timedelta(seconds=number % 1000, microseconds=1)),
        "end_time": _iso(started_at + timedelta(days=1, microseconds=version)) if version >= last else None,
        "duration_ms": version * 10,
        "updated_at": updated_at,
    }


def row(kind: str, key: str, version: int, started_at: datetime) -> tuple[Any, ...]:
    """The same state as the table has it, in the order of COLUMNS; objects parsed."""
    values = record(kind, key, version, started_at)
    for name in _TIMES:
        if values.get(name) is not None:
            values[name] = datetime.fromisoformat(values[name]).replace(tzinfo=None)
    if kind == TASKS:
        values["confidence"] = Decimal(f"{values['confidence']:.4f}")
    return tuple(values[name] for name in COLUMNS[kind])


def fetched(kind: str, values: Sequence[Any]) -> tuple[Any, ...]:
    """A row as the database's driver gives it, in the form of row()."""
    return tuple(
        json.loads(value) if name in _OBJECTS and value is not None else value
        for name, value in zip(COLUMNS[kind], values, strict=True)
    )


def select_updated_at(kind: str, keys: Sequence[str]) -> tuple[str, list[str]]:
    """Returns: the statement that finds `key, updated_at` of those that have a row, and its arguments."""
    columns = ",".join(KEYS[kind])
    marks = ",".join(["(" + ",".join(["%s"] * len(KEYS[kind])) + ")"] * len(keys))
    found = f"SELECT CONCAT_WS('/',{columns}), updated_at FROM {TABLES[kind]} WHERE ({columns}) IN ({marks})"
    return found, [part for key in keys for part in (key.split("/") if kind == TASKS else (key,))]


class Model:
    """`sent`: left a client whole, so it may be stored. `acknowledged`: it, or a newer one, must be stored."""

    def __init__(self, started_at: datetime) -> None:
        self.started_at = started_at
        self.records_acknowledged = 0
        self._sent: dict[str, dict[str, int]] = {kind: {} for kind in TABLES}
        self._acknowledged: dict[str, dict[str, int]] = {kind: {} for kind in TABLES}

    def sent(self, kind: str, items: Iterable[tuple[str, int]]) -> None:
        """Args: items: (key, version)."""
        sent = self._sent[kind]
        for key, version in items:
            sent[key] = sent.get(key, 0) | 1 << version

    def acknowledged(self, kind: str, items: Iterable[tuple[str, int]]) -> None:
        newest = self._acknowledged[kind]
        for key, version in items:
            self.records_acknowledged += 1
            if version > newest.get(key, 0):
                newest[key] = version

    def version(self, updated_at: datetime) -> int:
        return (updated_at - self.started_at) // timedelta(microseconds=1)

    def keys(self, kind: str) -> int:
        return len(self._sent[kind])

    def was_sent(self, kind: str, key: str, version: int) -> bool:
        return version > 0 and bool(self._sent[kind].get(key, 0) >> version & 1)

    def newest(self, kind: str) -> dict[str, int]:
        """The newest acknowledged version by key."""
        return self._acknowledged[kind]


@dataclass(slots=True)
class Differences:
    """Between model and tables. `examples` say where, a few of each."""

    rows: int = 0
    lost: int = 0
    stale: int = 0
    duplicated: int = 0
    unexpected: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, what: str, where: str) -> None:
        count = getattr(self, what) + 1
        setattr(self, what, count)
        if count <= _EXAMPLES:
            self.examples.append(f"{what}: {where}")

    @property
    def total(self) -> int:
        return self.lost + self.stale + self.duplicated + self.unexpected


def compare(model: Model, kind: str, rows: Iterable[tuple[Any, ...]], differences: Differences) -> None:
    """Adds what is wrong with the rows of one table.

    lost: a key was acknowledged and has no row · stale: its row is older than the newest acknowledged · duplicated: a
    second row of a key · unexpected: a row that no client sent, in any of its columns.
    Args: rows: in the form of row().
    """
    newest = model.newest(kind)
    seen: set[str] = set()
    for found in rows:
        differences.rows += 1
        key = "/".join(found[: len(KEYS[kind])])
        version = model.version(found[-1])
        where = f"{kind} {key}, version {version}, newest acknowledged {newest.get(key)}"
        if key in seen:
            differences.add("duplicated", where)
        seen.add(key)
        if not model.was_sent(kind, key, version):
            differences.add("unexpected", where)
        elif found != row(kind, key, version, model.started_at):
            want = row(kind, key, version, model.started_at)
            names = [name for name, a, b in zip(COLUMNS[kind], found, want, strict=True) if a != b]
            differences.add("unexpected", f"{where}, not as sent: {' '.join(names)}")
        if version < newest.get(key, version):
            differences.add("stale", where)
    for key, version in newest.items():
        if key not in seen:
            differences.add("lost", f"{kind} {key}, newest acknowledged {version}")


def _number(key: str) -> int:
    return zlib.crc32(key.encode())


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds") + "+00:00"
