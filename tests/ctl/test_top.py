"""`top`: rates from two samples, one look, and live in a terminal."""

from __future__ import annotations

import signal
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from ctl.top import CtrlC, Sample, rates, spark
from tests.support.ctl import Terminal, ctl
from tests.support.mariadb import MariaDB
from tests.support.service import TASKS, Service, task, wait_until


def test_without_figures_there_are_no_rates() -> None:
    assert rates(Sample(1.0, {}, None), Sample(2.0, {}, {})) is None


def test_bars_go_from_zero_to_the_highest() -> None:
    assert spark([0, 50, 100]) == "▁▅█"
    assert spark([0, 0]) == "▁▁"
    assert spark([]) == ""


def test_one_look_as_json_has_rates_health_and_figures(service: Service) -> None:
    assert service.post(TASKS, {"tasks": [task("t1")]}).status == 202
    document = ctl(service, "top", "--once", "--interval", "0.1", "--json").json
    assert document["rates"]["accepted_per_s"] == {"sessions": 0, "tasks": 0}
    assert document["stats"]["buffer"]["tasks_count"] == 1
    assert document["health"]["version"]


def test_one_look_ends_with_the_exit_status_of_status(service: Service) -> None:
    wait_until(lambda: service.get("/health").json["status"] == "healthy")
    assert ctl(service, "top", "--once", "--interval", "0.1").status == 0
    service.kill_flusher()
    gone = ctl(service, "top", "--once", "--interval", "0.1", "--json")
    assert (gone.status, len(gone.json["problems"])) == (1, 1)


def test_live_it_shows_backlog_errors_and_an_outage_until_q_is_pressed(
    start_service: Callable[..., Service], own_mariadb: MariaDB
) -> None:
    database = own_mariadb.create_database()
    service = start_service(own_mariadb, database)
    wait_until(lambda: service.get("/health").json["status"] == "healthy")
    terminal = Terminal(service, "top", "--interval", "0.2")
    terminal.read_until("healthy")
    assert service.post(TASKS, {"tasks": [task(f"t{number}") for number in range(37)]}).status == 202
    terminal.read_until("37 records")
    own_mariadb.stop()
    assert service.flush(0.5).status == 503
    terminal.read_until("degraded")
    terminal.read_until("last error")
    assert service.ingest is not None
    service.ingest.terminate()
    service.ingest.wait(40)
    terminal.read_until("unreachable")
    terminal.type("q")
    assert terminal.end() == 0


@pytest.mark.parametrize("shown", ["", "\x1b[?1049h", "backlog", "rows/s"])
def test_ctrl_c_ends_it_at_any_moment_and_gives_the_screen_back(shown: str, service: Service) -> None:
    """From the first instructions to the drawing of a frame. Until its handler is there the signal itself ends it."""
    for delay_s in (0, 0.03, 0.1, 0.3):
        terminal = Terminal(service, "top", "--interval=0.1")
        terminal.read_until(shown)
        time.sleep(delay_s)
        terminal.interrupt()
        assert terminal.end(10) in ({0} if shown else {0, 1, 130, -signal.SIGINT})
        assert terminal.seen.count("\x1b[?1049h") == terminal.seen.count("\x1b[?1049l")


def test_ctrl_c_in_the_middle_of_a_look_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python drops what a signal raises in a weak reference's callback: the next wait ends all the same."""
    before = signal.getsignal(signal.SIGINT)
    ctrl_c = CtrlC()

    class Thing:
        pass

    def look() -> None:
        thing = Thing()
        callback = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
        del thing, callback

    dropped: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)
    try:
        ctrl_c.ends(look)
        with pytest.raises(KeyboardInterrupt):
            ctrl_c.ends(time.sleep, 60)
    finally:
        signal.signal(signal.SIGINT, before)
