"""The real service as processes: flusher and ingest, without supervisord, on a free port, in a temporary directory."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import orjson

from flusher import segments
from ingest.metrics import METRICS_DIRECTORY, node_counts
from shared.bodies import decode
from shared.records import Kind, Record, utc
from tests.support.mariadb import MariaDB

ROOT = Path(__file__).resolve().parents[2]
TASKS = "/api/v1/persistence/tasks/batch"
SESSIONS = "/api/v1/persistence/sessions/batch"
FLUSH = "/api/v1/persistence/flush"
STATS = "/api/v1/persistence/stats"
NOT_INHERITED = (
    *("BUFFER_", "CLUSTER_", "DB_", "DEAD_LETTERS_", "JOURNAL_", "LOGGING_", "MYSQL_", "READ_", "RECORDS_", "SERVICE_"),
    *("COLUMNS", "LINES"),
)
"""What would bend a service or a command line under test; a test runner beside others sets the last two."""


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"Answer({self.status}, {self.body[:500]!r})"


def free_port() -> int:
    """Below the range from which Linux takes the ports of outgoing connections, so that none of them can take it before
    its test does; at random, so that tests side by side do not meet."""
    while True:
        port = random.randrange(10_240, 32_768)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def wait_until(condition: Callable[[], Any], timeout_s: float = 20.0, what: str = "") -> Any:
    """Polls for something outside this process that sends no event. Returns: the condition's first true value."""
    give_up_at = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > give_up_at:
            raise AssertionError(f"did not happen within {timeout_s} s: {what or condition}")
        time.sleep(0.01)


def threads(pid: int) -> list[int]:
    """Of a running process, the first one first."""
    return sorted(int(thread.name) for thread in Path(f"/proc/{pid}/task").iterdir())


