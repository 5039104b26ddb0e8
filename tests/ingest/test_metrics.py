from __future__ import annotations

import asyncio
import errno
import math
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ingest.metrics import RequestMetrics, fold, node_counts
from ingest.stats import METRICS_SHARED_S, Metrics

STATS: dict[str, Any] = {
    "buffer": {
        "sessions_count": 3,
        "tasks_count": 4,
        "journal_bytes": 500,
        "journal_max_bytes": 1000,
        "journal_segments": 2,
    },
    "performance": {
        "total_sessions_written": 7,
        "total_tasks_written": 8,
        "writers": 3,
        "database_connections": 2,
        "statements": 9,
    },
    "at_risk": {"unsynced_records": 10, "oldest_uncommitted_seconds": 1.5},
    "coalescing": {"coalesced": 11},
    "dead_letters": {"count": 12, "total": 19},
    "accepted": {"sessions": 13, "tasks": 14},
    "failures": {"retry": 16},
    "failures_by_code": {"1213": 15, "1205": 1},
    "damage": {"bytes": 17, "segments_set_aside": 18},
    "flush_info": {"flush_interval_seconds": 30},
    "state": {"acceptance": "accepting", "database": "up", "cause": "segment", "alarm": None, "connections": 1},
    "histograms": {
        "flush_seconds": {"bounds": [0.1, 1], "by_reason": {"age": {"counts": [4, 1, 1], "sum": 7.5}}},
        "flush_records": {"bounds": [10], "by_reason": {"age": {"counts": [2, 4], "sum": 600}}},
    },
}


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def requests(text: bytes) -> dict[tuple[str, str], float]:
    return {
        (dict(labels)["path"], dict(labels)["status"]): value
        for (name, labels), value in samples(text).items()
        if name == "persistence_http_requests_total"
    }


def worker(directory: Path, pid: int) -> RequestMetrics:
    """One whose process has this id."""
    metrics = RequestMetrics(directory)
    metrics._file = directory / f"{pid}-1.json"
    return metrics


def test_requests_are_counted_by_path_and_status(tmp_path: Path) -> None:
    metrics = RequestMetrics(tmp_path)
    for path, status in (("/a", 202), ("/a", 202), ("/a", 503), ("other", 404)):
        metrics.observe(path, status, 0.001)
    assert requests(metrics.exposition(None)) == {("/a", "202"): 2, ("/a", "503"): 1, ("other", "404"): 1}


def test_durations_are_counted_in_buckets_that_include_their_bound(tmp_path: Path) -> None:
    metrics = RequestMetrics(tmp_path)
    for seconds in (50e-6, 51e-6, 0.5, 99.0):
        metrics.observe("/a", 202, seconds)
    found = samples(metrics.exposition(None))
    name = "persistence_http_request_duration_seconds"
    buckets = {
        float(dict(labels)["le"]): value for (sample, labels), value in found.items() if sample == f"{name}_bucket"
    }
    assert buckets[50e-6] == 1
    assert buckets[100e-6] == 2
    assert buckets[0.1] == 2
    assert buckets[0.5] == 3
    assert buckets[10.0] == 3
    assert buckets[math.inf] == 4
    assert found[f"{name}_count", (("path", "/a"),)] == 4
    assert abs(found[f"{name}_sum", (("path", "/a"),)] - 99.500101) < 1e-9


def test_refused_records_are_counted_by_reason(tmp_path: Path) -> None:
    metrics = RequestMetrics(tmp_path)
    for reasons in ({"JOURNAL_FULL": 3}, {"JOURNAL_FULL": 4, "tasks.status": 1}):
        metrics.reject(reasons)
    found = samples(metrics.exposition(None))
    name = "persistence_records_rejected_total"
    assert found[name, (("reason", "JOURNAL_FULL"),)] == 7
    assert found[name, (("reason", "tasks.status"),)] == 1


