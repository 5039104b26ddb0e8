from __future__ import annotations

import copy
from typing import Any

import pytest

from bench import report
from bench.bench import Trial
from bench.contenders import Contender
from bench.landing import highest_kept_up
from bench.latency import not_as_meant
from bench.plan import ALWAYS, ASGI, CELLS_OF, FALCON, KEYS, LOAD_DATA, NAMES, OURS, TWO_WORKERS, Cell
from bench.ratios import problems, ratios, verdict


def measured(wanted: Cell, value: float) -> dict[str, Any]:
    figures = {"latency_us": {"p50": value, "p99": 2 * value}} if wanted.latencies else {"requests_per_s": value}
    rounds = [{**figures, "problems": []} for _ in range(3)]
    return {"contender": wanted.contender, "load": wanted.load, "rounds": rounds}


def p99(*values: float, rows: float = 0) -> list[dict[str, Any]]:
    return [{"latency_us": {"p50": value / 2, "p99": value}, "rows_per_s": rows, "problems": []} for value in values]


def landed(value: float, *rss_mb: float) -> dict[str, Any]:
    memory = dict(zip(("ingest worker", "flusher", "writer"), rss_mb, strict=False))
    return {"rows_per_s": value, "offered_per_s": 9.0, "rss_mb": memory, "problems": []}


def limit(value: float) -> dict[str, Any]:
    return {"rows_per_s": value, "rows_in_one": 1000, "problems": []}


RAW: dict[str, Any] = {
    "plan": "full",
    "seconds": 1.0,
    "machine": {
        "cores": 2,
        "processor": "P",
        "memory_gib": 1,
        "kernel": "K",
        "python": "3",
        "database": "M",
        "wrk": "W",
        "filesystem": "ext4",
        "pins": True,
        "realtime": True,
        "database_gives_way": True,
    },
    "cells": [
        measured(Cell(FALCON, 1, 16), 20_000),
        measured(Cell(OURS, 1, 16), 15_000),
        measured(Cell(FALCON, 100, 16), 10_000),
        measured(Cell(OURS, 100, 16), 4_000),
        measured(Cell(OURS, 1, 64), 16_000),
        measured(Cell(ALWAYS, 1, 64), 8_000),
        measured(Cell(OURS, 1, 16, pinned=False), 10_000),
        measured(Cell(TWO_WORKERS, 1, 16, pinned=False), 11_000),
        measured(Cell(ASGI, 1, 1, pinned=False, latencies=True), 100),
        measured(Cell(OURS, 1, 1, pinned=False, latencies=True), 150),
    ],
    "locked": {"idle": p99(2000), "locked": p99(2200)},
    "flushing": {
        "highest": [{"requests_per_s": 9.0, "problems": []}],
        "flushing": p99(2000, 4000, 3000, rows=40_000),
        "away": p99(1000),
    },
    "landing": {
        LOAD_DATA: [limit(44_000), limit(60_000), limit(50_000)],
        OURS: [landed(20_000, 30, 40, 45), landed(40_000, 30, 20, 25), landed(30_000, 50, 20, 25)],
    },
    "statements": {"per_1000": 2.0, "problems": []},
    "lifecycle": {"rows_per_record": 0.36, "problems": []},
    "recovery": {"records_per_s": 250_000.0, "start": {"ready_s": 0.5, "counted_s": 0.6}, "problems": []},
    "rss_mb": {"ingest worker": {"mb": 99.0, "where": "batch 1000"}},
    "problems": [],
}
EXPECTED = {
    "rps_vs_ceiling_falcon": 0.75,
    "p50_vs_ceiling_asgi": 1.5,
    "records_vs_ceiling_falcon": 0.4,
    "p99_locked_vs_idle": 1.1,
    "p99_flushing_vs_idle": 3.0,
    "landing_vs_load_data": 0.6,
    "statements_per_1000": 2.0,
    "rows_per_record_lifecycle": 0.36,
    "workers2_vs_1": 1.1,
    "rss_mb": {"ingest worker": 50, "flusher": 40, "writer": 45},
    "recover_records_per_s": 250_000.0,
    "always_vs_interval": 0.5,
}


