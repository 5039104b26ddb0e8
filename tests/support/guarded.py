"""A guard before an application that takes down what reaches it, and requests as ASGI has them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import orjson

from ingest.access import Access
from ingest.guard import Guard

BATCH = "/batch"
OTHER = "/other"
ROUTES = {BATCH: frozenset(["POST"]), OTHER: frozenset(["GET"]), "/": frozenset(["GET"])}
LOCAL = ("127.0.0.1", 40000)
STRANGER = ("203.0.113.7", 40000)
GONE = {"type": "http.disconnect"}


class Exchange:
    """One request: hands out `messages`, then leaves, and takes down what is asked for and what is sent."""

    def __init__(self, messages: Iterable[dict[str, Any]]) -> None:
        self.messages = list(messages)
        self.received = 0
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        self.received += 1
        return self.messages.pop(0) if self.messages else GONE

    async def send(self, message: Any) -> None:
        self.sent.append(dict(message))

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def code(self) -> str:
        code: str = orjson.loads(b"".join(message.get("body", b"") for message in self.sent[1:]))["error_code"]
        return code


class FakeApp:
    """Takes down the scopes that reach it, and answers 200."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append({**scope, "received": await receive() if scope["type"] == "http" else None})
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    @property
    def body(self) -> bytes:
        body: bytes = self.scopes[-1]["body"]
        return body


class Guarded:
    def __init__(
        self,
        auth_token: str | None = None,
        *,
        protected_mode: bool = True,
        allowed_hosts: Iterable[str] = (),
        **settings: Any,
    ) -> None:
        self.app = FakeApp()
        access = Access(auth_token, protected_mode=protected_mode, allowed_hosts=tuple(allowed_hosts))
        usual = {"routes": ROUTES, "posts_with_body": frozenset([BATCH]), "max_body_bytes": 100}
        self.guard = Guard(self.app, access, **{**usual, **settings})

    def ask(
        self,
        path: str = OTHER,
        method: str = "GET",
        messages: Iterable[dict[str, Any]] = (),
        *,
        client: Any = LOCAL,
        **headers: str,
    ) -> Exchange:
        exchange = Exchange(messages or [part(b"")])
        asyncio.run(self.guard(scope_of(path, method, client, headers), exchange.receive, exchange.send))
        return exchange

    def post(self, *messages: dict[str, Any], **headers: str) -> Exchange:
        return self.ask(BATCH, "POST", messages, **headers)


def scope_of(path: str, method: str, client: Any, headers: dict[str, str]) -> dict[str, Any]:
    usual = {"host": "h", **({"content_type": "application/json"} if method == "POST" else {})}
    return {
        "type": "http",
        "path": path,
        "method": method,
        "client": client,
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in {**usual, **headers}.items()],
        "query_string": b"",
        "http_version": "1.1",
        "raw_path": path.encode(),
        "scheme": "http",
        "server": ("127.0.0.1", 8001),
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "root_path": "",
    }


def part(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}
