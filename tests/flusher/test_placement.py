from __future__ import annotations

import os
import subprocess
import time

import pytest

from flusher import placement
from flusher.placement import AGAIN_S, BUSY, EVERY_S, Placement, core_of, leave, wanted_s

PEER = 4711


class Machine:
    """A clock, for how long this thread has wanted a core, and the cores that it and PEER run on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.wanted = 50.0
        self.cores = {os.getpid(): 1, PEER: 1}
        self.left: list[int] = []
        self.fault: OSError | None = None
        monkeypatch.setattr(placement, "core_of", self._core_of)
        monkeypatch.setattr(placement, "leave", self._leave)
        self.placement = Placement(clock=lambda: self.now, wanted=lambda: self.wanted)
        self.placement.look(PEER)

    def _core_of(self, pid: int) -> int:
        if self.fault is not None:
            raise self.fault
        return self.cores[pid]

    def _leave(self, core: int) -> None:
        self.left.append(core)

    def look(self, after_s: float = 2 * EVERY_S, busy: float = 2 * BUSY) -> list[int]:
        self.now += after_s
        self.wanted += busy * after_s
        self.placement.look(PEER)
        return self.left


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_a_busy_thread_leaves_the_core_of_its_peer(machine: Machine) -> None:
    assert machine.look() == [1]
    assert machine.look() == [1, 1]


def test_one_with_little_to_do_stays(machine: Machine) -> None:
    assert machine.look(busy=BUSY / 2) == []
    assert machine.look(after_s=10.0, busy=BUSY / 2) == []


def test_a_peer_on_another_core_is_left_alone(machine: Machine) -> None:
    machine.cores[PEER] = 0
    assert machine.look() == []


def test_it_does_not_look_at_every_call(machine: Machine) -> None:
    for _ in range(9):
        machine.look(after_s=EVERY_S / 10)
    assert machine.left == []
    assert machine.look(after_s=EVERY_S / 5) == [1]


@pytest.mark.parametrize("fault", [FileNotFoundError(2, "it has ended"), PermissionError(1, "a sandbox")])
def test_where_the_way_is_closed_it_stays_and_tries_again_much_later(machine: Machine, fault: OSError) -> None:
    machine.fault = fault
    assert machine.look() == []
    machine.fault = None
    assert machine.look() == []
    assert machine.look(after_s=AGAIN_S) == [1]


def test_a_thread_has_wanted_a_core_while_it_ran() -> None:
    before, ran = wanted_s(), time.thread_time()
    while time.thread_time() - ran < 0.05:
        pass
    assert wanted_s() - before > 0.04  # the kernel counts up to the last tick


def test_the_core_of_a_process_is_one_that_it_may_use() -> None:
    assert core_of(os.getpid()) in os.sched_getaffinity(0)
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {max(allowed)})  # a child begins where its parent is
        child = subprocess.Popen(["sleep", "60"])
    finally:
        os.sched_setaffinity(0, allowed)
    with child:
        assert core_of(child.pid) == max(allowed)
        child.kill()
    with pytest.raises(OSError, match="No such"):
        core_of(child.pid)


@pytest.fixture
def set_to(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    found: list[set[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: found.append(set(cores)))
    return found


@pytest.mark.parametrize(
    ("allowed", "asked"),
    [
        ({0, 1}, [{0}, {0, 1}]),
        ({1, 2, 3}, [{2, 3}, {1, 2, 3}]),
        ({1}, []),
        ({0, 2}, []),  # the operator has taken core 1 away since
    ],
)
def test_it_leaves_for_any_core_that_it_may_use_and_may_use_all_again(
    monkeypatch: pytest.MonkeyPatch, set_to: list[set[int]], allowed: set[int], asked: list[set[int]]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(allowed))
    leave(1)
    assert set_to == asked


def test_the_kernel_does_it() -> None:
    allowed = os.sched_getaffinity(0)
    leave(core_of(os.getpid()))
    assert os.sched_getaffinity(0) == allowed
