from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from client import persistence_client as module
from client.persistence_client import SyncPersistenceClient
from tests.support.scripted import Reply, Request, ScriptedServer


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedServer]]:
    """scripted(*replies, usual=...) -> a server that gives them."""
    servers: list[ScriptedServer] = []

    def make(*replies: Reply, usual: Callable[[Request], Reply] | None = None) -> ScriptedServer:
        servers.append(ScriptedServer(*replies, usual=usual))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., SyncPersistenceClient]]:
    """connect(url, token) -> a client, closed at the end, with nothing of what a test left behind waited for."""
    clients: list[SyncPersistenceClient] = []

    def make(url: str, token: str | None = None) -> SyncPersistenceClient:
        clients.append(SyncPersistenceClient(url, token))
        return clients[-1]

    yield make
    monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", 0.0)
    for one in clients:
        one.close()
