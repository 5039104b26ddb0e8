"""A start under whatever comes: signals, kills, a second one, a stop, leftovers, odd names and surroundings."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.copies import Copy, one_line
from tests.support.ctl import ctl
from tests.support.load import task_ids
from tests.support.mariadb import MariaDB
from tests.support.service import ROOT, TASKS, processes_of, task, wait_until
from tests.support.strangers import STRANGER, needs_root
from tests.support.supervised import Supervised

pytestmark = pytest.mark.timeout(200)
Make = Callable[..., Copy]
Fault = Callable[[Copy], tuple[str, ...]]


def said(copy: Copy, text: str) -> bool:
    return text in copy.directory.with_suffix(".out").read_text()


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("number", "every_s"), [(signal.SIGINT, float(os.environ.get("SIGNAL_EVERY_S", "0.4"))), (signal.SIGTERM, 1.0)]
)
def test_a_signal_at_any_moment_of_a_start_ends_it_and_leaves_nothing(
    number: signal.Signals, every_s: float, make_copy: Make
) -> None:
    """From the first instruction over the installation of the database, its start and the tables to the programs. Each
    100 ms of it with SIGNAL_EVERY_S=0.1, which takes a minute."""
    copy = make_copy()
    moment_s, ready = 0.0, False
    while not ready:
        run = copy.start_in_foreground()
        time.sleep(moment_s)
        ready, began = said(copy, "ready at"), said(copy, "making a private MariaDB")
        if number == signal.SIGINT:
            os.killpg(run.pid, number)  # as a terminal does
        else:
            run.send_signal(number)
        sent_at = time.monotonic()
        # The shell's own first moments end by the signal itself. One that is lost ends nothing for a minute.
        assert run.wait(30) in (0, -number, 128 + number), moment_s
        assert time.monotonic() - sent_at < 10, moment_s
        wait_until(lambda: processes_of(copy.directory) == {}, 5, f"nothing is left of {moment_s} s")
        assert not began or said(copy, "ms  stopped"), moment_s
        moment_s += every_s
    copy.start()
    copy.stop()


def test_a_signal_in_pythons_own_start_is_no_error(short_path: Path, make_copy: Make) -> None:
    """It would end with status 1 and a traceback by a Ctrl-C in its imports."""
    (short_path / "sitecustomize.py").write_text(
        "import pathlib, sys, time\n"
        "if 'scripts.run' in sys.orig_argv:\n"
        "    pathlib.Path(__file__).with_name('begun').touch()\n"
        "    time.sleep(1)\n"
    )
    copy = make_copy()
    copy.environ["PYTHONPATH"] = str(short_path)
    run = copy.start_in_foreground()
    wait_until((short_path / "begun").exists, 60)
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(30) == 0
    assert said(copy, "ms  stopped")


def test_a_mariadbd_that_does_not_hear_the_signal_is_killed(short_path: Path, make_copy: Make) -> None:
    """As a real one for ever after a SIGTERM in its first tenth of a second; supervisord would wait for a minute."""
    deaf = short_path / "bin" / "mariadbd"
    deaf.parent.mkdir()
    deaf.write_text("#!/bin/bash\ntrap '' TERM\nwhile :; do sleep 0.1; done\n")
    deaf.chmod(0o755)
    copy = make_copy()
    (copy.directory / "mysql" / "mysql").mkdir(parents=True, mode=0o700)
    copy.directory.chmod(0o700)
    copy.environ["PATH"] = f"{deaf.parent}:{copy.environ['PATH']}"
    run = copy.start_in_foreground()
    wait_until(lambda: any(str(deaf) in command for command in processes_of(copy.directory).values()), 60)
    run.terminate()
    assert run.wait(30) == 0
    wait_until(lambda: processes_of(copy.directory) == {}, 5)


def test_run_sh_killed_at_each_of_its_steps_and_run_again(make_copy: Make) -> None:
    copy = make_copy()
    for step in ("making a private MariaDB", "starting MariaDB", "the tables are ours"):
        run = copy.start_in_foreground()
        wait_until(lambda step=step: said(copy, step), 60, step)
        run.kill()
        run.wait(10)
    done = copy.script("run.sh", "--detach")
    assert done.returncode == 0 or "already running" in done.stderr  # the last kill may have come after the start
    wait_until(copy.is_ready)
    assert copy.post(TASKS, {"tasks": [task("t1")]}).status == 202
    one_line(copy.script("run.sh", "--detach"), "already running", "./scripts/stop.sh stops it")
    assert copy.script("flush.sh").returncode == 0
    assert copy.ids() == {"t1"}
    copy.stop()


def test_of_two_run_sh_at_once_one_starts_and_the_other_says_so(
    make_copy: Make, mariadb: MariaDB, database: str
) -> None:
    copy = make_copy(mariadb, DB_DATABASE=database)
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda _: copy.script("run.sh", "--detach"), range(2)))
    (other,) = [done for done in ended if done.returncode]
    one_line(other, f"with PERSISTENCE_STATE_DIR={copy.directory}; ./scripts/stop.sh stops it")
    assert copy.is_ready()
    copy.stop()


@pytest.mark.parametrize("step", ["making a private MariaDB", "starting MariaDB", "ready at"])
def test_stop_sh_ends_a_start(step: str, make_copy: Make) -> None:
    copy = make_copy()
    run = copy.start_in_foreground()
    wait_until(lambda: said(copy, step), 60, step)
    if step == "ready at":
        os.killpg(run.pid, signal.SIGSTOP)  # Ctrl-Z in its terminal
    copy.stop()
    assert run.wait(10) == 0


def test_children_of_a_killed_supervisord_leave_and_the_next_start_waits_for_them(make_copy: Make) -> None:
    copy = make_copy()
    copy.start()
    assert copy.post(TASKS, {"tasks": [task("t1")]}).status == 202
    os.kill(int((copy.directory / "supervisord.pid").read_text()), signal.SIGKILL)
    copy.start()
    assert copy.script("flush.sh").returncode == 0
    assert copy.ids() == {"t1"}
    os.kill(int((copy.directory / "supervisord.pid").read_text()), signal.SIGKILL)
    copy.stop()  # waits for those that are still leaving


def test_a_supervisord_started_again_takes_over_from_one_that_was_killed(
    short_path: Path, mariadb: MariaDB, database: str
) -> None:
    service = Supervised(short_path, mariadb, database)
    service.start()
    try:
        with mariadb.locked(database):
            assert service.post(TASKS, {"tasks": [task("t1")]}).status == 202
            assert service.supervisor is not None
            first = processes_of(service.directory).keys()
            service.supervisor.kill()
            service.supervisor.wait(10)
            service.start()
        wait_until(lambda: not first & processes_of(service.directory).keys(), 60, "the first ones have gone")
        service.wait_ready()
        assert service.flush().status == 200
        assert task_ids(mariadb, database) == {"t1"}
    finally:
        service.stop()
    assert processes_of(service.directory) == {}


def test_a_start_in_odd_surroundings(short_path: Path, make_copy: Make) -> None:
    """Every character that a path may hold and a shell or supervisord reads; a proxy that is none; few descriptors; a
    umask that closes nothing. Its own stop command works as it stands."""
    copy = make_copy()
    copy.directory = short_path / "a %(x)s&|;'\"[1]*$b\\ é "
    copy.environ |= {
        "PERSISTENCE_STATE_DIR": str(copy.directory),
        **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY"), "http://127.0.0.1:1"),
    }
    odd = "umask 000; ulimit -n 256; ./scripts/run.sh --detach"
    done = subprocess.run(["bash", "-c", odd], cwd=ROOT, env=copy.environ, capture_output=True, text=True, timeout=120)
    try:
        assert (done.returncode, done.stderr) == (0, "")
        assert copy.script("flush.sh").returncode == 0
        paths = [copy.directory, *copy.directory.rglob("*")]
        assert [path for path in paths if path.stat().st_mode & 0o077 and not path.is_socket()] == []
        command = done.stdout.partition("stop it with ")[2]
        environ = {name: value for name, value in copy.environ.items() if name != "PERSISTENCE_STATE_DIR"}
        stopped = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environ, capture_output=True, timeout=120)
        assert (stopped.returncode, processes_of(copy.directory)) == (0, {})
    finally:
        copy.end()


def test_one_directory_is_one_service_and_its_settings_are_those_it_was_started_with(
    short_path: Path, make_copy: Make, mariadb: MariaDB, database: str
) -> None:
    copy = make_copy(mariadb)
    file = short_path / "config.yaml"
    file.write_text(json.dumps({"database": {"socket": mariadb.socket, "database": database}}))
    del copy.environ["DB_SOCKET"], copy.environ["DB_DATABASE"]
    copy.environ["PERSISTENCE_CONFIG"] = str(file)
    copy.start()
    assert not (copy.directory / "mysql").exists()  # the file names a database
    link = short_path / "link"
    link.symlink_to(copy.directory)
    for spelling in (f"{copy.directory}/", f"{copy.directory}/../0", str(link)):
        again = {**copy.environ, "PERSISTENCE_STATE_DIR": spelling}
        done = subprocess.run(["./scripts/run.sh"], cwd=ROOT, env=again, capture_output=True, text=True, timeout=60)
        one_line(done, f"already running with PERSISTENCE_STATE_DIR={copy.directory}")

    # A shell that knows nothing of the file, and one that says otherwise, look where the service looks.
    own = {"PERSISTENCE_STATE_DIR": str(link), "PERSISTENCE_CONFIG": ""}
    assert ctl(copy, "db", "check", **own).status == 0
    other = ctl(copy, "db", "check", **own, MYSQL_HOST="192.0.2.1")
    assert other.status == 0
    assert other.err.startswith("ctl: MYSQL_HOST not used: the service runs with other settings (process ")
    assert (copy.directory / "started_with.json").stat().st_mode & 0o777 == 0o600

    stop = {**copy.environ, "PERSISTENCE_STATE_DIR": f"{link}/"}
    stopped = subprocess.run(["./scripts/stop.sh"], cwd=ROOT, env=stop, capture_output=True, text=True, timeout=60)
    assert "stopped" in stopped.stdout
    assert processes_of(copy.directory) == {}
    assert not (copy.directory / "started_with.json").exists()


# What keeps it from starting: one line each, with what to do


def a_file_for_a_journal(copy: Copy) -> tuple[str, ...]:
    journal = copy.directory.with_suffix(".file")
    journal.touch()
    copy.environ["JOURNAL_DIRECTORY"] = str(journal)
    return f"journal.directory = {journal}", "File exists"


def somebodys_directory(copy: Copy) -> tuple[str, ...]:
    copy.directory.mkdir()
    os.chown(copy.directory, pwd.getpwnam(STRANGER).pw_uid, -1)
    return f"PERSISTENCE_STATE_DIR = {copy.directory}", "belongs to user", "chown it or name another"


def somebodys_link(copy: Copy) -> tuple[str, ...]:
    target = copy.directory.with_suffix(".target")
    target.mkdir()
    copy.directory.symlink_to(target)
    os.chown(copy.directory, pwd.getpwnam(STRANGER).pw_uid, -1, follow_symlinks=False)
    return f"{copy.directory} is a symbolic link of user", "name its target"


def somebodys_link_for_a_log(copy: Copy) -> tuple[str, ...]:
    log = Path(copy.environ["LOGGING_FILE"])
    target = log.with_suffix(".target")
    log.symlink_to(target)
    os.chown(log, pwd.getpwnam(STRANGER).pw_uid, -1, follow_symlinks=False)
    return f"logging.file = '{log}'", "symbolic link belongs to user", "LOGGING_FILE names another"


def a_full_disk(copy: Copy) -> tuple[str, ...]:
    copy.directory.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(copy.directory)]
    subprocess.run(mount, check=True)
    del copy.environ["DB_SOCKET"]
    return f"PERSISTENCE_STATE_DIR = {copy.directory}", "MiB are free", "make room"


def a_read_only_disk(copy: Copy) -> tuple[str, ...]:
    a_full_disk(copy)
    subprocess.run(["mount", "-o", "remount,ro", str(copy.directory)], check=True)
    return f"PERSISTENCE_STATE_DIR = {copy.directory}", "Read-only file system"


def a_long_name(copy: Copy) -> tuple[str, ...]:
    copy.environ["PERSISTENCE_STATE_DIR"] = name = str(copy.directory / ("x" * 80))
    return f"PERSISTENCE_STATE_DIR = {name}", "bytes too long"


def a_name_of_two_lines(copy: Copy) -> tuple[str, ...]:
    copy.environ["PERSISTENCE_STATE_DIR"] = f"{copy.directory}\nx"
    return "PERSISTENCE_STATE_DIR", "control characters"


HELD: list[socket.socket] = []


def a_port_in_use(copy: Copy) -> tuple[str, ...]:
    HELD.append(socket.create_server(("127.0.0.1", copy.port)))
    return str(copy.port), "in use", "SERVICE_PORT"


def an_address_of_another(copy: Copy) -> tuple[str, ...]:
    copy.environ["SERVICE_HOST"] = "192.0.2.1"
    return "service.host = 192.0.2.1", "assign"


def no_address(copy: Copy) -> tuple[str, ...]:
    copy.environ["SERVICE_HOST"] = ".local"
    return ("service.host = .local",)


def a_directory_that_others_use(copy: Copy) -> tuple[str, ...]:
    (copy.directory / "somebody's").mkdir(parents=True)
    copy.directory.chmod(0o755)
    return f"PERSISTENCE_STATE_DIR = {copy.directory}", "open to others"


def a_file_for_a_directory(copy: Copy) -> tuple[str, ...]:
    copy.directory.write_text("no directory")
    return "PERSISTENCE_STATE_DIR", str(copy.directory)


def a_log_in_a_file(copy: Copy) -> tuple[str, ...]:
    file = copy.directory.with_suffix(".file")
    file.touch()
    copy.environ["LOGGING_FILE"] = str(file / "log")
    return "logging.file", str(file / "log")


def configured_by(text: str | None, *words: str) -> Fault:
    def configuration(copy: Copy) -> tuple[str, ...]:
        file = copy.directory.with_suffix(".yaml")
        if text is not None:
            file.write_text(text)
        copy.environ["PERSISTENCE_CONFIG"] = str(file)
        return str(file), *words

    return configuration


def a_variable_out_of_range(copy: Copy) -> tuple[str, ...]:
    copy.environ["BUFFER_MAX_SIZE"] = "0"
    return "buffer.max_buffer_size", "0", "BUFFER_MAX_SIZE"


def a_wrong_password(copy: Copy) -> tuple[str, ...]:
    copy.environ |= {"DB_USER": "nobody-here", "DB_PASSWORD": "wr0ng-secret"}
    return "database", "nobody-here", "1045", copy.environ["DB_SOCKET"]


def no_database(copy: Copy) -> tuple[str, ...]:
    copy.environ["DB_SOCKET"] = "/nowhere/mysqld.sock"
    return "database", "/nowhere/mysqld.sock"


@needs_root
@pytest.mark.parametrize(
    "fault",
    [
        *(a_file_for_a_journal, somebodys_directory, somebodys_link, somebodys_link_for_a_log, a_full_disk),
        *(a_read_only_disk, a_long_name, a_name_of_two_lines, a_port_in_use, an_address_of_another, no_address),
        *(a_directory_that_others_use, a_file_for_a_directory, a_log_in_a_file, a_variable_out_of_range),
        configured_by("service:\n  prot: 8001\n", "prot", "port"),
        configured_by("service: [", "YAML"),
        configured_by(None, "no such file"),
        *(a_wrong_password, no_database),
    ],
)
def test_a_start_that_fails_says_in_one_line_why_and_what_to_do(
    fault: Fault, make_copy: Make, mariadb: MariaDB, database: str
) -> None:
    copy = make_copy(mariadb, DB_DATABASE=database)
    words = fault(copy)
    try:
        done = copy.script("run.sh", "--detach")
        one_line(done, *words)
        assert "wr0ng-secret" not in done.stderr
        assert processes_of(copy.directory) == {}
        assert not (copy.directory / "supervisord.conf").is_file()
    finally:
        if copy.directory.is_mount():
            subprocess.run(["umount", str(copy.directory)], check=True)
        while HELD:
            HELD.pop().close()
    if fault is a_directory_that_others_use:
        assert [path.name for path in copy.directory.iterdir()] == ["somebody's"]
        assert copy.directory.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", ["ingest", "flusher"])
def test_a_validator_that_cannot_be_loaded_is_said_once_by_the_parent(
    name: str, make_copy: Make, mariadb: MariaDB
) -> None:
    copy = make_copy(mariadb)
    program = (
        f"import runpy, sys; sys.modules['shared.fast_validator'] = None; runpy.run_module('{name}', None, '__main__')"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=copy.environ, capture_output=True, text=True, timeout=60)
    one_line(done, "shared.fast_validator", "./scripts/install.sh builds shared/fast_validator.cpp anew")
