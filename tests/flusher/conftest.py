"""Tests of this folder may be coroutines: each gets a loop of its own, in which its fixtures that are asynchronous
context managers are entered.

`@pytest.mark.node(fsync=..., policy=...)` gives the settings of the fixture `node`, for a test or a whole module.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.flusher import Node, running
from tests.support.mariadb import MariaDB
from tests.support.writer import Place


@pytest.fixture
def node(tmp_path: Path, request: pytest.FixtureRequest) -> AbstractAsyncContextManager[Node]:
    settings: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers("node"))):  # the test's own last
        settings |= marker.kwargs
    if "fsync" in request.fixturenames:
        settings["fsync"] = request.getfixturevalue("fsync")
    return running(tmp_path, **settings)


@pytest.fixture
def place(tmp_path: Path, mariadb: MariaDB, database: str) -> Iterator[Place]:
    made = Place(tmp_path, mariadb, database)
    store = made.store
    yield made
    store.close()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None

    async def run() -> None:
        arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(test).parameters}
        async with AsyncExitStack() as stack:
            for name, value in arguments.items():
                if isinstance(value, AbstractAsyncContextManager):
                    arguments[name] = await stack.enter_async_context(value)
            await test(**arguments)

    asyncio.run(run())
    return True
