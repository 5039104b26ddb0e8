"""What is installed is what was locked, and nothing in it is known to be vulnerable."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.support.service import ROOT

LOCKS = ["requirements.lock", "requirements-dev.lock", "requirements-build.lock", "requirements-uv.lock"]


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_is_pinned_with_hashes_and_no_address(name: str) -> None:
    text = (ROOT / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.fullmatch(r"[\w.-]+==\S+( +; [^-]+?)?( +--hash=sha256:[0-9a-f]{64})+", line.rstrip()), line[:80]


def test_no_locked_package_has_a_known_vulnerability() -> None:
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--format", "json"]
    done = subprocess.run(
        [*command, "-r", "requirements-dev.lock"], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    if "ConnectionError" in done.stderr or "ServiceError" in done.stderr:
        pytest.skip(f"pip-audit's database is not reached: {done.stderr.strip()[-200:]}")
    assert done.stdout, done.stderr  # anything else that keeps it from looking is a failure
    found = json.loads(done.stdout)["dependencies"]
    assert found
    if not any("vulns" in one for one in found):
        pytest.skip(f"pip-audit's database is not reached: {found[0]['skip_reason']}")
    assert all("vulns" in one for one in found), [one for one in found if "vulns" not in one]
    assert {one["name"]: one["vulns"] for one in found if one.get("vulns")} == {}
