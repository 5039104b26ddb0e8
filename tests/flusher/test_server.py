from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import orjson
import pytest

from flusher.mysql_errors import ErrorClass
from flusher.placement import Placement
from flusher.server import AFFINITY_MIN_READ_BYTES, Connections, FlusherProtocol
from shared.process import peer_of
from shared.wire import (
    Ack,
    Answer,
    Committed,
    FlushRequest,
    Inbox,
    Message,
    Reject,
    StatsRequest,
    Submit,
    encode,
)
from tests.support.flusher import Node, bodies_in, failed, running
from tests.support.service import ROOT
from tests.support.wire import read

WAIT_S = 10.0


class Looks(Placement):
    """Whom it was told to look at."""

    def __init__(self) -> None:
        super().__init__()
        self.peers: list[int] = []

    def look(self, peer: int) -> None:
        self.peers.append(peer)


class Served:
    """A Node behind its socket."""

    def __init__(self, node: Node, path: Path) -> None:
        self.node = node
        self.path = path
        self.peers = Connections()
        self.peer: Peer
        self.placement = Looks()

    async def start(self) -> asyncio.AbstractServer:
        return await asyncio.get_running_loop().create_unix_server(
            lambda: FlusherProtocol(
                self.peers, self.node.intake, self.node.scheduler, lambda: {"state": "fine"}, self.placement
            ),
            str(self.path),
        )

    async def connect(self) -> Peer:
        return Peer(*await asyncio.open_unix_connection(str(self.path)))