def test_every_workers_counts_are_added_up_and_only_open_connections_of_the_living(tmp_path: Path) -> None:
    ended, metrics = worker(tmp_path, 7), worker(tmp_path, 8)
    for path in ("/a", "/b"):
        ended.observe(path, 202, 0.001)
    ended.reject({"tasks.status": 5})
    ended.publish(connections=3)
    metrics.publish(connections=2)
    metrics.observe("/a", 202, 0.001)
    metrics.observe("/a", 400, 0.001)
    expected = {("/a", "202"): 2, ("/a", "400"): 1, ("/b", "202"): 1}
    before = metrics.exposition(None)
    assert requests(before) == expected
    assert samples(before)["persistence_http_connections", ()] == 5

    fold(tmp_path, 7)

    after = metrics.exposition(None)
    assert requests(after) == expected
    assert samples(after)["persistence_http_connections", ()] == 2
    assert after.replace(b"connections 2", b"connections 5") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["8-1.json", "ended"]


def test_a_file_that_was_folded_and_is_still_there_counts_once(tmp_path: Path) -> None:
    metrics = worker(tmp_path, 7)
    metrics.observe("/a", 202, 0.001)
    metrics.publish()
    left = (tmp_path / "7-1.json").read_bytes()
    fold(tmp_path, 7)
    (tmp_path / "7-1.json").write_bytes(left)  # as at the moment between writing the sum and removing the file
    assert node_counts(tmp_path).requests == {"/a": {202: 1}}


def test_counts_never_fall_nor_jump_while_workers_end(tmp_path: Path) -> None:
    workers = 200
    for pid in range(workers):
        metrics = worker(tmp_path, pid)
        metrics.observe("/a", 202, 0.001)
        metrics.publish()
    seen: set[int] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.add(node_counts(tmp_path).requests["/a"][202])

    reader = threading.Thread(target=look)
    reader.start()
    for pid in range(workers):
        fold(tmp_path, pid)
    done.set()
    reader.join()
    assert seen == {workers}
    assert [path.name for path in tmp_path.iterdir()] == ["ended"]


def test_a_worker_that_counted_nothing_leaves_no_file(tmp_path: Path) -> None:
    metrics = RequestMetrics(tmp_path)
    metrics.publish(connections=0)
    assert list(tmp_path.iterdir()) == []
    fold(tmp_path, os.getpid())


def test_where_the_disk_takes_no_counts_a_worker_knows_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, metrics = worker(tmp_path, 1), worker(tmp_path, 2)
    for one in (other, metrics):
        one.observe("/a", 202, 0.001)
        one.publish()
    monkeypatch.setattr("ingest.metrics._write", full_disk)
    metrics.observe("/a", 202, 0.001)
    with pytest.raises(OSError, match="No space"):
        metrics.publish()
    assert requests(metrics.exposition(None)) == {("/a", "202"): 3}
    assert sum(metrics.node().durations_of(["/a"])) == 3


def full_disk(path: Path, data: bytes) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_was_published_stays_until_it_is_published_anew(tmp_path: Path) -> None:
    metrics, other = worker(tmp_path, 1), worker(tmp_path, 2)
    metrics.observe("/a", 202, 0.001)
    assert requests(other.exposition(None)) == {}
    metrics.publish()
    metrics.observe("/a", 202, 0.001)
    assert requests(other.exposition(None)) == {("/a", "202"): 1}
    metrics.publish()
    assert requests(other.exposition(None)) == {("/a", "202"): 2}
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]  # no file half-written left


def test_without_a_flusher_its_figures_are_left_out_and_up_is_0(tmp_path: Path) -> None:
    found = samples(RequestMetrics(tmp_path).exposition(None))
    assert found["persistence_flusher_up", ()] == 0
    assert not any(name == "persistence_journal_bytes" for name, _ in found)


