"""The same records through one, two and three nodes, shuffled and repeated: the tables must be the same bytes."""

from __future__ import annotations

import http.client
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from random import Random

import orjson

from scripts.servers import Servers
from tests.system.chaos import databases
from tests.system.chaos.load import PATHS
from tests.system.chaos.model import TABLES, last_version, record
from tests.system.chaos.nodes import Node

KEYS_OF_EACH_KIND = 120
BATCH = 25
SENDERS_PER_NODE = 2


def same_through_any_number(database: Servers, nodes: Sequence[Node], seed: int) -> tuple[list[str], int]:
    """Sends every version of every key, each twice. Leaves the tables empty.

    Returns: the digests, one for each number of nodes and node of the database; and how many rows there were.
    Raises: RuntimeError where a batch is not accepted, or not written.
    """
    # One moment for all three: updated_at is part of what must be the same.
    started_at = datetime.now(timezone.utc).replace(microsecond=0, tzinfo=None) - timedelta(hours=1)
    records = {
        kind: 2
        * [
            record(kind, key, version, started_at)
            for key in (f"{kind}{number % 3}/{number // 3}" for number in range(KEYS_OF_EACH_KIND))
            for version in range(1, last_version(kind, key) + 1)
        ]
        for kind in TABLES
    }
    digests = []
    for count in range(1, len(nodes) + 1):
        databases.clear(database)
        random = Random(f"{seed}-{count}")
        batches = []
        for kind, todo in records.items():
            random.shuffle(todo)
            batches += [(kind, orjson.dumps({kind: todo[at : at + BATCH]})) for at in range(0, len(todo), BATCH)]
        random.shuffle(batches)
        senders = SENDERS_PER_NODE * count
        with ThreadPoolExecutor(senders) as pool:
            using = [(nodes[index % count], batches[index::senders]) for index in range(senders)]
            list(pool.map(lambda one: _send(*one), using))
        for node in nodes[:count]:
            if not node.is_flushed():
                raise RuntimeError(f"{node.name} cannot write all")
        digests += [databases.digest(database, number) for number in database.numbers]
    rows = sum(1 for kind in TABLES for _ in databases.rows(database, database.numbers[0], kind))
    databases.clear(database)
    return digests, rows


def _send(node: Node, batches: Sequence[tuple[str, bytes]]) -> None:
    connection = http.client.HTTPConnection(node.host, node.port, timeout=10)
    for kind, body in batches:
        connection.request("POST", PATHS[kind], body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 202:
            raise RuntimeError(f"{node.name}: {answer.status} {text!r}")
    connection.close()
