"""The text of GET /metrics: what the workers counted and the flusher's stats document, as Prometheus families.

Names and units follow Prometheus' rules (`promtool check metrics`); docs/OPERATIONS.md says how to read them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from shared import VERSION
from shared.reading import ROUTES

BUCKETS_S = (50e-6, 100e-6, 200e-6, 400e-6, 800e-6, 1.6e-3, 3.2e-3, 6.4e-3, 12.8e-3, 25.6e-3, 0.1, 0.5, 1.0, 5.0, 10.0)
_PREFIX = "persistence"
_READ_ROUTES = frozenset(ROUTES)


def text(counts: dict[str, Any], stats: dict[str, Any] | None) -> bytes:
    """Args: counts: ingest.metrics.Counts as a document; stats: the flusher's, None where it does not answer."""
    registry = CollectorRegistry()
    registry.register(_Families([*_of_ingest(counts), *_of_flusher(stats)]))
    return generate_latest(registry)


class _Families:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _of_ingest(counts: dict[str, Any]) -> Iterator[Metric]:
    requests = _counters("http_requests", "Requests by status; 0: the client left first.", "path", "status")
    durations = HistogramMetricFamily(
        f"{_PREFIX}_http_request_duration_seconds",
        "From the request's header to the last byte of its answer.",
        labels=["path"],
    )
    for path in sorted(counts["requests"]):
        for status, count in sorted(counts["requests"][path].items()):
            requests.add_metric([path, status], count)
        durations.add_metric([path], _buckets(BUCKETS_S, counts["durations"][path]), counts["seconds"][path])
    yield requests
    yield durations
    reads = _counters("read_requests", "Those of them that read back.", "route", "status")
    for path in sorted(_READ_ROUTES & counts["requests"].keys()):
        for status, count in sorted(counts["requests"][path].items()):
            reads.add_metric([path, status], count)
    yield reads
    rejected = _counters("records_rejected", "Records refused, one for a request that nobody could read.", "reason")
    for reason, count in sorted(counts["rejected"].items()):
        rejected.add_metric([reason], count)
    yield rejected
    ignored = _counters("fields_ignored", "Fields that are not kept (records.unknown_fields: ignore).", "kind")
    for kind, count in sorted(counts["ignored"].items()):
        ignored.add_metric([kind], count)
    yield ignored
    yield _gauge("http_connections", "Open connections of clients.", counts["connections"])
    yield _gauge("build_info", "1, with the version as label.", 1, {"version": VERSION})


def _of_flusher(stats: dict[str, Any] | None) -> Iterator[Metric]:
    yield _gauge("flusher_up", "Whether the flusher answers.", int(stats is not None))
    if stats is None:
        return
    yield from _state(stats)
    waiting = GaugeMetricFamily(f"{_PREFIX}_backlog_records", "Records not yet in the database.", labels=["kind"])
    accepted = _counters("records_accepted", "Records acknowledged.", "kind")
    written = _counters("rows_written", "Rows upserted.", "kind")
    for kind, count in stats["accepted"].items():
        waiting.add_metric([kind], stats["buffer"][f"{kind}_count"])
        accepted.add_metric([kind], count)
        written.add_metric([kind], stats["performance"][f"total_{kind}_written"])
    yield waiting
    yield accepted
    yield written
    failures = _counters("flush_failures", "Batches that failed, were kept, and are tried again.", "error_class")
    for error_class, count in stats["failures"].items():
        failures.add_metric([error_class], count)
    yield failures
    by_code = _counters(
        "flush_failures_by_code",
        "The same by the database's error number; 1213: a deadlock, or a conflict with another node.",
        "code",
    )
    for code, count in stats["failures_by_code"].items():
        by_code.add_metric([code], count)
    yield by_code
    for name, help_text, value in (
        ("records_coalesced", "Records that a newer one made unnecessary.", stats["coalescing"]["coalesced"]),
        ("records_dead_lettered", "Records that the database refused for good.", stats["dead_letters"]["total"]),
        ("database_statements", "Statements sent to the database.", stats["performance"]["statements"]),
        ("journal_damaged_bytes", "Bytes of the journal that could not be read.", stats["damage"]["bytes"]),
    ):
        family = _counters(name, help_text)
        family.add_metric([], value)
        yield family
    yield _by_reason("flush_duration_seconds", "Of batches committed.", stats["histograms"]["flush_seconds"])
    yield _by_reason("flush_batch_records", "Records of batches committed.", stats["histograms"]["flush_records"])


def _state(stats: dict[str, Any]) -> Iterator[Metric]:
    state, buffer, risk, performance = stats["state"], stats["buffer"], stats["at_risk"], stats["performance"]
    database = GaugeMetricFamily(f"{_PREFIX}_database_state", "1 for the state that it is in.", labels=["state"])
    for name in ("up", "not_writable", "down"):
        database.add_metric([name], int(state["database"] == name))
    yield database
    yield _gauge("database_up", "Whether the database takes writes.", int(state["database"] == "up"))
    trouble = GaugeMetricFamily(f"{_PREFIX}_trouble", "1 while something is wrong.", labels=["cause"])
    if state["cause"] is not None:
        trouble.add_metric([state["cause"]], 1)
    yield trouble
    yield _gauge("alarm", "Whether an operator must act.", int(state["alarm"] is not None))
    yield _gauge("accepting", "Whether records are accepted.", int(state["acceptance"] == "accepting"))
    yield _gauge("journal_bytes", "Bytes of records waiting in the journal.", buffer["journal_bytes"])
    yield _gauge("journal_max_bytes", "journal.max_bytes.", buffer["journal_max_bytes"])
    yield _gauge("journal_segments", "Files in the journal.", buffer["journal_segments"])
    yield _gauge("unsynced_records", "Acknowledged records not yet synced to disk.", risk["unsynced_records"])
    interval_s = stats["flush_info"]["flush_interval_seconds"]
    yield _gauge("flush_interval_seconds", "buffer.flush_interval.", interval_s)
    oldest = risk["oldest_uncommitted_seconds"]
    yield _gauge("backlog_oldest_age_seconds", "Age of the oldest record not yet in the database.", oldest)
    yield _gauge("dead_letters_waiting", "Records in the dead-letter file.", stats["dead_letters"]["count"])
    yield _gauge("writers", "Writer processes.", performance["writers"])
    connections = performance["database_connections"]
    yield _gauge("database_connections", "Writers that are connected to the database.", connections)
    yield _gauge("flusher_connections", "Ingest connections to the flusher.", state["connections"])


def _by_reason(name: str, help_text: str, document: dict[str, Any]) -> Metric:
    family = HistogramMetricFamily(f"{_PREFIX}_{name}", help_text, labels=["reason"])
    for reason, one in document["by_reason"].items():
        family.add_metric([reason], _buckets(document["bounds"], one["counts"]), one["sum"])
    return family


def _buckets(bounds: tuple[float, ...] | list[float], counts: list[int]) -> list[tuple[str, float]]:
    """Cumulated, as the format wants them; `counts` has one more than `bounds`."""
    buckets: list[tuple[str, float]] = []
    cumulated = 0
    for bound, count in zip((*bounds, "+Inf"), counts, strict=True):
        cumulated += count
        buckets.append((bound if bound == "+Inf" else str(float(bound)), cumulated))
    return buckets


def _gauge(name: str, help_text: str, value: float, labels: dict[str, str] | None = None) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"{_PREFIX}_{name}", help_text, labels=list(labels or ()))
    family.add_metric(list((labels or {}).values()), value)
    return family


def _counters(name: str, help_text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"{_PREFIX}_{name}", help_text, labels=list(labels))
