from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.support.service import ROOT
from tests.system.chaos import report as reports
from tests.system.chaos.faults import KINDS
from tests.system.chaos.model import COLUMNS, KEYS, SESSIONS, TABLES, TASKS, Differences, Model, compare, fetched, row
from tests.system.chaos.run import schedule

STARTED_AT = datetime(2026, 11, 23, 10, 15, 30)


@pytest.mark.timeout(400)
def test_nothing_acknowledged_is_lost_by_sixty_faults(short_path: Path) -> None:
    file = short_path / "report.json"
    command = [sys.executable, "-m", "tests.system.chaos", "--faults", "60", "--seed", "7", "--json", str(file)]
    with (short_path / "output").open("w+") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            status = process.wait(360)
        finally:
            if process.poll() is None:
                # It takes with it what it has started.
                process.send_signal(signal.SIGTERM)
                process.wait(30)
        output.seek(0)
        text = output.read()

    assert status == 0, text
    report = json.loads(file.read_bytes())
    assert report["problems"] == []
    assert report["faults"]["hit"] == 60
    assert report["records"]["acknowledged"] > 0
    assert 0 < report["records"]["rows"] <= report["records"]["keys"]
    assert report["requests"]["sent"] > 0


def test_sixty_faults_have_every_kind_and_a_seed_repeats_them() -> None:
    faults = list(islice(schedule(7, 2.5, KINDS), 60))

    assert Counter(fault.kind for fault in faults) == {kind: share for kind, (share, _, _) in KINDS.items()}
    assert faults == list(islice(schedule(7, 2.5, KINDS), 60))
    assert faults != list(islice(schedule(8, 2.5, KINDS), 60))
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)


def model_of_three_states(kind: str) -> Model:
    """Of "s/k": version 1 and 2 were acknowledged, 3 was sent and got no answer."""
    model = Model(STARTED_AT)
    model.sent(kind, [("s/k", 1)])
    model.acknowledged(kind, [("s/k", 1)])
    model.sent(kind, [("s/k", 2), ("s/k", 3)])
    model.acknowledged(kind, [("s/k", 2)])
    return model


def differences(model: Model, kind: str, rows: list[tuple[Any, ...]]) -> dict[str, int]:
    found = Differences()
    compare(model, kind, rows, found)
    assert len(found.examples) == found.total
    return {name: count for name in ("lost", "stale", "duplicated", "unexpected") if (count := getattr(found, name))}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("version", [2, 3])
def test_the_newest_acknowledged_state_and_a_newer_one_without_answer_are_both_right(kind: str, version: int) -> None:
    assert differences(model_of_three_states(kind), kind, [row(kind, "s/k", version, STARTED_AT)]) == {}


@pytest.mark.parametrize("kind", TABLES)
def test_an_acknowledged_key_without_a_row_is_lost(kind: str) -> None:
    assert differences(model_of_three_states(kind), kind, []) == {"lost": 1}


def test_a_key_that_was_never_acknowledged_may_be_absent() -> None:
    model = Model(STARTED_AT)
    model.sent(TASKS, [("s/k", 1)])

    assert differences(model, TASKS, []) == {}


@pytest.mark.parametrize("kind", TABLES)
def test_a_row_older_than_the_newest_acknowledged_is_stale(kind: str) -> None:
    assert differences(model_of_three_states(kind), kind, [row(kind, "s/k", 1, STARTED_AT)]) == {"stale": 1}


@pytest.mark.parametrize("kind", TABLES)
def test_a_second_row_of_a_key_is_a_duplicate(kind: str) -> None:
    rows = [row(kind, "s/k", 2, STARTED_AT), row(kind, "s/k", 3, STARTED_AT)]

    assert differences(model_of_three_states(kind), kind, rows) == {"duplicated": 1}


@pytest.mark.parametrize("kind", TABLES)
def test_a_key_or_a_version_that_nobody_sent_is_unexpected(kind: str) -> None:
    model = model_of_three_states(kind)
    right = row(kind, "s/k", 2, STARTED_AT)

    assert differences(model, kind, [right, row(kind, "ghost0", 1, STARTED_AT)]) == {"unexpected": 1}
    assert differences(model, kind, [row(kind, "s/k", 4, STARTED_AT)]) == {"unexpected": 1}
    assert differences(model, kind, [(*right[:-1], STARTED_AT + timedelta(days=1))]) == {"unexpected": 1}


@pytest.mark.parametrize("kind", TABLES)
def test_a_row_that_differs_from_what_was_sent_in_any_column_is_unexpected(kind: str) -> None:
    model = model_of_three_states(kind)
    right = row(kind, "s/k", 2, STARTED_AT)
    for index, name in list(enumerate(COLUMNS[kind]))[len(KEYS[kind]) : -1]:
        wrong = (*right[:index], "something else", *right[index + 1 :])
        assert differences(model, kind, [wrong]) == {"unexpected": 1}, name


def test_the_newest_acknowledged_state_does_not_depend_on_the_order_of_acknowledgements() -> None:
    model = Model(STARTED_AT)
    model.sent(TASKS, [("s/k", 1), ("s/k", 2)])
    model.acknowledged(TASKS, [("s/k", 2), ("s/k", 1)])

    assert differences(model, TASKS, [row(TASKS, "s/k", 1, STARTED_AT)]) == {"stale": 1}


def test_objects_are_compared_by_what_they_hold() -> None:
    right = row(SESSIONS, "s/k", 2, STARTED_AT)
    spaced = tuple(json.dumps(value) if isinstance(value, dict) else value for value in right)

    assert spaced != right
    assert fetched(SESSIONS, spaced) == right


@pytest.mark.parametrize("what", reports.ZERO)
def test_the_verdict_is_bad_when_anything_that_must_be_zero_is_not(what: str) -> None:
    good: dict[str, Any] = {
        "must_be_zero": dict.fromkeys(reports.ZERO, 0),
        "faults": {"hit": 1, "asked": 1},
        "records": {"acknowledged": 1},
        "healed": True,
        "flushed": True,
    }

    assert reports.problems(good) == []
    assert len(reports.problems({**good, "must_be_zero": {**good["must_be_zero"], what: 1}})) == 1
    assert len(reports.problems({**good, "healed": False})) == 1
    assert len(reports.problems({**good, "flushed": False})) == 1
    assert len(reports.problems({**good, "records": {"acknowledged": 0}})) == 1
    assert len(reports.problems({**good, "faults": {"hit": 0, "asked": 1}})) == 1
