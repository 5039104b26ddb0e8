"""docs/CLIENT.md: its programs are run as they stand, with the client dropped in, and print what is shown."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from client import persistence_client as module
from tests.support import backend
from tests.support.mariadb import MariaDB
from tests.support.service import ROOT, Service

PAGE = (ROOT / "docs" / "CLIENT.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
README = (ROOT / "README.md").read_text(encoding="utf-8")


def masked(output: str) -> str:
    return re.sub(r"('duration_ms': )[\d.]+", r"\1…", output)


@pytest.mark.parametrize("token", ["", "a-secret"], ids=["without token", "with token"])
def test_every_program_prints_what_is_shown(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str, token: str, tmp_path: Path
) -> None:
    service = start_service(mariadb, database, SERVICE_AUTH_TOKEN=token, BUFFER_FLUSH_INTERVAL=3600)
    place = backend.drop_in(tmp_path / "backend")
    assert len(PROGRAMS) == PAGE.count("```python") == 2
    (lines,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    for program, shown in [*PROGRAMS, (lines, "flushed\n")]:
        with backend.start(place, program, f"http://127.0.0.1:{service.port}", token) as process:
            printed, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert masked(printed) == masked(shown)
        assert all(": 1 tasks dropped: HTTP 422 " in line for line in errors.splitlines())


def test_the_limits_are_those_of_the_file() -> None:
    text = " ".join(PAGE.split())
    for words in (
        f"more than {module.MAX_RECORDS:,} records or {module.MAX_BYTES // 2**20} MiB of",
        f"none within {module.REQUEST_TIMEOUT_S:g} s, and more",
        f"pauses of {module._FIRST_PAUSE_S:g} to {module._LONGEST_PAUSE_S:g} s,",
        f"at most {module.MAX_PAUSE_S:g} s",
        f"at most every {module.WARNING_INTERVAL_S:g} s",
        f"takes up to {module.FLUSH_TIMEOUT_S:g} s",
        f"send for up to {module.CLOSE_TIMEOUT_S:g} s",
        f"the same for up to {module.EXIT_TIMEOUT_S:g} s",
    ):
        assert words in text, words


def test_every_answer_that_is_treated_apart_is_on_the_page() -> None:
    named = re.findall(r"\b[45]\d\d\b|\bINVALID_[A-Z]+\b", PAGE)
    assert {"413", *module._REFUSED} <= set(named)


def test_the_variables_and_their_defaults_are_those_of_the_file() -> None:
    source = (ROOT / "client" / "persistence_client.py").read_text(encoding="utf-8")
    for name, default in re.findall(r"^\| `(PERSISTENCE_\w+)` \| `?([^`|]*?)`? \|", PAGE, re.MULTILINE):
        assert f'environ.get("{name}") or "{"" if default == "none" else default}"' in source
