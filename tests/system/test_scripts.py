"""run.sh, flush.sh and stop.sh as a user runs them: in a state directory of their own, on a port of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.copies import Copy, one_line
from tests.support.mariadb import MariaDB
from tests.support.service import ROOT, TASKS, processes_of, task, threads, wait_until

pytestmark = pytest.mark.timeout(200)


def test_from_a_first_start_to_a_third_every_record_is_kept_and_nothing_is_left_running(
    make_copy: Callable[..., Copy],
) -> None:
    copy = make_copy()
    copy.start()
    assert copy.post(TASKS, {"tasks": [task("t1"), task("t2")]}).status == 202

    done = copy.script("flush.sh")

    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert (result["status"], result["tasks_written"]) == ("flushed", 2)
    assert copy.ids() == {"t1", "t2"}
    assert copy.database.execute("SELECT @@skip_networking, @@port") == [(1, 0)]
    database = int((copy.directory / "mysql" / "mysqld.pid").read_text())
    assert {os.sched_getscheduler(thread) for thread in threads(database)} == {os.SCHED_IDLE}
    assert copy.directory.stat().st_mode & 0o077 == 0
    one_line(copy.script("run.sh", "--detach"), "already running", str(copy.directory))

    assert copy.post(TASKS, {"tasks": [task("t3")]}).status == 202
    copy.stop()  # writes what is left, while the database is still there
    assert copy.segments() == []

    assert copy.script("stop.sh").returncode == 0
    one_line(copy.script("flush.sh"), f"http://127.0.0.1:{copy.port}", "refused")
    copy.start()
    assert copy.ids() == {"t1", "t2", "t3"}
    copy.stop()


def test_two_copies_side_by_side_keep_to_their_own_and_one_stops_without_the_other(
    make_copy: Callable[..., Copy],
) -> None:
    one, other = make_copy(), make_copy()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda copy: copy.start(), (one, other)))
    assert one.post(TASKS, {"tasks": [task("one")]}).status == 202
    assert other.post(TASKS, {"tasks": [task("other")]}).status == 202
    for copy in (one, other):
        assert copy.script("flush.sh").returncode == 0
    assert (one.ids(), other.ids()) == ({"one"}, {"other"})

    one.stop()

    assert other.post(TASKS, {"tasks": [task("more")]}).status == 202
    assert other.script("flush.sh").returncode == 0
    assert other.ids() == {"other", "more"}
    other.stop()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_foreground_a_signal_drains_and_stops_in_order(
    number: signal.Signals, make_copy: Callable[..., Copy], mariadb: MariaDB, database: str
) -> None:
    copy = make_copy(mariadb, DB_DATABASE=database)
    run = copy.start_in_foreground()
    try:
        wait_until(lambda: run.poll() is not None or copy.is_ready(), 60, "it is ready")
        assert copy.post(TASKS, {"tasks": [task("t1")]}).status == 202
        assert copy.ids() == set()

        if number == signal.SIGINT:
            os.killpg(run.pid, number)  # as a terminal does
        else:
            run.send_signal(number)
        run.wait(60)
    finally:
        run.kill()
        run.wait(10)

    assert run.returncode == 0, copy.directory.with_suffix(".out").read_text()
    assert processes_of(copy.directory) == {}
    assert copy.ids() == {"t1"}
    log = Path(copy.environ["LOGGING_FILE"]).read_text()
    # Ingest had gone before the flusher was told to stop.
    assert log.rindex("] stopped\n") < log.index("stopping: serving until")


def test_a_signal_while_it_waits_for_the_database_leaves_nothing_running(make_copy: Callable[..., Copy]) -> None:
    copy = make_copy()
    copy.environ["DB_SOCKET"] = "/nowhere/mysqld.sock"
    run = copy.start_in_foreground()
    try:
        wait_until(
            lambda: any("flusher.schema" in command for command in processes_of(copy.directory).values()),
            30,
            "it waits for the database",
        )
        run.terminate()
        run.wait(30)
    finally:
        run.kill()
        run.wait(10)
    assert processes_of(copy.directory) == {}


def test_flush_sh_fails_and_says_what_waits_when_not_all_could_be_written(
    make_copy: Callable[..., Copy], mariadb: MariaDB, database: str
) -> None:
    copy = make_copy(mariadb, DB_DATABASE=database)
    copy.start()
    with mariadb.locked(database):
        assert copy.post(TASKS, {"tasks": [task("t1")]}).status == 202
        done = copy.script("flush.sh", "0.5")
    assert (done.returncode, done.stderr) == (1, "")
    result = json.loads(done.stdout)
    assert (result["status"], result["pending"]) == ("error", 1)
    assert copy.script("flush.sh", "60").returncode == 0
    assert copy.ids() == {"t1"}
    usage = copy.script("flush.sh", "soon")
    assert usage.returncode == 2
    assert "'soon'" in usage.stderr.splitlines()[-1]
    copy.stop()


def test_ctrl_c_of_stop_sh_ends_it_and_the_service_goes_on_stopping(
    make_copy: Callable[..., Copy], mariadb: MariaDB, database: str
) -> None:
    copy = make_copy(mariadb, DB_DATABASE=database)
    copy.start()
    assert copy.post(TASKS, {"tasks": [task("t1")]}).status == 202
    with mariadb.locked(database):
        command = ["./scripts/stop.sh"]
        stop = subprocess.Popen(command, cwd=ROOT, env=copy.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert stop.stdout is not None
        assert b"stopping: ingest drains" in stop.stdout.readline()
        stop.send_signal(signal.SIGINT)
        _, said = stop.communicate(timeout=10)
    assert (stop.returncode, said) == (130, b"stop.sh: ended by SIGINT; the service goes on stopping\n")
    wait_until(lambda: processes_of(copy.directory) == {}, 60)
    assert copy.ids() == {"t1"}


def test_flush_sh_sends_the_token_of_the_running_service(
    make_copy: Callable[..., Copy], mariadb: MariaDB, database: str
) -> None:
    copy = make_copy(mariadb, DB_DATABASE=database, SERVICE_AUTH_TOKEN="secret")
    copy.start()
    copy.environ["SERVICE_AUTH_TOKEN"] = "wrong"
    done = copy.script("flush.sh")
    assert done.returncode == 0
    assert "SERVICE_AUTH_TOKEN not used" in done.stderr
    assert "wrong" not in done.stderr
    copy.stop()


# Arguments


@pytest.mark.parametrize("arguments", [("--detatch",), ("--detach", "now")])
def test_an_unknown_argument_is_named(arguments: tuple[str, ...], make_copy: Callable[..., Copy]) -> None:
    copy = make_copy()
    one_line(copy.script("run.sh", *arguments), arguments[-1], "--detach")
    assert not copy.directory.exists()


@pytest.mark.parametrize(
    "name", ["run.sh", "stop.sh", "flush.sh", "ctl.sh", "install.sh", "cluster.sh", "lock.sh", "screenshots.sh"]
)
def test_who_asks_a_script_for_help_gets_it_and_nothing_happens(name: str, make_copy: Callable[..., Copy]) -> None:
    copy = make_copy(DB_HOST="127.0.0.1", DB_PORT=1)
    done = copy.script(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"./scripts/{name}" in done.stdout or name == "ctl.sh"
    assert not copy.directory.exists()


@pytest.mark.parametrize("name", ["stop.sh", "install.sh", "screenshots.sh"])
def test_an_argument_of_a_script_that_takes_none_is_named(name: str, make_copy: Callable[..., Copy]) -> None:
    one_line(make_copy().script(name, "--now"), "--now", "no arguments")
