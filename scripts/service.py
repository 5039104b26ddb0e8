"""Starts the service in its state directory.

Rules: signals are blocked before this is imported (run.py), and pause() is the only place that takes one, so none is
lost and none cuts a step in two. Whoever starts holds start.lock, in the foreground until the service has ended.
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

from scripts.processes import (
    Failed,
    held,
    is_started,
    mariadbd_of,
    programs_of,
    rpc,
    schedule,
    stop_supervisord,
    supervisord_of,
)
from scripts.steps import ROOT, STOPPING, Steps, Stopped, end, last_line, new_file, pause, spawn, wait_for
from shared.config import Loaded, load_or_exit, load_with_sources, names_database
from shared.exposure import local_tls, local_url
from shared.process import lock, own_state_directory
from shared.settings import Database
from shared.wire import SOCKET_NAME

PRIVATE_FREE_BYTES = 400 * 1024 * 1024
"""A new MariaDB takes 110 MiB and a log of 256."""
PROGRAMS = ("flusher", "reader", "ingest")
_PROGRAM_LOG = """stdout_logfile=NONE
stderr_logfile=mariadb.stderr.log
stderr_logfile_maxbytes=1MB
stderr_logfile_backups=1
"""


class Start:
    def __init__(self, state: Path, loaded: Loaded) -> None:
        self._state = state
        self._private = not names_database(loaded)
        self._steps = Steps()
        self._supervisord: subprocess.Popen[bytes] | None = None
        self._helper: subprocess.Popen[bytes] | None = None
        self._socket = state / "mysql" / "mysqld.sock"
        if self._private:
            found, default = loaded.config.database, Database()
            unused = [name for name in ("port", "user", "password") if getattr(found, name) != getattr(default, name)]
            if unused:
                names = ", ".join(f"database.{name}" for name in unused)
                self._steps.begins(f"{names} not used: the database is a private one, since no database.host is set")
            os.environ |= {
                "DB_SOCKET": str(self._socket),
                "DB_USER": "root",
                "DB_PASSWORD": "",
                "DB_SSL_MODE": "DISABLED",
                # mariadbd sets a umask of its own.
                "UMASK": "0600",
                "UMASK_DIR": "0700",
            }
        self._config = load_or_exit()

    def run(self) -> None:
        """Returns when the service is ready. Raises: Stopped, Failed; then call undo()."""
        self._check_paths()
        self._end_earlier_start()
        self._check_port()
        if self._private:
            self._make_database()
        self._write_configuration()
        self._start_supervisord()
        self._make_tables()
        self._start_programs()

    def interrupted(self) -> None:
        self._steps.begins("interrupted: what has been started is ended")
        self.undo()
        self._steps.done("stopped")

    def undo(self) -> None:
        """Ends whatever has been started."""
        if self._helper is not None:
            end(self._helper)
        if self._supervisord is not None and self._supervisord.poll() is None:
            stop_supervisord(self._state, self._supervisord.pid, kill_database_after_s=3)
        (self._state / "supervisord.conf").unlink(missing_ok=True)

    def wait(self) -> None:
        """Until supervisord has ended, or a signal has ended it."""
        assert self._supervisord is not None
        try:
            while self._supervisord.poll() is None:
                pause(60)
        except Stopped:
            self._steps.begins(STOPPING)
            stop_supervisord(self._state, self._supervisord.pid)
            self._steps.done("stopped")

    def _check_paths(self) -> None:
        sockets = [self._state / SOCKET_NAME, self._state / f"supervisor.sock.{2**22}"]  # made under that name first
        longest = max([*sockets, self._socket] if self._private else sockets, key=lambda path: len(os.fsencode(path)))
        if (over := len(os.fsencode(longest)) - 107) > 0:
            raise Failed(
                f"PERSISTENCE_STATE_DIR = {self._state}: is {over} bytes too long: a socket's path may have 107"
                f" (unix(7)), and {longest.relative_to(self._state)} must fit behind it"
            )

    def _end_earlier_start(self) -> None:
        """What a run.sh or a supervisord that was killed has left."""
        pid = supervisord_of(self._state)
        if pid is not None:
            if is_started(self._state):
                raise Failed(f"already running with PERSISTENCE_STATE_DIR={self._state}; ./scripts/stop.sh stops it")
            self._steps.begins("ending what an earlier start has left")
            stop_supervisord(self._state, pid, kill_database_after_s=3)
        if names := held(self._state):
            self._steps.begins(f"waiting for {' and '.join(names)} of an earlier start to end")
            if wait_for(lambda: not held(self._state), 60):
                return
            raise Failed(
                f"{' and '.join(held(self._state))} of an earlier start does not end in {self._state}; end the process"
                f" (fuser {shlex.quote(str(self._state))}/*.lock names it)"
            )

    def _check_port(self) -> None:
        host, port = self._config.service.host, self._config.service.port
        try:
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except (OSError, UnicodeError) as error:
            if getattr(error, "errno", None) == errno.EADDRINUSE:
                raise Failed(f"service.port = {port}: the port is in use (SERVICE_PORT names another)") from None
            raise Failed(f"service.host = {host}, service.port = {port}: {getattr(error, 'strerror', error)}") from None

    def _make_database(self) -> None:
        # A server that starts removes the temporary tables of all others in the same directory, so it has its own.
        (self._state / "mysql.tmp").mkdir(exist_ok=True)
        directory = self._state / "mysql"
        for old in self._state.glob("mysql.new*"):
            shutil.rmtree(old, ignore_errors=True)
        if (directory / "mysql").is_dir():
            return
        free = shutil.disk_usage(self._state).free
        if free < PRIVATE_FREE_BYTES:
            raise Failed(
                f"PERSISTENCE_STATE_DIR = {self._state}: {free >> 20} MiB are free, and a private MariaDB needs"
                f" {PRIVATE_FREE_BYTES >> 20}; make room, or name a database (DB_HOST)"
            )
        self._steps.begins(f"making a private MariaDB in {directory}: some seconds")
        # A name of its own: the server of an installation that was killed may live a little longer.
        new = self._state / f"mysql.new.{os.getpid()}"
        new.mkdir()
        # mariadb-install-db is a shell script that quotes little: by this name the directory is plain, and ours alone.
        plain = f"/proc/{os.getpid()}/fd/{os.open(self._state, os.O_DIRECTORY)}"
        user = "--user=root" if os.geteuid() == 0 else f"--user={os.geteuid()}"
        options = ["--no-defaults", user, f"--datadir={plain}/{new.name}", f"--tmpdir={plain}/mysql.tmp"]
        log = self._state / "mysql.install.log"
        with new_file(log) as output:
            command = ["mariadb-install-db", *options, "--auth-root-authentication-method=normal", "--skip-test-db"]
            self._helper = spawn(command, output)
        if self._finish_helper(600) != 0:
            raise Failed(f"mariadb-install-db failed, see {log}: {last_line(log)}")
        shutil.rmtree(directory, ignore_errors=True)
        new.rename(directory)
        self._steps.done(f"made a private MariaDB in {directory}")

    def _write_configuration(self) -> None:
        """supervisord runs in the state directory, and its files have no path: it would expand some characters."""
        text = (ROOT / "supervisord.conf").read_text(encoding="utf-8")
        text = text.replace("unix://%(here)s/var", f"unix://{self._state}".replace("%", "%%"))
        text = text.replace("%(here)s/var/", "").replace("%(here)s", str(ROOT).replace("%", "%%"))
        for name in PROGRAMS:
            # They start when the tables are there; afterwards supervisord starts them itself.
            text = text.replace(f"[program:{name}]\n", f"[program:{name}]\nautostart=false\n")
        if self._private:
            program = shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
            if program is None:
                raise Failed("there is no mariadbd; install mariadb-server-core, or name a database (DB_HOST)")
            text += (
                "\n[program:mariadb]\n"
                f"command=/bin/sh -c 'exec setpriv --pdeathsig TERM {program} --no-defaults --user=$(id -un)"
                ' --datadir="$PERSISTENCE_STATE_DIR/mysql" --socket="$DB_SOCKET" --skip-networking'
                ' --pid-file="$PERSISTENCE_STATE_DIR/mysql/mysqld.pid" --tmpdir="$PERSISTENCE_STATE_DIR/mysql.tmp"'
                " --innodb-buffer-pool-size=256M --innodb-log-file-size=256M --max-allowed-packet=64M"
                " --character-set-server=utf8mb4'\n"
                "priority=10\nautorestart=true\nstartsecs=1\nstartretries=1000000\nstopwaitsecs=60\n" + _PROGRAM_LOG
            )
        with new_file(self._state / "supervisord.conf") as file:
            file.write(text.encode())

    def _start_supervisord(self) -> None:
        if self._private:
            self._steps.begins("starting MariaDB and making the tables")
        for name in ("supervisor.sock", "supervisord.pid"):
            (self._state / name).unlink(missing_ok=True)  # of one that was killed
        with new_file(self._state / "supervisord.stderr.log") as output:
            command = [sys.executable, "-m", "supervisor.supervisord", "-n", "-s", "-c", "supervisord.conf"]
            self._supervisord = spawn(command, output, with_us=False, cwd=self._state)

    def _make_tables(self) -> None:
        if not self._private:
            database = self._config.database
            where = database.socket or f"{', '.join(database.host)}, port {database.port}"
            self._steps.begins(f"looking at the tables of {database.database} at {where}")
        log = self._state / "schema.stderr.log"
        with new_file(log) as output:
            seconds = "60" if self._private else "5"
            self._helper = spawn([sys.executable, "-m", "flusher.schema", "--wait", seconds], output)
        status = self._finish_helper(120)
        if status != 0:
            raise Failed(last_line(log) or f"flusher.schema ended with status {status}")
        self._steps.done(f"database: {last_line(log)}")

    def _finish_helper(self, timeout_s: float) -> int | None:
        """Returns: its status, None where it still runs. Raises: Stopped, Failed."""
        assert self._helper is not None
        helper = self._helper

        def ended() -> bool:
            self._check_supervisord()
            return helper.poll() is not None

        wait_for(ended, timeout_s)
        return helper.returncode

    def _check_supervisord(self) -> None:
        if self._supervisord is not None and self._supervisord.poll() is not None:
            raise Failed(f"supervisord ended: {last_line(self._state / 'supervisord.stderr.log')}")

    def _start_programs(self) -> None:
        # MariaDB shares the service's cores and goes after it (docs/OPERATIONS.md, Tuning); from here on, since on a
        # busy machine it would take minutes to start like that. After a restart by supervisord it does not.
        assert self._supervisord is not None
        schedule(mariadbd_of(self._supervisord.pid), os.SCHED_IDLE)
        names = [name for name in PROGRAMS if name != "reader" or self._config.read.enabled]
        logs = {name: self._state / f"{name}.stderr.log" for name in names}
        sizes = {name: log.stat().st_size if log.exists() else 0 for name, log in logs.items()}
        self._steps.begins(f"starting {', '.join(names)}")
        if not wait_for(partial(self._answers), 20):
            raise Failed(f"supervisord does not answer; see {self._state / 'supervisord.log'}")
        for name in logs:
            rpc(self._state).supervisor.startProcess(name, False)
        give_up_at = time.monotonic() + 30
        while not self._ready():
            pause(0.05)
            self._check_supervisord()
            for name, found in programs_of(self._state).items():
                if name in logs and found not in ("STARTING", "RUNNING"):
                    raise Failed(last_line(logs[name], sizes[name]) or f"{name} ends again and again; see {logs[name]}")
            if time.monotonic() > give_up_at:
                raise Failed(
                    f"not ready after 30 s: {self._why_not_ready()}; see the log file and {self._state}/*.stderr.log"
                )
        self._steps.done(f"ready at {local_url(self._config.service)}")

    def _answers(self) -> bool:
        self._check_supervisord()
        return bool(programs_of(self._state))

    def _ready(self) -> bool:
        return self._ask("/ready") == 200

    def _why_not_ready(self) -> str:
        answer = self._ask("/ready")
        return f"GET /ready answers {answer}" if answer else "nobody answers"

    def _ask(self, path: str) -> int | None:
        """No proxy of the environment is asked: it is our own port."""
        tls = urllib.request.HTTPSHandler(context=local_tls(self._config.service))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), tls)
        try:
            with opener.open(local_url(self._config.service) + path, timeout=2) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None


def start(state: Path, *, detach: bool) -> None:
    """Raises: Failed, SystemExit."""
    own_state_directory(state)
    starting = Start(state, load_with_sources(None, os.environ))
    try:
        held_lock = lock(state, "start")
    except BlockingIOError:
        what = "already running" if programs_of(state).get("ingest") == "RUNNING" else "another run.sh is starting it"
        raise Failed(f"{what} with PERSISTENCE_STATE_DIR={state}; ./scripts/stop.sh stops it") from None
    except OSError as error:
        raise Failed(f"PERSISTENCE_STATE_DIR = {state}: cannot be written: {error.strerror}; name another") from None
    os.pwrite(held_lock, f"{os.getpid():<10}".encode(), 0)
    try:
        starting.run()
        pause(0)
    except Stopped:
        starting.interrupted()
        return
    except (Failed, OSError) as error:
        starting.undo()
        if isinstance(error, OSError):
            raise Failed(f"PERSISTENCE_STATE_DIR = {state}: {error.filename or ''}: {error.strerror}") from error
        raise
    if detach:
        copy = "" if state == ROOT / "var" else f"PERSISTENCE_STATE_DIR={shlex.quote(str(state))} "
        print(f"stop it with {copy}./scripts/stop.sh")
    else:
        print("Ctrl-C drains and stops", flush=True)
        starting.wait()