def test_every_key_is_made_of_the_figures_it_names() -> None:
    assert ratios(RAW) == EXPECTED
    assert list(ratios(RAW)) == list(NAMES)
    assert ratios(RAW, ["rss_mb", "statements_per_1000"]).keys() == {"rss_mb", "statements_per_1000"}
    assert ratios({}) == dict.fromkeys(NAMES)


@pytest.mark.parametrize(
    ("place", "spoilt"),
    [
        (("cells", 0), {"rps_vs_ceiling_falcon"}),
        (("cells", 1), {"rps_vs_ceiling_falcon"}),
        (("cells", 3), {"records_vs_ceiling_falcon"}),
        (("cells", 5), {"always_vs_interval"}),
        (("cells", 7), {"workers2_vs_1"}),
        (("cells", 9), {"p50_vs_ceiling_asgi"}),
        (("locked", "locked", 0), {"p99_locked_vs_idle"}),
        (("flushing", "away", 0), {"p99_flushing_vs_idle"}),
        (("landing", LOAD_DATA, 0), {"landing_vs_load_data"}),
        (("landing", OURS, 0), {"landing_vs_load_data", "rss_mb"}),
        (("statements",), {"statements_per_1000"}),
        (("lifecycle",), {"rows_per_record_lifecycle"}),
        (("recovery",), {"recover_records_per_s"}),
    ],
)
def test_an_error_anywhere_makes_just_the_ratios_of_that_measurement_invalid(
    place: tuple[Any, ...], spoilt: set[str]
) -> None:
    raw = copy.deepcopy(RAW)
    part: Any = raw
    for name in place:
        part = part[name]
    (part["rounds"][-1] if "rounds" in part else part)["problems"].append("3 answers with status 503")

    found = ratios(raw)

    assert found == {name: None if name in spoilt else value for name, value in EXPECTED.items()}
    (problem,) = problems(raw)
    assert problem.endswith("3 answers with status 503")
    raw |= {"problems": [problem], "ratios": found}
    assert "NOT VALID" in report.text(raw)
    assert problem in report.text(raw)


@pytest.mark.parametrize("part", ["locked", "flushing", "landing", "statements", "recovery"])
def test_a_measurement_that_failed_as_a_whole_is_reported_and_the_rest_is_shown(part: str) -> None:
    raw = {**RAW, part: {"problems": ["it ended"]}}
    raw |= {"problems": problems(raw), "ratios": ratios(raw)}

    assert raw["problems"] == [f"{part}: it ended"]
    assert f"{part}: it ended" in report.text(raw)


@pytest.mark.parametrize("sent", [{"requests": 7}, {"answered": 7}])
def test_a_record_that_was_answered_and_not_accepted_makes_its_round_invalid(sent: dict[str, int]) -> None:
    class Lossy(Contender):
        records = 100

        def accepted(self) -> int:
            return self.records

    lossy = Lossy()
    trial = Trial(lossy, 10, ["warm-up: 503"])
    lossy.records += 69

    found = trial.round({**sent, "problems": ["1 errors: read"]})

    assert found["problems"] == ["warm-up: 503", "1 errors: read", "70 records were answered, 69 accepted"]
    lossy.records += 1
    assert trial.round({**sent, "problems": []})["problems"] == ["warm-up: 503"]


@pytest.mark.parametrize(
    ("state", "share", "rows", "valid"),
    [
        ("flushing", 1.9, 100, True),
        ("flushing", 0.9, 100, True),
        ("flushing", 0.89, 100, False),
        ("flushing", 1.9, 0, False),
        ("away", 0.0, 0, True),
        ("away", 0.0, 1, False),
    ],
)
def test_a_round_in_which_flushes_did_not_run_as_they_should_is_invalid(
    state: str, share: float, rows: int, valid: bool
) -> None:
    assert (not_as_meant(state, share, rows) == []) is valid


