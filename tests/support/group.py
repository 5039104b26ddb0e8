"""MySQL Group Replication: a group of three in single-primary mode, of the server that scripts/mysql.sh unpacks.

group_replication_member_expel_timeout is 0 instead of 5 s, so that a primary that died is put out 5 s earlier.
"""

from __future__ import annotations

import getpass
import shutil
from pathlib import Path

from scripts.network import Network
from scripts.servers import FAULTS, NODES, PORT, START_S, Servers, host, run, set_up_statements, wait
from tests.support import mysql
from tests.support.service import free_port

NAME = "8f2a1c52-6f3e-4b0e-9d57-1f8f5d1c9a01"
_SOURCE = "SOURCE_USER='replica', SOURCE_PASSWORD='trial'"
_VIEW = "performance_schema.replication_group_members"
_MEMBERS = f"SELECT member_host, member_role FROM {_VIEW} WHERE member_state = 'ONLINE' ORDER BY 1"
EXECUTED = "SELECT IFNULL(SUM(SUBSTRING_INDEX(SUBSTRING_INDEX(@@gtid_executed, ':', -1), '-', -1)), 0)"


def missing() -> str:
    """Why no group can be started here; empty if one can."""
    if not mysql.is_fetched():
        return "./scripts/mysql.sh has fetched no MySQL"
    plugin = mysql.program().parent / "usr" / "lib" / "mysql" / "plugin" / "group_replication.so"
    return "" if plugin.exists() else "the MySQL at hand has no group_replication.so"


class Group(Servers):
    reads_all = "SET SESSION group_replication_consistency='BEFORE'"

    def __init__(self, directory: Path, network: Network) -> None:
        super().__init__(directory, network)
        # Without namespaces the group talks over 127.0.0.1 with three ports: XCom refuses 127.0.0.2.
        self._members = {
            number: f"{network.address(host(number))}:33061" if network.name else f"127.0.0.1:{free_port()}"
            for number in NODES
        }
        self._formed = False

    def install(self) -> None:
        for number in NODES:
            (self.node(number) / "tmp").mkdir(parents=True)
        first = self.node(1)
        run([*self._program(), "--initialize-insecure", f"--datadir={first / 'data'}", f"--tmpdir={first / 'tmp'}"])
        (first / "data" / "auto.cnf").unlink()  # the server's UUID, which each must have for itself
        for number in NODES[1:]:
            shutil.copytree(first / "data", self.node(number) / "data")

    def form(self) -> None:
        for number in NODES:
            self._start(number)
        for number in NODES:
            self.wait_connected(number)
            self.query(
                number,
                "SET GLOBAL super_read_only=OFF",
                f"CHANGE REPLICATION SOURCE TO {_SOURCE} FOR CHANNEL 'group_replication_recovery'",
            )
        self._bootstrap(1)
        self.query(
            1,
            "CREATE USER replica IDENTIFIED BY 'trial'",
            "GRANT REPLICATION SLAVE, CONNECTION_ADMIN, BACKUP_ADMIN, GROUP_REPLICATION_STREAM ON *.* TO replica",
            *set_up_statements(),
        )
        for number in NODES[1:]:
            self.query(number, "START GROUP_REPLICATION", read_timeout=120)
        self._formed = True
        for number in NODES:
            self.wait_ready(number)

    def wait_connected(self, number: int) -> None:
        def connects() -> bool:
            try:
                self.query(number)
            except FAULTS:
                return not self.pid(number)
            return True

        wait(connects, 60)

    def members(self, number: int) -> list[tuple[str, str]]:
        """Who is online, as this server sees it: host and role; empty where it does not answer."""
        try:
            return self.query(number, _MEMBERS, read_timeout=2)
        except FAULTS:
            return []

    def primary(self) -> int:
        """The server that takes writes; 0 where there is none, or none that knows."""
        for number in NODES:
            here = self.network.address(host(number))
            if (here, "PRIMARY") in self.members(number):
                try:
                    if self.query(number, "SELECT @@super_read_only", read_timeout=2) == [(0,)]:
                        return number
                except FAULTS:
                    continue
        return 0

    def start(self, number: int) -> None:
        """As soon as the others have put its last incarnation out: before that they do not let it join."""
        others = [one for one in NODES if one != number]
        wait(lambda: not any(self.lists(one, number) for one in others), START_S)
        super().start(number)

    def lists(self, number: int, other: int) -> bool:
        """Whether a server still takes another for a member, in whatever state."""
        members = f"SELECT 1 FROM {_VIEW} WHERE member_host = '{self.network.address(host(other))}'"
        try:
            return bool(self.query(number, members, read_timeout=2))
        except FAULTS:
            return False

    def readable(self) -> list[int]:
        """The primary: a server that is not in the group yet answers what it knew when it died."""
        primary = self.primary()
        return [primary] if primary else []

    def is_ready(self, number: int) -> bool:
        return self.network.address(host(number)) in dict(self.members(number))

    def is_whole(self) -> bool:
        views = [self.members(number) for number in NODES]
        return len(views[0]) == len(NODES) and all(view == views[0] for view in views) and bool(self.primary())

    def revive(self) -> None:
        for number in NODES:
            if self.pid(number) and not self.is_ready(number):
                self.query(number, "STOP GROUP_REPLICATION", read_timeout=60)
        if not any(map(self.members, NODES)):
            most = max((number for number in NODES if self.pid(number)), key=lambda one: self.query(one, EXECUTED)[0])
            self._bootstrap(most)
        for number in NODES:
            if self.pid(number) and not self.is_ready(number):
                self.query(number, "START GROUP_REPLICATION", read_timeout=120)

    def command(self, number: int) -> list[str]:
        address = self.network.address(host(number))
        return [
            *self._program(),
            *self._common_options(number),
            "--innodb-redo-log-capacity=64M",
            f"--server-id={number}",
            f"--report-host={address}",
            f"--report-port={PORT}",
            "--gtid-mode=ON",
            "--enforce-gtid-consistency=ON",
            "--sync-binlog=0",
            "--super-read-only=ON",
            "--plugin-load-add=group_replication.so",
            f"--loose-group-replication-group-name={NAME}",
            f"--loose-group-replication-start-on-boot={'ON' if self._formed else 'OFF'}",
            f"--loose-group-replication-local-address={self._members[number]}",
            f"--loose-group-replication-group-seeds={','.join(self._members.values())}",
            "--loose-group-replication-ip-allowlist=10.0.0.0/8,127.0.0.0/8",
            "--loose-group-replication-member-expel-timeout=0",
            "--loose-group-replication-unreachable-majority-timeout=5",
            "--loose-group-replication-recovery-get-public-key=ON",
            "--loose-group-replication-recovery-reconnect-interval=1",
        ]

    def _bootstrap(self, number: int) -> None:
        self.query(
            number,
            "SET GLOBAL group_replication_bootstrap_group=ON",
            "START GROUP_REPLICATION",
            "SET GLOBAL group_replication_bootstrap_group=OFF",
            read_timeout=120,
        )

    def _program(self) -> list[str]:
        return [str(mysql.program()), f"--user={getpass.getuser()}"]
