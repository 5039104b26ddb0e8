"""Stopping, in every way in which it happens, with a database that is live, one that is slow and one that is dead.

Each test stops three services at once, one for each kind of database, under load. Every acknowledged record must then
be in the table or in the journal, and in the table after the next start.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from shared.records import KINDS
from tests.support.load import Load, task_ids
from tests.support.mariadb import MariaDB
from tests.support.service import Service, alive, processes_of, wait_until
from tests.support.supervised import Supervised

INGEST_S = 20
FLUSHER_S = 15
"""The documented bounds. Tests allow OVERHEAD_S more for a machine that is busy with other things."""
OVERHEAD_S = 10
TASK_KIND = next(kind for kind in KINDS if kind.name == "tasks")

pytestmark = pytest.mark.timeout(200)


@dataclass
class Case:
    """A service and its database, which is live, slow (its table is locked) or dead from load() on."""

    name: str
    service: Service
    mariadb: MariaDB
    database: str
    loads: list[Load]

    def load(self, until: ExitStack) -> Load:
        """Posts until the end of the test's `with`; the database is slow or dead until then too."""
        load = until.enter_context(Load(self.service, clients=2, batch=3))
        self.loads.append(load)
        if self.name == "slow":
            until.enter_context(self.mariadb.locked(self.database))
            wait_until(lambda: self.mariadb.hanging(self.database), what="a writer waits for the lock")
        elif self.name == "dead":
            self.mariadb.stop()
            until.callback(self.mariadb.start)
        load.go_on()
        return load

    @property
    def acknowledged(self) -> set[str]:
        return set().union(*(load.acknowledged for load in self.loads))

    def nothing_is_lost(self) -> None:
        """While no flusher runs, and the database is there again."""
        kept = task_ids(self.mariadb, self.database) | self.service.journaled(TASK_KIND)
        assert self.acknowledged <= kept, self.name

    def all_arrives(self) -> None:
        """After the next start."""
        answer = self.service.flush(60)
        assert answer.status == 200, (self.name, answer)
        assert self.acknowledged <= task_ids(self.mariadb, self.database), self.name
        assert self.service.stats()["dead_letters"]["count"] == 0, self.name


@pytest.fixture(scope="module")
def mortal_mariadb() -> Iterator[MariaDB]:
    """Stopped by every test here, and running between them."""
    directory = Path(tempfile.mkdtemp(prefix="db-", dir="/tmp"))
    server = MariaDB(directory)
    server.install()
    server.start()
    yield server
    if server.process is not None and server.process.poll() is None:
        server.stop()
    shutil.rmtree(directory, ignore_errors=True)


MakeCases = Callable[[type[Service]], list[Case]]


@pytest.fixture
def make_cases(short_path: Path, mariadb: MariaDB, mortal_mariadb: MariaDB) -> Iterator[MakeCases]:
    cases: list[Case] = []

    def make(service_type: type[Service]) -> list[Case]:
        for name, server in (("live", mariadb), ("slow", mariadb), ("dead", mortal_mariadb)):
            directory = short_path / name
            directory.mkdir()
            database = server.create_database()
            service = service_type(directory, server, database, BUFFER_FLUSH_INTERVAL=0.1)
            cases.append(Case(name, service, server, database, []))
        for_all(cases, lambda case: case.service.start())
        return cases

    yield make
    for case in cases:
        try:
            case.service.stop()
        finally:
            for process in processes_of(case.service.directory):
                os.kill(process, signal.SIGKILL)
            wait_until(lambda case=case: not processes_of(case.service.directory))
            case.mariadb.drop_database(case.database)


def for_all(cases: Sequence[Case], do: Callable[[Case], object]) -> dict[str, float]:
    """Does it for all cases at once. Returns: how long each took, in seconds."""

    def timed(case: Case) -> float:
        started_at = time.monotonic()
        do(case)
        return time.monotonic() - started_at

    with ThreadPoolExecutor(len(cases)) as pool:
        return dict(zip([case.name for case in cases], pool.map(timed, cases), strict=True))


def all_below(durations: dict[str, float], bound_s: float) -> None:
    assert all(duration <= bound_s + OVERHEAD_S for duration in durations.values()), durations


# One process


