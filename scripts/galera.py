"""A MariaDB Galera cluster for tests and trial: its nodes' directories, processes and states.

Rules: all methods block. A cluster lives in one directory that holds all it writes; whoever opens the same directory
later (another process too) finds the nodes by their pid files. Durability is set for trial: a commit is in the memory
of a majority of the nodes and in each one's page cache, not on their disks (innodb_flush_log_at_trx_commit=2).
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import MySQLdb

from flusher.schema import FILE as SCHEMA_FILE
from flusher.store import schema_statements
from scripts.network import Network

NODES = (1, 2, 3)
PORT = 3306
DATABASE = "ai_terminal"
USER = "persistence"
PASSWORD = "trial"
PROVIDER = "/usr/lib/galera/libgalera_smm.so"
_PROVIDER_OPTIONS = (
    "gcache.size=32M",
    "pc.recovery=true",
    # A silent node is put out after 1.5 s instead of 5 s, while it is waited for nothing is committed anywhere.
    "evs.keepalive_period=PT0.3S",
    "evs.suspect_timeout=PT1.5S",
    "evs.inactive_timeout=PT3S",
    "evs.install_timeout=PT3S",
    "evs.inactive_check_period=PT0.3S",
    "gmcast.peer_timeout=PT1.5S",
)
_OPTIONS = (
    "--innodb-buffer-pool-size=64M",
    "--innodb-log-file-size=32M",
    "--innodb-flush-log-at-trx-commit=2",
    "--innodb-autoinc-lock-mode=2",
    "--innodb-use-native-aio=0",
    "--binlog-format=ROW",
    "--max-allowed-packet=64M",
    "--character-set-server=utf8mb4",
    "--skip-name-resolve",
    "--wsrep-on=ON",
    f"--wsrep-provider={PROVIDER}",
    "--wsrep-sst-method=rsync",
    "--wsrep-slave-threads=2",
)
START_S = 60.0
STOP_S = 30.0
WHOLE_LOOKS = 4


def host(number: int) -> str:
    """The node's name in its network."""
    return f"db{number}"


class ClusterFault(Exception):
    """A node does not do what it should; the message says where to look."""


