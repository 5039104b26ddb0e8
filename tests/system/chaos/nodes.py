"""Nodes of the service under supervisord, seen from outside, and HAProxy with deploy/'s configuration.

All methods block.
"""

from __future__ import annotations

import http.client
import json
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
from tests.support.service import FLUSH, NOT_INHERITED, ROOT, STATS, free_port, processes_of, wait_until

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
ENDS_S = 130.0


class Node:
    """One node on a host of its own, or the only one on 127.0.0.1; it prefers the database node of its number."""

    def __init__(self, directory: Path, number: int, network: Network | None, environ: dict[str, str]) -> None:
        directory.mkdir(mode=0o700)
        self.directory = directory
        self.number = number
        self.name = f"node{number}"
        self.journal = directory / "journal"
        self.mounted = False
        self.host, self.port = (network.address(self.name), PORT) if network else ("127.0.0.1", free_port())
        self.environ = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith((*NOT_INHERITED, "PERSISTENCE_"))
            },
            "PERSISTENCE_STATE_DIR": str(directory),
            "SERVICE_HOST": self.host,
            "SERVICE_PORT": str(self.port),
            "SERVICE_ACK_TIMEOUT": "3",
            "LOGGING_FILE": str(directory / "service.log"),
            **(AMONG_OTHERS if network else ALONE),
            **environ,
        }
        self._network = network
        self._supervisord: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

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
        configuration = self.directory / "supervisord.conf"
        text = (ROOT / "supervisord.conf").read_text(encoding="utf-8")
        text = text.replace("%(here)s/var", str(self.directory)).replace("%(here)s/.venv/bin/python", sys.executable)
        configuration.write_text(text.replace("%(here)s", str(ROOT)), encoding="utf-8")
        command = [sys.executable, "-m", "supervisor.supervisord", "-n", "-s", "-c", str(configuration)]
        with (self.directory / "supervisord.stderr.log").open("ab") as errors:
            self._supervisord = subprocess.Popen(
                self._network.command(self.name, command) if self._network else command,
                cwd=ROOT,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def stop(self) -> None:
        """As systemd does: SIGTERM to supervisord alone."""
        if self._supervisord is not None and self._supervisord.poll() is None:
            self._supervisord.terminate()
            self._supervisord.wait(ENDS_S)

    def kill(self) -> int:
        """All its processes at once. Returns: how many."""
        killed = 0
        for _ in range(3):
            for pid in processes_of(self.directory):
                try:
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
                except ProcessLookupError:
                    continue
        if self._supervisord is not None:
            self._supervisord.wait(ENDS_S)
        return killed

    def get(self, path: str, method: str = "GET", timeout_s: float = 5.0) -> tuple[int, bytes]:
        """Raises: OSError."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read()
        except http.client.HTTPException as error:
            raise OSError(f"{path}: {error!r}") from error
        finally:
            connection.close()

    def answers(self, path: str, *, status: int = 200, words: bytes = b"", method: str = "GET") -> bool:
        try:
            found, body = self.get(path, method, 15)
        except OSError:
            return False
        return found == status and words in body

    def is_healthy(self) -> bool:
        return self.answers("/health", words=b'"status":"healthy"')

    def wait_ready(self) -> None:
        wait_until(lambda: self.answers("/ready"), 30, f"{self.name} gets ready")

    def flush(self) -> bool:
        """Whether everything is written within ten seconds."""
        return self.answers(f"{FLUSH}?timeout=10", method="POST")

    def rows_written(self) -> int:
        """Since its flusher's start; -1 where it does not say."""
        try:
            return int(json.loads(self.get(STATS, timeout_s=2)[1])["coalescing"]["rows_written"])
        except (OSError, ValueError, KeyError):
            return -1

    def conflicts(self) -> int:
        """Batches that were written again because of a conflict (1213), as its metrics count them."""
        found = re.search(
            rb'^persistence_flush_failures_by_code_total\{code="1213"\} (\d+)', self.get("/metrics")[1], re.MULTILINE
        )
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

    def _supervisor(self) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self.directory / 'supervisor.sock'}")
        return ServerProxy("http://127.0.0.1", transport=transport).supervisor

    def left(self) -> dict[str, int]:
        """What must be 0 once everything is written and the node has stopped."""
        logs = [*self.directory.glob("service.log*"), *self.directory.glob("*.stderr.log*")]
        letters = self.directory / "dead_letters.jsonl"
        return {
            "dead_letters": len(letters.read_bytes().splitlines()) if letters.exists() else 0,
            "journaled_entries_left": sum(len(segments.read(one).entries) for one in self.journal.glob("*.segment")),
            "processes_left": len(processes_of(self.directory)),
            "tracebacks": sum(path.read_bytes().count(b"Traceback (") for path in logs),
        }

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
            self._process = subprocess.Popen(
                self._network.command("", ["haproxy", "-db", "-f", str(self._configuration)]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(lambda: self._socket.exists() or self._process.poll() is not None, 10, "HAProxy starts")
        if self._process.poll() is not None:
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
            done = nodes[0].flush()
        else:
            done = subprocess.run(command, cwd=ROOT, env=nodes[0].environ, capture_output=True).returncode == 0
        if done:
            return True
        time.sleep(0.1)
    return False
