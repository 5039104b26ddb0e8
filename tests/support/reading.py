"""The reader without a process: calls as ingest makes them, over a socket pair, against a real database."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import msgspec
from msgspec.structs import replace

from reader.database import Database
from reader.server import Reader
from shared import bodies
from shared.reading import LENGTH, MAX_PIECE_BYTES, Call
from shared.records import SESSIONS, TASKS, Rules
from tests.support.mariadb import MariaDB

STATUSES = {SESSIONS: ("pending", "executing", "completed"), TASKS: ("pending", "processing", "completed", "failed")}


class Answer:
    """Of one call, as ingest gets it."""

    def __init__(self, data: bytes) -> None:
        head, _, rest = data.partition(b"\n")
        self.head = json.loads(head)
        self.body = b""
        self.whole = False
        while len(rest) >= 4:
            (length,) = LENGTH.unpack(rest[:4])
            assert length <= MAX_PIECE_BYTES
            if not length:
                self.whole = True
                break
            self.body += rest[4 : 4 + length]
            rest = rest[4 + length :]

    @property
    def json(self) -> Any:
        assert self.whole
        assert self.head["length"] == len(self.body)
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        assert self.whole
        return [json.loads(line) for line in self.body.splitlines()]


class Asking:
    def __init__(self, mariadb: MariaDB, name: str, **options: Any) -> None:
        def connect() -> Database:
            return Database(replace(mariadb.server(name), **options), timeout_s=5)

        self._connect = connect

    def __call__(self, **call: Any) -> Answer:
        async def ask() -> bytes:
            to_utc = bodies.Reader(TASKS, Rules("Asia/Shanghai")).time
            reader = Reader(self._connect, pool_size=2, wait_s=5, statuses=STATUSES, to_utc=to_utc)
            near, far = socket.socketpair()
            stream, writer = await asyncio.open_connection(sock=far)
            mine, hers = await asyncio.open_connection(sock=near)
            hers.write(msgspec.json.encode(Call(**call)) + b"\n")
            task = asyncio.create_task(reader.serve(stream, writer))
            data = await mine.read()
            await task
            hers.close()
            return data

        return Answer(asyncio.run(ask()))
