"""Nodes of the service under supervisord, seen from outside, and HAProxy with deploy/'s configuration.

All methods block.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

from supervisor.xmlrpc import SupervisorTransport

from flusher import segments
from scripts.network import Network
from tests.support.mariadb import MariaDB
from tests.support.service import ROOT, processes_of, wait_until
from tests.support.supervised import Supervised

PORT = 8001
BALANCER_PORT = 8000
DISK_BYTES = 12 * 1024 * 1024
"""Of the small disk under the journal: it is never full by itself, only when a fault fills it."""
ALONE = {
    "SERVICE_WORKERS": "2",
    "BUFFER_MAX_SIZE": "200",
    "BUFFER_FLUSH_INTERVAL": "0.5",
    "JOURNAL_MAX_BYTES": str(4 * 1024 * 1024),
    "SERVICE_MAX_BODY_BYTES": str(4 * 1024 * 1024),
    "DB_POOL_SIZE": "4",
}
AMONG_OTHERS = {
    "SERVICE_WORKERS": "1",
    "SERVICE_PROTECTED_MODE": "false",
    "SERVICE_DRAIN_DELAY": "2",
    "BUFFER_FLUSH_INTERVAL": "0.2",
    "JOURNAL_MAX_BYTES": str(64 * 1024 * 1024),
    "DB_CONNECT_TIMEOUT": "1",
    "DB_READ_TIMEOUT": "15",
}
LEFT = ("dead_letters", "journaled_entries_left", "processes_left", "tracebacks")
"""What must be 0 once everything is written and a node has stopped."""


class Node(Supervised):
    """One node on a host of its own, or the only one on 127.0.0.1; it prefers the database node of its number."""

    def __init__(self, directory: Path, number: int, network: Network | None, environ: dict[str, str]) -> None:
        directory.mkdir(mode=0o700)
        settings: dict[str, object] = {**(AMONG_OTHERS if network else ALONE), "SERVICE_ACK_TIMEOUT": "3"}
        super().__init__(directory, MariaDB(directory), "", **settings)
        self.number = number
        self.name = f"node{number}"
        self.mounted = False
        self._prefix: list[str] = []
        if network:
            self.host, self.port = network.address(self.name), PORT
            self._prefix = network.command(self.name, [])
        address = {"SERVICE_HOST": self.host, "SERVICE_PORT": str(self.port), "DB_SOCKET": ""}
        self.environ |= {**address, **environ}

    def mount_journal(self) -> bool:
        """A small disk of its own for the journal. Returns: whether this user may mount one."""
        self.journal.mkdir(mode=0o700)
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "tmpfs", str(self.journal)]
        self.mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
        return self.mounted

    def unmount_journal(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.journal)], check=False)
            self.mounted = False

    def start(self) -> None:
        """As deploy/persistence@.service does. Returns as soon as it is started."""
        self.launch(*self._prefix)

    def kill_all(self) -> int:
        """All its processes at once. Returns: how many."""
        killed = 0
        for _ in range(3):
            for pid in processes_of(self.directory):
                try:
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
                except ProcessLookupError:
                    continue
        if self.supervisor is not None:
            self.supervisor.wait(10)
        return killed

    def is_healthy(self) -> bool:
        try:
            return bool(self.get("/health").json["status"] == "healthy")
        except (OSError, http.client.HTTPException, ValueError):
            return False

    def is_flushed(self) -> bool:
        """Whether everything is written within ten seconds."""
        try:
            return self.flush(10).status == 200
        except (OSError, http.client.HTTPException):
            return False

    def rows_written(self) -> int:
        """Since its flusher's start; -1 where it does not say."""
        try:
            return int(self.stats()["coalescing"]["rows_written"])
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return -1

    def conflicts(self) -> int:
        """Batches that were written again because of a conflict (1213), as its metrics count them."""
        metrics = self.get("/metrics").body
        found = re.search(rb'^persistence_flush_failures_by_code_total\{code="1213"\} (\d+)', metrics, re.MULTILINE)
        return int(found[1]) if found else 0

    def pid(self, program: str, *, young: bool = True) -> int:
        """Of a program of supervisord; 0 where it is not running, or has only just started and may not be `young`.

        Raises: OSError.
        """
        try:
            info: Any = self._supervisor().getProcessInfo(program)
        except Fault:
            return 0  # supervisord itself is stopping
        return int(info["pid"]) if info["statename"] in (("STARTING", "RUNNING") if young else ("RUNNING",)) else 0

    def children_of(self, program: str) -> list[int]:
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

    def _supervisor(self) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self.directory / 'supervisor.sock'}")
        return ServerProxy("http://127.0.0.1", transport=transport).supervisor

    def left(self) -> dict[str, int]:
        """By the names of LEFT."""
        logs = [*self.directory.glob("log*"), *self.directory.glob("*.stderr*")]
        counts = (
            len(self.dead_letters.read_bytes().splitlines()) if self.dead_letters.exists() else 0,
            sum(len(segments.read(one).entries) for one in self.journal.glob("*.segment")),
            len(processes_of(self.directory)),
            sum(path.read_bytes().count(b"Traceback (") for path in logs),
        )
        return dict(zip(LEFT, counts, strict=True))

    def set_aside(self) -> int:
        return len(list(self.journal.glob("*.broken")))


