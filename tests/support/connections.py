"""Connections over real sockets, with a small application behind its guard. Time goes on only when a test says so."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from functools import partial
from types import MappingProxyType
from typing import Any, cast

import uvicorn
import uvloop
from uvicorn.server import ServerState

from ingest.access import Access
from ingest.batches import BatchRoute
from ingest.connection import Connection
from ingest.deadlines import Clock, Phase, sweep
from ingest.guard import Guard
from ingest.responses import SITE_HEADERS

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
CHUNKED = b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n"


SITE_FIELDS = b"".join(f"{name}: {value}\r\n".encode() for name, value in SITE_HEADERS)
READ_AT_ONCE = 256 * 1024
LARGE = 8_000_000


def post(body: bytes = b"12345", *fields: str, path: str = "/echo") -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: h",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *fields,
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + body


def get_with(*fields: str) -> bytes:
    return "\r\n".join(["GET / HTTP/1.1", "Host: h", *fields, "", ""]).encode()


class Front:
    """Connection and Guard on a port, in front of an application that answers with what it got. POST /slow waits for
    `release`; GET /large answers more than any kernel takes. `scopes`: those that reached the application; `observed`:
    what the metrics hear."""

    def __init__(self, max_connections: int, batches: Mapping[bytes, BatchRoute]) -> None:
        self.release = asyncio.Event()
        self.started = asyncio.Semaphore(0)
        self.scopes: list[Any] = []
        self.observed: list[tuple[str, int]] = []
        self.rejected: Counter[str] = Counter()
        self.state = ServerState()
        self._max_connections = max_connections
        self._batches = batches
        self._server: asyncio.Server
        self.port = 0
        self.clients = ExitStack()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        app = Guard(
            self._app,
            Access(None, protected_mode=True, allowed_hosts=()),
            routes={
                "/": frozenset(["GET"]),
                "/health": frozenset(["GET"]),
                "/large": frozenset(["GET"]),
                "/echo": frozenset(["POST"]),
                "/slow": frozenset(["POST"]),
                **{path.decode(): frozenset(["POST"]) for path in self._batches},
            },
            posts_with_body=frozenset(["/echo", "/slow", *map(bytes.decode, self._batches)]),
            max_body_bytes=1_000_000,
        )
        config = uvicorn.Config(
            cast(Any, app), ws="none", lifespan="off", log_config=None, proxy_headers=False, headers=SITE_HEADERS
        )
        config.load()
        self.state.default_headers = config.encoded_headers
        Clock.now = 0.0
        make = partial(
            Connection,
            config=config,
            server_state=self.state,
            app_state={},
            max_connections=self._max_connections,
            batches=self._batches,
            observe=lambda route, status, _seconds: self.observed.append((route, status)),
            reject=self.rejected.update,
        )
        self._server = await loop.create_server(make, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        if scope["path"] == "/slow":
            self.started.release()
            await self.release.wait()
        body = b"x" * LARGE if scope["path"] == "/large" else scope.get("body", b"-") or b"empty"
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    @property
    def seen(self) -> list[str]:
        return [scope["path"] for scope in self.scopes]

    @property
    def refused(self) -> list[int]:
        return [status for _, status in self.observed if status >= 400]

    async def sweep(self, now: float) -> None:
        """Lets that much time pass since the start. What follows from it has happened on return, as far as it does not
        depend on a client."""
        sweep(list(self.state.connections), now)
        await asyncio.sleep(0)

    @property
    def connections(self) -> set[Connection]:
        return cast(set[Connection], self.state.connections)

    @property
    def phase(self) -> Phase:
        """Of the only connection."""
        (connection,) = self.connections
        return connection.phase

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.001)

    async def reach(self, phase: Phase) -> None:
        await self.until(lambda: len(self.connections) == 1 and self.phase is phase)

    async def stop(self) -> None:
        self.release.set()
        self.clients.close()
        for connection in list(self.connections):
            connection.transport.abort()
        await self.until(lambda: not self.connections)
        self._server.close()
        await self._server.wait_closed()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def send_no_more(self) -> None:
        self.writer.write_eof()

    def reset(self) -> None:
        """Leaves; after a plain end it might still be reading."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def whole_answer(self) -> tuple[int, bytes, bytes]:
        """Status, header, body."""
        header = await self.reader.readuntil(b"\r\n\r\n")
        assert header.count(SITE_FIELDS) == 1
        length = re.search(rb"content-length: (\d+)", header)
        assert length
        return int(header[9:12]), header, await self.reader.readexactly(int(length[1]))

    async def answer(self) -> tuple[int, bytes]:
        """One answer: its status, and its body or error code."""
        status, header, body = await self.whole_answer()
        return status, json.loads(body)["error_code"].encode() if b"application/json" in header else body

    async def rest(self) -> list[tuple[int, bytes]]:
        """Every answer until the connection ends, without an error of the connection."""
        answers = []
        while not await self.has_ended():
            answers.append(await self.answer())
        return answers

    async def has_ended(self) -> bool:
        """Whether nothing more comes. Blocks until it is known."""
        buffer: bytearray = self.reader._buffer  # type: ignore[attr-defined]
        while not buffer and not self.reader.at_eof():
            await self.reader._wait_for_data("has_ended")  # type: ignore[attr-defined]
        return not buffer


Scenario = Callable[[Front, Callable[[], Awaitable[Client]]], Awaitable[None]]


def play(
    scenario: Scenario, *, max_connections: int = 1000, batches: Mapping[bytes, BatchRoute] = MappingProxyType({})
) -> None:
    clients = []

    async def main() -> None:
        front = Front(max_connections, batches)
        await front.start()

        async def connect() -> Client:
            client = Client(*await asyncio.open_connection("127.0.0.1", front.port))
            clients.append(client)
            return client

        try:
            await asyncio.wait_for(scenario(front, connect), 60)
        finally:
            for client in clients:
                client.writer.transport.abort()
            await front.stop()

    uvloop.run(main())


async def ask(connect: Callable[[], Awaitable[Client]], *parts: bytes) -> list[tuple[int, bytes]]:
    """What a connection that sends these parts and then stops sending is answered."""
    client = await connect()
    for part in parts:
        await client.send(part)
        for _ in range(3):
            await asyncio.sleep(0)  # or two parts would come with one read
    client.send_no_more()
    return await client.rest()


async def unreading(front: Front) -> socket.socket:
    """A client whose kernel takes little, and that reads nothing of it."""
    client = front.clients.enter_context(socket.socket())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", front.port))
    client.setblocking(True)
    return client
