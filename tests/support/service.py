"""The real service as processes: flusher and ingest, without supervisord, on a free port, in a temporary directory."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.mariadb import MariaDB

ROOT = Path(__file__).resolve().parents[2]
TASKS = "/api/v1/persistence/tasks/batch"
SESSIONS = "/api/v1/persistence/sessions/batch"
FLUSH = "/api/v1/persistence/flush"
STATS = "/api/v1/persistence/stats"


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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
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


class Service:
    """`settings` are environment variables of CONTRACT 4, on top of a socket to `mariadb`'s `database`."""

    def __init__(self, directory: Path, mariadb: MariaDB, database: str, **settings: object) -> None:
        self.directory = directory
        self.port = free_port()
        self.journal = directory / "journal"
        self.dead_letters = directory / "dead_letters.jsonl"
        self.log = directory / "log"
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("DB_", "SERVICE_"))},
            "PERSISTENCE_STATE_DIR": str(directory),
            "PERSISTENCE_CONFIG": str(ROOT / "config" / "config.yaml"),
            "SERVICE_HOST": "127.0.0.1",
            "SERVICE_PORT": str(self.port),
            "DB_SOCKET": mariadb.socket,
            "DB_USER": "root",
            "DB_DATABASE": database,
            "LOGGING_FILE": str(self.log),
            **{name: str(value) for name, value in settings.items()},
        }
        self.flusher: subprocess.Popen[bytes] | None = None
        self.ingest: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.start_flusher()
        self.start_ingest()
        self.wait_ready()

    def start_flusher(self) -> None:
        self.flusher = self._start("flusher")

    def start_ingest(self) -> None:
        self.ingest = self._start("ingest")

    def wait_ready(self, timeout_s: float = 20.0) -> None:
        wait_until(self._is_ready, timeout_s, "GET /ready answers 200")

    def stop(self) -> None:
        """In supervisord's order: ingest first, then the flusher. Each must end by itself."""
        for process in (self.ingest, self.flusher):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
                process.wait(40)

    def kill(self) -> None:
        for process in (self.ingest, self.flusher):
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
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def post(self, path: str, document: Any, headers: dict[str, str] | None = None, timeout_s: float = 30.0) -> Answer:
        body = document if isinstance(document, bytes) else json.dumps(document, ensure_ascii=False).encode()
        return self.request("POST", path, body, {"Content-Type": "application/json", **(headers or {})}, timeout_s)

    def flush(self, timeout_s: float = 30.0) -> Answer:
        return self.request("POST", f"{FLUSH}?timeout={timeout_s:g}", timeout_s=timeout_s + 10)

    def stats(self) -> Any:
        return self.get(STATS).json

    def children(self, process: subprocess.Popen[bytes]) -> list[int]:
        """Process ids of the direct children: ingest's workers, the flusher's writers."""
        try:
            return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        except FileNotFoundError:
            return []

    def _start(self, module: str) -> subprocess.Popen[bytes]:
        errors = (self.directory / f"{module}.stderr").open("ab")
        with errors:
            return subprocess.Popen(
                [sys.executable, "-m", module], cwd=ROOT, env=self.environ, stdin=subprocess.DEVNULL, stderr=errors
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
