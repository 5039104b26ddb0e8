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
from collections.abc import Callable
from pathlib import Path

import MySQLdb

from scripts.galera import PROVIDER, Galera
from scripts.network import network_of
from scripts.servers import NODES, ClusterFault, Servers, host

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


def up(make: Callable[[Path], Servers] = at) -> Servers:
    """Makes a cluster in a new directory; every node takes writes. Raises: ClusterFault, OSError."""
    directory = Path(tempfile.mkdtemp(prefix="ps-cluster-", dir="/tmp"))
    directory.chmod(0o755)
    if PROGRAMS.exists():
        shutil.copytree(PROGRAMS, directory / "bin")
    cluster = make(directory)
    try:
        cluster.network.up()
        cluster.install()
        cluster.form()
    except BaseException:
        down(cluster)
        raise
    return cluster


def down(cluster: Servers, *, keep: bool = False) -> None:
    """Ends all its processes and takes away all that it made; `keep`: but its files."""
    cluster.kill_all()
    cluster.network.down()
    if not keep:
        shutil.rmtree(cluster.directory.parent, ignore_errors=True)


def print_status(cluster: Galera) -> bool:
    """Returns: whether every node takes writes."""
    for number in NODES:
        status = cluster.status(number)
        state = f"{status['cluster_status']}, {status['local_state_comment']}" if status else "not reached"
        pid = cluster.pid(number)
        print(f"node {number}  {cluster.network.address(host(number)):<15}  process {pid or 'none':<8}  {state}")
    return all(map(cluster.is_ready, NODES))


def cut(cluster: Galera, number: int, *, off: bool) -> None:
    """Takes the node's link away, or gives it back; where there are no links, its replication only."""
    if cluster.network.name:
        (cluster.network.cut if off else cluster.network.heal)(host(number))
    else:
        cluster.isolate(number, isolated=off)
    if not off:
        cluster.wait_ready(number)


def run(arguments: argparse.Namespace, link: Path) -> int:
    directory = link.resolve() if link.is_symlink() else None
    if arguments.command == "up":
        if directory is not None and directory.exists():
            raise ClusterFault(f"there is one already in {directory}; down ends it")
        link.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = up()
        link.unlink(missing_ok=True)
        link.symlink_to(made.directory.parent)
        print_status(at(made.directory.parent))
        print(" ".join(f"{name}={value}" for name, value in made.service_environ().items()))
        if made.network.name:
            print(
                "These addresses exist only where it runs: ./scripts/cluster.sh exec COMMAND... runs a command there."
            )
        return 0
    if directory is None or not directory.exists():
        link.unlink(missing_ok=True)
        print("no cluster is up")
        return 0 if arguments.command == "down" else 1
    cluster = at(directory)
    if arguments.command == "down":
        down(cluster)
        link.unlink()
    elif arguments.command == "status":
        return 0 if print_status(cluster) else 1
    elif arguments.command == "exec":
        cluster.network.join()
        os.execvpe(arguments.words[0], arguments.words, {**os.environ, **cluster.service_environ()})
    elif arguments.command == "kill":
        cluster.signal(arguments.number, signal.SIGKILL)
    elif arguments.command == "start":
        cluster.start(arguments.number)
    else:
        cut(cluster, arguments.number, off=arguments.command == "partition")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="cluster.sh", description="a Galera cluster of three for tests and trial")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="makes it and waits until every node takes writes")
    commands.add_parser("down", help="ends it and removes all it made")
    commands.add_parser("status", help="how every node is; exit status 0 only if all take writes")
    execute = commands.add_parser("exec", help="runs a command where it is reached, with DB_HOST and so on set")
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
