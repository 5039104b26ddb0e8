from __future__ import annotations

import asyncio
import logging
import os
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

from ingest import history
from ingest.forwarder import FlusherUnavailable
from ingest.history import WINDOW_S, History, Point, Recorder, Sample, percentile, point
from ingest.metrics import BUCKETS_S, Counts

NOW = 1_000_000_200.0
NO_REQUESTS = [0] * (len(BUCKETS_S) + 1)
STATS: dict[str, Any] = {
    "buffer": {"total_count": 7, "usage_percent": 1.5},
    "flush_info": {"flush_interval_seconds": 30, "total_flush_duration_seconds": 10.0},
    "performance": {
        "total_flush_count": 100,
        "total_sessions_written": 100,
        "total_tasks_written": 700,
        "uptime_seconds": 50.0,
        "writers": 2,
    },
    "at_risk": {"unsynced_records": 3, "oldest_uncommitted_seconds": 0.25},
    "coalescing": {"records_in": 1000, "rows_written": 800, "coalesced": 190},
    "dead_letters": {"count": 0, "total": 9, "last_error": None, "last_at": None},
    "damage": {"segments_set_aside": 0},
    "accepted": {"sessions": 200, "tasks": 900},
    "failures": {"retry": 5},
    "state": {
        "status": "healthy",
        "cause": None,
        "reason": None,
        "since": None,
        "database": "up",
        "last_error": "error 1213 (retry)",
    },
}


def stats(**sections: dict[str, Any]) -> dict[str, Any]:
    changed = deepcopy(STATS)
    for name, values in sections.items():
        changed[name] |= values
    return changed


def sample(at_s: float, document: dict[str, Any] | str = STATS, durations: list[int] = NO_REQUESTS) -> Sample:
    return Sample(NOW + at_s, 5000 + at_s, document, durations)


def empty(at: float) -> Point:
    return Point(at, "healthy")


def times(lines: list[bytes]) -> list[float]:
    return [msgspec.json.decode(line, type=Point).at for line in lines]


# ---- a point


def test_rates_are_those_since_the_point_before() -> None:
    after = stats(
        performance={"total_flush_count": 104, "uptime_seconds": 52.0, "total_tasks_written": 850},
        flush_info={"total_flush_duration_seconds": 10.1},
        coalescing={"records_in": 1200, "rows_written": 950, "coalesced": 50 + 190},
        accepted={"sessions": 210, "tasks": 980},
    )
    new = point(sample(0), sample(2, after))
    assert (new.accepted, new.written, new.rows, new.flush_ms, new.coalesced_percent) == (45, 100, 75, 25, 25)


def test_the_first_point_of_a_recorder_and_the_first_after_an_absence_have_no_rates() -> None:
    assert (point(None, sample(0)).accepted, point(None, sample(0)).requests) == (None, None)
    assert point(sample(0, "gone"), sample(2)).accepted is None


def test_a_step_of_the_clock_leaves_rates_alone() -> None:
    after = Sample(NOW - 3600, 5002, stats(accepted={"tasks": 1000}), NO_REQUESTS)
    assert point(sample(0), after).accepted == 50


def test_a_failure_of_a_flusher_that_was_started_anew_counts_from_zero() -> None:
    after = stats(performance={"uptime_seconds": 1.0}, failures={"retry": 0})
    assert point(sample(0), sample(2, after)).problems == {}
    failed = {**after, "failures": {"retry": 1}}
    assert point(sample(0), sample(2, failed)).problems == {"failure": "error 1213 (retry)"}


def test_what_waits_is_as_the_flusher_says() -> None:
    new = point(None, sample(0))
    assert (new.backlog, new.oldest_s, new.unsynced, new.journal_percent, new.writers) == (7, 0.25, 3, 1.5, 2)


def test_without_a_flusher_only_the_requests_are_known() -> None:
    durations = [0, 5, *NO_REQUESTS[2:]]
    new = point(sample(0), sample(2, "gone; look", durations))
    assert (new.status, new.cause, new.database, new.backlog, new.accepted) == ("unhealthy", "flusher", *[None] * 3)
    assert (new.reason, new.problems, new.requests) == ("gone; look", {"flusher": "gone; look"}, 2.5)


def test_a_database_that_was_not_heard_of_yet_is_not_known_rather_than_down() -> None:
    state = {"status": "degraded", "cause": "starting", "reason": "not yet", "database": "unknown"}
    new = point(None, sample(0, stats(state=state)))
    assert (new.status, new.database, new.reason, new.problems) == ("degraded", None, "not yet", {})


@pytest.mark.parametrize("database", ["up", "not_writable", "down"])
def test_the_state_is_the_flushers_and_its_reason_a_problem(database: str) -> None:
    state = {"status": "degraded", "cause": "rights", "reason": "error 1142", "since": "T", "database": database}
    new = point(None, sample(0, stats(state=state)))
    assert (new.status, new.cause, new.reason, new.since, new.database) == tuple(state.values())
    assert new.problems == {"rights": "error 1142"}


