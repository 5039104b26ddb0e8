"""Nodes of the service under supervisord, and HAProxy with deploy/'s configuration. All methods block."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.galera import DATABASE, NODES, PASSWORD, USER
from scripts.galera import host as database_host
from scripts.network import Network
from tests.support.service import ROOT, wait_until
from tests.system.chaos.service import Service

PORT = 8001
BALANCER_PORT = 8000
DRAIN_DELAY_S = 2.0
ENDS_S = 60.0


class Node(Service):
    """One of the service's nodes, on a host of its own; it prefers the database node of its number."""

    def __init__(self, directory: Path, number: int, network: Network) -> None:
        super().__init__(directory, fsync="interval")
        directory.mkdir(mode=0o700)
        self.number = number
        self.name = f"node{number}"
        self._network = network
        self._supervisord: subprocess.Popen[bytes] | None = None
        self.host = network.address(self.name)
        self.port = PORT
        others = [one for one in NODES if one != number]
        databases = [number, *others] if number in NODES else others
        self.environ |= {
            "SERVICE_HOST": self.host,
            "SERVICE_PORT": str(PORT),
            "SERVICE_WORKERS": "1",
            "SERVICE_PROTECTED_MODE": "false",
            "SERVICE_DRAIN_DELAY": str(DRAIN_DELAY_S),
            "BUFFER_FLUSH_INTERVAL": "0.2",
            "JOURNAL_MAX_BYTES": str(64 * 1024 * 1024),
            "DB_HOST": ",".join(network.address(database_host(one)) for one in databases),
            "DB_USER": USER,
            "DB_PASSWORD": PASSWORD,
            "DB_DATABASE": DATABASE,
            "CLUSTER_NODES": ",".join(f"http://{network.address(f'node{one}')}:{PORT}" for one in NODES),
            "DB_CONNECT_TIMEOUT": "1",
            "DB_READ_TIMEOUT": "15",
        }

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        """As deploy/persistence@.service does. Returns as soon as it is started."""
        configuration = self.directory / "supervisord.conf"
        text = (ROOT / "supervisord.conf").read_text(encoding="utf-8")
        text = text.replace("%(here)s/var", str(self.directory)).replace("%(here)s/.venv/bin/python", sys.executable)
        configuration.write_text(text.replace("%(here)s", str(ROOT)), encoding="utf-8")
        command = [sys.executable, "-m", "supervisor.supervisord", "-n", "-s", "-c", str(configuration)]
        with (self.directory / "supervisord.stderr.log").open("ab") as errors:
            self._supervisord = subprocess.Popen(
                self._network.command(self.name, command),
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
            for pid in self.processes():
                try:
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
                except ProcessLookupError:
                    continue
        if self._supervisord is not None:
            self._supervisord.wait(ENDS_S)
        return killed

    def is_ready(self) -> bool:
        try:
            return self.get("/ready", timeout_s=2)[0] == 200
        except OSError:
            return False

    def wait_ready(self) -> None:
        wait_until(self.is_ready, 30, f"{self.name} gets ready")


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
        text = text.replace("/run/haproxy/admin.sock", str(self._socket)).replace(
            "bind :8000", f"bind {self.host}:{self.port}"
        )
        # Not the comments at its head.
        text = text.partition("\nglobal")[2]
        text, replaced = re.subn(r"127\.0\.0\.1:800(\d)", lambda found: f"{nodes[int(found[1]) - 1].host}:{PORT}", text)
        assert replaced == len(nodes) == 3
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
