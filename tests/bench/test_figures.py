from __future__ import annotations

import pytest

from bench.figures import median, percentile, phases, ratio, summary


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([7], 50, 7),
        ([7], 99.9, 7),
        ([1, 2, 3, 4], 50, 2),
        ([1, 2, 3, 4, 5], 50, 3),
        (list(range(1, 101)), 99, 99),
        (list(range(1, 101)), 99.9, 100),
        (list(range(1, 1001)), 99.9, 999),
        ([1, 2], 0, 1),
        ([1, 2], 100, 2),
    ],
)
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(
    values: list[float], percent: float, expected: float
) -> None:
    assert percentile(values, percent) == expected


def test_a_summary_sorts_and_counts_and_is_empty_without_values() -> None:
    found = summary([3.0, 1.0, 2.0, 100.0])

    assert found == {"count": 4, "p50": 2.0, "p90": 100.0, "p99": 100.0, "p99.9": 100.0, "max": 100.0}
    assert summary([]) == {}


def test_phases_are_told_apart_by_when_a_request_was_due() -> None:
    points = [(0.0, 1.0), (3.9, 3.0), (4.0, 50.0), (5.99, 70.0), (6.0, 9.0)]

    found = phases(points, 4.0, 6.0)

    assert {name: (one["count"], one["p50"], one["max"]) for name, one in found.items()} == {
        "before": (2, 1.0, 3.0),
        "locked": (2, 50.0, 70.0),
        "after": (1, 9.0, 9.0),
    }
    assert phases([], 4.0, 6.0) == {"before": {}, "locked": {}, "after": {}}


def test_the_median_round_counts() -> None:
    rounds = [{"rps": value, "latency_us": {"p99": value * 10}, "problems": []} for value in (5, 1, 3)]

    assert median(rounds, "rps") == 3
    assert median(rounds, "latency_us", "p99") == 30
    assert median([], "rps") is None


def test_one_invalid_round_makes_the_cell_invalid_and_not_fast() -> None:
    rounds = [{"rps": 1, "problems": []}, {"rps": 900, "problems": ["3 errors: status"]}]

    assert median(rounds, "rps") is None


def test_a_figure_that_was_not_measured_has_no_median() -> None:
    assert median([{"problems": []}], "rps") is None
    assert median([{"latency_us": {}, "problems": []}], "latency_us", "p99") is None


@pytest.mark.parametrize(
    ("value", "base", "expected"), [(3, 4, 0.75), (None, 4, None), (3, None, None), (3, 0, None), (0, 4, 0)]
)
def test_a_ratio_needs_both_of_its_figures(value: float | None, base: float | None, expected: float | None) -> None:
    assert ratio(value, base) == expected
