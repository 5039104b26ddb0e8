"""Prometheus metrics of the whole node, whichever worker answers.

Every worker's request counters lie in files of prometheus_client's multiprocess mode, in a directory that the ingest
parent empties once at its start; the flusher's figures come with its stats document.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, multiprocess
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from shared import VERSION

_BUCKETS_S = (
    50e-6,
    100e-6,
    200e-6,
    400e-6,
    800e-6,
    1.6e-3,
    3.2e-3,
    6.4e-3,
    12.8e-3,
    25.6e-3,
    0.1,
    0.5,
    1.0,
    5.0,
    10.0,
)
_PREFIX = "persistence"


class RequestMetrics:
    """Counts requests; children are kept, since labels() costs more than inc()."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._requests = Counter(
            f"{_PREFIX}_http_requests", "Requests answered.", ("path", "status"), registry=registry
        )
        self._duration = Histogram(
            f"{_PREFIX}_http_request_duration_seconds",
            "From the request's header to the last byte of its answer.",
            ("path",),
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._count: dict[tuple[str, int], Any] = {}
        self._observe: dict[str, Any] = {}

    def observe(self, path: str, status: int, duration_s: float) -> None:
        try:
            self._count[path, status].inc()
            self._observe[path].observe(duration_s)
        except KeyError:
            self._count[path, status] = self._requests.labels(path, str(status))
            self._observe.setdefault(path, self._duration.labels(path))
            self.observe(path, status, duration_s)


class FlusherCollector:
    """The flusher's stats document as metrics; persistence_up is 0 where there is none."""

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
        coalesced = CounterMetricFamily(f"{_PREFIX}_records_coalesced", "Records that a newer one made unnecessary.")
        coalesced.add_metric([], stats["coalescing"]["coalesced"])
        yield coalesced
        statements = CounterMetricFamily(f"{_PREFIX}_database_statements", "Statements sent to the database.")
        statements.add_metric([], stats["performance"]["statements"])
        yield statements


def exposition(stats: dict[str, Any] | None) -> bytes:
    """The text format. Blocks for some milliseconds."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    registry.register(FlusherCollector(stats))
    return generate_latest(registry)


def _gauge(name: str, text: str, value: float, labels: dict[str, str] | None = None) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"{_PREFIX}_{name}", text, labels=list(labels or ()))
    family.add_metric(list((labels or {}).values()), value)
    return family


def _counter(name: str, text: str, values: dict[str, int], label: str) -> CounterMetricFamily:
    family = CounterMetricFamily(f"{_PREFIX}_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
