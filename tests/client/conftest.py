from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from client import persistence_client as module
from client.persistence_client import Counters, SyncPersistenceClient
from tests.support.scripted import Reply, ScriptedServer
from tests.support.service import wait_until

Scripted = Callable[..., ScriptedServer]
Connect = Callable[..., SyncPersistenceClient]


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedServer]]:
    """scripted(*replies, usual=...) -> a server that gives them."""
    servers: list[ScriptedServer] = []

    def make(*replies: Reply, **options: Any) -> ScriptedServer:
        servers.append(ScriptedServer(*replies, **options))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., SyncPersistenceClient]]:
    """connect(url, token) -> a client, closed at the end, with nothing of what a test left behind waited for."""
    clients: list[SyncPersistenceClient] = []

    def make(url: str | None, token: str | None = None) -> SyncPersistenceClient:
        clients.append(SyncPersistenceClient(url, token))
        return clients[-1]

    yield make
    monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", 0.0)
    for one in clients:
        one.close()


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch's age and the pauses between tries would only make these tests longer."""
    monkeypatch.setattr(module, "BATCH_AGE_S", 0.05)
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(module, "_TICK_S", 0.01)


@contextmanager
def together() -> Iterator[None]:
    """What is handed over inside waits for the rest, however slow the machine is: it is one batch."""
    age_s = module.BATCH_AGE_S
    module.BATCH_AGE_S = 3600.0
    yield
    module.BATCH_AGE_S = age_s


def settled(client: SyncPersistenceClient) -> Counters:
    wait_until(lambda: client.counters.waiting == 0, what="nothing waits")
    return client.counters


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
