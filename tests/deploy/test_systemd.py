"""deploy/: the systemd unit, by systemd's own tools; what runs it is not here, so it is not started."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.service import ROOT

UNIT = ROOT / "deploy" / "persistence-service.service"


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    for name in (UNIT.name, "persistence-purge.service", "persistence-purge.timer"):
        text = (UNIT.parent / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/persistence-service", str(ROOT)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_timer_runs_a_command_that_there_is() -> None:
    found = re.search(
        r"^ExecStart=\S+ -m ctl (.*)$", (UNIT.parent / "persistence-purge.service").read_text(), re.MULTILINE
    )
    assert found is not None
    arguments = found[1].replace("${PURGE_USER}", "u").split()
    done = subprocess.run(
        [sys.executable, "-m", "ctl", *arguments, "--help"], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    unknown = [one for one in arguments if one.startswith("--") and one not in done.stdout]
    assert not unknown


def test_the_score_is_the_documented_one() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = re.search(r"Overall exposure level for \S+: ([\d.]+) (\w+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    documented = re.search(r"exposure level of ([\d.]+) \((\w+)\)", (ROOT / "docs" / "DEPLOYMENT.md").read_text())
    assert documented is not None
    assert found.groups() == documented.groups()


def test_the_unit_kills_later_than_supervisord_does() -> None:
    unit = dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE))
    waits = map(int, re.findall(r"^stopwaitsecs=(\d+)", (ROOT / "supervisord.conf").read_text(), re.MULTILINE))
    assert int(unit["TimeoutStopSec"]) > sum(waits)  # supervisord stops one after the other
    assert unit["KillMode"] == "mixed"
    assert unit["User"] != "root"


def test_the_template_gives_each_node_a_supervisord_of_its_own(tmp_path: Path) -> None:
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
