"""Python programs with the client dropped in as services/persistence/persistence_client.py, as a backend has it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from tests.support.service import ROOT


def drop_in(directory: Path) -> Path:
    """Makes a backend's directory: the one file in its place, and nothing else of ours."""
    place = directory / "services" / "persistence"
    place.mkdir(parents=True)
    shutil.copy(ROOT / "client" / "persistence_client.py", place)
    return directory


def start(
    directory: Path,
    program: str,
    url: str,
    token: str = "",
    *options: str,
    python: str = sys.executable,
    environ: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen[str]:
    """Starts a program there, with warnings as errors. Only what is installed can be imported besides the one file."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PERSISTENCE_", "PYTHON"))}
    environ = {**inherited, **environ, "PERSISTENCE_URL": url, "PYTHONPATH": str(directory)}
    if token:
        environ = {**environ, "PERSISTENCE_TOKEN": token}
    return subprocess.Popen(
        [python, "-W", "error", *options, "-c", program],
        cwd=directory,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(directory: Path, program: str, url: str, token: str = "", *options: str) -> str:
    """Runs a program to its end. Returns: what it printed; whatever it wrote to stderr is an error."""
    with start(directory, program, url, token, *options) as process:
        try:
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, errors) == (0, ""), errors
    return output
