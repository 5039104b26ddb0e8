"""scripts/mysql.sh where there is no MySQL to be had: one line, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.mysql import SCRIPT


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("exit 0", "this machine gets its packages from no mirror of Debian"),
        (
            (
                'case "$*" in *indextargets*) echo http://mirror.invalid/debian Debian Debian ;;'
                ' *) echo "E: Unable to locate package mysql-server-core" >&2; exit 100 ;; esac'
            ),
            "http://mirror.invalid/debian, suite unstable: E: Unable to locate package mysql-server-core",
        ),
    ],
)
def test_a_machine_that_cannot_have_it_says_so_in_one_line(tmp_path: Path, answer: str, said: str) -> None:
    (tmp_path / "apt-get").write_text(f"#!/bin/sh\n{answer}\n")
    (tmp_path / "apt-get").chmod(0o755)
    cache = tmp_path / "cache"
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run([SCRIPT], env=environ, capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == f"mysql.sh: no MySQL here: {said}"
    assert [path.name for path in cache.rglob("*")] == ["persistence-service", "mysql.lock"]