def test_an_error_that_is_over_is_a_problem_only_where_it_happened() -> None:
    failed = stats(failures={"retry": 6})
    assert point(sample(0), sample(2)).problems == {}
    assert point(sample(0), sample(2, failed)).problems == {"failure": "error 1213 (retry)"}
    assert point(sample(2, failed), sample(4, failed)).problems == {}


def test_a_failure_of_a_database_that_is_bad_is_no_second_problem() -> None:
    bad = {"cause": "locked", "reason": "no write has succeeded", "database": "not_writable"}
    failed = stats(failures={"retry": 6}, state=bad)
    assert point(sample(0), sample(2, failed)).problems == {"locked": "no write has succeeded"}


def test_what_lies_there_until_somebody_acts_is_a_problem_until_then() -> None:
    lying = stats(
        dead_letters={"count": 4, "last_error": "error 1406 (data)", "last_at": "T"}, damage={"segments_set_aside": 2}
    )
    new = point(sample(0, lying), sample(2, lying))
    assert (new.dead_letters, new.dead_letter_at) == (4, "T")
    assert new.problems == {"dead_letters": "error 1406 (data)", "damage": "2"}


def test_a_text_is_bounded() -> None:
    state = {"cause": "tables", "reason": "x" * 100_000}
    new = point(None, sample(0, stats(state=state, dead_letters={"count": 1, "last_error": "y" * 100_000})))
    assert len(msgspec.json.encode(new)) < 3000


# ---- latency


@pytest.mark.parametrize(
    ("counts", "rank", "expected_s"),
    [
        ({0: 10}, 0.5, 25e-6),
        ({1: 100}, 0.99, 99.5e-6),
        ({1: 50, 3: 50}, 0.5, 100e-6),
        ({1: 50, 3: 50}, 0.75, 300e-6),
        ({len(BUCKETS_S): 5}, 0.5, BUCKETS_S[-1]),
    ],
)
def test_a_percentile_lies_inside_its_bucket(counts: dict[int, int], rank: float, expected_s: float) -> None:
    durations = [counts.get(index, 0) for index in range(len(BUCKETS_S) + 1)]
    assert percentile(durations, rank) == pytest.approx(expected_s)


def test_latency_is_that_of_the_requests_in_between() -> None:
    before, after = [100, *NO_REQUESTS[1:]], [100, 10, *NO_REQUESTS[2:]]
    new = point(sample(0, durations=before), sample(2, durations=after))
    assert (new.requests, new.p50_ms, new.p99_ms) == (5, 0.075, 0.1)
    none = point(sample(0, durations=before), sample(2, durations=before))
    assert (none.requests, none.p50_ms) == (0, None)


def test_an_ingest_that_was_started_anew_counts_requests_from_zero() -> None:
    new = point(sample(0, durations=[100, *NO_REQUESTS[1:]]), sample(2, durations=[0, 4, *NO_REQUESTS[2:]]))
    assert new.requests == 2


# ---- the files


def test_the_window_can_be_read_whole_at_any_moment_and_little_more_is_kept(tmp_path: Path) -> None:
    files = History(tmp_path)
    recorded = []
    for step in range(3 * WINDOW_S // 2):
        at = NOW + 2 * step
        files.append(empty(at))
        recorded.append(at)
        if step % 50 == 0:
            assert times(files.read(0, at)) == [one for one in recorded if one > at - WINDOW_S]
    (kept,) = tmp_path.iterdir()
    assert len(kept.read_bytes().splitlines()) <= WINDOW_S
    assert kept.stat().st_mode & 0o077 == 0


def test_only_what_is_younger_is_read(tmp_path: Path) -> None:
    files = History(tmp_path)
    for step in range(10):
        files.append(empty(NOW + step))
    assert times(files.read(NOW + 7, NOW + 9)) == [NOW + 8, NOW + 9]
    assert files.read(NOW + 9, NOW + 9) == []
    # Those from before the clock was set back.
    assert times(files.read(0, NOW + 1)) == [NOW, NOW + 1]


def test_without_a_file_there_are_no_points(tmp_path: Path) -> None:
    assert History(tmp_path / "none").read(0, NOW) == []


def test_a_line_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    files = History(tmp_path)
    files.append(empty(NOW))
    path = tmp_path / "points"
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole + whole[:cut])
        assert times(files.read(0, NOW)) == [NOW]


def test_what_a_power_cut_has_made_of_a_line_is_passed_over(tmp_path: Path) -> None:
    files = History(tmp_path)
    for step in range(3):
        files.append(empty(NOW + step))
    path = tmp_path / "points"
    first, second, third = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join((first, bytes(50), bytes(9) + second, second[:-9] + bytes(9), b"", third, b"")))
    assert files.read(0, NOW + 2) == [first, third]


