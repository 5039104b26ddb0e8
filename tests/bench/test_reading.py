"""bench.reading, small: every figure is there, and has its bound."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench import reading


def test_it_measures_what_has_a_bound(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "EXPORTED", 2000)
    options = argparse.Namespace(sessions=25, tasks=50, large=100, rounds=3, no_isolation=True)
    with ExitStack() as stack:
        raw = reading.measure(options, short_path, stack)
    assert set(raw["ratios"]) == {name for name in reading.BOUNDS if not name.startswith("posts")}
    assert all(value > 0 for value in raw["ratios"].values())
    assert len(raw["export"]["http"]) == len(raw["export"]["sql"]) == 5
