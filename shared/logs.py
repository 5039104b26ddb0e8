"""Logging: one line an event, text or JSON, to one file that several processes write and rotate.

Rules: composition roots call setup() once; all other modules use logging.getLogger(__name__). Record content and
secrets are never arguments of a log call. Of an exception only type and place are written, since its message may quote
anything. Repeated events are counted instead of written.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from io import TextIOWrapper
from logging.handlers import WatchedFileHandler
from pathlib import Path

import orjson

from shared.clock import iso
from shared.process import open_own

MAX_BYTES = 10_000_000
KEPT = 5
BURST = 5
WINDOW_S = 30.0
"""Lines of one kind that are written in WINDOW_S."""
_MAX_KINDS = 256


class LimitedHandler(logging.Handler):
    """Passes on the first BURST lines of a kind in each WINDOW_S, and then a line with the number of suppressed ones,
    before the next line of any kind. A kind is a logger, a level and a message without its values.
    """

    def __init__(self, target: logging.Handler, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._target = target
        self._clock = clock
        self._kinds: dict[tuple[str, int, str], _Kind] = {}

    def emit(self, record: logging.LogRecord) -> None:
        now = self._clock()
        self._report([kind for kind in self._kinds.values() if now - kind.since >= WINDOW_S])
        key = (record.name, record.levelno, str(record.msg))
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= _MAX_KINDS:
                self._report(list(self._kinds.values()))
            kind = self._kinds[key] = _Kind(key, now)
        if kind.written < BURST:
            kind.written += 1
            self._target.handle(record)
        else:
            kind.left_out += 1
            kind.last = record

    def close(self) -> None:
        self._report(list(self._kinds.values()))
        self._target.close()
        super().close()

    def _report(self, over: list[_Kind]) -> None:
        """Ends the windows of these kinds."""
        for kind in over:
            del self._kinds[kind.key]
            if kind.last is not None:
                text = f"{kind.left_out} more lines like this were left out: {kind.last.getMessage()}"
                last = kind.last
                self._target.handle(logging.LogRecord(last.name, last.levelno, last.pathname, 0, text, None, None))


@dataclass(slots=True)
class _Kind:
    key: tuple[str, int, str]
    since: float
    written: int = 0
    left_out: int = 0
    last: logging.LogRecord | None = None


class SharedRotatingFileHandler(WatchedFileHandler):
    """Appends to a file that other processes append to and rotate as well.

    Every line is one write in append mode. A process that finds the file full takes the lock beside it, checks again,
    and renames; the others notice the new inode at their next line.
    """

    def __init__(self, path: str, max_bytes: int = MAX_BYTES, kept: int = KEPT) -> None:
        super().__init__(path, encoding="utf-8")
        self._max_bytes = max_bytes
        self._kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.reopenIfNeeded()
            if self.stream and os.fstat(self.stream.fileno()).st_size >= self._max_bytes:
                self._rotate()
                self.reopenIfNeeded()
        except OSError:
            self.handleError(record)
            return
        logging.FileHandler.emit(self, record)

    def _open(self) -> TextIOWrapper:
        return os.fdopen(open_own(self.baseFilename, os.O_WRONLY | os.O_APPEND), "a", encoding=self.encoding)

    def _rotate(self) -> None:
        with os.fdopen(open_own(f"{self.baseFilename}.lock", os.O_RDWR)) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                if Path(self.baseFilename).stat().st_size < self._max_bytes:
                    return  # another process was first
            except FileNotFoundError:
                return  # another process was first, and the new file is not written yet
            for number in range(self._kept - 1, 0, -1):
                older = Path(f"{self.baseFilename}.{number}")
                if older.exists():
                    older.replace(f"{self.baseFilename}.{number + 1}")
            Path(self.baseFilename).replace(f"{self.baseFilename}.1")


class JsonFormatter(logging.Formatter):
    def __init__(self, program: str) -> None:
        super().__init__()
        self._program = program

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": iso(int(record.created * 1e6)),
            "level": record.levelname,
            "program": self._program,
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if hasattr(record, "request_id"):
            event["request_id"] = record.request_id
        if record.exc_info and record.exc_info[1]:
            event["exception"] = place(record.exc_info[1])
        return orjson.dumps(event).decode()


class TextFormatter(logging.Formatter):
    def __init__(self, program: str) -> None:
        super().__init__()
        self._program = program

    def format(self, record: logging.LogRecord) -> str:
        text = f"{iso(int(record.created * 1e6))} {record.levelname:7} {self._program}[{record.process}]"
        text += f" {record.getMessage()}"
        if record.exc_info and record.exc_info[1]:
            text += f": {place(record.exc_info[1])}"
        if hasattr(record, "request_id"):
            text += f" (request {record.request_id})"
        return text.translate(_ONE_LINE)


_ONE_LINE = {code: f"\\x{code:02x}" for code in (*range(32), 127, 0x85)} | {0x2028: "\\u2028", 0x2029: "\\u2029"}


def place(error: BaseException) -> str:
    """Type and traceback of an exception on one line, innermost frame first, without its message."""
    what = type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        what += f" ({error.strerror})"
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return "Traceback (innermost first): " + " < ".join(
        [what, *(f"{Path(one.filename).name}:{one.lineno} {one.name}" for one in frames)]
    )


def setup(program: str, *, level: str, format: str, file: str) -> None:  # noqa: A002 -- the key's own name
    """Sends this process's log to `file`, or to stderr where it is empty.

    Raises: SystemExit with one line when the file cannot be opened.
    """
    handler: logging.Handler
    if file:
        try:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            handler = SharedRotatingFileHandler(file)
        except OSError as error:
            sys.exit(f"logging.file = {file!r}: cannot be written: {error.strerror} (LOGGING_FILE names another)")
    else:
        handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(program) if format == "json" else TextFormatter(program))
    root = logging.getLogger()
    root.handlers = [LimitedHandler(handler)]
    root.setLevel(level)
