"""Three database servers for tests and trial, each on a host of its network: directories, processes, connections.

Rules: all methods block. The servers live in one directory that holds all they write; whoever opens the same directory
later (another process too) finds them by their pid files. Durability is set for trial: a commit is in the memory of
most servers and in their page caches, not on their disks.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import MySQLdb

from flusher.store import schema_statements
from flusher.tables import FILE as SCHEMA_FILE
from scripts.network import Network

NODES = (1, 2, 3)
PORT = 3306
DATABASE = "ai_terminal"
USER = "persistence"
PASSWORD = "trial"
START_S = 60.0
STOP_S = 30.0
WHOLE_LOOKS = 4


def host(number: int) -> str:
    """The server's name in its network."""
    return f"db{number}"


class ClusterFault(Exception):
    """A server does not do what it should; the message says where to look."""


FAULTS = (ClusterFault, OSError, MySQLdb.Error, subprocess.SubprocessError)
"""What a method may raise while servers and links are broken."""


class Servers:
    """A cluster of any make: what it is made of, and when it takes writes, says the subclass."""

    numbers: Sequence[int] = NODES
    reads_all = ""
    """The statement after which a session sees all that was committed anywhere before its read."""

    def __init__(self, directory: Path, network: Network) -> None:
        self.directory = directory
        self.network = network
        self.environ = dict(os.environ)
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def install(self) -> None:
        """Makes the servers' files, not started. Raises: ClusterFault."""
        raise NotImplementedError

    def form(self) -> None:
        """Starts all servers for the first time, with our tables and user. Raises: ClusterFault."""
        raise NotImplementedError

    def is_ready(self, number: int) -> bool:
        """Whether the server belongs to its cluster, as it sees it."""
        raise NotImplementedError

    def is_whole(self) -> bool:
        """Whether all servers agree that all belong to the cluster."""
        raise NotImplementedError

    def command(self, number: int) -> list[str]:
        """The server's program and options."""
        raise NotImplementedError

    def revive(self) -> None:
        """What an operator does where no server takes writes. Raises: one of FAULTS."""

    def readable(self) -> Sequence[int]:
        """Servers to be asked for what is committed, one that takes writes first."""
        return self.numbers

    def start(self, number: int) -> None:
        """Starts a server that has ended, however it ended, and waits until it is ready. Raises: ClusterFault."""
        if self.pid(number):
            raise ClusterFault(f"database node {number} is running")
        self._start(number)
        self.wait_ready(number)

    def stop(self, number: int) -> None:
        """SIGTERM. Raises: ClusterFault."""
        pid = self.pid(number)
        if pid:
            os.kill(pid, signal.SIGTERM)
            if not wait(lambda: not self.pid(number), STOP_S):
                raise ClusterFault(f"database node {number} (process {pid}) does not end, see {self.log(number)}")

    def signal(self, number: int, what: signal.Signals) -> None:
        """Raises: ClusterFault where it is not running."""
        pid = self.pid(number)
        if not pid:
            raise ClusterFault(f"database node {number} is not running")
        os.kill(pid, what)
        if what is signal.SIGKILL:
            wait(lambda: not self.pid(number), STOP_S)

    def kill_all(self) -> None:
        """Servers, and whatever they have started: all processes with the directory on their command line."""
        mark = os.fsencode(self.directory) + b"/"
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mark in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue  # it has ended
        wait(lambda: not any(map(self.pid, self.numbers)), STOP_S)

    def pid(self, number: int) -> int:
        """Of a server; 0 where it is not running."""
        child = self._children.get(number)
        if child is not None:
            return child.pid if child.poll() is None else 0
        try:
            pid = int((self.node(number) / "pid").read_text())
            alive = str(self.node(number) / "data").encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return 0
        return pid if alive else 0

    def connect(self, number: int, *, database: str | None = DATABASE, **options: Any) -> Any:
        """As root, over the server's socket, which works when its network does not. Raises: MySQLdb.Error."""
        if database:
            options["db"] = database
        return MySQLdb.connect(
            unix_socket=str(self.node(number) / "s"),
            user="root",
            charset="utf8mb4",
            autocommit=True,
            **{"connect_timeout": 2, "read_timeout": 30, **options},
        )

    def query(self, number: int, *statements: str, **options: Any) -> list[tuple[Any, ...]]:
        """Runs statements in one session. Returns: the rows of the last. Raises: MySQLdb.Error."""
        db = self.connect(number, **{"database": None, **options})
        try:
            rows: list[tuple[Any, ...]] = []
            for statement in statements:
                db.query(statement)
                result = db.store_result()
                rows = list(result.fetch_row(0)) if result else []
            return rows
        finally:
            db.close()

    def wait_ready(self, number: int, timeout_s: float = START_S) -> None:
        """Raises: ClusterFault."""
        if not wait(lambda: self.is_ready(number) or not self.pid(number), timeout_s) or not self.pid(number):
            raise ClusterFault(f"database node {number} does not get ready, see {self.log(number)}")

    def wait_whole(self, timeout_s: float = START_S) -> None:
        """Until nothing has changed for a second. Raises: ClusterFault."""
        give_up_at = time.monotonic() + timeout_s
        looks = 0
        while looks < WHOLE_LOOKS:
            looks = looks + 1 if self.is_whole() else 0
            if time.monotonic() > give_up_at:
                raise ClusterFault(f"the cluster does not get whole, see {self.directory}")
            time.sleep(1 / WHOLE_LOOKS)

    def make_whole(self) -> bool:
        """As an operator would: starts servers that have given up, names a primary where there is none.

        Returns: whether all servers belong to the cluster again.
        """
        for attempt in range(3):
            try:
                if attempt:
                    self.revive()
                for number in self.numbers:
                    if not self.pid(number):
                        self.start(number)
                self.wait_whole()
            except FAULTS:
                continue
            return True
        return False

    def service_environ(self, preferred: int = 1) -> dict[str, str]:
        """What points a node of the service at the cluster. Args: preferred: the server that it names first."""
        order = [preferred, *(number for number in self.numbers if number != preferred)]
        hosts = ",".join(self.network.address(host(number)) for number in order)
        return {"DB_HOST": hosts, "DB_USER": USER, "DB_PASSWORD": PASSWORD, "DB_DATABASE": DATABASE}

    def node(self, number: int) -> Path:
        return self.directory / host(number)

    def log(self, number: int) -> Path:
        return self.node(number) / "log"

    def _start(self, number: int, *options: str) -> None:
        with self.log(number).open("ab") as log:
            child = subprocess.Popen(
                self.network.command(host(number), [*self.command(number), *options]),
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        self._children[number] = child
        (self.node(number) / "pid").write_text(str(child.pid))

    def _common_options(self, number: int) -> list[str]:
        directory = self.node(number)
        return [
            f"--datadir={directory / 'data'}",
            f"--tmpdir={directory / 'tmp'}",
            f"--socket={directory / 's'}",
            f"--pid-file={directory / 'data' / 'pid'}",
            f"--bind-address={self.network.address(host(number))}",
            f"--port={PORT}",
            "--innodb-buffer-pool-size=64M",
            "--innodb-flush-log-at-trx-commit=2",
            "--innodb-use-native-aio=0",
            "--max-allowed-packet=64M",
            "--character-set-server=utf8mb4",
            "--skip-name-resolve",
        ]


def run(command: Sequence[str]) -> None:
    """Raises: ClusterFault, with what the program says."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)
    if done.returncode:
        raise ClusterFault(f"{command[0]}: {(done.stdout + done.stderr)[-1000:]}")


def set_up_statements() -> list[str]:
    """Our tables, and the service's user with the rights that docs/DEPLOYMENT.md gives it."""
    return [
        *schema_statements(SCHEMA_FILE.read_text(encoding="utf-8"), DATABASE),
        f"CREATE USER {USER} IDENTIFIED BY '{PASSWORD}'",
        f"GRANT SELECT, INSERT, UPDATE ON {DATABASE}.* TO {USER}",
    ]


def wait(condition: Callable[[], Any], timeout_s: float) -> bool:
    """Returns: whether the condition was met in time."""
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.05)
    return True
