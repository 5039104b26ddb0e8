"""`python -m tests.system.chaos`: starts the service, loads it, breaks it, heals it, compares, and says the verdict."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from random import Random, SystemRandom
from typing import Any, TypeVar

import orjson
import uvloop

from scripts import cluster
from scripts.galera import Galera
from scripts.servers import ClusterFault, Servers, wait
from tests.support.group import Group
from tests.system.chaos import databases
from tests.system.chaos import report as reports
from tests.system.chaos.faults import KINDS, Faults, deck
from tests.system.chaos.load import Load, percentiles
from tests.system.chaos.model import TABLES, Differences, Model, compare
from tests.system.chaos.nodes import LEFT, PORT, Balancer, Node, all_flushed, restart_in_turn
from tests.system.chaos.run import schedule
from tests.system.chaos.same import same_through_any_number

QUIET_S = 3.0
"""Before the faults, and after them."""
HEAL_S = 90.0
FLUSH_S = 60.0
T = TypeVar("T")


class Run:
    """One run. `broken` holds what went wrong in the harness itself: it goes on to its comparison all the same."""

    def __init__(self, options: argparse.Namespace, directory: Path, database: Servers, nodes: Sequence[Node]) -> None:
        self._options = options
        self._database = database
        self._nodes = nodes
        self._directory = directory
        self._balancer = Balancer(directory, database.network, nodes) if len(nodes) > 1 else None
        self.broken: list[str] = []

    async def attempt(self, default: T, do: Callable[..., T], *arguments: Any) -> T:
        try:
            return await asyncio.to_thread(do, *arguments)
        except Exception as error:  # noqa: BLE001 -- whatever the harness meets, the run ends with a verdict
            self.broken.append(f"{do.__name__}: {error!r}")
            return default

    async def go(self) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(64))
        options, database, nodes = self._options, self._database, self._nodes
        for node in nodes:
            node.start()
        for node in nodes:
            await asyncio.to_thread(node.wait_ready)
        say(f"ready: {', '.join(node.name for node in nodes)}")
        of_nodes = await self._compare_nodes() if self._balancer else None

        entry = self._balancer or nodes[0]
        model = Model(datetime.now(timezone.utc).replace(microsecond=0, tzinfo=None) - timedelta(hours=1))
        load = Load(
            model,
            (entry.host, entry.port),
            options.seed,
            self._directory / "requests.log",
            clients=options.clients,
            rate=options.rate,
            stored_at=partial(databases.stored_at, database),
        )
        figures = load.figures
        faults = Faults(database, nodes, load, self._directory / "faults.log")
        load.start()
        await asyncio.sleep(QUIET_S)
        if self._balancer is not None and of_nodes is not None:
            before = figures.not_accepted()
            await self.attempt(None, restart_in_turn, nodes[: options.restarts], self._balancer)
            now = figures.not_accepted()
            of_nodes["drained"] = {name: now[name] - before[name] for name in now}
            say(f"drained and restarted: {of_nodes['drained']}")

        say("faults begin")
        figures.phase = "faults"
        began_at = time.monotonic()
        progress = loop.create_task(_say_progress(faults, model, options.faults))
        await faults.run(options.faults, schedule(options.seed, options.per_second, options.deck))
        progress.cancel()
        seconds = round(time.monotonic() - began_at, 1)
        say("faults have ended")

        await self.attempt(False, database.make_whole)
        healed = await self.attempt(False, wait, lambda: all(node.is_healthy() for node in nodes), HEAL_S)
        figures.phase = "quiet"
        say("healthy again" if healed else "NOT healthy again")
        await asyncio.sleep(QUIET_S)
        undelivered = await load.stop(HEAL_S)
        flushed = await self.attempt(False, all_flushed, nodes, FLUSH_S)
        say("flushed" if flushed else "NOT flushed")
        differences = Differences()
        digests = [await self.attempt("", self._compare, number, model, differences) for number in database.numbers]
        say(f"{differences.rows} rows compared")
        for node in nodes:
            await self.attempt(None, node.stop)
        await self.attempt(False, wait, lambda: not any(node.left()["processes_left"] for node in nodes), 10.0)

        nothing: dict[str, int] = {}
        left = [await self.attempt(nothing, node.left) for node in nodes]
        report: dict[str, Any] = {
            "seed": options.seed,
            "database": options.database,
            "fsync": options.fsync,
            "clients": options.clients,
            "seconds": seconds,
            "faults": {
                "asked": options.faults,
                "hit": faults.hits.total(),
                "missed": faults.missed.total(),
                "by_kind": dict(faults.hits),
            },
            "records": {
                "acknowledged": model.records_acknowledged,
                "keys": sum(model.keys(kind) for kind in TABLES),
                "rows": differences.rows,
            },
            "requests": {
                "sent": figures.requests,
                "refused": dict(figures.refused),
                "unanswered": figures.unanswered,
                "committed": figures.committed,
                "wrong": dict(figures.wrong),
            },
            "longest_gap_ms": round(1000 * figures.longest_gap_s),
            "latency_ms": {
                "POST answered 202": {phase: percentiles(values) for phase, values in figures.posts.items()},
                "batch with its repetitions": {
                    phase: percentiles(values) for phase, values in figures.accepted.items()
                },
            },
            "must_be_zero": {
                "lost": differences.lost,
                "stale": differences.stale,
                "duplicated": differences.duplicated,
                "unexpected": differences.unexpected,
                "committed_but_not_stored": figures.committed_not_stored,
                **{name: sum(one.get(name, 0) for one in left) for name in LEFT},
                "requests_never_acknowledged": undelivered,
                "wrong_answers": figures.wrong.total(),
            },
            "segments_set_aside": sum(node.set_aside() for node in nodes),
            "healed": healed,
            "flushed": flushed,
            "digests": digests,
            "examples": differences.examples,
            "broken": [*self.broken, *faults.broken],
        }
        if of_nodes is not None:
            report["nodes"] = {**of_nodes, "fail_overs": faults.fail_overs, "most_fail_over_s": options.fail_over}
        report["problems"] = reports.problems(report)
        return report

    async def _compare_nodes(self) -> dict[str, Any]:
        """What three nodes are tried for before anything is broken."""
        assert self._balancer is not None
        nothing: tuple[list[str], int] = ([], 0)
        digests, rows = await self.attempt(
            nothing, same_through_any_number, self._database, self._nodes, self._options.seed
        )
        say(f"the same records through 1, 2 and 3 nodes: {len(set(digests))} digest of {len(digests)} tables")
        conflicts = {}
        if isinstance(self._database, Galera):
            in_metrics = await self.attempt(0, lambda: sum(node.conflicts() for node in self._nodes))
            conflicts = {"in metrics": in_metrics, "of the database": self._database.conflicts()}
        self._balancer.start()
        await self.attempt(False, wait, self._balancer.all_up, 30.0)
        return {"same": {"digests": digests, "rows": rows}, "conflicts": conflicts, "drained": {}}

    def _compare(self, number: int, model: Model, differences: Differences) -> str:
        """A server's digest; the rows of the first that can be read are compared with the model."""
        found = databases.digest(self._database, number)
        if not differences.rows:
            for kind in TABLES:
                compare(model, kind, databases.rows(self._database, number, kind), differences)
        return found

    def end(self) -> None:
        for node in self._nodes:
            node.kill_all()
        if self._balancer is not None:
            self._balancer.stop()


