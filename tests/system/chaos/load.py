"""Clients: each leads its sessions and tasks through their lives, and repeats a request until it is acknowledged.

Rules: belongs to the loop's thread. A client has several requests under way at once and does not wait for one state
of a task before it sends the next, so later states overtake earlier ones. Keys come in pairs that differ only in case.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

import MySQLdb
import orjson

from tests.system.chaos.model import LARGE, SESSIONS, TASKS, Model, last_version, record

PATHS = {kind: f"/api/v1/persistence/{kind}/batch" for kind in (SESSIONS, TASKS)}
REQUESTS_AT_ONCE = 3
"""By one client, each over its own connection."""
UNAVAILABLE = {502, 503, 504}
"""The client tries again: the service's 503, and what a balancer answers whose node has gone."""
ANSWER_S = 5.0
"""A client that has waited this long hangs up and tries again."""
CUT_AFTER_S = 0.1
PAUSE_S = 0.5
"""The longest pause before a repetition; a client of production would heed Retry-After."""
_SIZES = (1, 1, 1, 2, 2, 5, 5, 10, 20, 60)
_MEAN_SIZE = sum(_SIZES) / len(_SIZES)
_AT_A_TIME = 150
"""Lives that a client leads at once; a finished one makes room for a new one."""
_COMMITTED = 0.03
"""Share of the requests that wait for the database."""


@dataclass(slots=True)
class Figures:
    """Latencies in seconds, by phase: `posts` of one POST answered 202, `accepted` from the first try of a batch."""

    phase: str = "quiet"
    posts: dict[str, list[float]] = field(default_factory=lambda: {"quiet": [], "faults": []})
    accepted: dict[str, list[float]] = field(default_factory=lambda: {"quiet": [], "faults": []})
    requests: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    unanswered: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    committed: int = 0
    committed_not_stored: int = 0
    """Answered committed, and then not found in the table."""
    last_accepted_at: float = 0.0
    longest_gap_s: float = 0.0

    def accept(self, post_s: float, batch_s: float, now: float) -> None:
        self.posts[self.phase].append(post_s)
        self.accepted[self.phase].append(batch_s)
        if self.last_accepted_at:
            self.longest_gap_s = max(self.longest_gap_s, now - self.last_accepted_at)
        self.last_accepted_at = now

    def not_accepted(self) -> Counter[str]:
        """Requests so far that were not simply accepted, by what became of them; and all that were `sent`."""
        failed = {"refused": self.refused.total(), "unanswered": self.unanswered, "wrong": self.wrong.total()}
        return Counter(sent=self.requests, **failed)


@dataclass(frozen=True, slots=True)
class Batch:
    kind: str
    items: Sequence[tuple[str, int]]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes

    @property
    def error_code(self) -> str:
        try:
            return str(orjson.loads(self.body).get("error_code"))
        except orjson.JSONDecodeError:
            return "NO_JSON"


