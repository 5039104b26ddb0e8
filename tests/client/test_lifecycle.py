"""Event loops that come and go, threads, forks, exits: each in a backend's layout, as a program of its own."""

from __future__ import annotations

import ast
import asyncio
import sys
import threading
import weakref
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from client import persistence_client as module
from client.persistence_client import PersistenceClient, SyncPersistenceClient
from tests.support import backend
from tests.support.scripted import Reply, ScriptedServer
from tests.support.service import ROOT, free_port, task, wait_until
from tests.support.stepped_clock import SteppedClock

Scripted = Callable[..., ScriptedServer]

START = """
import asyncio, os, sys, threading, time
from services.persistence.persistence_client import persistence_client

def task(name, **fields):
    return {"session_id": "s1", "task_id": name, **fields}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return backend.drop_in(tmp_path / "backend")


def received(server: ScriptedServer) -> list[str]:
    """Ids in the order in which they came, of all requests so far."""
    requests = [server.next() for _ in range(server.requests.qsize())]
    return [one for request in requests if request.path.endswith("batch") for one in request.ids]


def test_the_one_file_imports_nothing_but_the_standard_library_and_is_python_3_8() -> None:
    tree = ast.parse((ROOT / "client" / "persistence_client.py").read_text(), feature_version=(3, 8))
    names = {
        alias.name.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    names |= {(node.module or "").partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= set(sys.stdlib_module_names)


def test_importing_it_does_nothing_but_import_all_that_it_needs(place: Path, scripted: Scripted) -> None:
    """A child forked in the middle of an import waits for that module for ever."""
    program = """
import asyncio, atexit, concurrent.futures, http.client, logging, os, random, sys, threading, uuid
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
loaded = set(sys.modules)
persistence_client.sync.persist_tasks([{"session_id": "s1", "task_id": "t1"}])
persistence_client.sync.close()
print(persistence_client.counters.sent, set(sys.modules) - loaded)
"""
    assert backend.run(place, program, scripted().url) == "1 [] [] True\n1 set()\n"


def test_two_loops_at_once_share_the_client(place: Path, scripted: Scripted) -> None:
    server = scripted(usual=lambda one: Reply(200, {"status": "flushed"}) if "flush" in one.path else Reply())
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


def test_a_cancelled_flush_breaks_nothing(scripted: Scripted) -> None:
    server = scripted(Reply(lost=True))

    async def work() -> None:
        async with PersistenceClient(server.url) as client:
            await client.persist_tasks([task("t1")])
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.flush_all(), 0)
            await client.persist_tasks([task("t2")])
            await client.persist_session({"session_id": "s1"})

    asyncio.run(work())
    assert {"t1", "t2", "s1"} <= set(received(server))


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
    assert errors.splitlines()[-1].endswith(": 1 tasks dropped: the client was closed")


LATE = """
import atexit
@atexit.register
def late():
    {late}
{before}
"""


@pytest.mark.parametrize(
    "before", ["", 'persistence_client.sync.persist_tasks([task("early")])'], ids=["first", "later"]
)
@pytest.mark.parametrize(
    "late",
    [
        'persistence_client.sync.persist_tasks([task("late")])',
        'asyncio.run(persistence_client.persist_tasks([task("late")]))',
        'persistence_client.sync.persist_tasks([task("late")]); persistence_client.sync.close()',
        """asyncio.run(persistence_client.persist_tasks([task("late")]))
    assert asyncio.run(persistence_client.flush_all())["status"] == "flushed\"""",
    ],
    ids=["sync", "async", "closed", "flushed"],
)
def test_a_record_of_an_atexit_handler_that_was_registered_before_the_first_call_is_sent(
    place: Path, scripted: Scripted, late: str, before: str
) -> None:
    """It runs after the client's own handler, when Python 3.12 and later start no thread any more."""
    server = scripted(usual=lambda one: Reply(200, {"status": "flushed"}) if "flush" in one.path else Reply())
    backend.run(place, START + LATE.format(late=late, before=before), server.url)
    assert received(server) == ([*(["early"] if before else []), "late"])


def test_records_of_such_a_handler_that_cannot_be_sent_are_warned_of_and_do_not_hold_up_the_exit(place: Path) -> None:
    late = '[persistence_client.sync.persist_tasks([task(f"late{number}")]) for number in range(50)]'
    with backend.start(place, START + LATE.format(late=late, before=""), f"http://127.0.0.1:{free_port()}") as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert errors.count(": 1 tasks dropped: the client was closed\n") == 50


