"""Event loops that come and go, threads, forks, exits: each in a backend's layout, as a program of its own."""

from __future__ import annotations

import ast
import asyncio
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from client import persistence_client as module
from client.persistence_client import PersistenceClient, SyncPersistenceClient
from tests.support import backend
from tests.support.scripted import Reply, ScriptedServer
from tests.support.service import ROOT, free_port, task, wait_until

Scripted = Callable[..., ScriptedServer]

START = """
import asyncio, os, sys, threading, time
from services.persistence.persistence_client import persistence_client

def task(name, **fields):
    return {"task_id": name, **fields}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return backend.drop_in(tmp_path / "backend")


def received(server: ScriptedServer) -> list[str]:
    """Ids in the order in which they came, of all requests so far."""
    requests = [server.next() for _ in range(server.requests.qsize())]
    return [one for request in requests if request.path.endswith("batch") for one in request.ids]


def test_the_one_file_imports_nothing_but_the_standard_library_and_aiohttp() -> None:
    tree = ast.parse((ROOT / "client" / "persistence_client.py").read_text())
    names = {
        alias.name.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    names |= {(node.module or "").partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names - set(sys.stdlib_module_names) == {"aiohttp"}


def test_the_package_is_typed() -> None:
    assert (ROOT / "client" / "py.typed").exists()


def test_importing_it_does_nothing(place: Path) -> None:
    program = """
import atexit, os, sys, threading
import aiohttp
hooks = []
os.register_at_fork = lambda **hook: hooks.append(hook)
atexit.register = hooks.append
read = []
class Environ(dict):
    def get(self, name, default=None):
        read.append(name)
        return super().get(name, default)
    def __getitem__(self, name):
        read.append(name)
        return super().__getitem__(name)
os.environ = Environ(os.environ)
descriptors = os.listdir("/proc/self/fd")
from services.persistence.persistence_client import persistence_client
print(threading.active_count(), hooks, read, os.listdir("/proc/self/fd") == descriptors)
"""
    assert backend.run(place, program, "http://127.0.0.1:1") == "1 [] [] True\n"


def test_event_loops_that_come_and_go_lose_nothing(place: Path, scripted: Scripted) -> None:
    """Each loop ends long before a batch is due; nobody closes the client."""
    server = scripted()
    program = (
        START
        + """
for number in range(5):
    asyncio.run(persistence_client.persist_tasks([task(f"t{number}")]))
"""
    )
    backend.run(place, program, server.url)
    assert received(server) == ["t0", "t1", "t2", "t3", "t4"]


def test_two_loops_at_once_share_the_client(place: Path, scripted: Scripted) -> None:
    server = scripted(usual=lambda request: Reply(200 if "flush" in request.path else 202, {"status": "flushed"}))
    program = (
        START
        + """
async def work(name):
    for number in range(20):
        await persistence_client.persist_tasks([task(f"{name}{number}")])
        await asyncio.sleep(0)
    assert await persistence_client.flush_all() == {"status": "flushed"}
threads = [threading.Thread(target=lambda name=name: asyncio.run(work(name))) for name in "ab"]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
    )
    backend.run(place, program, server.url)
    assert sorted(received(server)) == sorted(f"{name}{number}" for name in "ab" for number in range(20))


def test_the_asynchronous_context_manager_sends_what_waits(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    server = scripted()

    async def work() -> PersistenceClient:
        async with PersistenceClient(server.url) as client:
            await client.persist_tasks([task("t1")])
            await client.persist_session({"session_id": "s1"})
        return client

    client = asyncio.run(work())
    assert client.counters.sent == 2
    assert sorted(received(server)) == ["s1", "t1"]


def test_a_cancelled_flush_breaks_nothing(scripted: Scripted) -> None:
    server = scripted(Reply(lost=True))

    async def work() -> None:
        async with PersistenceClient(server.url) as client:
            await client.persist_tasks([task("t1")])
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.flush_all(), 0)
            await client.persist_tasks([task("t2")])

    asyncio.run(work())
    assert {"t1", "t2"} <= set(received(server))


def test_an_exit_sends_what_waits_also_to_a_name_that_was_never_looked_up(place: Path, scripted: Scripted) -> None:
    server = scripted()
    program = START + 'persistence_client.sync.persist_tasks([task("t1")])\n'
    backend.run(place, program, server.url.replace("127.0.0.1", "localhost"))
    assert received(server) == ["t1"]