class Galera:
    def __init__(self, directory: Path, network: Network, programs: Path | None = None) -> None:
        """Args: programs: where wsrep_sst_rsync lies, unless in the PATH."""
        self.directory = directory
        self.network = network
        self._user = "mysql" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        path = os.environ.get("PATH", "")
        self._environ = {**os.environ, "PATH": f"{programs}:{path}" if programs else path}
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def install(self) -> None:
        """Three equal copies of a fresh server with our tables and user, ready to form a cluster.

        Copies of one history need no state transfer when they join. Raises: ClusterFault.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        first = self._node(1)
        for number in NODES:
            (self._node(number) / "tmp").mkdir(parents=True)
        self._own()
        self._run_as_user(
            "mariadb-install-db",
            "--no-defaults",
            f"--datadir={first / 'data'}",
            f"--tmpdir={first / 'tmp'}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        )
        self._start(1, "--wsrep-new-cluster")
        self.wait_synced(1)
        db = self.connect(1, database=None)
        for statement in (
            *schema_statements(SCHEMA_FILE.read_text(encoding="utf-8"), DATABASE),
            f"CREATE USER {USER} IDENTIFIED BY '{PASSWORD}'",
            f"GRANT SELECT, INSERT, UPDATE ON {DATABASE}.* TO {USER}",
        ):
            db.query(statement)
        db.close()
        self.stop(1)
        for number in NODES[1:]:
            shutil.copytree(first / "data", self._node(number) / "data")
        self._own()

    def form(self) -> None:
        """Starts all nodes for the first time. Raises: ClusterFault."""
        self._start(1, "--wsrep-new-cluster")
        self.wait_synced(1)
        for number in NODES[1:]:
            self._start(number)
        for number in NODES:
            self.wait_synced(number)

    def start(self, number: int) -> None:
        """Starts a node that has ended, however it ended, and waits until it takes writes. Raises: ClusterFault."""
        if self.pid(number):
            raise ClusterFault(f"node {number} is running")
        self._start(number)
        self.wait_synced(number)

    def stop(self, number: int) -> None:
        """SIGTERM. Raises: ClusterFault."""
        pid = self.pid(number)
        if pid:
            os.kill(pid, signal.SIGTERM)
            if not _wait(lambda: not self.pid(number), STOP_S):
                raise ClusterFault(f"node {number} (process {pid}) does not end, see {self._log(number)}")

    def signal(self, number: int, what: signal.Signals) -> None:
        """Raises: ClusterFault where it is not running."""
        pid = self.pid(number)
        if not pid:
            raise ClusterFault(f"node {number} is not running")
        os.kill(pid, what)
        if what is signal.SIGKILL:
            _wait(lambda: not self.pid(number), STOP_S)

    def kill_all(self) -> None:
        """Nodes, and the transfers between them."""
        for number in NODES:
            if self.pid(number):
                os.kill(self.pid(number), signal.SIGKILL)
        mark = os.fsencode(self.directory) + b"/"
        for entry in Path("/proc").iterdir():
            try:
                ours = entry.name.isdigit() and mark in (entry / "cmdline").read_bytes()
                if ours and any(name in (entry / "comm").read_text() for name in ("rsync", "wsrep_sst", "mariadbd")):
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue  # it has ended
        _wait(lambda: not any(map(self.pid, NODES)), STOP_S)

    def pid(self, number: int) -> int:
        """Of a node's server; 0 where it is not running."""
        child = self._children.get(number)
        if child is not None:
            return child.pid if child.poll() is None else 0
        try:
            pid = int((self._node(number) / "pid").read_text())
            alive = str(self._node(number) / "data").encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return 0
        return pid if alive else 0

    def connect(self, number: int, *, database: str | None = DATABASE, **options: Any) -> Any:
        """As root, over the node's socket, which works when its network does not. Raises: MySQLdb.Error."""
        if database:
            options["db"] = database
        return MySQLdb.connect(
            unix_socket=str(self._node(number) / "s"),
            user="root",
            charset="utf8mb4",
            autocommit=True,
            **{"connect_timeout": 2, "read_timeout": 30, **options},
        )

    def status(self, number: int) -> dict[str, str]:
        """wsrep_… without the prefix; empty where nobody answers."""
        try:
            db = self.connect(number, database=None, read_timeout=2)
            try:
                db.query("SHOW STATUS LIKE 'wsrep\\_%'")
                rows = db.store_result().fetch_row(0)
            finally:
                db.close()
        except MySQLdb.Error:
            return {}
        return {name.removeprefix("wsrep_"): value for name, value in rows}

    def is_synced(self, number: int) -> bool:
        status = self.status(number)
        return (
            status.get("ready") == "ON"
            and status["local_state_comment"] == "Synced"
            and status["cluster_status"] == "Primary"
        )

    def wait_synced(self, number: int, timeout_s: float = START_S) -> None:
        """Raises: ClusterFault."""
        if not _wait(lambda: self.is_synced(number) or not self.pid(number), timeout_s) or not self.pid(number):
            raise ClusterFault(f"node {number} does not get ready, see {self._log(number)}")

    def is_whole(self) -> bool:
        """Whether all nodes take writes and agree on who belongs to the cluster.

        A node alone does not know: one that was stopped or cut off believes for a moment that nothing has happened.
        """
        found = [self.status(number) for number in NODES]
        return (
            all(status.get("ready") == "ON" and status["local_state_comment"] == "Synced" for status in found)
            and {status["cluster_size"] for status in found} == {str(len(NODES))}
            and len({status["cluster_conf_id"] for status in found}) == 1
        )

    def wait_whole(self, timeout_s: float = START_S) -> None:
        """Until nothing has changed for a second. Raises: ClusterFault."""
        give_up_at = time.monotonic() + timeout_s
        looks = 0
        while looks < WHOLE_LOOKS:
            looks = looks + 1 if self.is_whole() else 0
            if time.monotonic() > give_up_at:
                raise ClusterFault(f"the cluster does not get whole, see {self.directory}")
            time.sleep(1 / WHOLE_LOOKS)

    def set_global(self, number: int, assignment: str) -> None:
        """Raises: MySQLdb.Error."""
        db = self.connect(number, database=None)
        try:
            db.query(f"SET GLOBAL {assignment}")
        finally:
            db.close()

    def isolate(self, number: int, *, isolated: bool) -> None:
        """Cuts it off from the other database nodes only: it is reached, and refuses (1047). Raises: MySQLdb.Error."""
        self.set_global(number, f"wsrep_provider_options='gmcast.isolate={int(isolated)}'")

    def _node(self, number: int) -> Path:
        return self.directory / host(number)

    def _log(self, number: int) -> Path:
        return self._node(number) / "log"

    def _start(self, number: int, *options: str) -> None:
        position = [] if "--wsrep-new-cluster" in options else self._recovered_position(number)
        command = self.network.command(host(number), [*self._command(number), *position, *options])
        with self._log(number).open("ab") as log:
            child = subprocess.Popen(
                command,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        self._children[number] = child
        (self._node(number) / "pid").write_text(str(child.pid))

    def _recovered_position(self, number: int) -> list[str]:
        """Where its tables are: after a crash only InnoDB knows, and a node that does not say gets everything anew."""
        done = subprocess.run(
            [*self._command(number), "--wsrep-recover", "--log-error="],
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )
        found = re.search(r"WSREP: Recovered position:\s*(\S+)", done.stderr + done.stdout)
        return [f"--wsrep-start-position={found[1]}"] if found else []

    def _command(self, number: int) -> Sequence[str]:
        directory = self._node(number)
        address = self.network.address(host(number))
        options = ";".join(
            (
                f"base_host={address}",
                f"gmcast.listen_addr=tcp://{address}:4567",
                f"ist.recv_addr={address}:4568",
                *_PROVIDER_OPTIONS,
            )
        )
        members = ",".join(self.network.address(host(one)) for one in NODES)
        return (
            shutil.which("mariadbd") or "/usr/sbin/mariadbd",
            "--no-defaults",
            f"--user={self._user}",
            f"--datadir={directory / 'data'}",
            f"--tmpdir={directory / 'tmp'}",
            f"--socket={directory / 's'}",
            f"--pid-file={directory / 'data' / 'pid'}",
            f"--bind-address={address}",
            f"--port={PORT}",
            f"--wsrep-cluster-address=gcomm://{members}",
            f"--wsrep-cluster-name={self.directory.parent.name}",
            f"--wsrep-node-name={host(number)}",
            f"--wsrep-node-address={address}",
            f"--wsrep-sst-receive-address={address}:4444",
            f"--wsrep-provider-options={options}",
            *_OPTIONS,
        )

    def _own(self) -> None:
        """The server's user must be able to write all of it: as root it could not be sent to another node."""
        if os.geteuid() == 0:
            subprocess.run(["chown", "-R", f"{self._user}:", str(self.directory)], check=True, timeout=60)

    def _run_as_user(self, *command: str) -> None:
        done = subprocess.run(
            [*command, f"--user={self._user}"], capture_output=True, text=True, timeout=START_S, check=False
        )
        if done.returncode:
            raise ClusterFault(f"{command[0]}: {(done.stdout + done.stderr)[-1000:]}")


def _wait(condition: Callable[[], Any], timeout_s: float) -> bool:
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.05)
    return True
