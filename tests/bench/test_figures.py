from __future__ import annotations

import pytest

from bench.figures import median, percentile, ratio, summary


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


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ([(5, []), (1, []), (3, [])], 3),
        ([(1, []), (900, ["3 errors: status"])], None),
        ([(1, []), (None, [])], None),
        ([], None),
    ],
    ids=["the median counts", "one invalid round", "one round without the figure", "nothing measured"],
)
def test_the_median_of_a_cell(figures: list[tuple[float | None, list[str]]], expected: float | None) -> None:
    rounds = [{"latency_us": {"p99": value} if value else {}, "problems": problems} for value, problems in figures]

    assert median(rounds, "latency_us", "p99") == expected


@pytest.mark.parametrize(
    ("value", "base", "expected"), [(3, 4, 0.75), (None, 4, None), (3, None, None), (3, 0, None), (0, 4, 0)]
)
def test_a_ratio_needs_both_of_its_figures(value: float | None, base: float | None, expected: float | None) -> None:
    assert ratio(value, base) == expected
