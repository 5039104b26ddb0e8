"""What a start is made of: steps that are announced, children, and the one place where a signal is taken."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from shared.process import end_with_parent, open_own

ROOT = Path(__file__).resolve().parent.parent
SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


STOPPING = "stopping: ingest drains, the flusher writes what waits, the database ends last"


class Stopped(Exception):
    """A signal asks for the end."""


class Steps:
    """Says what begins where it takes long, and what is done, with its time."""

    def __init__(self) -> None:
        self._at = time.monotonic()

    def begins(self, text: str) -> None:
        self._at = time.monotonic()
        print(f"           {text}", flush=True)

    def done(self, text: str) -> None:
        now = time.monotonic()
        print(f"{(now - self._at) * 1000:6.0f} ms  {text}", flush=True)
        self._at = now


def pause(seconds: float) -> None:
    """Waits; the end of a child cuts it short. Raises: Stopped."""
    got = signal.sigtimedwait(SIGNALS | {signal.SIGCHLD}, seconds)
    if got is not None and got.si_signo != signal.SIGCHLD:
        raise Stopped


def wait_for(condition: Callable[[], Any], timeout_s: float) -> Any:
    """Returns: the condition's first true value, or its last. Raises: Stopped."""
    give_up_at = time.monotonic() + timeout_s
    while not (value := condition()) and time.monotonic() < give_up_at:
        pause(0.05)
    return value


def spawn(
    arguments: list[str], output: IO[bytes], *, with_us: bool = True, cwd: Path = ROOT
) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C reaches only us.

    Args: with_us: whether it is killed when we are.
    """

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS | {signal.SIGCHLD})
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        if with_us:
            end_with_parent(signal.SIGKILL)

    return subprocess.Popen(
        arguments,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        preexec_fn=prepare,  # noqa: PLW1509 -- no threads here
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """It and its children, at once."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def new_file(path: Path) -> IO[bytes]:
    return os.fdopen(open_own(path, os.O_WRONLY | os.O_TRUNC), "wb")


def last_line(path: Path, since: int = 0) -> str:
    """What a program has said last on its stderr; of supervisord its error, behind which a hint stands."""
    try:
        lines = path.read_bytes()[since:].decode(errors="replace").splitlines()
    except OSError:
        return ""
    errors = [line for line in lines if line.startswith("Error:")]
    return (errors or lines or [""])[-1]
