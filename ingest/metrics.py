"""Prometheus metrics of the whole node, whichever worker answers.

Every worker counts in plain numbers and publishes them about once a second as a small file in a directory that the
ingest parent empties at its start; an exposition adds up the files, those of ended workers included, since a counter
must not fall. (prometheus_client's multiprocess mode does the same with a system call for every count.) The flusher's
figures come with its stats document.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from shared import VERSION

_BUCKETS_S = (50e-6, 100e-6, 200e-6, 400e-6, 800e-6, 1.6e-3, 3.2e-3, 6.4e-3, 12.8e-3, 25.6e-3, 0.1, 0.5, 1.0, 5.0, 10.0)
_PREFIX = "persistence"
METRICS_DIRECTORY = "metrics"
"""Beside the flusher's socket."""


class Counts(msgspec.Struct):
    """One worker's requests: by path and status, and by path the durations in buckets and their sum in seconds."""

    requests: dict[str, dict[int, int]] = {}
    durations: dict[str, list[int]] = {}
    seconds: dict[str, float] = {}


class RequestMetrics:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / f"{os.getpid()}.json"
        self._counts = Counts()
        self._published = b""

    def observe(self, path: str, status: int, duration_s: float) -> None:
        counts = self._counts
        try:
            counts.requests[path][status] += 1
            counts.durations[path][bisect_left(_BUCKETS_S, duration_s)] += 1
            counts.seconds[path] += duration_s
        except KeyError:
            counts.requests.setdefault(path, {}).setdefault(status, 0)
            counts.durations.setdefault(path, [0] * (len(_BUCKETS_S) + 1))
            counts.seconds.setdefault(path, 0.0)
            self.observe(path, status, duration_s)

    def publish(self) -> None:
        """Writes the file if anything was counted since; whole or not at all. Blocks for well under a millisecond."""
        data = msgspec.json.encode(self._counts)
        if data != self._published:
            fresh = self._file.with_suffix(".new")
            fresh.write_bytes(data)
            fresh.replace(self._file)
            self._published = data

    def exposition(self, stats: dict[str, Any] | None) -> bytes:
        """The text format: all workers' counts, and the flusher's `stats` (None: it does not answer)."""
        self.publish()
        counts = [msgspec.json.decode(path.read_bytes(), type=Counts) for path in self._directory.glob("*.json")]
        registry = CollectorRegistry()
        registry.register(RequestCollector(counts))
        registry.register(FlusherCollector(stats))
        return generate_latest(registry)


class RequestCollector:
    def __init__(self, counts: Iterable[Counts]) -> None:
        self._counts = list(counts)

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(f"{_PREFIX}_http_requests", "Requests answered.", labels=["path", "status"])
        durations = HistogramMetricFamily(
            f"{_PREFIX}_http_request_duration_seconds",
            "From the request's header to the last byte of its answer.",
            labels=["path"],
        )
        for path in sorted({path for counts in self._counts for path in counts.requests}):
            having = [counts for counts in self._counts if path in counts.requests]
            for status in sorted({status for counts in having for status in counts.requests[path]}):
                total = sum(counts.requests[path].get(status, 0) for counts in having)
                requests.add_metric([path, str(status)], total)
            buckets: list[tuple[str, float]] = []
            cumulated = 0
            for index, bound in enumerate((*_BUCKETS_S, "+Inf")):
                cumulated += sum(counts.durations[path][index] for counts in having)
                buckets.append((str(bound), cumulated))
            durations.add_metric([path], buckets, sum(counts.seconds[path] for counts in having))
        yield requests
        yield durations


class FlusherCollector:
    """The flusher's stats document as metrics; persistence_flusher_up is 0 where there is none."""

    def __init__(self, stats: dict[str, Any] | None) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        yield _gauge("build_info", "1, with the version as label.", 1, {"version": VERSION})
        yield _gauge("flusher_up", "Whether the flusher answers.", int(self._stats is not None))
        if self._stats is None:
            return
        stats = self._stats
        state, buffer, risk = stats["state"], stats["buffer"], stats["at_risk"]
        yield _gauge(
            "database_up",
            "Whether the last contact with the database succeeded.",
            int(state["database"] == "healthy"),
        )
        yield _gauge("alarm", "Whether an operator must act.", int(state["alarm"] is not None))
        yield _gauge("accepting", "Whether records are accepted.", int(state["refusing"] is None))
        yield _gauge("journal_bytes", "Bytes of records waiting in the journal.", buffer["journal_bytes"])
        yield _gauge("journal_max_bytes", "journal.max_bytes.", buffer["journal_max_bytes"])
        yield _gauge("journal_segments", "Files in the journal.", buffer["journal_segments"])
        yield _gauge("unsynced_records", "Acknowledged records not yet synced to disk.", risk["unsynced_records"])
        yield _gauge(
            "backlog_oldest_age_seconds",
            "Age of the oldest record not yet in the database.",
            risk["oldest_uncommitted_seconds"],
        )
        yield _gauge("dead_letters_waiting", "Records in the dead-letter file.", stats["dead_letters"]["count"])
        yield _gauge("writers", "Writer processes.", stats["performance"]["writers"])
        yield _gauge("flusher_connections", "Ingest connections to the flusher.", state["connections"])
        waiting = GaugeMetricFamily(f"{_PREFIX}_backlog_records", "Records not yet in the database.", labels=["kind"])
        accepted = CounterMetricFamily(f"{_PREFIX}_records_accepted", "Records acknowledged.", labels=["kind"])
        written = CounterMetricFamily(f"{_PREFIX}_rows_written", "Rows upserted.", labels=["kind"])
        for kind, count in stats["accepted"].items():
            waiting.add_metric([kind], buffer[f"{kind}_count"])
            accepted.add_metric([kind], count)
            written.add_metric([kind], stats["performance"][f"total_{kind}_written"])
        yield waiting
        yield accepted
        yield written
        yield _counter("requests_rejected", "Requests refused by the flusher.", stats["rejected"], "reason")
        yield _counter("flushes", "Batches committed.", stats["flush_info"]["flushes_by_reason"], "reason")
        yield _counter("flush_failures", "Batches that failed and were kept.", stats["failures"], "error_class")
        yield _counter(
            "flush_failures_by_code",
            "The same by the database's error number; 1213: a deadlock, or a conflict with another node.",
            stats["failures_by_code"],
            "code",
        )
        coalesced = CounterMetricFamily(f"{_PREFIX}_records_coalesced", "Records that a newer one made unnecessary.")
        coalesced.add_metric([], stats["coalescing"]["coalesced"])
        yield coalesced
        dead = CounterMetricFamily(f"{_PREFIX}_records_dead_lettered", "Records that the database refused for good.")
        dead.add_metric([], stats["dead_letters"]["total"])
        yield dead
        statements = CounterMetricFamily(f"{_PREFIX}_database_statements", "Statements sent to the database.")
        statements.add_metric([], stats["performance"]["statements"])
        yield statements


def _gauge(name: str, text: str, value: float, labels: dict[str, str] | None = None) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"{_PREFIX}_{name}", text, labels=list(labels or ()))
    family.add_metric(list((labels or {}).values()), value)
    return family


def _counter(name: str, text: str, values: dict[str, int], label: str) -> CounterMetricFamily:
    family = CounterMetricFamily(f"{_PREFIX}_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
