from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared import logs
from shared.logs import SharedRotatingFileHandler
from tests.support.service import ROOT

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
WRITER = """
import logging, sys
from shared.logs import JsonFormatter, SharedRotatingFileHandler
path, name, lines, max_bytes = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
handler = SharedRotatingFileHandler(path, max_bytes, kept=10_000)
handler.setFormatter(JsonFormatter("test"))
log = logging.getLogger()
log.addHandler(handler)
log.setLevel("INFO")
print("ready", flush=True)
sys.stdin.readline()
for number in range(lines):
    # Now and then a line longer than any buffer on its way to the file.
    log.info("%s %d %s", name, number, "x" * (20_000 if number % 100 == 0 else 10))
"""


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    """setup() replaces the root logger's handlers, pytest's among them."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers = handlers
    root.setLevel(level)


def test_a_text_line_has_time_level_program_pid_and_message(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.setup("flusher", level="INFO", format="text", file=str(file))

    logging.getLogger("a.b").warning("%d segments", 3)

    line = file.read_text(encoding="utf-8")
    assert re.fullmatch(rf"{TIME} WARNING flusher\[{os.getpid()}\] 3 segments\n", line)


def test_a_json_line_is_one_object_with_every_field(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.setup("ingest", level="INFO", format="json", file=str(file))

    logging.getLogger("a.b").error('two\nlines, "quoted", 你好')

    (line,) = file.read_text(encoding="utf-8").splitlines()
    event = json.loads(line)
    assert re.fullmatch(TIME, event.pop("time"))
    assert event == {
        "level": "ERROR",
        "program": "ingest",
        "pid": os.getpid(),
        "logger": "a.b",
        "message": 'two\nlines, "quoted", 你好',
    }


def test_an_exception_stays_in_its_json_line(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.setup("ingest", level="INFO", format="json", file=str(file))

    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger().exception("it failed")

    (line,) = file.read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["exception"].endswith("ValueError: broken")


def test_what_is_below_the_level_is_not_written(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.setup("ingest", level="WARNING", format="text", file=str(file))

    logging.getLogger().info("quiet")
    logging.getLogger().warning("loud")

    assert [line.rpartition(" ")[2] for line in file.read_text().splitlines()] == ["loud"]


def test_times_are_utc_with_microseconds() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "m", None, None)
    record.created = 1_000_000_000.25
    assert logs.TextFormatter("p").format(record).startswith("2001-09-09T01:46:40.250000Z ")
    assert json.loads(logs.JsonFormatter("p").format(record))["time"] == "2001-09-09T01:46:40.250000Z"


def test_without_a_file_lines_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup("ingest", level="INFO", format="text", file="")
    logging.getLogger().info("here")
    assert capsys.readouterr().err.endswith(" here\n")


def test_the_directory_of_the_file_is_made(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "log"
    logs.setup("ingest", level="INFO", format="text", file=str(file))
    logging.getLogger().info("here")
    assert file.read_text().endswith(" here\n")


def test_a_file_that_cannot_be_opened_ends_the_start_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        logs.setup("ingest", level="INFO", format="text", file=str(tmp_path))
    message = ended.value.code
    assert isinstance(message, str)
    assert "\n" not in message
    assert "logging.file" in message
    assert str(tmp_path) in message


def test_a_full_file_is_renamed_and_no_more_than_kept_remain(tmp_path: Path) -> None:
    file = tmp_path / "log"
    handler = SharedRotatingFileHandler(str(file), max_bytes=100, kept=2)
    handler.setFormatter(logging.Formatter("%(message)s"))

    for number in range(8):
        handler.emit(logging.LogRecord("x", logging.INFO, "", 0, f"{number}" * 59, None, None))
    handler.close()

    contents = {path.name: path.read_text() for path in tmp_path.iterdir() if path.suffix != ".lock"}
    lines = [f"{number}" * 59 + "\n" for number in range(8)]
    assert contents == {
        "log": lines[6] + lines[7],
        "log.1": lines[4] + lines[5],
        "log.2": lines[2] + lines[3],
    }


def test_a_file_moved_away_by_another_process_is_followed(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.setup("ingest", level="INFO", format="text", file=str(file))
    logging.getLogger().info("first")

    file.rename(tmp_path / "elsewhere")
    logging.getLogger().info("second")

    assert file.read_text().endswith(" second\n")
    assert (tmp_path / "elsewhere").read_text().endswith(" first\n")


def test_processes_that_write_and_rotate_together_lose_and_tear_no_line(tmp_path: Path) -> None:
    file = tmp_path / "log"
    writers, lines = 4, 1500
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(file), f"w{number}", str(lines), "20000"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(writers)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=100)
        assert errors == b""

    files = [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
    found = []
    for path in files:
        for line in path.read_text(encoding="utf-8").splitlines():
            name, number, filling = json.loads(line)["message"].split(" ")
            assert len(filling) == (20_000 if int(number) % 100 == 0 else 10)
            found.append((name, int(number)))

    assert len(files) > 10  # it did rotate
    assert sorted(found) == sorted((f"w{number}", line) for number in range(writers) for line in range(lines))
