"""Logging: one line an event, text or JSON, to one file that several processes write and rotate.

Rules: composition roots call setup() once; everything else uses logging.getLogger(__name__). No record
content and no secret is ever an argument of a log call.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import time
from logging.handlers import WatchedFileHandler
from pathlib import Path

import orjson

MAX_BYTES = 10_000_000
KEPT = 5


class SharedRotatingFileHandler(WatchedFileHandler):
    """Appends to a file that other processes append to and rotate as well.

    Every line is one write in append mode. Who finds the file full takes the lock beside it, looks again, and
    renames; the others notice the new inode at their next line.
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

    def _rotate(self) -> None:
        with Path(f"{self.baseFilename}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                if Path(self.baseFilename).stat().st_size < self._max_bytes:
                    return  # another process was first
            except FileNotFoundError:
                return  # it was first, and nobody has written to the new file yet
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
            "time": _timestamp(record.created),
            "level": record.levelname,
            "program": self._program,
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(event).decode()


class TextFormatter(logging.Formatter):
    def __init__(self, program: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)-7s {program}[%(process)d] %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802
        return _timestamp(record.created)


def _timestamp(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1e6):06d}Z"


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
            sys.exit(f"logging.file = {file!r}: cannot be written: {error.strerror}")
    else:
        handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(program) if format == "json" else TextFormatter(program))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
