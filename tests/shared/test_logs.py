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
    exception = json.loads(line)["exception"]
    assert re.fullmatch(r"Traceback \(innermost first\): ValueError < test_logs\.py:\d+ test_\w+", exception)


def test_a_text_line_is_one_line_whatever_is_in_it_and_quotes_no_exception(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.setup("ingest", level="INFO", format="text", file=str(file))

    def inner() -> None:
        raise KeyError("what a record held")

    try:
        inner()
    except KeyError:
        logging.getLogger().exception("two\nlines\x1b[31m\u2028 你好", extra={"request_id": "r-1"})

    (line,) = file.read_text(encoding="utf-8").split("\n")[:-1]
    expected = r"two\\x0alines\\x1b\[31m\\u2028 你好: Traceback \(innermost first\): KeyError"
    assert re.search(expected + r" < test_logs\.py:\d+ inner < test_logs\.py:\d+ test_\w+ \(request r-1\)$", line)


def test_of_an_error_of_the_system_its_own_words_are_kept(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        (tmp_path / "secret").read_bytes()
    assert " FileNotFoundError (No such file or directory) < " in logs.place(raised.value)
    assert "secret" not in logs.place(raised.value)


def test_the_request_id_has_a_field_of_its_own_in_json() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "m", None, None)
    assert "request_id" not in json.loads(logs.JsonFormatter("p").format(record))
    record.request_id = "r-1"
    assert json.loads(logs.JsonFormatter("p").format(record))["request_id"] == "r-1"


class Lines(logging.Handler):
    """Keeps the messages that reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Limited:
    def __init__(self) -> None:
        self.now = 0.0
        self.target = Lines()
        self.handler = logs.LimitedHandler(self.target, clock=lambda: self.now)

    def log(self, message: str, *values: object, level: int = logging.WARNING) -> None:
        self.handler.handle(logging.LogRecord("x", level, "", 0, message, values, None))


def test_of_the_same_event_again_and_again_the_first_lines_are_written_and_the_others_counted() -> None:
    limited = Limited()
    for number in range(logs.BURST + 95):
        limited.log("flush %d failed", number)
    limited.log("something else")
    written = [f"flush {number} failed" for number in range(logs.BURST)] + ["something else"]
    assert limited.target.lines == written

    limited.now = logs.WINDOW_S
    limited.log("again")
    limited.log("flush %d failed", 100)
    assert limited.target.lines[len(written) :] == [
        "95 more lines like this were left out: flush 99 failed",
        "again",
        "flush 100 failed",
    ]


def test_lines_of_another_level_or_message_are_another_kind() -> None:
    limited = Limited()
    for _ in range(logs.BURST):
        limited.log("a %s", 1)
    limited.log("a %s", 1, level=logging.ERROR)
    limited.log("b %s", 1)
    assert limited.target.lines == ["a 1"] * (logs.BURST + 1) + ["b 1"]


def test_what_was_left_out_is_told_at_the_end_too() -> None:
    limited = Limited()
    for _ in range(logs.BURST + 1):
        limited.log("a")
    limited.handler.close()
    assert limited.target.lines[-1] == "1 more lines like this were left out: a"


def test_kinds_that_never_end_take_no_more_memory() -> None:
    limited = Limited()
    for number in range(1000):
        limited.log(f"preformatted {number}")
    assert len(limited.handler._kinds) <= 256
    assert len(limited.target.lines) == 1000


def test_setup_limits_what_a_process_writes(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.setup("ingest", level="INFO", format="text", file=str(file))
    for number in range(100):
        logging.getLogger("a").warning("request %d", number)
    assert len(file.read_text().splitlines()) == logs.BURST


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
