"""Who is measured. Each starts with nothing stored, on the cores that a cell gives it, and is gone after stop()."""

from __future__ import annotations

import http.client
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.database import Database
from bench.machine import on_cores, peak_rss_mb
from shared.records import TASKS
from tests.support.service import ROOT, Service, free_port, processes_of, wait_until

JOURNAL_MAX_BYTES = 32 * 1024**3
"""A cell sends more than the database takes; a full journal is not what is measured."""
STATE = "state-"
"""What the names of our state directories begin with."""


class Contender:
    """`name` in tables. start() returns when it answers; `rss_mb` is filled by stop()."""

    name = ""

    def __init__(self) -> None:
        self.port = free_port()
        self.rss_mb: dict[str, float] = {}

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    path = TASKS.path

    def start(self, cores: Sequence[int]) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def accepted(self) -> int | None:
        """Records that it says it has accepted since its start; None if it does not count."""
        return None


class Ours(Contender):
    """Flusher, ingest and writers with the defaults of config.yaml, everything switched on."""

    def __init__(self, database: Database, directory: Path, name: str = "ours", **settings: object) -> None:
        """Args: directory: where it makes a state directory at every start."""
        super().__init__()
        self.name = name
        self._database = database
        self._directory = directory
        self._settings = {"JOURNAL_MAX_BYTES": JOURNAL_MAX_BYTES, **settings}
        self.service: Service | None = None

    def start(self, cores: Sequence[int]) -> None:
        directory = Path(tempfile.mkdtemp(prefix=STATE, dir=self._directory))
        service = self.service = Service(directory, self._database.mariadb, self._database.name, **self._settings)
        self.port = service.port
        with on_cores(cores):
            service.start()
        if "DB_SOCKET" not in self._settings:
            wait_until(lambda: service.get("/health").json["database"] == "healthy", 20, "it has found its database")

    def accepted(self) -> int | None:
        assert self.service is not None
        return int(self.service.stats()["accepted"]["tasks"])

    def rows_per_flush(self) -> float:
        assert self.service is not None
        return float(self.service.stats()["performance"]["average_batch_size"])

    def stop(self) -> None:
        """Ends it at once: what still waits in the journal is thrown away with it."""
        service, self.service = self.service, None
        if service is None:
            return
        workers, writers = service.workers(), service.writers()
        flusher = [service.flusher.pid] if service.flusher is not None else []
        for name, pids in (("ingest worker", workers), ("flusher", flusher), ("writer", writers)):
            peaks = [peak for pid in pids if (peak := peak_rss_mb(pid)) is not None]
            if peaks:
                self.rss_mb[name] = max(peaks)
        service.kill()
        # By the directory, not by who was there a moment ago: a writer that was being started opens its log there.
        wait_until(lambda: not processes_of(service.directory), 40, "workers and writers have ended")
        shutil.rmtree(service.directory)


class Ceiling(Contender):
    """Args: name: ceiling-asgi or ceiling-falcon."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self._process: subprocess.Popen[bytes] | None = None
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 -- as long as this object

    def start(self, cores: Sequence[int]) -> None:
        command = [sys.executable, "-m", "bench.ceilings", self.name, str(self.port)]
        with on_cores(cores):
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output
            )
        wait_until(self._answers, 20, f"{self.name} answers")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(10)

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            self._output.seek(0)
            raise AssertionError(f"{self.name} ended: {self._output.read().decode(errors='replace')[-2000:]}")
        try:
            with socket.create_connection(self.address, timeout=5):
                return True
        except OSError:
            return False


def post(contender: Contender, bodies: Sequence[bytes]) -> list[str]:
    """Sends bodies one after the other on one connection: to warm up, and to see that it takes them.

    Returns: what was answered instead of 2xx.
    """
    odd: list[str] = []
    host, port = contender.address
    connection = http.client.HTTPConnection(host, port, timeout=30)
    for body in bodies:
        connection.request("POST", contender.path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text: Any = answer.read()
        if not 200 <= answer.status <= 299:
            odd.append(f"{answer.status} {text[:200]!r}")
            break
    connection.close()
    return odd