class Balancer:
    """HAProxy in the hub, with the configuration that deploy/ has, its addresses replaced by those of the nodes."""

    def __init__(self, directory: Path, network: Network, nodes: Sequence[Node]) -> None:
        self.host, self.port = network.address(""), BALANCER_PORT
        self._socket = directory / "haproxy.sock"
        self._log = directory / "haproxy.log"
        self._configuration = directory / "haproxy.cfg"
        self._process: subprocess.Popen[bytes] | None = None
        self._nodes = nodes
        self._network = network
        text = (ROOT / "deploy" / "haproxy-cluster.cfg").read_text(encoding="utf-8")
        text = text.replace("/run/haproxy/admin.sock", str(self._socket))
        text = text.replace("bind :8000", f"bind {self.host}:{self.port}")
        text = text.partition("\nglobal")[2]  # without the comments at its head
        text, replaced = re.subn(r"127\.0\.0\.1:800(\d)", lambda found: f"{nodes[int(found[1]) - 1].host}:{PORT}", text)
        assert replaced == len(nodes)
        self._configuration.write_text("global" + text, encoding="utf-8")

    def start(self) -> None:
        with self._log.open("ab") as log:
            process = self._process = subprocess.Popen(
                self._network.command("", ["haproxy", "-db", "-f", str(self._configuration)]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(lambda: self._socket.exists() or process.poll() is not None, 10, "HAProxy starts")
        if process.poll() is not None:
            raise RuntimeError(self._log.read_text())

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def all_up(self) -> bool:
        """Whether it sends requests to every node."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(5)
            admin.connect(str(self._socket))
            admin.sendall(b"show stat\n")
            answer = b"".join(iter(lambda: admin.recv(65536), b"")).decode()
        rows = [line.split(",") for line in answer.splitlines() if line.startswith("nodes,")]
        return sum(row[1] != "BACKEND" and row[17].startswith("UP") for row in rows) == len(self._nodes)


def restart_in_turn(nodes: Sequence[Node], balancer: Balancer) -> None:
    """Stops one node after the other as systemd does it and starts it again, as soon as all are up."""
    for node in nodes:
        wait_until(balancer.all_up, 30, "all nodes are up")
        node.stop()
        node.start()
        node.wait_ready()  # HAProxy may not have noticed its end
        wait_until(balancer.all_up, 30, f"{node.name} is back")


def all_flushed(nodes: Sequence[Node], timeout_s: float) -> bool:
    """As an operator does it: with more than one node one command for all. Returns: whether all was written in time."""
    command = [sys.executable, "-m", "ctl", "flush", "--all-nodes", "--timeout", "10"]
    give_up_at = time.monotonic() + timeout_s
    while time.monotonic() < give_up_at:
        if len(nodes) == 1:
            done = nodes[0].is_flushed()
        else:
            done = subprocess.run(command, cwd=ROOT, env=nodes[0].environ, capture_output=True).returncode == 0
        if done:
            return True
        time.sleep(0.1)
    return False
