"""Counters of an ingest worker, and their sum over all workers: plain numbers in small files.

Rules: a worker counts on its loop's thread and publishes about once a second, to a file of its own in a directory that
the ingest parent empties at its start. When a worker has ended, the parent folds its file into one for all that have
ended, since a counter must not fall. An exposition adds up what it finds there, whichever worker answers.
(prometheus_client's multiprocess mode does the same with a system call for every count.)
"""

from __future__ import annotations

import logging
import os
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from ingest.exposition import BUCKETS_S, text

log = logging.getLogger(__name__)

METRICS_DIRECTORY = "metrics"
"""Beside the flusher's socket."""
_ENDED = "ended"
_NAMES_KEPT = 100
_NAME_SHOWN = 64


class Counts(msgspec.Struct):
    """By path and status: requests; by path: durations in buckets, and their sum in seconds; by reason: records that
    were refused; by kind: fields that were ignored; answers of the read side that broke off; connections that are open
    now."""

    requests: dict[str, dict[int, int]] = {}
    durations: dict[str, list[int]] = {}
    seconds: dict[str, float] = {}
    rejected: dict[str, int] = {}
    ignored: dict[str, int] = {}
    cut_off: int = 0
    connections: int = 0

    def durations_of(self, paths: Iterable[str]) -> list[int]:
        """How many requests to these paths lasted how long: in the buckets of BUCKETS_S, and one for longer ones."""
        having = [self.durations[path] for path in paths if path in self.durations]
        return [sum(counts) for counts in zip([0] * (len(BUCKETS_S) + 1), *having, strict=True)]


class Ended(msgspec.Struct):
    """The sum of workers that have ended. `names`: files that are part of it, in case one is still there."""

    counts: Counts = msgspec.field(default_factory=Counts)
    names: list[str] = []


class RequestMetrics:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # A process id may come again, a process id and a time may not.
        self._file = directory / f"{os.getpid()}-{time.time_ns()}.json"
        self._counts = Counts()
        self._ignored: set[tuple[str, str]] = set()
        self._published = msgspec.json.encode(self._counts)

    def observe(self, path: str, status: int, duration_s: float) -> None:
        counts = self._counts
        try:
            counts.requests[path][status] += 1
            counts.durations[path][bisect_left(BUCKETS_S, duration_s)] += 1
            counts.seconds[path] += duration_s
        except KeyError:
            counts.requests.setdefault(path, {}).setdefault(status, 0)
            counts.durations.setdefault(path, [0] * (len(BUCKETS_S) + 1))
            counts.seconds.setdefault(path, 0.0)
            self.observe(path, status, duration_s)

    def reject(self, reasons: Mapping[str, int]) -> None:
        """Counts refused records by reason: an error code, or what FieldError says. There are some 60 of them."""
        _add(self._counts.rejected, reasons)

    def ignore(self, kind: str, field: str) -> None:
        """Counts a field that is not kept (records.unknown_fields: ignore); the first of each name is logged."""
        self._counts.ignored[kind] = self._counts.ignored.get(kind, 0) + 1
        name = (kind, field[:_NAME_SHOWN])
        if name not in self._ignored and len(self._ignored) < _NAMES_KEPT:
            self._ignored.add(name)
            log.warning("%s: the field %s is ignored (records.unknown_fields: ignore)", kind, repr(name[1]))

    def cut_off(self) -> None:
        """Counts an answer of the read side that broke off."""
        self._counts.cut_off += 1

    def publish(self, connections: int | None = None) -> None:
        """Writes the file if anything has changed; whole or not at all. Blocks for well under a millisecond.

        Args: connections: open ones, where the caller knows. Raises: OSError.
        """
        if connections is not None:
            self._counts.connections = connections
        data = msgspec.json.encode(self._counts)
        if data != self._published:
            _write(self._file, data)
            self._published = data

    def exposition(self, stats: dict[str, Any] | None) -> bytes:
        """The text format: all workers' counts, and the flusher's `stats` (None: it does not answer)."""
        return text(msgspec.to_builtins(self.node(), str_keys=True), stats)

    def node(self) -> Counts:
        """The sum of all workers, with this one's current counts even if the disk is full. They are published first, so
        that counters never decrease from one scrape to the next."""
        with suppress(OSError):  # the tick that publishes once a second has it in the log
            self.publish()
        return node_counts(self._directory, {self._file.name: self._counts})


def node_counts(directory: Path, own: Mapping[str, Counts] = MappingProxyType({})) -> Counts:
    """The sum over all workers, each counted once, also during fold(): live files are read first, then those that are
    already part of the sum of ended workers are left out. Raises: OSError.

    Args: own: counts of the caller's own, by the name of their file, which may be behind.
    """
    live = {}
    for path in directory.glob("*.json"):
        with suppress(OSError, msgspec.DecodeError):  # folded just now, or altered by hand
            live[path.name] = msgspec.json.decode(path.read_bytes(), type=Counts)
    live |= own
    ended = _ended(directory)
    return _sum([ended.counts, *(counts for name, counts in live.items() if name not in ended.names)])


def fold(directory: Path, pid: int) -> None:
    """Adds the counts of a worker that has ended to those of its predecessors. Raises: OSError."""
    for path in directory.glob(f"{pid}-*.json"):
        ended = _ended(directory)
        counts = Counts()
        with suppress(msgspec.DecodeError):
            counts = msgspec.json.decode(path.read_bytes(), type=Counts)
        counts.connections = 0
        ended = Ended(_sum([ended.counts, counts]), [*ended.names, path.name][-_NAMES_KEPT:])
        _write(directory / _ENDED, msgspec.json.encode(ended))
        path.unlink()


def _ended(directory: Path) -> Ended:
    try:
        return msgspec.json.decode((directory / _ENDED).read_bytes(), type=Ended)
    except (OSError, msgspec.DecodeError):  # none yet, or altered by hand
        return Ended()


def _write(path: Path, data: bytes) -> None:
    fresh = path.with_suffix(".new")
    try:
        fresh.write_bytes(data)
    except FileNotFoundError:  # somebody has removed the directory
        path.parent.mkdir(mode=0o700)
        fresh.write_bytes(data)
    fresh.replace(path)


def _sum(all_counts: Iterable[Counts]) -> Counts:
    total = Counts()
    for counts in all_counts:
        for path, statuses in counts.requests.items():
            _add(total.requests.setdefault(path, {}), statuses)
        for path, durations in counts.durations.items():
            before = total.durations.get(path, [0] * len(durations))
            total.durations[path] = [a + b for a, b in zip(before, durations, strict=True)]
            total.seconds[path] = total.seconds.get(path, 0.0) + counts.seconds[path]
        _add(total.rejected, counts.rejected)
        _add(total.ignored, counts.ignored)
        total.cut_off += counts.cut_off
        total.connections += counts.connections
    return total


def _add(total: dict[Any, int], counts: Mapping[Any, int]) -> None:
    for key, count in counts.items():
        total[key] = total.get(key, 0) + count
