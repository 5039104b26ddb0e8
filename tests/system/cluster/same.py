"""The same records through one, two and three nodes, shuffled and repeated: the tables must be the same bytes."""

from __future__ import annotations

import http.client
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from random import Random

import orjson

from scripts.galera import NODES as DATABASE_NODES
from scripts.galera import Galera
from tests.system.chaos.load import PATHS
from tests.system.chaos.model import SESSIONS, TABLES, TASKS, last_version, record
from tests.system.cluster import tables
from tests.system.cluster.nodes import Node

KEYS_OF_EACH_KIND = 120
BATCH = 25
SENDERS_PER_NODE = 2


def same_through_any_number(cluster: Galera, nodes: Sequence[Node], seed: int) -> tuple[list[str], int]:
    """Sends every version of every key, each twice. Leaves the tables empty.

    Returns: the digests, one for each number of nodes and node of the database; and how many rows there were.
    """
    # One moment for all three: updated_at is part of what must be the same.
    started_at = datetime.now(timezone.utc).replace(microsecond=0, tzinfo=None) - timedelta(hours=1)
    records = [
        (kind, record(kind, key, version, started_at))
        for kind in TABLES
        for key in (f"{kind}{number % 3}/{number // 3}" for number in range(KEYS_OF_EACH_KIND))
        for version in range(1, last_version(kind, key) + 1)
    ]
    digests = []
    rows = 0
    for count in range(1, len(nodes) + 1):
        tables.clear(cluster)
        random = Random(f"{seed}-{count}")
        todo = records + records
        random.shuffle(todo)
        batches = [
            (kind, orjson.dumps({kind: some[start : start + BATCH]}))
            for kind, some in ((kind, [one for of, one in todo if of == kind]) for kind in (SESSIONS, TASKS))
            for start in range(0, len(some), BATCH)
        ]
        random.shuffle(batches)
        senders = SENDERS_PER_NODE * count
        with ThreadPoolExecutor(senders) as pool:
            list(pool.map(lambda index: send(nodes[index % count], batches[index::senders]), range(senders)))  # noqa: B023
        for node in nodes[:count]:
            if not node.flush(30):
                raise RuntimeError(f"{node.name} cannot write all")
        for number in DATABASE_NODES:
            digests.append(tables.digest(cluster, number))
            rows = sum(1 for kind in TABLES for _ in tables.rows(cluster, number, kind))
    tables.clear(cluster)
    return digests, rows


def send(node: Node, batches: Sequence[tuple[str, bytes]]) -> None:
    """Raises: RuntimeError where one is not accepted."""
    connection = http.client.HTTPConnection(node.host, node.port, timeout=10)
    for kind, body in batches:
        connection.request("POST", PATHS[kind], body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 202:
            raise RuntimeError(f"{node.name}: {answer.status} {text!r}")
    connection.close()
