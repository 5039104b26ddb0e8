"""Who works in a state directory, and their end. Reads /proc, locks and supervisord's own interface."""

from __future__ import annotations

import fcntl
import os
import signal
import time
import xmlrpc.client
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from supervisor.xmlrpc import SupervisorTransport

from scripts.steps import STOPPING, Steps
from shared.process import lock

STOP_S = 130.0
"""Longest: ingest 35 s, reader 8 s, flusher 25 s, MariaDB 60 s, each then killed by supervisord."""


class Failed(Exception):
    """One line: what is wrong and what to do."""


def supervisord_of(state: Path) -> int | None:
    """The process id of the supervisord that writes this state directory's log, whatever has become of its files."""
    log = str(state / "supervisord.log")
    for directory in Path("/proc").iterdir():
        try:
            if directory.name.isdigit() and b"supervisord" in (directory / "cmdline").read_bytes():
                for fd in (directory / "fd").iterdir():
                    if str(fd.readlink()) == log:
                        return int(directory.name)
        except OSError:
            continue  # it has ended, or is another user's
    return None


def programs_of(state: Path) -> dict[str, str]:
    """By name its state in supervisord's words; nothing where supervisord does not answer, or stops them all."""
    try:
        return {program["name"]: program["statename"] for program in rpc(state).supervisor.getAllProcessInfo()}
    except (OSError, xmlrpc.client.Error):
        return {}


def is_started(state: Path) -> bool:
    """Whether flusher and ingest have been started. One that does not answer may have them, and is not ours to end."""
    try:
        rpc(state).supervisor.getState()
    except OSError:
        return True
    except xmlrpc.client.Fault:
        return False  # it stops them all
    return "STOPPED" not in {programs_of(state).get(name, "STOPPED") for name in ("flusher", "ingest")}


def rpc(state: Path) -> Any:
    transport: Any = SupervisorTransport(None, None, f"unix://{state / 'supervisor.sock'}")
    return xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)


def held(state: Path) -> list[str]:
    """Our processes that still work in the state directory, by the locks that they hold."""
    found = []
    for name, path in (
        ("ingest", state / "ingest.lock"),
        ("the reader", state / "reader.lock"),
        ("the flusher", state / "flusher.lock"),
        ("MariaDB", state / "mysql" / "ibdata1"),
    ):
        try:
            with path.open("rb+") as file:
                take = fcntl.lockf if name == "MariaDB" else fcntl.flock
                take(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found.append(name)
        except OSError:
            continue  # it has never been
    return found


def stop_supervisord(
    state: Path, pid: int, *, kill_database_after_s: float = STOP_S, told: Callable[[], object] = lambda: None
) -> None:
    """Stops the programs in order, and waits. Takes no signal meanwhile.

    Args: kill_database_after_s: a mariadbd that SIGTERM meets in its first tenth of a second never ends (10.11: it
        waits for a thread that has gone), and nothing but SIGKILL ends it; its files are made for that; told: called
        when it has been told to end.
    """
    schedule(mariadbd_of(pid), os.SCHED_OTHER)  # or on a busy machine it would take minutes to end
    os.kill(pid, signal.SIGTERM)
    told()
    started_at = time.monotonic()
    while runs(pid):
        time.sleep(0.05)
        waited_s = time.monotonic() - started_at
        if waited_s > kill_database_after_s and (database := mariadbd_of(pid)):
            os.kill(database, signal.SIGKILL)
        if waited_s > STOP_S:
            raise Failed(f"supervisord (process {pid}) does not end; kill -9 {pid} ends it, and loses nothing")
    (state / "supervisord.conf").unlink(missing_ok=True)


def runs(pid: int) -> bool:
    try:
        os.waitpid(pid, os.WNOHANG)  # ours is a zombie until we have asked
    except ChildProcessError:
        pass
    return Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def mariadbd_of(supervisord: int) -> int | None:
    try:
        for child in Path(f"/proc/{supervisord}/task/{supervisord}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text() == "mariadbd\n":
                return int(child)
    except OSError:
        pass  # it has just ended
    return None


def schedule(pid: int | None, policy: int) -> None:
    """All threads of a process; where it is not allowed the process is slower, and works."""
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setscheduler(int(thread.name), policy, os.sched_param(0))
    except OSError:
        pass


def starter_of(state: Path) -> int | None:
    """The process id of a run.sh that starts the service, or stays in the foreground."""
    try:
        os.close(lock(state, "start"))
    except BlockingIOError:
        return int((state / "start.lock").read_text() or 0) or None
    except OSError:
        pass  # there is no such directory
    return None


def stop(state: Path) -> float | None:
    """Ends a start that is under way, and whatever works in the state directory. Blocks.

    Returns: how many seconds it took, None where nobody was there. Raises: Failed.
    """
    started_at = time.monotonic()
    announce, found = partial(Steps().begins, STOPPING), False
    if os.geteuid() not in (0, owner := state.stat().st_uid):
        raise Failed(f"PERSISTENCE_STATE_DIR = {state}: is user {owner}'s; run this as that user")
    if (starter := starter_of(state)) is not None:  # it ends what it has started
        found = True
        os.kill(starter, signal.SIGTERM)
        os.kill(starter, signal.SIGCONT)  # Ctrl-Z may have stopped it
        announce()
        while starter_of(state) == starter and runs(starter):
            time.sleep(0.05)
    while (pid := supervisord_of(state)) is not None or held(state):
        if pid is not None:
            stop_supervisord(state, pid, told=announce)
        found = True
        if time.monotonic() > started_at + STOP_S:
            raise Failed(f"{' and '.join(held(state))} in {state} does not end")
        time.sleep(0.05)
    return time.monotonic() - started_at if found else None