@pytest.mark.parametrize("most", [300.0, 840.0, 1040.0])
def test_the_highest_rate_that_is_kept_up_is_found_and_what_landed_of_too_much_does_not_count(most: float) -> None:
    def land(rate: float) -> dict[str, Any]:
        rows = min(rate, most if rate <= most else 0.6 * most) * 100.0
        return {"rows": rows, "seconds": 100.0, "rows_per_s": rows / 100, "offered_per_s": rate, "problems": []}

    found = highest_kept_up(land, 1000.0, 0.85, 6)

    assert most - 1100 / 2**4 <= found["rows_per_s"] <= most
    assert len(found["tries"]) == 6
    assert highest_kept_up(land, 1e6 * most, 0.85, 1)["tries"][0]["kept_up"], "a single step is taken as it is"


def test_where_no_rate_is_kept_up_the_round_is_invalid() -> None:
    nothing = {"rows": 0, "seconds": 100.0, "rows_per_s": 0.0, "problems": []}

    assert highest_kept_up(lambda _: nothing, 1000.0, 0.85, 3)["problems"] == ["no rate was kept up"]


def test_a_try_that_fails_ends_its_round_and_spoils_it() -> None:
    found = highest_kept_up(lambda _: {"rows": 9, "seconds": 1.0, "problems": ["503"]}, 1.0, 0.85, 5)

    assert found["problems"] == ["503"]
    assert len(found["tries"]) == 1


def test_memory_of_a_process_that_was_never_seen_is_not_small() -> None:
    raw = copy.deepcopy(RAW)
    del raw["landing"][OURS][0]["rss_mb"]["writer"]

    assert ratios(raw)["rss_mb"] is None


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("rps_vs_ceiling_falcon", 1.0, True),
        ("rps_vs_ceiling_falcon", 0.9999, False),
        ("rps_vs_ceiling_falcon", None, None),
        ("p50_vs_ceiling_asgi", 2.0, True),
        ("p50_vs_ceiling_asgi", 2.01, False),
        ("workers2_vs_1", 0.1, None),
        ("rss_mb", {"ingest worker": 60, "flusher": 60, "writer": 150}, True),
        ("rss_mb", {"ingest worker": 60, "flusher": 61, "writer": 150}, False),
    ],
)
def test_a_bound_is_kept_or_not(name: str, value: Any, expected: bool | None) -> None:
    assert verdict(next(key for key in KEYS if key.name == name), value) is expected


def test_the_report_names_every_key_with_its_figure_and_bound() -> None:
    text = report.text({**RAW, "ratios": ratios(RAW)})

    assert "NOT VALID" not in text
    assert "3,000 (2,000 to 4,000) / 1,000" in text
    assert "150 (150 to 150) / 300 (300 to 300)" in text
    assert "44,000 (1000 rows each), 60,000 (" in text
    assert "ingest worker 99 (batch 1000)" in text
    assert "may not change" not in text
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| **")]
    shown = {row[0].strip("*"): row[2:] for row in cells}
    assert list(shown) == list(NAMES)
    assert shown["recover_records_per_s"] == ["250,000", "≥ 250,000", "yes"]
    assert shown["p99_flushing_vs_idle"] == ["3", "≤ 2", "NO"]
    assert shown["rss_mb"] == ["50, 40, 45", "≤ 60, 60, 150", "yes"]
    assert shown["workers2_vs_1"] == ["1.1", "reported", ""]


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ({"realtime": False}, "may not use real-time priority"),
        ({"database_gives_way": False}, "may not change the database's priority"),
        ({"pins": False, "database_gives_way": False}, "There is one core"),
    ],
)
def test_the_report_says_what_this_machine_does_not_allow(machine: dict[str, bool], said: str) -> None:
    usual = {**RAW, "ratios": ratios(RAW)}

    assert said not in report.text(usual)
    assert said in report.text({**usual, "machine": RAW["machine"] | machine})


def test_every_ratio_of_cells_names_cells_of_one_group() -> None:
    for cells in CELLS_OF.values():
        assert len({one.group for one in cells}) == 1
