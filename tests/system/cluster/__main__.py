"""`python -m tests.system.cluster`: a Galera cluster, three service nodes, HAProxy, load, faults, verdict."""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from random import SystemRandom
from typing import Any
from urllib.request import ProxyHandler, build_opener

import MySQLdb
import orjson
import uvloop

from scripts import cluster as trial
from scripts.galera import NODES as DATABASE_NODES
from scripts.galera import Galera
from tests.support.service import ROOT
from tests.system.chaos.__main__ import run_faults, say, until, what_happened
from tests.system.chaos.load import Load
from tests.system.chaos.model import TABLES, Differences, Model, compare
from tests.system.chaos.run import Kinds
from tests.system.cluster import report as reports
from tests.system.cluster import tables
from tests.system.cluster.drain import restart
from tests.system.cluster.faults import KINDS, NEED_LINKS, Faults
from tests.system.cluster.nodes import Balancer, Node
from tests.system.cluster.same import same_through_any_number

QUIET_S = 2.0
HEAL_S = 90.0
FLUSH_S = 60.0
UNAVAILABLE = frozenset({502, 503, 504})
"""Answers of a balancer whose node has gone: the client tries again."""
_CONFLICTS = re.compile(rb'^persistence_flush_failures_by_code_total\{code="1213"\} ([\d.]+)$', re.MULTILINE)


