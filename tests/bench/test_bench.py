"""The benchmark runs, as a smoke test. Its figures are judged from a full run, never here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import MySQLdb
import pytest

from bench.__main__ import end, guarded, main
from bench.bench import Bench
from bench.contenders import STATE, Ours
from bench.plan import FALCON, NAMES, OURS, QUICK, Cell
from tests.support.mariadb import MariaDB
from tests.support.service import ROOT, Service, alive


def run(directory: Path, *options: str) -> tuple[int, str]:
    with (directory / "output").open("w+") as output:
        process = subprocess.Popen(
            ["./scripts/bench.sh", *options],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            status = process.wait(300)
        finally:
            if process.poll() is None:
                # It takes with it what it has started.
                os.kill(process.pid, signal.SIGTERM)
                process.wait(60)
        output.seek(0)
        return status, output.read()


@pytest.mark.timeout(400)
def test_a_quick_run_measures_everything_without_an_error(short_path: Path) -> None:
    file = short_path / "figures.json"

    status, text = run(short_path, "--quick", "--json", str(file))

    assert status == 0, text
    raw: dict[str, Any] = json.loads(file.read_bytes())
    assert raw["problems"] == []
    assert list(raw["ratios"]) == list(NAMES)
    assert all(value is not None for value in raw["ratios"].values()), raw["ratios"]
    assert all(f"**{name}**" in text for name in NAMES)
    rounds = [one for cell in raw["cells"] for one in cell["rounds"]]
    assert all(one["requests"] > 0 for one in rounds)
    assert {FALCON, OURS} <= {cell["contender"] for cell in raw["cells"]}
    # Counted, not timed: these hold on any machine at any load.
    assert raw["statements"]["rows"] == 1000
    assert raw["lifecycle"]["records"] == 4500
    assert 1 / 3 <= raw["ratios"]["rows_per_record_lifecycle"] <= 1
    assert raw["recovery"]["records"] == raw["recovery"]["rows"] == 50_000


@pytest.mark.parametrize("line", ["LOAD DATA", "landing: "])
def test_an_interrupted_run_leaves_no_process_and_no_file(short_path: Path, line: str) -> None:
    command = ["./scripts/bench.sh", "--quick", "--only", "landing_vs_load_data"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        assert any(line in text for text in process.stderr)
        (server,) = [command for command in session_of(process.pid).values() if "--datadir" in command]
        directory = Path(server.partition("--datadir=")[2].split()[0]).parents[1]
        assert directory.name.startswith("bench-")

        process.terminate()

        assert process.stderr.read().endswith("interrupted: nothing was measured to its end\n")
        assert process.wait(60) == 1
    assert session_of(process.pid) == {}
    assert not directory.exists()


def session_of(leader: int) -> dict[int, str]:
    """Processes of a session: id -> command line."""
    found = {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit() and alive(pid := int(directory.name)):
            try:
                if os.getsid(pid) == leader:
                    found[pid] = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (FileNotFoundError, ProcessLookupError):
                pass  # it has ended
    return found


def test_what_lost_its_parent_ends_with_the_directory_it_was_started_for(short_path: Path) -> None:
    directory = short_path / "bench"
    started = []
    for state in (directory, directory / f"{STATE}1", short_path):
        state.mkdir(exist_ok=True)
        started.append(subprocess.Popen(["sleep", "100"], env={"PERSISTENCE_STATE_DIR": str(state)}))
    *ours, other = started

    end(directory)

    assert [one.wait(10) for one in ours] == [-signal.SIGKILL] * 2
    assert not directory.exists()
    assert other.poll() is None, "it belongs to somebody else"
    other.kill()
    other.wait(10)


def test_a_contender_that_fails_makes_its_cells_invalid_and_the_run_goes_on(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = SimpleNamespace(move_to=lambda _: None, empty=lambda: None)
    bench = Bench(QUICK, database, short_path)  # type: ignore[arg-type]
    monkeypatch.setattr(Ours, "start", lambda *_: (_ for _ in ()).throw(OSError("it ended")))

    (cell,) = bench.cells([Cell(OURS, 1, 16)])

    assert cell["rounds"] == [{"problems": ["OSError('it ended')"]}]


@pytest.mark.parametrize(
    "options",
    [
        ["--only", "rps"],
        ["--json", "/nonexistent/figures.json"],
        ["--json", "/"],
    ],
)
def test_a_wrong_option_ends_it_at_once_with_one_line(short_path: Path, options: list[str]) -> None:
    status, text = run(short_path, *options)

    assert status == 2
    assert text.startswith(f"bench.sh: {' '.join(options)}: ")
    assert text.count("\n") == 1


def test_without_wrk_it_ends_with_one_line_and_leaves_no_directory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench"])
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("tempfile.mkdtemp", pytest.fail)

    with pytest.raises(SystemExit, match=r"^bench\.sh: wrk, .* is missing; [^\n]*$"):
        main()


@pytest.mark.parametrize(
    "fault", [MySQLdb.OperationalError(2013, "gone"), ValueError("no JSON"), KeyError("tasks"), OSError(5, "x")]
)
def test_a_measurement_that_fails_is_invalid_and_the_run_goes_on(fault: Exception) -> None:
    def measurement() -> dict[str, Any]:
        raise fault

    assert guarded(measurement) == {"problems": [repr(fault)]}


def test_a_contender_throws_its_state_away_when_all_of_its_processes_have_ended(short_path: Path) -> None:
    """A second writer may have been starting when the others were looked for."""
    state = short_path / "state"
    state.mkdir()
    mariadb = MariaDB(short_path)
    ours = Ours(SimpleNamespace(mariadb=mariadb, name="none"), short_path)  # type: ignore[arg-type]
    ours.service = Service(state, mariadb, "none")
    with subprocess.Popen(["sleep", "0.5"], env=ours.service.environ) as late:
        ours.stop()

        assert not alive(late.pid)
        assert not state.exists()