@pytest.mark.parametrize("call", ["", "persist", "flush"])
def test_closed_clients_are_freed(scripted: Scripted, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TICK_S", 0.001)
    server = scripted(usual=lambda one: Reply(200, {"status": "flushed"}) if "flush" in one.path else Reply())
    alive: list[weakref.ref[SyncPersistenceClient]] = []
    for _ in range(500):
        with SyncPersistenceClient(server.url) as client:
            if call == "persist":
                client.persist_tasks(task())
            elif call == "flush":
                client.flush_all()
            alive.append(weakref.ref(client))
        del client
    wait_until(lambda: not [one for one in alive if one()])


def test_a_client_that_nobody_closes_ends_its_thread_when_nothing_has_waited_for_long(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LINGER_S", 0.1)
    server = scripted()
    client = SyncPersistenceClient(server.url)
    client.persist_tasks(task("t1"))
    assert server.next().ids == ["t1"]
    wait_until(lambda: not [one for one in threading.enumerate() if one.name == "persistence-client"])
    client.persist_tasks(task("t2"))
    assert server.next().ids == ["t2"]
    freed = weakref.ref(client)
    del client
    wait_until(lambda: freed() is None)


def test_an_exit_in_the_middle_of_a_request_that_takes_too_long_is_warned_of(place: Path, scripted: Scripted) -> None:
    hold = threading.Event()
    server = scripted(Reply(hold=hold))
    program = (
        START
        + """
from services.persistence import persistence_client as module
module.REQUEST_TIMEOUT_S, module.SLOWEST_BYTES_PER_S, module.EXIT_TIMEOUT_S = 0.1, 1, 0.1
persistence_client.sync.persist_tasks([task("t1")])
assert sys.stdin.readline()
"""
    )
    with backend.start(place, program, server.url) as process:
        server.next()
        _, errors = process.communicate("\n", timeout=30)
    hold.set()
    assert errors == f"persistence client of {server.url}: 1 records not sent: a request takes too long\n"


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
        while persistence_client.counters.sent == 0:
            time.sleep(0.01)
        os._exit(0)
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
    real, died = SyncPersistenceClient._try, []

    def dies_once(*arguments: object) -> object:
        if not died:
            died.append(threading.current_thread())
            raise ZeroDivisionError
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(SyncPersistenceClient, "_try", dies_once)
    unhandled: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: unhandled.append(arguments.exc_type))
    with SyncPersistenceClient(server.url) as client:
        client.persist_tasks([task("t1")])
        wait_until(lambda: died and not died[0].is_alive())
        client.persist_tasks([task("t2")])
    assert unhandled == [ZeroDivisionError]
    assert client.counters.sent == 2


@pytest.mark.usefixtures("short_pauses")
def test_a_sender_that_ends_late_leaves_its_successor_alone(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logging its last warnings may take long, or fail: the next sender's lock and connection are not its own."""
    ends: list[threading.Thread] = []
    late, real = threading.Event(), SyncPersistenceClient._report

    def report(client: SyncPersistenceClient, now: float, *, all_kinds: bool) -> None:
        if all_kinds and not ends:
            ends.append(threading.current_thread())
            assert late.wait(30)
            raise ZeroDivisionError
        real(client, now, all_kinds=all_kinds)

    monkeypatch.setattr(SyncPersistenceClient, "_report", report)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    hold = threading.Event()
    server = scripted(Reply(), Reply(hold=hold))
    with SyncPersistenceClient(server.url) as client:
        client.persist_tasks([task("t1")])
        closing = threading.Thread(target=client.close)
        closing.start()
        wait_until(lambda: ends)
        client.persist_tasks([task("t2")])
        assert server.next().ids == ["t1"]
        second = server.next()
        late.set()
        closing.join()
        ends[0].join()
        assert client._sending.locked()
        hold.set()
        client.persist_tasks([task("t3")])
        assert server.next().connection is second.connection
    assert client.counters == (3, 0, 0, 0, 0)


@pytest.mark.parametrize("step_s", [3600, -3600])
def test_a_clock_that_is_set_does_not_stop_it(place: Path, scripted: Scripted, step_s: int) -> None:
    """Neither while it waits nor in a pause; what it stamps follows the clock."""
    clock = SteppedClock(place)
    server = scripted(Reply(503, {"error_code": "JOURNAL_FULL", "detail": "full"}, {"Retry-After": "1"}))
    program = (
        START
        + """
persistence_client.sync.persist_tasks([task("before")])
assert sys.stdin.readline()
persistence_client.sync.persist_tasks([task("after")])
while persistence_client.counters.sent < 2:
    time.sleep(0.01)
assert persistence_client.sync.flush_all()["status"] == "flushed"
"""
    )
    server.usual = lambda one: Reply(200, {"status": "flushed"}) if "flush" in one.path else Reply()
    with backend.start(place, program, server.url, environ=clock.environ) as process:
        server.next()
        clock.step(step_s)
        _, errors = process.communicate("\n", timeout=60)
    assert process.returncode == 0, errors
    records = [
        record
        for _ in range(server.requests.qsize())
        if b"tasks" in (one := server.next()).body
        for record in one.records
    ]
    assert {one["task_id"] for one in records} == {"before", "after"}
    before, after = (
        datetime.fromisoformat(one["updated_at"])
        for one in sorted(records, key=lambda one: one["task_id"], reverse=True)
    )
    assert abs((after - before).total_seconds() - step_s) < 60
