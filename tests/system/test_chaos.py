"""The chaos run, in short forms of all its engines, and what its verdict rests on."""

from __future__ import annotations

import asyncio
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

from scripts import cluster
from scripts.network import Network, network_of
from scripts.servers import ClusterFault, Servers
from tests.support import group
from tests.support.service import ROOT
from tests.system.chaos import report as reports
from tests.system.chaos.faults import KINDS, deck
from tests.system.chaos.load import REQUESTS_AT_ONCE, Client, Load
from tests.system.chaos.model import COLUMNS, KEYS, SESSIONS, TABLES, TASKS, Differences, Model, compare, fetched, row
from tests.system.chaos.run import Fault, FaultRun, schedule

STARTED_AT = datetime(2026, 11, 23, 10, 15, 30)
NO_GALERA, NO_GROUP = cluster.missing(), group.missing()


def chaos(directory: Path, *options: str) -> dict[str, Any]:
    """A run with a good verdict. Returns: its report."""
    file = directory / "report.json"
    command = [sys.executable, "-m", "tests.system.chaos", *options, "--json", str(file)]
    with (directory / "output").open("w+") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            status = process.wait(360)
        finally:
            if process.poll() is None:
                # It takes with it what it has started.
                process.send_signal(signal.SIGTERM)
                process.wait(60)
        output.seek(0)
        text = output.read()
    assert status == 0, text
    report: dict[str, Any] = json.loads(file.read_bytes())
    assert report["problems"] == []
    assert report["faults"]["hit"] == report["faults"]["asked"]
    assert report["records"]["acknowledged"] > 0
    assert 0 < report["records"]["rows"] <= report["records"]["keys"]
    return report


@pytest.mark.timeout(400)
def test_nothing_acknowledged_is_lost_by_sixty_faults(short_path: Path) -> None:
    chaos(short_path, "--faults", "60", "--seed", "7")


@pytest.mark.timeout(400)
@pytest.mark.skipif(bool(NO_GALERA), reason=f"no Galera cluster here: {NO_GALERA}")
def test_three_nodes_on_galera_lose_nothing_whatever_breaks(short_path: Path) -> None:
    report = chaos(short_path, "--nodes", "3", "--faults", "10", "--seed", "2016", "--restarts", "1")

    assert report["nodes"]["drained"]["sent"] > 0
    assert len(report["nodes"]["same"]["digests"]) == 9
    assert len(report["digests"]) == 3


@pytest.mark.timeout(400)
@pytest.mark.skipif(bool(NO_GROUP), reason=f"no Group Replication here: {NO_GROUP}")
def test_three_nodes_on_a_group_go_on_at_its_next_primary(short_path: Path) -> None:
    options = ("--nodes", "3", "--database", "group", "--restarts", "1", "--seed", "5")
    # How fast is measured by a run on a machine that does nothing else.
    report = chaos(short_path, *options, "--faults", "2", "--only", "primary killed", "--fail-over", "30")

    assert len(report["nodes"]["fail_overs"]) == 2
    assert len(report["digests"]) == 3


def test_sixty_faults_have_every_kind_and_a_seed_repeats_them() -> None:
    kinds = deck(alone=True, has={"disk"})
    faults = list(islice(schedule(7, 2.5, kinds), sum(share for share, *_ in kinds.values())))

    assert Counter(fault.kind for fault in faults) == {kind: share for kind, (share, *_) in kinds.items() if share}
    assert faults == list(islice(schedule(7, 2.5, kinds), len(faults)))
    assert faults != list(islice(schedule(8, 2.5, kinds), len(faults)))
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)


def test_the_short_run_on_galera_breaks_service_nodes_database_nodes_and_links() -> None:
    kinds = deck(alone=False, has={"links", "galera"})
    found = " ".join(fault.kind for fault in islice(schedule(2016, 1, kinds), 10))

    for what in ("database node", "service node", "cut off", "killed", "stopped for a while"):
        assert what in found


@pytest.mark.parametrize(
    ("has", "left_out"),
    [
        ({"links", "galera"}, {"primary killed"}),
        ({"group"}, {name for name, kind in KINDS.items() if kind.needs in ("links", "galera")}),
    ],
)
def test_what_cannot_be_done_here_is_not_drawn(has: set[str], left_out: set[str]) -> None:
    every = {name for name, kind in KINDS.items() if kind.among}

    assert {name for name, (share, *_) in deck(alone=False, has=has).items() if share} == every - left_out


class Faulty(FaultRun):
    """Actions that fail: before they have hit, after it, or in a way that no fault explains."""

    async def do(self, fault: Fault) -> None:
        if fault.kind == "odd":
            raise ZeroDivisionError
        self.hit(fault)
        raise ClusterFault("does not come back")


