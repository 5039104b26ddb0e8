"""A crowd of clients that do everything wrong: `python -m tests.system.hostile.clients PORT KIND=COUNT...`.

Prints `ready` when every connection stands and each quick kind (`cut` and below) has been through once, goes on until
its stdin ends, then prints what it has done as JSON. Each kind keeps as many connections as it is told: whoever is
closed comes back.

    idle       sends nothing
    header     sends a header, a byte a second
    body       announces 5 MiB, sends a byte a second
    chunks     sends a chunked body, a byte a second
    expect     announces 5 MiB with Expect: 100-continue, gets its 100 and sends nothing
    unread     sends requests for large answers and reads none
    cut        sends a request up to some byte, a little further every time, and goes: with a reset, or half-closed
    pipeline   sends 50 requests at once and reads the answers
    garbage    sends what is no HTTP
    tiny       sends a body in chunks of one byte, as fast as it is let; tiny404 to a path that does not exist
    extension  sends a chunk extension without end; extension404 to a path that does not exist
    metrics    asks for the metrics again and again and reads none
    page       asks for 80 KB a few times and reads nothing
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import socket
import struct
import sys
from collections import Counter
from typing import Any, cast

import uvloop

from tests.support.service import TASKS, task

POST = f"POST {TASKS} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n".encode()
BODY = json.dumps({"tasks": [task("hostile", source_text="x" * 500)]}).encode()
WHOLE = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
SLOW = {
    "idle": (b"", b""),
    "header": (b"", POST + b"X: " + b"y" * 1000),
    "body": (POST + b"Content-Length: 5242880\r\n\r\n", BODY),
    "chunks": (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n{\r\n1\r\n \r\n" + b"1\r\n \r\n" * 100),
    "expect": (POST + b"Content-Length: 5242880\r\nExpect: 100-continue\r\n\r\n", b""),
    "page": (b"GET /dashboard HTTP/1.1\r\nHost: h\r\n\r\n" * 20, b""),
    "unread": (b"GET /openapi.json HTTP/1.1\r\nHost: h\r\n\r\n" * 90, b""),
}
"""What is sent at once, and then byte by byte."""
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
NOWHERE = CHUNKED.replace(TASKS.encode(), b"/nowhere")
FLOODS = {
    "tiny": (CHUNKED, b"1\r\n \r\n" * 10_000),
    "tiny404": (NOWHERE, b"1\r\n \r\n" * 10_000),
    "extension": (CHUNKED + b"1;", b"x" * 65536),
    "extension404": (NOWHERE + b"1;", b"x" * 65536),
    "metrics": (b"", b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n" * 90),
}
"""What is sent at once, and then again and again."""
AGAIN_S = 3.0
"""At most; independent clients do not come back together."""
PAUSE_S = {"cut": 0.1, "garbage": 0.1, "pipeline": 1.0, **dict.fromkeys(FLOODS, 0.0)}
"""Between two connections of a client of the kinds that don't wait."""


class Crowd:
    def __init__(self, port: int) -> None:
        self.port = port
        self.standing = 0
        self.done: Counter[str] = Counter()
        self.loop = asyncio.get_running_loop()
        self.ending = False

    async def keep(self, kind: str) -> None:
        """One connection of a slow kind, again and again."""
        while not self.ending:
            try:
                raw = socket.socket()
                if kind == "page":
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # the kernel is not to read for it
                raw.setblocking(False)
                await self.loop.sock_connect(raw, ("127.0.0.1", self.port))
                _, client = await self.loop.create_connection(lambda: Slow(self, kind), sock=raw)
            except OSError as error:
                self.done[f"{kind}: {type(error).__name__}"] += 1
            else:
                await client.lost
            await asyncio.sleep(random.uniform(0.0, AGAIN_S))

    async def quick(self, kind: str, step: int) -> None:
        """One client of a quick kind, again and again."""
        at = step
        while not self.ending:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                if kind == "pipeline":
                    writer.write(WHOLE * 50)
                elif kind == "garbage":
                    writer.write(random.randbytes(500))
                elif kind in FLOODS:
                    self.done[kind] += 1
                    reader._transport.pause_reading()  # type: ignore[attr-defined]
                    head, again = FLOODS[kind]
                    writer.write(head)
                    while not self.ending:
                        writer.write(again)
                        await writer.drain()
                else:
                    writer.write(WHOLE[: at % len(WHOLE)])
                    at += 7
                    if at % 2:
                        raw = writer.get_extra_info("socket")
                        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        writer.transport.abort()
                    else:
                        writer.write_eof()
                answers = 0
                while line := await reader.readline():
                    answers += line.count(b"HTTP/1.1 ")  # a body ends in no newline
                    if answers == 50:
                        break
                writer.close()
            except OSError:
                pass  # its own reset, or the other side's
            self.done[kind] += 1
            await asyncio.sleep(PAUSE_S[kind])


class Slow(asyncio.Protocol):
    def __init__(self, crowd: Crowd, kind: str) -> None:
        self._crowd = crowd
        self._kind = kind
        self._rest = SLOW[kind][1]
        self.lost = crowd.loop.create_future()
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._crowd.standing += 1
        if self._kind in ("unread", "page"):
            self._crowd.loop.call_soon(self._transport.pause_reading)  # here and now uvloop passes over it
        self._transport.write(SLOW[self._kind][0])
        if self._rest:
            # Spread over the second, as independent clients are.
            self._timer = self._crowd.loop.call_later(random.random(), self._drip)

    def _drip(self) -> None:
        self._transport.write(self._rest[:1])
        self._rest = self._rest[1:]
        if self._rest:
            self._timer = self._crowd.loop.call_later(1.0, self._drip)

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 100"):
            self._crowd.done[f"{self._kind}: {data[9:12].decode()}"] += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.standing -= 1
        self._crowd.done[f"{self._kind}: ended"] += 1
        if self._timer is not None:
            self._timer.cancel()
        if not self.lost.done():
            self.lost.set_result(None)


async def main(port: int, wanted: dict[str, int]) -> None:
    crowd = Crowd(port)
    tasks = []
    for kind, count in wanted.items():
        for number in range(count):
            work: Any = crowd.keep(kind) if kind in SLOW else crowd.quick(kind, number * 31)
            tasks.append(asyncio.ensure_future(work))
            if number % 100 == 99:
                await asyncio.sleep(0.05)  # no faster than the listener's queue is emptied
    most = sum(count for kind, count in wanted.items() if kind in SLOW)
    quick = wanted.keys() - SLOW.keys()
    while crowd.standing < most * 0.95 or not quick <= crowd.done.keys():
        await asyncio.sleep(0.05)
    print("ready", flush=True)
    await crowd.loop.run_in_executor(None, sys.stdin.read)
    crowd.ending = True
    for one in tasks:
        one.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(json.dumps(dict(sorted(crowd.done.items()))), flush=True)


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(main(int(sys.argv[1]), {kind: int(count) for kind, count in (word.split("=") for word in sys.argv[2:])}))
