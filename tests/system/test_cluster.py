from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from scripts import cluster as trial
from scripts.galera import ClusterFault
from scripts.network import Network, network_of
from tests.support.service import ROOT
from tests.system.chaos import report as one_service
from tests.system.chaos.run import schedule
from tests.system.cluster import report as reports
from tests.system.cluster.faults import KINDS, Faults

SEED = 2016
FAULTS = 10


@pytest.mark.timeout(400)
@pytest.mark.skipif(bool(trial.missing()), reason=f"no Galera cluster here: {trial.missing()}")
def test_three_nodes_on_a_cluster_lose_nothing_whatever_breaks(short_path: Path) -> None:
    file = short_path / "report.json"
    options = ["--faults", str(FAULTS), "--seed", str(SEED), "--restarts", "1", "--json", str(file)]
    with (short_path / "output").open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.system.cluster", *options],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
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
    report = json.loads(file.read_bytes())
    assert report["problems"] == []
    assert report["faults"]["hit"] == FAULTS
    assert report["records"]["acknowledged"] > 0
    assert report["cluster"]["drained"]["requests"] > 0
    assert len(report["cluster"]["same"]["digests"]) == 9


def test_the_short_run_breaks_service_nodes_database_nodes_and_links() -> None:
    kinds = {fault.kind for fault in islice(schedule(SEED, 1, KINDS), FAULTS)}

    for what in ("database node", "service node", "cut off", "killed", "stopped for a while"):
        assert any(what in kind for kind in kinds), what


def test_every_fault_can_be_done(tmp_path: Path) -> None:
    faults = Faults(None, [], None, tmp_path / "log")  # type: ignore[arg-type] -- nothing is done here

    faults._log.close()
    assert set(faults._actions) == set(KINDS)


class GivenUp:
    """Database nodes; those in `down` have no process."""

    def __init__(self, down: set[int], fails: int) -> None:
        self.down = down
        self.fails = fails
        self.bootstrapped = 0

    def pid(self, number: int) -> int:
        return 0 if number in self.down else 1

    def start(self, number: int) -> None:
        self.down.remove(number)

    def status(self, number: int) -> dict[str, str]:
        return {"cluster_status": "non-Primary"}

    def set_global(self, number: int, assignment: str) -> None:
        self.bootstrapped += "pc.bootstrap" in assignment

    def wait_whole(self) -> None:
        assert not self.down
        self.fails -= 1
        if self.fails >= 0:
            raise ClusterFault("not whole")


@pytest.mark.parametrize(("fails", "whole", "bootstrapped"), [(0, True, 0), (1, True, 1), (9, False, 2)])
def test_a_database_node_that_has_given_up_is_started_again_and_the_run_goes_on(
    tmp_path: Path, fails: int, whole: bool, bootstrapped: int
) -> None:
    cluster = GivenUp({2}, fails)
    faults = Faults(cluster, [], None, tmp_path / "log")  # type: ignore[arg-type]
    assert (faults.make_whole(), cluster.down, cluster.bootstrapped) == (whole, set(), bootstrapped)
    faults._log.close()


@pytest.fixture
def good() -> dict[str, Any]:
    return {
        "must_be_zero": dict.fromkeys(one_service.ZERO, 0),
        "faults": {"hit": 1, "asked": 1},
        "records": {"acknowledged": 1},
        "healed": True,
        "flushed": True,
        "cluster": {
            "same": {"digests": ["a"] * 9, "rows": 1},
            "drained": {"restarts": 1, "requests": 1, "refused": 0, "unanswered": 0, "wrong": 0},
            "digests": ["b"] * 3,
            "conflicts": {"in metrics": 1, "of the database": 1},
        },
    }


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("same", {"digests": ["a"] * 8 + ["b"]}),
        ("same", {"rows": 0}),
        ("drained", {"refused": 1}),
        ("drained", {"unanswered": 1}),
        ("drained", {"wrong": 1}),
        ("drained", {"requests": 0}),
        ("conflicts", {"in metrics": 0}),
    ],
)
def test_the_verdict_is_bad_for_each_thing_that_must_hold_on_a_cluster(
    good: dict[str, Any], section: str, change: dict[str, Any]
) -> None:
    assert reports.problems(good) == []
    good["cluster"][section] |= change
    assert len(reports.problems(good)) == 1


def test_the_verdict_is_bad_when_the_databases_nodes_differ_or_one_service_would_have_failed(
    good: dict[str, Any],
) -> None:
    good["cluster"]["digests"][1] = "c"
    assert len(reports.problems(good)) == 1
    good["must_be_zero"]["lost"] = 1
    assert len(reports.problems(good)) == 2


def test_clusters_side_by_side_have_names_or_addresses_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for namespaces in (True, False):
        monkeypatch.setattr("scripts.network._may_make_namespaces", lambda namespaces=namespaces: namespaces)
        one, other, again = (network_of(Path(path), trial.HOSTS) for path in ("/tmp/a", "/tmp/b", "/tmp/a"))
        assert one == again
        assert (one.name, one.prefix) != (other.name, other.prefix)
        assert len({one.address(host) for host in (*trial.HOSTS, "")}) == len(trial.HOSTS) + 1


def test_without_namespaces_a_command_runs_as_it_is() -> None:
    assert Network("", "127.1.1", {"db1": 1}).command("db1", ["true"]) == ["true"]


def test_the_systemd_template_gives_each_node_a_supervisord_of_its_own(tmp_path: Path) -> None:
    unit = (ROOT / "deploy" / "persistence@.service").read_text(encoding="utf-8").replace("%%", "%")
    command = unit.partition("ExecStartPre=")[2].splitlines()[0]
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env={**os.environ, "PERSISTENCE_STATE_DIR": str(tmp_path)}, timeout=20
    )

    assert done.returncode == 0
    text = (tmp_path / "supervisord.conf").read_text()
    assert f"file={tmp_path}/supervisor.sock" in text
    assert f'command="{ROOT}/.venv/bin/python" -m flusher' in text
    assert "%(here)s" not in text
    delay_s = float(unit.partition("SERVICE_DRAIN_DELAY=")[2].splitlines()[0])
    check = (ROOT / "deploy" / "haproxy-cluster.cfg").read_text().partition("default-server ")[2].splitlines()[0]
    assert check.startswith("check inter 500ms fall 2 ")
    assert delay_s > 2 * 0.5 + 1  # two checks and the time that one may take