def test_a_short_write_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = History(tmp_path)
    files.append(empty(NOW))
    write = os.write
    monkeypatch.setattr(history.os, "write", lambda file, data: write(file, data[:10]))
    files.append(empty(NOW + 2))
    monkeypatch.undo()
    files.append(empty(NOW + 4))
    assert times(files.read(0, NOW + 4)) == [NOW, NOW + 4]


def test_one_records_and_the_next_when_it_has_ended(tmp_path: Path) -> None:
    first, second = History(tmp_path), History(tmp_path)
    assert first.lead()
    assert not second.lead()
    assert first.lead()
    first.close()
    assert second.lead()
    second.close()


# ---- refused records


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [
        ({}, {"tasks.status": 3, "TOKEN_WRONG": 1}, {"tasks.status": 3, "TOKEN_WRONG": 1}),
        ({"tasks.status": 3}, {"tasks.status": 5}, {"tasks.status": 2}),
        ({"tasks.status": 3}, {"tasks.status": 3}, {}),
        ({"tasks.status": 30}, {"tasks.status": 2}, {"tasks.status": 2}),  # ingest was started anew
    ],
)
def test_refusals_are_counted_by_reason(before: dict[str, int], after: dict[str, int], refused: dict[str, int]) -> None:
    old = Sample(NOW, 5000, STATS, NO_REQUESTS, before)
    for document in (STATS, "gone"):
        assert point(old, Sample(NOW + 2, 5002, document, NO_REQUESTS, after)).refused == refused


# ---- recording


class Flusher:
    """Answers with STATS, or not at all."""

    def __init__(self) -> None:
        self.gone = False
        self.asked = 0

    async def stats(self) -> bytes:
        self.asked += 1
        if self.gone:
            raise FlusherUnavailable("gone")
        return orjson.dumps(STATS)


class Clock:
    """Two seconds later each time."""

    def __init__(self) -> None:
        self.at = NOW

    def __call__(self) -> float:
        self.at += 2
        return self.at


def recorder(files: History, flusher: Flusher, **more: Any) -> Recorder:
    return Recorder(files, flusher.stats, Counts, [], wall=Clock(), monotonic=Clock(), **more)


def test_a_point_a_step_whether_the_flusher_answers_or_not(tmp_path: Path) -> None:
    files, flusher = History(tmp_path), Flusher()
    one = recorder(files, flusher)

    async def steps() -> None:
        for flusher.gone in (False, False, True, False, False):
            await one.step()

    asyncio.run(steps())
    one.close()
    points = [msgspec.json.decode(line, type=Point) for line in files.read(0, NOW + 100)]
    # The first step has none before it.
    assert [(new.status, new.accepted is None) for new in points] == [
        ("healthy", False),
        ("unhealthy", True),
        ("healthy", True),
        ("healthy", False),
    ]


def test_who_does_not_record_asks_nobody(tmp_path: Path) -> None:
    leader, flusher = History(tmp_path), Flusher()
    assert leader.lead()
    other = recorder(History(tmp_path), flusher)
    asyncio.run(other.step())
    assert flusher.asked == 0
    leader.close()
    asyncio.run(other.step())
    assert flusher.asked == 1
    other.close()


def test_a_directory_that_cannot_be_written_is_logged_once_and_recording_goes_on_when_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "history"
    blocked.write_text("a file in its place")
    files, flusher = History(blocked), Flusher()

    async def run() -> None:
        one = recorder(files, flusher, interval_s=0)
        steps = asyncio.Event()

        async def step() -> None:
            steps.set()
            await Recorder.step(one)

        one.step = step  # type: ignore[method-assign]
        one.start()
        for _ in range(3):
            steps.clear()
            await steps.wait()
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        blocked.unlink()
        while not (blocked / "points").exists():
            await asyncio.sleep(0)
        one.close()

    asyncio.run(run())
    assert len(caplog.records) == 1


def test_stats_of_another_version_are_logged_the_lock_is_given_back_and_recording_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files, other, flusher = History(tmp_path), History(tmp_path), Flusher()
    answers = iter([orjson.dumps(STATS), b"{}"])

    async def stats() -> bytes:
        return next(answers, None) or await flusher.stats()

    async def run() -> None:
        one = Recorder(files, stats, Counts, [], interval_s=0, wall=Clock(), monotonic=Clock())
        one.start()
        while not caplog.records:
            await asyncio.sleep(0)
        assert other.lead()
        other.close()
        while not (tmp_path / "points").exists():
            await asyncio.sleep(0)
        one.close()

    asyncio.run(asyncio.wait_for(run(), 30))
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_a_history_that_was_removed_while_it_is_recorded_is_made_anew(tmp_path: Path) -> None:
    files, flusher = History(tmp_path / "history"), Flusher()

    async def run() -> None:
        one = recorder(files, flusher, interval_s=0)
        one.start()
        for _ in range(2):
            while not (tmp_path / "history" / "points").exists():
                await asyncio.sleep(0)
            shutil.rmtree(tmp_path / "history")
        one.close()

    asyncio.run(asyncio.wait_for(run(), 30))
