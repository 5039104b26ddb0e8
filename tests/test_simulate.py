"""scripts/simulate.py: what it must keep whatever the numbers are, and what docs/SCALING.md shows of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from scripts.simulate import NOTICE_S, STEP_S, Layout, Outage, check, simulate
from tests.support.service import ROOT

LAYOUT = Layout("test", rate=1000, nodes=2, databases=1, database_rate=5000, node_rate=5000)
SCALING = ROOT / "docs" / "SCALING.md"
MEASURED: dict[str, Any] = json.loads((ROOT / "docs" / "outage.json").read_text())


def at(values: list[float], seconds: float) -> float:
    return values[round(seconds / STEP_S)]


def test_while_all_is_well_no_more_waits_than_a_batch_a_node() -> None:
    course = simulate(LAYOUT, [Outage("node", 0, 999, 1)], 60)

    assert max(course.waiting) <= LAYOUT.nodes * LAYOUT.max_buffer_size
    assert max(course.oldest_s) <= LAYOUT.nodes * LAYOUT.max_buffer_size / LAYOUT.rate + STEP_S
    assert sum(course.refused) == 0


def test_below_a_batch_a_record_waits_for_the_interval() -> None:
    course = simulate(replace(LAYOUT, rate=10), [Outage("node", 0, 999, 1)], 100)

    assert max(course.oldest_s) == pytest.approx(LAYOUT.flush_interval_s, abs=2 * STEP_S)


def test_while_the_database_is_away_all_that_comes_waits_and_then_goes_at_what_it_has_to_spare() -> None:
    course = simulate(LAYOUT, [Outage("database", 0, 10, 30)], 100)

    waiting = LAYOUT.rate * (30 + NOTICE_S)
    assert max(course.waiting) == pytest.approx(waiting, abs=LAYOUT.nodes * LAYOUT.max_buffer_size)
    assert max(course.oldest_s) == pytest.approx(30 + NOTICE_S, abs=LAYOUT.nodes * LAYOUT.max_buffer_size / LAYOUT.rate)
    caught_up_s = course.caught_up_s(40 + NOTICE_S, 2000)
    assert caught_up_s == pytest.approx(waiting / (LAYOUT.database_rate - LAYOUT.rate), rel=0.1)


def test_a_node_that_is_down_keeps_what_it_had_and_the_other_takes_all() -> None:
    course = simulate(LAYOUT, [Outage("node", 0, 19.9, 30)], 100)

    assert at(course.waiting, 45) > 0
    assert at(course.oldest_s, 45) >= 45 - 19.9
    assert sum(course.refused) == 0
    assert at(course.oldest_s, 60) < 5


def test_with_no_node_left_everything_is_refused() -> None:
    course = simulate(replace(LAYOUT, nodes=1), [Outage("node", 0, 10, 5)], 20)

    assert sum(course.refused) * STEP_S == pytest.approx(5 * LAYOUT.rate)


def test_a_full_journal_refuses_and_nothing_that_was_taken_is_gone() -> None:
    small = replace(LAYOUT, journal_max_bytes=5000 * LAYOUT.record_bytes)
    course = simulate(small, [Outage("database", 0, 10, 30)], 100)

    assert max(course.waiting) == pytest.approx(2 * 5000)
    refused = sum(course.refused) * STEP_S
    assert refused == pytest.approx(LAYOUT.rate * (30 + NOTICE_S) - 2 * 5000, abs=2000)


def test_databases_that_nothing_happens_to_are_counted_as_often_as_there_are() -> None:
    cells = replace(LAYOUT, rate=4000, nodes=8, databases=4)
    nothing = [Outage("node", 0, 999, 1)]
    one, all_of_them = simulate(LAYOUT, nothing, 30), simulate(cells, nothing, 30)

    assert all_of_them.waiting == pytest.approx([4 * waiting for waiting in one.waiting])


def test_the_measured_outage_is_met_as_closely_as_the_page_says() -> None:
    found = check(MEASURED)

    measured, simulated = found["most records waiting"]
    assert simulated == pytest.approx(measured, rel=0.1)
    measured, simulated = found["oldest, s"]
    assert simulated == pytest.approx(measured, abs=3.5)
    measured, simulated = found["caught up after, s"]
    assert simulated == pytest.approx(measured, abs=2.5)


def test_the_page_shows_what_the_commands_print() -> None:
    blocks = re.findall(
        r"^```console\n\$ python (scripts/simulate\.py[^\n]*)\n(.*?)^```$",
        SCALING.read_text(),
        re.MULTILINE | re.DOTALL,
    )
    assert len(blocks) == 2
    for command, shown in blocks:
        done = subprocess.run(
            [sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout == shown
