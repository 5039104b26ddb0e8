"""The parent's workers as real processes, each a line of Python instead of a worker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from ingest import workers as module
from ingest.workers import Workers
from tests.support.service import alive, wait_until

SERVES = "print('ready', flush=True); input()"
ENDS = "pass"
HANGS = "input()"


class Parent:
    """Starts what `code` says; its own code by default."""

    def __init__(self, wanted: int) -> None:
        self.code = SERVES
        self.broken = False
        self.started: list[subprocess.Popen[bytes]] = []
        self.ended: list[int] = []
        self.workers = Workers(self._start, self.ended.append, wanted=wanted)

    def _start(self) -> subprocess.Popen[bytes]:
        if self.broken:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        command = [sys.executable, "-I", "-S", "-c", self.code]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.started.append(process)
        return process

    def until(self, condition: Callable[[], bool], what: str) -> None:
        def stepped() -> bool:
            self.workers.step()
            return condition()

        wait_until(stepped, what=what)

    def settle(self) -> list[int]:
        """Until no worker starts or leaves. Returns: those that serve."""
        self.until(lambda: self.workers.wait_s is None and len(self.living()) == len(self.workers), "all is settled")
        return self.living()

    def living(self) -> list[int]:
        return [process.pid for process in self.started if alive(process.pid)]


@pytest.fixture
def parent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Parent]:
    monkeypatch.setattr(module, "RESPAWN_S", 0.01)
    one = Parent(wanted=2)
    try:
        yield one
    finally:
        one.workers.terminate(10)
        for process in one.started:
            with process:
                process.kill()


def test_the_old_workers_leave_when_the_new_ones_serve_and_not_before(parent: Parent) -> None:
    old = parent.settle()
    parent.code = "input(); " + SERVES
    parent.workers.replace()
    new = parent.started[2:]
    for _ in range(3):
        parent.workers.step()
    assert set(parent.living()) == {*old, *(process.pid for process in new)}
    for process in new:
        assert process.stdin
        assert set(old) <= set(parent.living())
        process.stdin.write(b"\n")
        process.stdin.flush()
        parent.workers.step()
    assert parent.settle() == [process.pid for process in new]
    assert sorted(parent.ended) == sorted(old)


@pytest.mark.parametrize(("before", "code"), [([], ENDS), ([], HANGS), ([SERVES, SERVES], ENDS)])
def test_new_workers_that_do_not_start_leave_the_old_ones_in_place(
    parent: Parent, before: list[str], code: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old = parent.settle()
    if code == HANGS:
        monkeypatch.setattr(module, "START_S", 0.05)
    for parent.code in [*before, code]:
        parent.workers.replace()
    parent.until(lambda: "the old ones stay" in caplog.text, "the new workers are given up")
    assert len(parent.workers) == len(old)
    monkeypatch.setattr(module, "START_S", 30.0)
    parent.code = SERVES
    assert parent.settle() == old
    parent.workers.replace()
    assert not set(parent.settle()) & set(old)


def test_a_worker_that_cannot_be_forked_leaves_the_old_ones_in_place_and_is_tried_again(parent: Parent) -> None:
    old = parent.settle()
    parent.broken = True
    parent.workers.replace()
    parent.workers.step()
    assert parent.living() == old
    parent.started[0].kill()
    parent.until(lambda: parent.living() == old[1:] and len(parent.workers) == 1, "one is gone")
    assert parent.workers.wait_s is not None
    parent.broken = False
    assert parent.settle()[0] == old[1]
    assert len(parent.workers) == 2


def test_replacements_in_a_row_and_deaths_leave_as_many_as_wanted(parent: Parent) -> None:
    for _ in range(3):
        parent.workers.replace()
        parent.started[-1].kill()
        parent.workers.step()
    assert len(parent.settle()) == 2