def stop_ingest(case: Case) -> None:
    assert case.service.ingest is not None
    workers = case.service.workers()
    case.service.ingest.terminate()
    case.service.ingest.wait(INGEST_S + OVERHEAD_S)
    assert not any(map(alive, workers))


def stop_flusher(case: Case) -> None:
    assert case.service.flusher is not None
    writers = case.service.writers()
    case.service.flusher.terminate()
    assert case.service.flusher.wait(FLUSHER_S + OVERHEAD_S) == 0
    wait_until(lambda: not any(map(alive, writers)), what="its writers are gone")
    case.service.start_flusher()


def stop_children(case: Case) -> None:
    """Nobody outside notices that workers and writers got a SIGTERM."""
    workers = case.service.workers()
    for process in workers + wait_until(case.service.writers, what="a writer"):
        os.kill(process, signal.SIGTERM)
    wait_until(lambda: not any(map(alive, workers)), INGEST_S + OVERHEAD_S, "the worker is gone")
    case.loads[0].go_on()
    wait_until(case.service.writers, what="another writer")


@pytest.mark.parametrize(
    ("stop", "bound_s"), [(stop_ingest, INGEST_S), (stop_flusher, FLUSHER_S), (stop_children, INGEST_S)]
)
def test_sigterm_to_one_process_is_over_in_time_and_refuses_nobody(
    make_cases: MakeCases, stop: Callable[[Case], None], bound_s: float
) -> None:
    cases = make_cases(Service)
    with ExitStack() as until:
        for_all(cases, lambda case: case.load(until))
        all_below(for_all(cases, stop), bound_s)
        if stop is not stop_ingest:
            for_all(cases, lambda case: case.loads[0].go_on())
    for case in cases:
        assert case.loads[0].refused == [], case.name
        if stop is stop_ingest:
            assert case.service.flusher is not None
            assert case.service.flusher.poll() is None
            case.service.start_ingest()
            case.service.wait_ready()
        else:
            assert case.loads[0].failures == [], case.name
        case.all_arrives()


# All of them


def stop_supervisord(case: Case) -> None:
    assert isinstance(case.service, Supervised)
    assert case.service.supervisor is not None
    case.service.supervisor.terminate()
    assert case.service.supervisor.wait(90) == 0
    assert processes_of(case.service.directory) == {}


def shut_down(case: Case) -> None:
    """As the machine's shutdown: SIGTERM to every process at once, SIGKILL to what is left 10 s later."""
    for process in processes_of(case.service.directory):
        os.kill(process, signal.SIGTERM)
    give_up_at = time.monotonic() + 10
    wait_until(
        lambda: not processes_of(case.service.directory) or time.monotonic() > give_up_at, 30, "all end, or 10 s"
    )
    for process in processes_of(case.service.directory):
        with suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(process, signal.SIGKILL)
    wait_until(lambda: not processes_of(case.service.directory), what="all are gone")
    assert isinstance(case.service, Supervised)
    assert case.service.supervisor is not None
    case.service.supervisor.wait(10)


@pytest.mark.parametrize("stop", [stop_supervisord, shut_down])
def test_a_stop_of_everything_is_over_in_time_and_loses_nothing(
    make_cases: MakeCases, stop: Callable[[Case], None]
) -> None:
    cases = make_cases(Supervised)
    with ExitStack() as until:
        for_all(cases, lambda case: case.load(until))
        all_below(for_all(cases, stop), INGEST_S + FLUSHER_S)
    for case in cases:
        assert case.loads[0].refused == [], case.name
        case.nothing_is_lost()
    if stop is stop_supervisord:  # a live database has taken all of it before the end
        assert cases[0].acknowledged <= task_ids(cases[0].mariadb, cases[0].database)
    for_all(cases, lambda case: case.service.start())
    for_all(cases, Case.all_arrives)


def test_supervisorctl_restart_all_is_over_in_time_and_loses_nothing(make_cases: MakeCases) -> None:
    cases = make_cases(Supervised)

    def restart(case: Case) -> None:
        assert isinstance(case.service, Supervised)
        case.service.control("restart", "all")
        case.loads[0].go_on()

    with ExitStack() as until:
        for_all(cases, lambda case: case.load(until))
        all_below(for_all(cases, restart), max(INGEST_S, FLUSHER_S))
    for case in cases:
        assert case.loads[0].refused == [], case.name
        case.all_arrives()
