"""A MariaDB Galera cluster of three for tests and trial.

The nodes run as the user mysql, since a node's data cannot be sent as root. A commit is in the memory of a majority of
the nodes and in each one's page cache (innodb_flush_log_at_trx_commit=2).
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from pathlib import Path

import MySQLdb

from scripts.network import Network
from scripts.servers import NODES, START_S, Servers, host, run, set_up_statements

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
_NEW = "--wsrep-new-cluster"


class Galera(Servers):
    reads_all = "SET SESSION wsrep_sync_wait=1"

    def __init__(self, directory: Path, network: Network, programs: Path | None = None) -> None:
        """Args: programs: where wsrep_sst_rsync lies, unless in the PATH."""
        super().__init__(directory, network)
        self._user = "mysql" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        if programs:
            self.environ["PATH"] = f"{programs}:{os.environ.get('PATH', '')}"

    def install(self) -> None:
        """Three equal copies of a fresh server with our tables and user: copies of one history need no transfer."""
        first = self.node(1)
        for number in NODES:
            (self.node(number) / "tmp").mkdir(parents=True)
        self._own()
        options = ("--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db")
        places = (f"--datadir={first / 'data'}", f"--tmpdir={first / 'tmp'}", f"--user={self._user}")
        run(["mariadb-install-db", *options, *places])
        self._start(1, _NEW)
        self.wait_ready(1)
        self.query(1, *set_up_statements())
        self.stop(1)
        for number in NODES[1:]:
            shutil.copytree(first / "data", self.node(number) / "data")
        self._own()

    def form(self) -> None:
        self._start(1, _NEW)
        self.wait_ready(1)
        for number in NODES[1:]:
            self._start(number)
        for number in NODES:
            self.wait_ready(number)

    def status(self, number: int) -> dict[str, str]:
        """wsrep_… without the prefix; empty where nobody answers."""
        try:
            rows = self.query(number, "SHOW STATUS LIKE 'wsrep\\_%'", read_timeout=2)
        except MySQLdb.Error:
            return {}
        return {name.removeprefix("wsrep_"): value for name, value in rows}

    def is_ready(self, number: int) -> bool:
        status = self.status(number)
        return (
            status.get("ready") == "ON"
            and status["local_state_comment"] == "Synced"
            and status["cluster_status"] == "Primary"
        )

    def is_whole(self) -> bool:
        """A node alone does not know: one that was stopped or cut off believes for a moment that nothing happened."""
        if not all(map(self.is_ready, NODES)):
            return False
        found = [self.status(number) for number in NODES]
        views = {(status.get("cluster_size"), status.get("cluster_conf_id")) for status in found}
        return len(views) == 1 and views.pop()[0] == str(len(NODES))

    def revive(self) -> None:
        if not any(self.status(number).get("cluster_status") == "Primary" for number in NODES):
            self.query(NODES[0], "SET GLOBAL wsrep_provider_options='pc.bootstrap=YES'")

    def isolate(self, number: int, *, isolated: bool) -> None:
        """Cuts it off from the other database nodes only: it is reached, and refuses (1047). Raises: MySQLdb.Error."""
        self.query(number, f"SET GLOBAL wsrep_provider_options='gmcast.isolate={int(isolated)}'")

    def conflicts(self) -> int:
        """Transactions that lost against another node's, since the nodes' starts."""
        names = ("local_cert_failures", "local_bf_aborts")
        return sum(int(self.status(number).get(name, 0)) for number in NODES for name in names)

    def command(self, number: int) -> list[str]:
        address = self.network.address(host(number))
        provider = (f"base_host={address}", f"gmcast.listen_addr=tcp://{address}:4567", f"ist.recv_addr={address}:4568")
        members = ",".join(self.network.address(host(one)) for one in NODES)
        return [
            shutil.which("mariadbd") or "/usr/sbin/mariadbd",
            "--no-defaults",
            f"--user={self._user}",
            *self._common_options(number),
            "--innodb-log-file-size=32M",
            "--innodb-autoinc-lock-mode=2",
            "--binlog-format=ROW",
            "--wsrep-on=ON",
            f"--wsrep-provider={PROVIDER}",
            f"--wsrep-provider-options={';'.join((*provider, *_PROVIDER_OPTIONS))}",
            f"--wsrep-cluster-address=gcomm://{members}",
            f"--wsrep-cluster-name={self.directory.parent.name}",
            f"--wsrep-node-name={host(number)}",
            f"--wsrep-node-address={address}",
            "--wsrep-sst-method=rsync",
            f"--wsrep-sst-receive-address={address}:4444",
            "--wsrep-slave-threads=2",
        ]

    def _start(self, number: int, *options: str) -> None:
        position = [] if _NEW in options else self._recovered_position(number)
        super()._start(number, *position, *options)

    def _recovered_position(self, number: int) -> list[str]:
        """Where its tables are: after a crash only InnoDB knows, and a node that does not say gets everything anew."""
        command = [*self.command(number), "--wsrep-recover", "--log-error="]
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=START_S, check=False)
        found = re.search(r"WSREP: Recovered position:\s*(\S+)", done.stderr + done.stdout)
        return [f"--wsrep-start-position={found[1]}"] if found else []

    def _own(self) -> None:
        """The server's user must be able to write all of it."""
        if os.geteuid() == 0:
            run(["chown", "-R", f"{self._user}:", str(self.directory)])
