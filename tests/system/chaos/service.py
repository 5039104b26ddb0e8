"""The service as scripts/run.sh starts it: supervisord, MariaDB, flusher, ingest with two workers, seen from outside.

All methods block.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

import MySQLdb
import MySQLdb.cursors
from supervisor.xmlrpc import SupervisorTransport

from flusher import segments
from tests.support import mysql
from tests.support.service import FLUSH, ROOT, STATS, free_port
from tests.system.chaos.model import COLUMNS, TABLES, fetched, select_updated_at

DATABASE = "ai_terminal"
JOURNAL_MAX_BYTES = 4 * 1024 * 1024
DISK_BYTES = 12 * 1024 * 1024
"""Of the small disk under the journal: it is never full by itself, only when a fault fills it."""
_NAMES = ("DB_", "SERVICE_", "BUFFER_", "JOURNAL_", "DEAD_LETTERS_", "LOGGING_", "PERSISTENCE_")


class Service:
    def __init__(self, directory: Path, *, fsync: str) -> None:
        self.directory = directory
        self.host = "127.0.0.1"
        self.port = free_port()
        self.journal = directory / "journal"
        self.mounted = False
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(_NAMES)},
            "PERSISTENCE_STATE_DIR": str(directory),
            "SERVICE_HOST": self.host,
            "SERVICE_PORT": str(self.port),
            "SERVICE_WORKERS": "2",
            "SERVICE_ACK_TIMEOUT": "3",
            "BUFFER_MAX_SIZE": "200",
            "BUFFER_FLUSH_INTERVAL": "0.5",
            "JOURNAL_MAX_BYTES": str(JOURNAL_MAX_BYTES),
            "JOURNAL_FSYNC": fsync,
            "DB_POOL_SIZE": "4",
            "LOGGING_FILE": str(directory / "service.log"),
        }

    def use_mysql(self) -> None:
        """Instead of MariaDB; before start(). Raises: OSError, with its reason where there is none."""
        programs = self.directory / "bin"
        mysql.in_place_of_mariadb(programs)
        self.environ["PATH"] = f"{programs}:{self.environ.get('PATH', '')}"

    def mount_journal(self) -> bool:
        """A small disk of its own for the journal, where we may mount one."""
        self.journal.mkdir(mode=0o700)
        options = f"size={DISK_BYTES},mode=700"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.journal)]
        self.mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
        return self.mounted

    def unmount_journal(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.journal)], check=False)
            self.mounted = False

    def start(self) -> None:
        self._script("run.sh", "--detach")

    def stop(self) -> None:
        self._script("stop.sh")

    def _script(self, *command: str) -> None:
        command = (str(ROOT / "scripts" / command[0]), *command[1:])
        # Into a file: run.sh leaves supervisord behind, which would keep a pipe open.
        with (self.directory / "scripts.log").open("a+") as log:
            done = subprocess.run(
                command, env=self.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=200
            )
            if done.returncode:
                log.seek(0)
                raise RuntimeError(f"{command[0]}: status {done.returncode}: {log.read()[-2000:]}")

    def get(self, path: str, method: str = "GET", timeout_s: float = 5.0) -> tuple[int, Any]:
        """Raises: OSError."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(f"{path}: {error!r}") from error
        finally:
            connection.close()

    def stats(self) -> Any:
        return self.get(STATS)[1]

    def flush(self, timeout_s: float) -> bool:
        """Whether everything is written within `timeout_s`."""
        give_up_at = time.monotonic() + timeout_s
        while time.monotonic() < give_up_at:
            try:
                if self.get(f"{FLUSH}?timeout=10", "POST", 15)[0] == 200:
                    return True
            except OSError:
                pass  # tried again
            time.sleep(0.1)
        return False

    def is_healthy(self) -> bool:
        try:
            return bool(self.get("/health")[1]["status"] == "healthy")
        except OSError:
            return False

    def pid(self, program: str, *, young: bool = True) -> int:
        """Of a program of supervisord; 0 where it is not running, or has only just started and may not be `young`.

        Raises: OSError.
        """
        try:
            info: Any = self._supervisor().getProcessInfo(program)
        except Fault:
            return 0  # supervisord itself is stopping
        return int(info["pid"]) if info["statename"] in (("STARTING", "RUNNING") if young else ("RUNNING",)) else 0

    def children(self, program: str) -> list[int]:
        """Ingest's workers, the flusher's writers. Raises: OSError."""
        pid = self.pid(program)
        try:
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except FileNotFoundError:
            return []

    def restart(self, program: str) -> bool:
        """As supervisorctl restart does; waits. Returns: whether it was running. Raises: OSError."""
        supervisor = self._supervisor()
        try:
            supervisor.stopProcess(program)
        except Fault:
            return False
        try:
            supervisor.startProcess(program)
        except Fault:
            pass  # it ended within its first second; supervisord goes on trying
        return True

    def restart_all(self) -> None:
        """As supervisorctl restart all does: all stop at once, all start at once. Raises: OSError."""
        supervisor = self._supervisor()
        supervisor.stopAllProcesses()
        supervisor.startAllProcesses()

    def _supervisor(self) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self.directory / 'supervisor.sock'}")
        return ServerProxy("http://127.0.0.1", transport=transport).supervisor

    def connect(self, **options: Any) -> Any:
        """Raises: MySQLdb.Error."""
        return MySQLdb.connect(
            unix_socket=str(self.directory / "mysql" / "mysqld.sock"),
            user="root",
            db=DATABASE,
            charset="utf8mb4",
            connect_timeout=2,
            read_timeout=60,
            autocommit=True,
            **options,
        )

    def stored_at(self, kind: str, keys: Sequence[str]) -> dict[str, datetime]:
        """The updated_at of those keys that have a row. Raises: MySQLdb.Error."""
        db = self.connect()
        try:
            cursor = db.cursor()
            cursor.execute(*select_updated_at(kind, keys))
            return dict(cursor.fetchall())
        finally:
            db.close()

    def rows(self, kind: str) -> Iterator[tuple[Any, ...]]:
        """Every row of a kind's table."""
        db = self.connect(cursorclass=MySQLdb.cursors.SSCursor)
        try:
            cursor = db.cursor()
            cursor.execute(f"SELECT {','.join(COLUMNS[kind])} FROM {TABLES[kind]}")
            for values in cursor:
                yield fetched(kind, values)
        finally:
            db.close()

    def journaled_entries(self) -> int:
        """Entries that are still in the journal's segments."""
        return sum(len(segments.read(path).entries) for path in self.journal.glob("*.segment"))

    def set_aside(self) -> int:
        return len(list(self.journal.glob("*.broken")))

    def dead_letters(self) -> int:
        path = self.directory / "dead_letters.jsonl"
        return len(path.read_bytes().splitlines()) if path.exists() else 0

    def tracebacks(self) -> int:
        """Errors that nobody expected, in everything that the service wrote."""
        paths = [*self.directory.glob("service.log*"), *self.directory.glob("*.stderr.log*")]
        return sum(path.read_bytes().count(b"Traceback (") for path in paths)

    def processes(self) -> dict[int, str]:
        """Everything that was started for this state directory and lives: process id -> command."""
        mark = f"PERSISTENCE_STATE_DIR={self.directory}\0".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                if mark in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # it has ended, or is not ours
        return found