def test_a_run_ends_whatever_its_actions_meet(tmp_path: Path) -> None:
    run = Faulty(tmp_path / "log")
    asyncio.run(run.run(1, iter([Fault(0, "odd", 0, 0), Fault(0, "even", 0, 0)])))

    assert run.hits == {"even": 1}
    assert run.missed == Counter(odd=1)
    assert run.broken == ["odd: ZeroDivisionError()"]


def test_a_client_that_ends_is_in_the_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(*_: object) -> None:
        raise ZeroDivisionError

    async def go() -> Load:
        nowhere = ("127.0.0.1", 1)
        load = Load(Model(STARTED_AT), nowhere, 1, tmp_path / "log", clients=1, rate=1, stored_at=lambda *_: {})
        load.start()
        assert await load.stop(1) == 0
        return load

    monkeypatch.setattr(Client, "run", run)
    assert asyncio.run(go()).figures.wrong == {"a client ended: ZeroDivisionError()": REQUESTS_AT_ONCE}


class GivenUp(Servers):
    """Servers of which number 2 has no process; `fails` times the cluster does not get whole."""

    def __init__(self, fails: int) -> None:
        self.down = {2}
        self.fails = fails
        self.revived = 0

    def pid(self, number: int) -> int:
        return number not in self.down

    def start(self, number: int) -> None:
        self.down.remove(number)

    def revive(self) -> None:
        self.revived += 1

    def wait_whole(self, timeout_s: float = 0) -> None:
        assert not self.down
        self.fails -= 1
        if self.fails >= 0:
            raise ClusterFault("not whole")


@pytest.mark.parametrize(("fails", "whole", "revived"), [(0, True, 0), (1, True, 1), (9, False, 2)])
def test_a_server_that_has_given_up_is_started_again_as_an_operator_would(
    fails: int, whole: bool, revived: int
) -> None:
    servers = GivenUp(fails)

    assert (servers.make_whole(), servers.down, servers.revived) == (whole, set(), revived)


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


GOOD: dict[str, Any] = {
    "must_be_zero": dict.fromkeys(reports.ZERO, 0),
    "faults": {"hit": 1, "asked": 1},
    "records": {"acknowledged": 1},
    "healed": True,
    "flushed": True,
    "broken": [],
    "digests": ["b"] * 3,
    "nodes": {
        "same": {"digests": ["a"] * 9, "rows": 1},
        "drained": {"sent": 1, "refused": 0, "unanswered": 0, "wrong": 0},
        "conflicts": {"in metrics": 1, "of the database": 1},
        "fail_overs": [(9.0, 1.9)],
        "most_fail_over_s": 2.0,
    },
}


@pytest.mark.parametrize(
    ("place", "change"),
    [
        *((("must_be_zero",), {what: 1}) for what in reports.ZERO),
        ((), {"healed": False}),
        ((), {"flushed": False}),
        ((), {"broken": ["a traceback"]}),
        ((), {"digests": ["b", "c"]}),
        ((), {"digests": []}),
        (("records",), {"acknowledged": 0}),
        (("faults",), {"hit": 0}),
        (("nodes", "same"), {"digests": ["a"] * 8 + ["b"]}),
        (("nodes", "same"), {"rows": 0}),
        (("nodes", "drained"), {"refused": 1}),
        (("nodes", "drained"), {"unanswered": 1}),
        (("nodes", "drained"), {"wrong": 1}),
        (("nodes", "drained"), {"sent": 0}),
        (("nodes", "conflicts"), {"in metrics": 0}),
        (("nodes",), {"fail_overs": [(9.0, 1.0), (9.0, 2.1)]}),
    ],
)
def test_the_verdict_is_bad_for_each_thing_that_must_hold(place: tuple[str, ...], change: dict[str, Any]) -> None:
    bad = json.loads(json.dumps(GOOD))
    part = bad
    for name in place:
        part = part[name]
    part |= change

    assert reports.problems(GOOD) == []
    assert len(reports.problems(bad)) == 1


def test_clusters_side_by_side_have_names_or_addresses_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for namespaces in (True, False):
        monkeypatch.setattr("scripts.network._may_make_namespaces", lambda namespaces=namespaces: namespaces)
        one, other, again = (network_of(Path(path), cluster.HOSTS) for path in ("/tmp/a", "/tmp/b", "/tmp/a"))
        assert one == again
        assert (one.name, one.prefix) != (other.name, other.prefix)
        assert len({one.address(host) for host in (*cluster.HOSTS, "")}) == len(cluster.HOSTS) + 1


def test_without_namespaces_a_command_runs_as_it_is() -> None:
    assert Network("", "127.1.1", {"db1": 1}).command("db1", ["true"]) == ["true"]
