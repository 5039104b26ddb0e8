"""Environments with the pandas and numpy that users have."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.service import ROOT


def python_with(name: str) -> str:
    """The interpreter with tests/client/frames/NAME.txt, installed where it is missing. Skips where no wheels are."""
    script = f'. scripts/lib.sh; need_frames {name} >&2; echo "$PERSISTENCE_STATE_DIR"'
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    venv = Path(done.stdout.strip()) / f"{name}-venv"
    if (venv / "no-wheels").exists():
        pytest.skip(f"{name}: {(venv / 'no-wheels').read_text().strip()}")
    return str(venv / "bin" / "python")
