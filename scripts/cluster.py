"""`./scripts/cluster.sh`: a three-node MariaDB Galera cluster for tests and trial.

Its directory is one of its own under /tmp, since the database's user must get there; `cluster` in the state directory
is a link to it. What it is made of follows from that directory alone, so every command finds it again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import MySQLdb

from scripts.galera import DATABASE, NODES, PASSWORD, PROVIDER, USER, ClusterFault, Galera, host
from scripts.network import network_of

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / ".venv" / "share" / "galera"
"""Where need_galera of lib.sh puts wsrep_sst_rsync."""
HOSTS = {**{host(number): number for number in NODES}, **{f"node{number}": 10 + number for number in NODES}}
"""Databases, and as many hosts for nodes of the service."""


def missing() -> str:
    """Why no cluster can be started here; empty if one can."""
    programs = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", str(PROGRAMS)))
    wanted = ("mariadbd", "mariadb-install-db", "rsync", "wsrep_sst_rsync")
    lacking = [program for program in wanted if not shutil.which(program, path=programs)]
    lacking += [] if Path(PROVIDER).exists() else ["galera-4"]
    return f"not installed: {', '.join(lacking)}" if lacking else ""


def at(directory: Path) -> Galera:
    programs = directory / "bin"
    return Galera(directory / "db", network_of(directory, HOSTS), programs if programs.exists() else None)


def up() -> tuple[Path, Galera]:
    """Makes a cluster; every node takes writes. Returns: its directory, and it. Raises: ClusterFault, OSError."""
    directory = Path(tempfile.mkdtemp(prefix="ps-cluster-", dir="/tmp"))
    directory.chmod(0o755)
    if PROGRAMS.exists():
        shutil.copytree(PROGRAMS, directory / "bin")
    cluster = at(directory)
    try:
        cluster.network.up()
        cluster.install()
        cluster.form()
    except BaseException:
        down(directory)
        raise
    return directory, cluster


def down(directory: Path, *, keep: bool = False) -> None:
    """Ends all its processes and takes away all that it made; `keep`: but its files."""
    cluster = at(directory)
    cluster.kill_all()
    cluster.network.down()
    if not keep:
        shutil.rmtree(directory, ignore_errors=True)


def print_status(cluster: Galera) -> bool:
    """Returns: whether every node takes writes."""
    for number in NODES:
        status = cluster.status(number)
        state = f"{status['cluster_status']}, {status['local_state_comment']}" if status else "not reached"
        pid = cluster.pid(number)
        print(f"node {number}  {cluster.network.address(host(number)):<15}  process {pid or 'none':<8}  {state}")
    return all(map(cluster.is_synced, NODES))


def environment(cluster: Galera) -> dict[str, str]:
    """What points the service at it."""
    addresses = ",".join(cluster.network.address(host(number)) for number in NODES)
    return {"DB_HOST": addresses, "DB_USER": USER, "DB_PASSWORD": PASSWORD, "DB_DATABASE": DATABASE}


def partition(cluster: Galera, number: int) -> None:
    """Takes the node's link away; where there are no links, its replication only."""
    if cluster.network.name:
        cluster.network.cut(host(number))
    else:
        cluster.isolate(number, isolated=True)


def heal(cluster: Galera, number: int) -> None:
    if cluster.network.name:
        cluster.network.heal(host(number))
    else:
        cluster.isolate(number, isolated=False)
    cluster.wait_synced(number)


def run(arguments: argparse.Namespace, link: Path) -> int:
    directory = link.resolve() if link.is_symlink() else None
    if arguments.command == "up":
        if directory is not None and directory.exists():
            raise ClusterFault(f"there is one already in {directory}; down ends it")
        link.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory, cluster = up()
        link.unlink(missing_ok=True)
        link.symlink_to(directory)
        print_status(cluster)
        print(" ".join(f"{name}={value}" for name, value in environment(cluster).items()))
        if cluster.network.name:
            print(
                "These addresses exist only where it runs: ./scripts/cluster.sh exec COMMAND... runs a command there."
            )
        return 0
    if directory is None or not directory.exists():
        link.unlink(missing_ok=True)
        print("no cluster is up")
        return 0 if arguments.command == "down" else 1
    if arguments.command == "down":
        down(directory)
        link.unlink()
        return 0
    cluster = at(directory)
    if arguments.command == "status":
        return 0 if print_status(cluster) else 1
    if arguments.command == "exec":
        cluster.network.join()
        os.execvpe(arguments.words[0], arguments.words, {**os.environ, **environment(cluster)})
    if arguments.command == "kill":
        cluster.signal(arguments.number, signal.SIGKILL)
    else:
        {"start": Galera.start, "partition": partition, "heal": heal}[arguments.command](cluster, arguments.number)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="cluster.sh", description="a Galera cluster of three for tests and trial")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="makes it and waits until every node takes writes")
    commands.add_parser("down", help="ends it and removes all it made")
    commands.add_parser("status", help="how every node is; exit status 0 only if all take writes")
    execute = commands.add_parser(
        "exec", help="runs a command where the cluster is reached, with DB_HOST and so on set"
    )
    execute.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND")
    for name, text in (
        ("kill", "SIGKILL"),
        ("start", "starts a node that has ended"),
        ("partition", "cuts a node off"),
        ("heal", "takes it in again, and waits"),
    ):
        commands.add_parser(name, help=text).add_argument("number", type=int, choices=NODES, metavar="N")
    arguments = parser.parse_args()
    if arguments.command == "exec" and not arguments.words:
        parser.error("exec needs a command")
    try:
        return run(arguments, Path(os.environ.get("PERSISTENCE_STATE_DIR") or ROOT / "var") / "cluster")
    except (ClusterFault, OSError, MySQLdb.Error) as error:
        print(f"cluster.sh: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