def alive(pid: int) -> bool:
    """Whether a process runs. One that has ended and that nobody has waited for yet (a zombie) does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def processes_of(state_directory: Path) -> dict[int, str]:
    """Every process that was started for this state directory, whoever is its parent now: id -> command line."""
    found = {}
    wanted = f"PERSISTENCE_STATE_DIR={state_directory}".encode()
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit() or not alive(int(directory.name)):
            continue
        try:
            if wanted in (directory / "environ").read_bytes().split(b"\0"):
                found[int(directory.name)] = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            pass  # it has ended, or it is another user's
    return found


class Service:
    """`settings` are environment variables of CONTRACT 4, on top of a socket to `mariadb`'s `database`."""

    def __init__(self, directory: Path, mariadb: MariaDB, database: str, **settings: object) -> None:
        self.directory = directory
        if directory.is_dir():
            directory.chmod(0o700)  # our own files are in it before the service looks
        self.code = ROOT
        """Where the code is that runs."""
        self.host, self.port = "127.0.0.1", free_port()
        self.journal = directory / "journal"
        self.dead_letters = directory / "dead_letters.jsonl"
        self.log = directory / "log"
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)},
            "PERSISTENCE_STATE_DIR": str(directory),
            "PERSISTENCE_CONFIG": str(ROOT / "config" / "config.yaml"),
            "SERVICE_HOST": self.host,
            "SERVICE_PORT": str(self.port),
            "DB_SOCKET": mariadb.socket,
            "DB_USER": "root",
            "DB_DATABASE": database,
            "LOGGING_FILE": str(self.log),
            **{name: str(value) for name, value in settings.items()},
        }
        self.limits: dict[str, list[str]] = {}
        """Options of prlimit(1) by process, as --nofile=64."""
        self.flusher: subprocess.Popen[bytes] | None = None
        self.ingest: subprocess.Popen[bytes] | None = None
        self.reader: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.start_flusher()
        self.start_ingest()
        self.wait_ready()

    def start_flusher(self) -> None:
        self.flusher = self._start("flusher")

    def start_ingest(self) -> None:
        self.ingest = self._start("ingest")

    def start_reader(self) -> None:
        """Returns when it answers; only tests of reading start it."""
        self.reader = self._start("reader")
        token = self.environ.get("READ_AUTH_TOKEN") or self.environ.get("SERVICE_AUTH_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}  # a 401 comes from ingest alone
        path = "/api/v1/persistence/sessions"
        wait_until(lambda: self.request("GET", path, headers=headers).status != 503, what="the reader answers")

    def kill_flusher(self) -> None:
        """kill -9, as the kernel's OOM killer does it. Returns when it is gone; its writers follow by themselves."""
        assert self.flusher is not None
        self.flusher.kill()
        self.flusher.wait(10)

    def wait_ready(self, timeout_s: float = 20.0) -> None:
        wait_until(self._is_ready, timeout_s, "GET /ready answers 200")

    def stop(self) -> None:
        """In supervisord's order: ingest first, the flusher last. Each must end by itself."""
        for process in (self.ingest, self.reader, self.flusher):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
                process.wait(40)

    def kill(self) -> None:
        for process in (self.ingest, self.reader, self.flusher):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait(10)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        timeout_s: float = 30.0,
        *,
        connection: http.client.HTTPConnection | None = None,
    ) -> Answer:
        """Args: connection: one from connect(), which stays open; else one for this request only."""
        used = connection or self.connect(timeout_s)
        try:
            used.request(method, path, body, headers or {})
            response = used.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            if connection is None:
                used.close()

    def connect(self, timeout_s: float = 30.0) -> http.client.HTTPConnection:
        """Connects with the first request, and again after an answer that closed it."""
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def post(
        self,
        path: str,
        document: Any,
        headers: dict[str, str] | None = None,
        timeout_s: float = 30.0,
        *,
        connection: http.client.HTTPConnection | None = None,
    ) -> Answer:
        body = document if isinstance(document, bytes) else json.dumps(document, ensure_ascii=False).encode()
        headers = {"Content-Type": "application/json", **(headers or {})}
        return self.request("POST", path, body, headers, timeout_s, connection=connection)

    def flush(self, timeout_s: float = 30.0) -> Answer:
        return self.request("POST", f"{FLUSH}?timeout={timeout_s:g}", timeout_s=timeout_s + 10)

    def stats(self) -> Any:
        return self.get(STATS).json

    def requests(self) -> dict[str, dict[int, int]]:
        """Answered so far, by path and status: as GET /metrics says up to a second later."""
        self.stats()  # its worker publishes what it has counted
        return node_counts(self.directory / "run" / METRICS_DIRECTORY).requests

    def children(self, process: subprocess.Popen[bytes]) -> list[int]:
        """Process ids of the direct children: ingest's workers, the flusher's writers."""
        try:
            return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        except FileNotFoundError:
            return []

    def writers(self) -> list[int]:
        return self.children(self.flusher) if self.flusher is not None else []

    def workers(self) -> list[int]:
        return self.children(self.ingest) if self.ingest is not None else []

    def segments(self) -> list[Path]:
        """Journal files that hold records."""
        return [path for path in sorted(self.journal.glob("*.segment")) if segments.read(path).entries]

    def journaled(self, kind: Kind) -> set[str]:
        """Session or task ids of the records that wait in the journal."""
        return {
            getattr(record, kind.key[-1])
            for path in self.segments()
            for entry in segments.read(path).entries
            if entry.kind == kind.code
            for record in decode(kind, entry.body)
        }

    def _start(self, module: str) -> subprocess.Popen[bytes]:
        errors = (self.directory / f"{module}.stderr").open("ab")
        with errors:
            limited = ["prlimit", *self.limits[module], "--"] if module in self.limits else []
            return subprocess.Popen(
                [*limited, sys.executable, "-m", module],
                cwd=self.code,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stderr=errors,
            )

    def _is_ready(self) -> bool:
        for name, process in (("flusher", self.flusher), ("ingest", self.ingest)):
            if process is not None and process.poll() is not None:
                errors = (self.directory / f"{name}.stderr").read_text()
                raise AssertionError(f"{name} ended with status {process.returncode}: {errors}")
        try:
            return self.get("/ready").status == 200
        except OSError:
            return False


def task(task_id: str = "t1", **fields: Any) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "batch_id": "b1",
        "session_id": "s1",
        "sheet_name": "Sheet1",
        "column_name": "A",
        "row_index": 1,
        "source_text": "你好，世界",
        "status": "pending",
        **fields,
    }


def session(session_id: str = "s1", **fields: Any) -> dict[str, Any]:
    return {
        "session_id": session_id,
        "filename": "game.xlsx",
        "file_path": "/data/game.xlsx",
        "status": "processing",
        "llm_provider": "openai",
        **fields,
    }


def values_of(records: Sequence[Record]) -> list[dict[str, Any]]:
    """To compare records by: objects parsed, times in UTC, and `extra` whether the type has it or not."""
    return [{name: _value(getattr(record, name)) for name in _names(record)} for record in records]


def _names(record: Record) -> list[str]:
    return sorted({*record.__struct_fields__, "extra"})


def _value(value: Any) -> Any:
    if isinstance(value, msgspec.Raw):
        return orjson.loads(memoryview(value))
    if isinstance(value, float):
        return round(value, 4)  # as it is stored
    return utc(value) if isinstance(value, datetime) else value