def test_an_exit_does_not_wait_long_for_a_service_that_is_away(place: Path) -> None:
    program = START + 'persistence_client.sync.persist_tasks([task("t1")])\n'
    with backend.start(place, program, f"http://127.0.0.1:{free_port()}") as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert errors.splitlines()[-1] == "1 tasks dropped: the client was closed"


FORK = """
persistence_client.sync.persist_tasks([task("before")])
{meanwhile}
child = os.fork()
if child == 0:
    for number in range(3):
        persistence_client.sync.persist_tasks([task(f"child{{number}}")])
        time.sleep(0.01)
    {child}
for number in range(3):
    persistence_client.sync.persist_tasks([task(f"parent{{number}}")])
assert os.waitpid(child, 0)[1] == 0
persistence_client.sync.persist_tasks([task("after")])
persistence_client.sync.close()
assert persistence_client.counters.sent == 5, persistence_client.counters
"""
CHILD = "assert persistence_client.counters.waiting == 3\n    persistence_client.sync.close()\n    os._exit(0)"


@pytest.mark.parametrize(
    ("meanwhile", "child"),
    [
        ("", CHILD),
        ("time.sleep(1.5)  # it is connected, and idle", CHILD),
        ("", "sys.exit()"),
        ("time.sleep(1.5)", "sys.exit()"),
        ("", "asyncio.run(persistence_client.aclose()); sys.exit()"),
    ],
    ids=["waiting", "connected", "waiting, plain exit", "connected, plain exit", "closed in a loop"],
)
def test_a_fork_sends_its_own_records_and_only_those(
    place: Path, scripted: Scripted, meanwhile: str, child: str
) -> None:
    server = scripted()
    program = START + FORK.format(meanwhile=meanwhile, child=child)
    options = ("-W", "ignore:This process:DeprecationWarning") if sys.version_info >= (3, 12) else ()
    backend.run(place, program, server.url, "", *options)
    ids = received(server)
    assert sorted(ids) == ["after", "before", *(f"{who}{n}" for who in ("child", "parent") for n in range(3))]


def test_forks_while_other_threads_persist_never_hang(place: Path, scripted: Scripted) -> None:
    """Some of the forks happen while a thread holds the lock, which in the child nobody would release."""
    server = scripted()
    program = (
        START
        + """
stopped = threading.Event()
def produce(name):
    while not stopped.is_set():
        persistence_client.sync.persist_tasks(task(f"{name}-{number}") for number in range(50))
threads = [threading.Thread(target=produce, args=(name,)) for name in "ab"]
[thread.start() for thread in threads]
for number in range(30):
    child = os.fork()
    if child == 0:
        persistence_client.sync.persist_tasks([task(f"child{number}")])
        persistence_client.sync.close()
        os._exit(0 if persistence_client.counters.sent == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
stopped.set()
[thread.join() for thread in threads]
persistence_client.sync.close()
counters = persistence_client.counters
assert (counters.dropped, counters.waiting) == (0, 0), counters
"""
    )
    options = ("-W", "ignore:This process:DeprecationWarning") if sys.version_info >= (3, 12) else ()
    backend.run(place, program, server.url, "", *options)
    assert {f"child{number}" for number in range(30)} <= set(received(server))


def test_a_signal_handler_may_persist_in_the_middle_of_a_call(place: Path, scripted: Scripted) -> None:
    server = scripted()
    program = (
        START
        + """
import signal
seen = 0
def handle(*_):
    global seen
    seen += 1
    persistence_client.sync.persist_tasks([task(f"signal{seen}")])
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
count = 0
while seen < 200:
    persistence_client.sync.persist_tasks([task(f"t{count}")])
    count += 1
signal.setitimer(signal.ITIMER_REAL, 0)
persistence_client.sync.close()
counters = persistence_client.counters
assert counters == (count + seen, 0, 0, 0, 0), (counters, count, seen)
"""
    )
    backend.run(place, program, server.url)


def test_a_sender_that_dies_of_a_fault_of_its_own_is_replaced_and_nothing_is_lost(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = scripted()
    real, died = module._Sender._judge, []

    def judge(*arguments: object) -> object:
        if not died:
            died.append(threading.current_thread())
            raise ZeroDivisionError
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module._Sender, "_judge", staticmethod(judge))
    unhandled: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: unhandled.append(arguments.exc_type))
    with SyncPersistenceClient(server.url) as client:
        client.persist_tasks([task("t1")])
        wait_until(lambda: died and not died[0].is_alive())
        client.persist_tasks([task("t2")])
    assert unhandled == [ZeroDivisionError]
    assert client.counters.sent == 2