async def _say_progress(faults: Faults, model: Model, asked: int) -> None:
    while True:
        await asyncio.sleep(15)
        say(f"{faults.hits.total()} of {asked} faults, {model.records_acknowledged} records acknowledged")


_started_at = time.monotonic()


def say(what: str) -> None:
    print(f"{time.monotonic() - _started_at:6.1f} s  {what}", file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos.sh", description="breaks the running service, then looks for losses")
    parser.add_argument("--nodes", type=int, choices=(1, 3), default=1, help="3: behind HAProxy, on a cluster")
    parser.add_argument("--database", choices=databases.ENGINES, help="mariadb, or with three nodes galera")
    parser.add_argument("--faults", type=int, default=60, metavar="N", help="how many (60)")
    parser.add_argument("--only", choices=KINDS, metavar="FAULT", help="one kind, by the name that the report has")
    parser.add_argument("--seed", type=int, metavar="S", help="repeats a schedule (random)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the report there too")
    parser.add_argument(
        "--restarts", type=int, choices=(1, 2, 3), default=3, help="of three nodes, so many drained (3)"
    )
    parser.add_argument("--per-second", type=float, help="faults a second (2.2, with three nodes 0.7)")
    parser.add_argument("--rate", type=float, default=800, help="records a second (800)")
    parser.add_argument("--clients", type=int, default=6, help="clients (6)")
    parser.add_argument("--fsync", choices=("always", "interval", "never"), help="journal.fsync (by the seed)")
    parser.add_argument("--fail-over", type=float, default=2, help="seconds, until nodes write to a new primary (2)")
    parser.add_argument("--keep", action="store_true", help="keeps all directories, as a bad verdict does")
    options = parser.parse_args()
    alone = options.nodes == 1
    options.database = options.database or ("mariadb" if alone else "galera")
    if alone == (options.database in databases.CLUSTERS):
        parser.error(f"--database {options.database}: --nodes {4 - options.nodes} is wanted")
    options.per_second = options.per_second or (2.2 if alone else 0.7)
    options.seed = SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    options.fsync = options.fsync or (Random(options.seed).choice(("always", "interval")) if alone else "interval")
    return options


def choose_faults(options: argparse.Namespace, database: Servers, nodes: Sequence[Node]) -> None:
    """What this user, on this machine, with this database can do. Raises: ClusterFault where it is nothing."""
    alone = len(nodes) == 1
    has = {name for name, kind in (("galera", Galera), ("group", Group)) if isinstance(database, kind)}
    if not alone and database.network.name:
        has.add("links")
    if alone and nodes[0].mount_journal():
        has.add("disk")
    options.deck = deck(alone=alone, has=has, only=options.only)
    if not any(share for share, *_ in options.deck.values()):
        raise ClusterFault(f"--only {options.only}: cannot be done here")
    wanted = "disk" if alone else "links"
    if wanted not in has:
        say(f"no fault here that needs {wanted}")


def main() -> int:
    options = arguments()
    # A polite end of the harness takes everything that it has started with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    say(f"seed {options.seed}")
    try:
        database = databases.made(options.database)
    except (ClusterFault, OSError) as error:
        sys.exit(f"chaos.sh: {error}")
    directory = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    say(f"the database is up, state in {database.directory.parent} and {directory}")
    keep = True
    run = None
    nodes: list[Node] = []
    try:
        network = database.network if options.nodes > 1 else None
        if network:
            network.join()
        urls = ",".join(f"http://{network.address(f'node{one}')}:{PORT}" for one in (1, 2, 3)) if network else ""
        for number in range(1, options.nodes + 1):
            environ = {**database.service_environ(number), "CLUSTER_NODES": urls, "JOURNAL_FSYNC": options.fsync}
            nodes.append(Node(directory / f"node{number}", number, network, environ))
        choose_faults(options, database, nodes)
        run = Run(options, directory, database, nodes)
        report = uvloop.run(run.go())
        if options.json is not None:
            options.json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
        print(reports.text(report))
        keep = options.keep or bool(report["problems"])
        return 1 if report["problems"] else 0
    finally:
        if run is not None:
            run.end()
        for node in nodes:
            if keep and node.mounted:
                shutil.copytree(node.journal, node.directory / "journal.kept")
            node.unmount_journal()
        cluster.down(database, keep=keep)
        if keep:
            say(f"kept: {directory} {database.directory.parent}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
