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


def masked(output: str) -> str:
    return re.sub(r"('duration_ms': )[\d.]+", r"\1…", output)


@pytest.mark.parametrize("token", ["", "a-secret"], ids=["without token", "with token"])
def test_every_program_prints_what_is_shown(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str, token: str, tmp_path: Path
) -> None:
    service = start_service(mariadb, database, SERVICE_AUTH_TOKEN=token, BUFFER_FLUSH_INTERVAL=3600)
    place = backend.drop_in(tmp_path / "backend")
    assert len(PROGRAMS) == PAGE.count("```python") == 3
    for program, shown in PROGRAMS:
        with backend.start(place, program, f"http://127.0.0.1:{service.port}", token) as process:
            printed, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert masked(printed) == masked(shown)
        assert all(re.match(r"\d+ \w+ dropped: HTTP 422 ", line) for line in errors.splitlines())


def test_the_limits_are_those_of_the_file() -> None:
    shown = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", PAGE, re.MULTILINE))
    limits = {name: str(value) for name, value in vars(module).items() if re.fullmatch(r"[A-Z]+_[A-Z_]+", name)}
    assert limits.pop("CALL_TIMEOUT_S")
    assert shown == limits
    for text in (
        f"more than {module.MAX_RECORDS:,} records, or {module.MAX_BYTES // 2**20} MiB,",
        f"no answer within {module.REQUEST_TIMEOUT_S:g} s, or more",
        f"grow from {module._FIRST_PAUSE_S:g} to {module._LONGEST_PAUSE_S:g} s",
        f"could not be sent for {module.RETRY_FOR_S:g} s",
        f"is over {module.MAX_RECORD_BYTES // 2**20} MiB",
        f"at most\nevery {module.WARNING_INTERVAL_S:g} s",
        f"write everything, within {module.FLUSH_TIMEOUT_S:g} s",
        f"what waits for up to {module.CLOSE_TIMEOUT_S:g} s",
        f"is sent for up to {module.EXIT_TIMEOUT_S:g} s",
    ):
        assert text in PAGE, text


def test_every_answer_that_is_treated_apart_is_on_the_page() -> None:
    named = {int(status) for status in re.findall(r"\b([45]\d\d)\b", PAGE.partition("## When something")[2])}
    assert {*module._TRY_AGAIN, *module._REFUSED} <= named


def test_the_variables_and_their_defaults_are_those_of_the_file() -> None:
    source = (ROOT / "client" / "persistence_client.py").read_text(encoding="utf-8")
    for name, default in re.findall(r"^\| `(PERSISTENCE_\w+)` \| `?([^`|]*?)`? \|", PAGE, re.MULTILINE):
        assert f'environ.get("{name}") or "{"" if default == "none" else default}"' in source