class ConflictsInMetrics:
    """The counter of code 1213 at every node, summed over restarts of its flusher."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        self._last: dict[str, float] = defaultdict(float)
        self._before: dict[str, float] = defaultdict(float)
        self._opener = build_opener(ProxyHandler({}))

    @property
    def total(self) -> int:
        return int(sum(self._last.values()) + sum(self._before.values()))

    def look(self) -> None:
        """Blocks."""
        for node in self._nodes:
            try:
                with self._opener.open(f"{node.url}/metrics", timeout=2) as answer:
                    found = _CONFLICTS.search(answer.read())
            except OSError:
                continue  # the next look finds it
            count = float(found[1]) if found else 0.0
            if count < self._last[node.url]:
                self._before[node.url] += self._last[node.url]
            self._last[node.url] = count

    async def go_on(self) -> None:
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(0.5)


async def run(directory: Path, cluster: Galera, nodes: Sequence[Node], balancer: Balancer, options: Any) -> Any:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(64))
    for node in nodes:
        node.start()
    for node in nodes:
        await asyncio.to_thread(node.wait_ready)
    conflicts = ConflictsInMetrics(nodes)
    looking = loop.create_task(conflicts.go_on())
    say("three nodes are ready")
    digests, rows = await asyncio.to_thread(same_through_any_number, cluster, nodes, options.seed)
    say(f"the same records through 1, 2 and 3 nodes: {len(set(digests))} digest of {len(digests)} tables")

    balancer.start()
    model = Model(datetime.now(timezone.utc).replace(microsecond=0, tzinfo=None) - timedelta(hours=1))
    load = Load(
        model,
        (balancer.host, balancer.port),
        options.seed,
        directory,
        clients=options.clients,
        rate=options.rate,
        stored_at=partial(tables.stored_at, cluster),
        unavailable=UNAVAILABLE,
    )
    figures = load.figures
    await asyncio.to_thread(until, balancer.all_up, 30.0)
    load.start()
    await asyncio.sleep(QUIET_S)
    drained = await restart(nodes[: options.restarts], balancer, load)
    say(f"drained and restarted: {drained}")

    faults = Faults(cluster, nodes, load, directory / "faults.log")
    faults_s = await run_faults(options, faults, kinds_of(cluster), model, figures)
    healed = await asyncio.to_thread(until, lambda: all(node.is_healthy() for node in nodes), HEAL_S)
    figures.phase = "quiet"
    say("healthy again" if healed else "NOT healthy again")
    await asyncio.sleep(QUIET_S)
    undelivered = await load.stop(HEAL_S)
    flushed = await asyncio.to_thread(until, partial(flush_all, nodes), FLUSH_S)
    say("flushed" if flushed else "NOT flushed")
    looking.cancel()
    await asyncio.to_thread(conflicts.look)

    def compare_tables() -> tuple[Differences, list[str]]:
        found = Differences()
        digests = []
        faults.make_whole()
        for number in DATABASE_NODES:
            try:
                faults.count_conflicts(number)
                digests.append(tables.digest(cluster, number))
                if not found.rows:
                    for kind in TABLES:
                        compare(model, kind, tables.rows(cluster, number, kind), found)
            except MySQLdb.Error as error:
                digests.append(f"node {number} cannot be read: {error}")
        return found, digests

    differences, at_the_end = await asyncio.to_thread(compare_tables)
    say(f"{differences.rows} rows compared")
    for node in nodes:
        await asyncio.to_thread(node.stop)
    balancer.stop()
    await asyncio.to_thread(until, lambda: not any(node.processes() for node in nodes), 10.0)
    report = what_happened(
        options,
        faults,
        model,
        figures,
        differences,
        services=nodes,
        fsync="interval",
        faults_s=faults_s,
        undelivered=undelivered,
        healed=healed,
        flushed=flushed,
    )
    report["cluster"] = {
        "links": bool(cluster.network.name),
        "same": {"digests": digests, "rows": rows},
        "drained": drained,
        "digests": at_the_end,
        "conflicts": {"in metrics": conflicts.total, "of the database": faults.conflicts_seen},
    }
    report["problems"] = reports.problems(report)
    return report


def kinds_of(cluster: Galera) -> Kinds:
    if cluster.network.name:
        return KINDS
    say("the hosts have no links of their own here: none is cut")
    return {kind: value for kind, value in KINDS.items() if kind not in NEED_LINKS}


def flush_all(nodes: Sequence[Node]) -> bool:
    """As an operator does it: one command for all nodes."""
    command = [sys.executable, "-m", "ctl", "flush", "--all-nodes", "--timeout", "20"]
    return (
        subprocess.run(command, cwd=ROOT, env=nodes[0].environ, capture_output=True, check=False, timeout=60).returncode
        == 0
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos.sh --nodes 3", description="breaks nodes, database nodes and links")
    parser.add_argument("--nodes", type=int, choices=(3,), default=3, help=argparse.SUPPRESS)
    parser.add_argument("--faults", type=int, default=60, metavar="N", help="how many (60)")
    parser.add_argument("--seed", type=int, default=None, metavar="S", help="repeats a schedule (random)")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="writes the report there too")
    parser.add_argument("--restarts", type=int, choices=(1, 2, 3), default=3, help="nodes to be drained (3)")
    parser.add_argument("--per-second", type=float, default=0.7, help="faults a second (0.7)")
    parser.add_argument("--rate", type=float, default=800, help="records a second (800)")
    parser.add_argument("--clients", type=int, default=6, help="clients (6)")
    parser.add_argument("--keep", action="store_true", help="keeps all directories, as a bad verdict does")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = SystemRandom().randrange(1_000_000)
    return options


def main() -> int:
    options = arguments()
    if why := trial.missing():
        sys.exit(f"no Galera cluster here: {why}")
    # A polite end of the harness takes everything that it has started with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    say(f"seed {options.seed}")
    place, cluster = trial.up()
    directory = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    say(f"the database is up, state in {place} and {directory}")
    nodes: list[Node] = []
    keep = True
    balancer = None
    try:
        cluster.network.join()
        nodes += [Node(directory / f"node{number}", number, cluster.network) for number in (1, 2, 3)]
        balancer = Balancer(directory, cluster.network, nodes)
        report = uvloop.run(run(directory, cluster, nodes, balancer, options))
        if options.json is not None:
            options.json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
        print(reports.text(report))
        keep = options.keep or bool(report["problems"])
        return 1 if report["problems"] else 0
    finally:
        for node in nodes:
            node.kill()
        if balancer is not None:
            balancer.stop()
        trial.down(place, keep=keep)
        if keep:
            say(f"kept: {directory} {place}")
        else:
            subprocess.run(["rm", "-rf", str(directory)], check=False)


if __name__ == "__main__":
    sys.exit(main())