class Connection:
    """Keep-alive HTTP/1.1, opened when needed. Raises: OSError, EOFError, asyncio.TimeoutError; it is closed then."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes) -> Answer:
        try:
            return await asyncio.wait_for(self._post(path, body), ANSWER_S)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        self.drop()
        self._streams = None

    def drop(self) -> bool:
        """Hangs up while somebody waits for an answer. Returns: whether it was open."""
        if self._streams is None or self._streams[1].transport.is_closing():
            return False
        self._streams[1].transport.abort()
        return True

    async def _post(self, path: str, body: bytes) -> Answer:
        if self._streams is None or self._streams[1].transport.is_closing():
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        writer.write(request_head(path, len(body)) + body)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        answer = Answer(int(head[9:12]), await reader.readexactly(length))
        if b"\r\nconnection: close" in head:
            self.abort()
        return answer


def request_head(path: str, length: int) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: chaos\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    ).encode()


class Load:
    """`rate` records a second from `clients` clients, as long as the service takes them."""

    def __init__(
        self,
        model: Model,
        address: tuple[str, int],
        seed: int,
        log: Path,
        *,
        clients: int,
        rate: float,
        stored_at: Callable[[str, Sequence[str]], dict[str, datetime]],
    ) -> None:
        """Args: log: a line for every request; stored_at(kind, keys): reads rows from the database; blocks."""
        self.figures = Figures()
        self.stopping = asyncio.Event()
        self.address = address
        self._model = model
        self._stored_at = stored_at
        self._large_version = 0
        self._log = log.open("w")
        self._clients = [Client(number, Random(f"{seed}-{number}"), self) for number in range(clients)]
        self._interval_s = clients * REQUESTS_AT_ONCE * _MEAN_SIZE / rate
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        for client in self._clients:
            self._tasks += [loop.create_task(client.run(self._interval_s)) for _ in range(REQUESTS_AT_ONCE)]

    async def stop(self, timeout_s: float) -> int:
        """Starts no new request, waits for those under way. Returns: how many were never acknowledged."""
        self.stopping.set()
        _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
        for task in late:
            task.cancel()
        await asyncio.wait(self._tasks)
        self._log.close()
        for task in self._tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                self.figures.wrong[f"a client ended: {error!r}"] += 1
        return len(late)

    def batch(self, kind: str, items: Sequence[tuple[str, int]]) -> Batch:
        started_at = self._model.started_at
        return Batch(
            kind, items, orjson.dumps({kind: [record(kind, key, version, started_at) for key, version in items]})
        )

    async def post(self, connection: Connection, batch: Batch, query: str = "") -> Answer | None:
        """One try. Returns: the answer, None where there was none. Everything is noted."""
        started_at = time.time()
        self.figures.requests += 1
        self._model.sent(batch.kind, batch.items)
        answer = None
        try:
            answer = await connection.post(PATHS[batch.kind] + query, batch.body)
        except (OSError, EOFError, asyncio.TimeoutError):
            self.figures.unanswered += 1
        else:
            if answer.status in (200, 202):
                self._model.acknowledged(batch.kind, batch.items)
            elif answer.status in UNAVAILABLE:
                self.figures.refused[answer.error_code] += 1
            else:
                self.figures.wrong[f"{answer.status} {answer.error_code}"] += 1
        status = answer.status if answer else 0
        names = " ".join(f"{key}:{version}" for key, version in batch.items)
        self._log.write(f"{started_at:.6f} {time.time():.6f} {status} {batch.kind} {names}\n")
        return answer

    async def deliver(self, connection: Connection, batch: Batch, query: str, random: Random) -> None:
        """Tries until the batch is acknowledged, or refused for good, which is wrong."""
        first_at = time.monotonic()
        while True:
            started_at = time.monotonic()
            answer = await self.post(connection, batch, query)
            if answer is not None and answer.status not in UNAVAILABLE:
                break
            await asyncio.sleep(PAUSE_S * random.random())
        now = time.monotonic()
        if answer.status == 200:
            self.figures.committed += 1
            await self._check_stored(batch)
        elif answer.status == 202 and not query:
            self.figures.accept(now - started_at, now - first_at, now)

    async def _check_stored(self, batch: Batch) -> None:
        """Committed means: it, or a newer state, stands in the table from now on."""
        keys = [key for key, _ in batch.items]
        try:
            stored = await asyncio.to_thread(self._stored_at, batch.kind, keys)
        except MySQLdb.Error:
            return  # the database has been stopped since; the last comparison sees these rows too
        for key, version in batch.items:
            if key not in stored or self._model.version(stored[key]) < version:
                self.figures.committed_not_stored += 1

    def drop_connections(self) -> int:
        """Every client hangs up at once, whatever is under way. Returns: how many connections."""
        return sum(connection.drop() for client in self._clients for connection in client.connections)

    async def fill_journal(self, until: float) -> bool:
        """Sends large records until one is refused because the journal is full, or monotonic time `until`."""
        connection = Connection(self.address)
        try:
            while time.monotonic() < until:
                self._large_version += 1
                items = [(f"{LARGE}/{number}", self._large_version) for number in range(5)]
                answer = await self.post(connection, self.batch(TASKS, items))
                if answer is not None and answer.error_code == "JOURNAL_FULL":
                    return True
                if answer is None or answer.status != 202:
                    await asyncio.sleep(0.05)
            return False
        finally:
            connection.abort()

    async def cut_requests(self, number: int, *, politely: bool) -> None:
        """Two clients leave in the middle of a body. Nothing of it may be stored, even where what came is a document.

        Args: politely: with FIN instead of RST. Raises: OSError.
        """
        moment = datetime.fromisoformat("2020-01-01")
        body = orjson.dumps({TASKS: [record(TASKS, f"ghost/{number}", 1, moment)]})
        for part in (body[: len(body) // 2], body):
            _, writer = await asyncio.open_connection(*self.address)
            writer.write(request_head(PATHS[TASKS], len(body) + 100) + part)
            # No event tells that the service has read it, and a reset takes back what it has not read.
            await asyncio.sleep(CUT_AFTER_S)
            if politely:
                writer.close()
            else:
                writer.transport.abort()


class Client:
    def __init__(self, number: int, random: Random, load: Load) -> None:
        self.connections: list[Connection] = []
        self._number = number
        self._random = random
        self._load = load
        self._born = {SESSIONS: 0, TASKS: 0}
        self._lives: dict[str, list[tuple[str, int]]] = {SESSIONS: [], TASKS: []}

    async def run(self, interval_s: float) -> None:
        connection = Connection(self._load.address)
        self.connections.append(connection)
        random = self._random
        stopping = self._load.stopping
        while not stopping.is_set():
            batch = self._load.batch(*self._next())
            query = "?ack=committed&timeout=2" if random.random() < _COMMITTED else ""
            await self._load.deliver(connection, batch, query, random)
            try:
                await asyncio.wait_for(stopping.wait(), random.expovariate(1 / interval_s))
            except asyncio.TimeoutError:
                pass
        connection.abort()

    def _next(self) -> tuple[str, list[tuple[str, int]]]:
        """The next states of some lives, in any order; a life may have two of them in one batch."""
        random = self._random
        kind = SESSIONS if random.random() < 0.2 else TASKS
        lives = self._lives[kind]
        items: list[tuple[str, int]] = []
        for _ in range(random.choice(_SIZES)):
            if len(lives) < _AT_A_TIME:
                number = self._born[kind]
                self._born[kind] += 1
                letter = kind[0] if number % 2 else kind[0].upper()
                session = f"s{self._number}/" if kind == TASKS else f"{self._number}-"
                lives.append((f"{session}{letter}{number // 2}", 0))
            index = random.randrange(len(lives))
            key, version = lives[index]
            version += 1
            items.append((key, version))
            if version == last_version(kind, key):
                lives[index] = lives[-1]
                lives.pop()
            else:
                lives[index] = (key, version)
        random.shuffle(items)
        return kind, items


def percentiles(seconds: Sequence[float]) -> dict[str, Any]:
    """Milliseconds by name; the highest value for a share that few values reach."""
    ordered = sorted(seconds)
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0} if ordered else {}
    last = len(ordered) - 1
    return {"count": len(ordered)} | {
        name: round(1000 * ordered[min(last, int(share * len(ordered)))], 2) for name, share in shares.items()
    }
