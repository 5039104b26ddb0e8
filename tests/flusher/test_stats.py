from __future__ import annotations

from flusher.figures import Histogram


def test_a_value_counts_in_the_first_bucket_whose_bound_is_not_below_it() -> None:
    histogram = Histogram((1, 10))
    for value in (0.5, 1, 1.5, 10, 11, 99):
        histogram.observe("age", value)
    histogram.observe("size", 2)
    assert histogram.document() == {
        "bounds": (1, 10),
        "by_reason": {"age": {"counts": [2, 2, 2], "sum": 123.0}, "size": {"counts": [0, 1, 0], "sum": 2}},
    }