def test_the_flushers_figures_come_under_their_names(tmp_path: Path) -> None:
    found = samples(RequestMetrics(tmp_path).exposition(STATS))
    age = ("reason", "age")
    expected = {
        ("persistence_flusher_up", ()): 1,
        ("persistence_database_up", ()): 1,
        ("persistence_database_connections", ()): 2,
        ("persistence_writers", ()): 3,
        ("persistence_flusher_connections", ()): 1,
        ("persistence_alarm", ()): 0,
        ("persistence_trouble", (("cause", "segment"),)): 1,
        ("persistence_flush_interval_seconds", ()): 30,
        ("persistence_accepting", ()): 1,
        ("persistence_journal_bytes", ()): 500,
        ("persistence_journal_max_bytes", ()): 1000,
        ("persistence_journal_segments", ()): 2,
        ("persistence_journal_damaged_bytes_total", ()): 17,
        ("persistence_unsynced_records", ()): 10,
        ("persistence_backlog_oldest_age_seconds", ()): 1.5,
        ("persistence_dead_letters_waiting", ()): 12,
        ("persistence_backlog_records", (("kind", "sessions"),)): 3,
        ("persistence_backlog_records", (("kind", "tasks"),)): 4,
        ("persistence_records_accepted_total", (("kind", "sessions"),)): 13,
        ("persistence_rows_written_total", (("kind", "tasks"),)): 8,
        ("persistence_flush_failures_total", (("error_class", "retry"),)): 16,
        ("persistence_flush_failures_by_code_total", (("code", "1213"),)): 15,
        ("persistence_flush_failures_by_code_total", (("code", "1205"),)): 1,
        ("persistence_records_coalesced_total", ()): 11,
        ("persistence_records_dead_lettered_total", ()): 19,
        ("persistence_database_statements_total", ()): 9,
        ("persistence_flush_duration_seconds_bucket", (("le", "0.1"), age)): 4,
        ("persistence_flush_duration_seconds_bucket", (("le", "1.0"), age)): 5,
        ("persistence_flush_duration_seconds_bucket", (("le", "+Inf"), age)): 6,
        ("persistence_flush_duration_seconds_count", (age,)): 6,
        ("persistence_flush_duration_seconds_sum", (age,)): 7.5,
        ("persistence_flush_batch_records_bucket", (("le", "10.0"), age)): 2,
        ("persistence_flush_batch_records_count", (age,)): 6,
        ("persistence_flush_batch_records_sum", (age,)): 600,
    }
    assert {key: found.get(key) for key in expected} == expected


def test_what_is_wrong_shows_in_the_gauges(tmp_path: Path) -> None:
    state = {**STATS["state"], "acceptance": "full", "database": "not_writable", "alarm": "the table is gone"}
    found = samples(RequestMetrics(tmp_path).exposition({**STATS, "state": state}))
    assert found["persistence_accepting", ()] == 0
    assert found["persistence_database_up", ()] == 0
    assert found["persistence_database_state", (("state", "not_writable"),)] == 1
    assert found["persistence_database_state", (("state", "down"),)] == 0
    assert found["persistence_alarm", ()] == 1


def test_a_second_has_one_computation_however_many_ask_and_whatever_it_ends_in() -> None:
    computed = []
    now = 0.0

    class Flusher:
        async def stats(self) -> bytes:
            await asyncio.sleep(0)
            return b"{}"

    def exposition(_stats: object) -> bytes:
        computed.append(now)
        if len(computed) == 2:
            raise OSError
        return b"%d" % len(computed)

    async def main() -> None:
        nonlocal now
        resource = Metrics(cast(Any, Flusher()), exposition, lambda: now)

        async def get() -> bytes:
            response = SimpleNamespace()
            await resource.on_get(cast(Any, None), cast(Any, response))
            return cast(bytes, response.data)

        assert await asyncio.gather(*[get() for _ in range(200)]) == [b"1"] * 200
        now = METRICS_SHARED_S - 0.001
        assert await get() == b"1"
        now = METRICS_SHARED_S
        assert {type(one) for one in await asyncio.gather(get(), get(), return_exceptions=True)} == {OSError}
        now = 2 * METRICS_SHARED_S
        assert await get() == b"3"

    asyncio.run(main())
    assert computed == [0.0, METRICS_SHARED_S, 2 * METRICS_SHARED_S]