class Peer:
    """What ingest is to the flusher."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._inbox = Inbox()
        self._messages: list[Message] = []

    def send(self, *messages: Message | bytes) -> None:
        self._writer.write(b"".join(one if isinstance(one, bytes) else encode(one) for one in messages))

    async def next(self) -> Message:
        while not self._messages:
            data = await asyncio.wait_for(self._reader.read(65536), WAIT_S)
            assert data, "the flusher has closed the connection"
            self._messages += read(self._inbox, data)
        return self._messages.pop(0)

    async def is_closed_by_the_flusher(self) -> bool:
        try:
            return await asyncio.wait_for(self._reader.read(1), WAIT_S) == b""
        except ConnectionResetError:
            return True

    async def close(self) -> None:
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except (ConnectionResetError, BrokenPipeError):
            pass


@pytest.fixture
def served(short_path: Path) -> AbstractAsyncContextManager[Served]:
    return serving(short_path)


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Served]:
    (directory / "journal").mkdir()
    async with running(directory / "journal") as node:
        served = Served(node, directory / "socket")
        server = await served.start()
        served.peer = await served.connect()
        try:
            yield served
        finally:
            await served.peer.close()
            server.close()
            served.peers.close()
            await asyncio.wait_for(served.peers.gone.wait(), WAIT_S)


def submit(seq: int, body: bytes = b"body", kind: int = 2) -> Submit:
    return Submit(seq, kind, 1, body)


async def test_submits_are_acknowledged_in_order_and_lie_in_the_journal(served: Served, short_path: Path) -> None:
    peer = served.peer
    peer.send(submit(7, b"one"), submit(8, b"two"))
    answer = await peer.next()

    assert isinstance(answer, Ack)
    assert (answer.seq, answer.count) == (7, 2)
    assert bodies_in(short_path / "journal") == [b"one", b"two"]


async def test_a_frame_that_comes_byte_by_byte_is_taken_whole(served: Served, short_path: Path) -> None:
    peer = served.peer
    frame = encode(submit(1, b"slowly"))
    for at in range(len(frame)):
        peer.send(frame[at : at + 1])
        await peer._writer.drain()
        await served.node.settled()
    assert isinstance(await peer.next(), Ack)
    assert bodies_in(short_path / "journal") == [b"slowly"]


async def test_a_flush_covers_the_submits_sent_before_it_on_the_same_connection(
    served: Served, short_path: Path
) -> None:
    peer = served.peer
    peer.send(submit(1), submit(2), FlushRequest(3, WAIT_S))
    assert isinstance(await peer.next(), Ack)
    flushed = await peer.next()

    assert isinstance(flushed, Answer)
    answer = orjson.loads(flushed.json)
    assert (flushed.seq, answer["tasks_written"], answer["sessions_written"]) == (3, 2, 0)
    assert (answer["pending"], answer["coalesced"], answer["dead_lettered"]) == (0, 0, 0)
    assert bodies_in(short_path / "journal") == []


async def test_a_flush_that_cannot_finish_says_what_is_pending(served: Served) -> None:
    peer = served.peer
    served.node.writers.answer = lambda path: failed(ErrorClass.RECONNECT)
    peer.send(submit(1), FlushRequest(2, 0.02))
    assert isinstance(await peer.next(), Ack)
    flushed = await peer.next()

    assert isinstance(flushed, Answer)
    assert orjson.loads(flushed.json)["pending"] == 1


async def test_stats_come_as_json(served: Served) -> None:
    peer = served.peer
    peer.send(StatsRequest(5))

    assert await peer.next() == Answer(5, b'{"state":"fine"}')


async def test_a_rejected_submit_is_told_when_to_come_back(served: Served) -> None:
    peer = served.peer
    served.node.disk.full = True
    peer.send(submit(1))
    reject = await peer.next()

    assert isinstance(reject, Reject)
    assert reject.retry_after_s > 0


async def test_a_submit_that_wants_the_commit_is_answered_twice(served: Served) -> None:
    peer = served.peer
    peer.send(Submit(1, 2, 1, b"body", 0, want_commit=True))
    ack = await peer.next()
    assert isinstance(ack, Ack)
    assert await peer.next() == Committed(ack.arrival, ack.arrival)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00" * 64,
        b"\xff" * 64,
        encode(Ack(1, 1)),
        encode(submit(1, kind=77)),
        encode(Submit(1, 2, 1, b"")),
    ],
    ids=["http", "zeros", "ones", "not for the flusher", "unknown kind", "empty body"],
)
async def test_garbage_closes_its_connection_and_no_other(served: Served, short_path: Path, garbage: bytes) -> None:
    peer = served.peer
    other = await served.connect()
    peer.send(garbage)
    assert await peer.is_closed_by_the_flusher()
    assert bodies_in(short_path / "journal") == []

    other.send(submit(1))
    assert isinstance(await other.next(), Ack)
    await other.close()


async def test_a_peer_that_leaves_is_forgotten_and_its_acknowledged_bodies_stay(
    served: Served, short_path: Path
) -> None:
    peer = served.peer
    peer.send(submit(1, b"kept"))
    assert isinstance(await peer.next(), Ack)
    assert len(served.peers) == 1
    assert not served.peers.gone.is_set()
    await peer.close()
    await asyncio.wait_for(served.peers.gone.wait(), WAIT_S)

    assert len(served.peers) == 0
    assert bodies_in(short_path / "journal") == [b"kept"]


async def test_nothing_is_kept_for_a_peer_that_has_left_while_the_database_is_away(served: Served) -> None:
    peer = served.peer
    served.node.writers.answer = lambda path: failed(ErrorClass.RECONNECT, 2002)
    peer.send(Submit(1, 2, 1, b"body", 0, want_commit=True))
    assert isinstance(await peer.next(), Ack)
    waiting = served.node.scheduler._callers._of_commits
    assert len(waiting) == 1
    await peer.close()
    await asyncio.wait_for(served.peers.gone.wait(), WAIT_S)
    assert waiting == {}


async def test_an_answer_to_a_peer_that_has_left_harms_nobody(served: Served) -> None:
    peer = served.peer
    other = await served.connect()
    peer.send(Submit(1, 2, 1, b"body", 0, want_commit=True))
    await peer.close()
    other.send(submit(1), FlushRequest(2, WAIT_S))
    assert isinstance(await other.next(), Ack)
    assert isinstance(await other.next(), Answer)
    await other.close()


def test_a_peer_is_known_by_its_process_and_user() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_of(ours) == (os.getpid(), os.getuid())


async def test_the_only_peer_is_looked_at_when_much_comes_and_of_several_none(served: Served) -> None:
    much = submit(1, bytes(AFFINITY_MIN_READ_BYTES))
    peer = served.peer
    peer.send(submit(1))
    await peer.next()
    assert served.placement.peers == []
    peer.send(much)
    await peer.next()
    assert served.placement.peers == [os.getpid()]
    other = await served.connect()
    for one in (other, peer):
        one.send(much)
        await one.next()
    assert served.placement.peers == [os.getpid()]
    await other.close()


STRANGER = """
import os, socket, sys
path, uid, frame = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
peer = socket.socket(socket.AF_UNIX)
if uid:
    os.setuid(uid)
peer.settimeout(10)
peer.connect(path)
try:
    peer.sendall(frame)
    print(len(peer.recv(100)))
except (ConnectionResetError, BrokenPipeError):
    print(0)
"""


async def test_only_peers_of_our_own_user_are_served(
    served: Served, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root the child becomes another user; else we pretend to be another one than the child."""
    stranger_uid = 65534 if os.getuid() == 0 else 0

    async def ask(path: Path, uid: int) -> int:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            STRANGER,
            str(path),
            str(uid),
            encode(submit(1)).hex(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        out, _ = await asyncio.wait_for(child.communicate(), 30)
        assert child.returncode == 0
        return int(out)

    short_path.chmod(0o777)
    served.path.chmod(0o777)
    assert await ask(served.path, 0) == len(encode(Ack(1, 1)))

    with monkeypatch.context() as patch:
        if not stranger_uid:
            patch.setattr(os, "getuid", lambda: 1)
        assert await ask(served.path, stranger_uid) == 0
    assert bodies_in(short_path / "journal") == [b"body"]
    assert len(served.peers) == 1
