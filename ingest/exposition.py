"""The text of GET /metrics: what the workers counted and the flusher's stats document, as Prometheus families.

Names and units follow Prometheus' rules (`promtool check metrics`); docs/OPERATIONS.md says how to read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from shared import VERSION
from shared.reading import ROUTES

BUCKETS_S = (50e-6, 100e-6, 200e-6, 400e-6, 800e-6, 1.6e-3, 3.2e-3, 6.4e-3, 12.8e-3, 25.6e-3, 0.1, 0.5, 1.0, 5.0, 10.0)


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
    requests = counts["requests"]
    by_status = {(path, status): count for path in requests for status, count in requests[path].items()}
    durations = {path: (BUCKETS_S, counts["durations"][path], counts["seconds"][path]) for path in requests}
    reads = {key: count for key, count in by_status.items() if key[0] in ROUTES}
    yield _counter("http_requests", "Requests by status; 0: the client left first.", by_status, "path", "status")
    help_text = "From the request's header to the last byte of its answer."
    yield _histogram("http_request_duration_seconds", help_text, durations, "path")
    yield _counter("read_requests", "Those of them that read back.", reads, "route", "status")
    yield _counter("read_answers_cut_off", "Reads that broke off when the reader ended.", counts["cut_off"])
    help_text = "Records refused, one for a request that nobody could read."
    yield _counter("records_rejected", help_text, counts["rejected"], "reason")
    help_text = "Fields that are not kept (records.unknown_fields: ignore)."
    yield _counter("fields_ignored", help_text, counts["ignored"], "kind")
    yield _gauge("http_connections", "Open connections of clients.", counts["connections"])
    yield _gauge("build_info", "1, with the version as label.", {VERSION: 1}, "version")


def _of_flusher(stats: dict[str, Any] | None) -> Iterator[Metric]:
    yield _gauge("flusher_up", "Whether the flusher answers.", int(stats is not None))
    if stats is None:
        return
    yield from _state(stats)
    performance, kinds, histograms = stats["performance"], stats["accepted"], stats["histograms"]
    waiting = {kind: stats["buffer"][f"{kind}_count"] for kind in kinds}
    written = {kind: performance[f"total_{kind}_written"] for kind in kinds}
    yield _gauge("backlog_records", "Records not yet in the database.", waiting, "kind")
    yield _counter("records_accepted", "Records acknowledged.", kinds, "kind")
    yield _counter("rows_written", "Rows upserted.", written, "kind")
    help_text = "Batches that failed, were kept, and are tried again."
    yield _counter("flush_failures", help_text, stats["failures"], "error_class")
    help_text = "The same by the database's error number; 1213: a deadlock, or a conflict with another node."
    yield _counter("flush_failures_by_code", help_text, stats["failures_by_code"], "code")
    help_text = "Records that a newer one made unnecessary."
    yield _counter("records_coalesced", help_text, stats["coalescing"]["coalesced"])
    help_text = "Records that the database refused for good."
    yield _counter("records_dead_lettered", help_text, stats["dead_letters"]["total"])
    yield _counter("database_statements", "Statements sent to the database.", performance["statements"])
    yield _counter("journal_damaged_bytes", "Bytes of the journal that could not be read.", stats["damage"]["bytes"])
    for name, help_text, document in (
        ("flush_duration_seconds", "Of batches committed.", histograms["flush_seconds"]),
        ("flush_batch_records", "Records of batches committed.", histograms["flush_records"]),
    ):
        by_reason = {
            reason: (document["bounds"], one["counts"], one["sum"]) for reason, one in document["by_reason"].items()
        }
        yield _histogram(name, help_text, by_reason, "reason")


def _state(stats: dict[str, Any]) -> Iterator[Metric]:
    state, buffer, risk, performance = stats["state"], stats["buffer"], stats["at_risk"], stats["performance"]
    databases = {name: int(state["database"] == name) for name in ("up", "not_writable", "down")}
    yield _gauge("database_state", "1 for the state that it is in.", databases, "state")
    yield _gauge("database_up", "Whether the database takes writes.", databases["up"])
    causes = {} if state["cause"] is None else {state["cause"]: 1}
    yield _gauge("trouble", "1 while something is wrong.", causes, "cause")
    oldest_s, interval_s = risk["oldest_uncommitted_seconds"], stats["flush_info"]["flush_interval_seconds"]
    for name, help_text, value in (
        ("alarm", "Whether an operator must act.", int(state["alarm"] is not None)),
        ("accepting", "Whether records are accepted.", int(state["acceptance"] == "accepting")),
        ("journal_bytes", "Bytes of records waiting in the journal.", buffer["journal_bytes"]),
        ("journal_max_bytes", "journal.max_bytes.", buffer["journal_max_bytes"]),
        ("journal_segments", "Files in the journal.", buffer["journal_segments"]),
        ("unsynced_records", "Acknowledged records not yet synced to disk.", risk["unsynced_records"]),
        ("flush_interval_seconds", "buffer.flush_interval.", interval_s),
        ("backlog_oldest_age_seconds", "Age of the oldest record not yet in the database.", oldest_s),
        ("dead_letters_waiting", "Records in the dead-letter file.", stats["dead_letters"]["count"]),
        ("writers", "Writer processes.", performance["writers"]),
        ("database_connections", "Writers connected to the database.", performance["database_connections"]),
        ("flusher_connections", "Ingest connections to the flusher.", state["connections"]),
    ):
        yield _gauge(name, help_text, value)


def _histogram(
    name: str, help_text: str, values: Mapping[str, tuple[Iterable[float], Sequence[int], float]], label: str
) -> Metric:
    """Args: values: by label: bounds, counts (one more than bounds), sum."""
    family = HistogramMetricFamily(f"persistence_{name}", help_text, labels=[label])
    for key, (bounds, counts, total) in sorted(values.items()):
        names = [*(str(float(bound)) for bound in bounds), "+Inf"]
        # The format wants cumulated counts.
        buckets = [(bound, float(sum(counts[: number + 1]))) for number, bound in enumerate(names)]
        family.add_metric([key], buckets, total)
    return family


def _gauge(name: str, help_text: str, values: Any, *labels: str) -> Metric:
    return _filled(GaugeMetricFamily(f"persistence_{name}", help_text, labels=list(labels)), values)


def _counter(name: str, help_text: str, values: Any, *labels: str) -> Metric:
    return _filled(CounterMetricFamily(f"persistence_{name}", help_text, labels=list(labels)), values)


def _filled(family: Any, values: Any) -> Metric:
    """Args: values: one number, or numbers by label or labels."""
    for key, value in sorted(values.items()) if isinstance(values, Mapping) else [((), values)]:
        family.add_metric(list(map(str, key)) if isinstance(key, tuple) else [str(key)], value)
    found: Metric = family
    return found
