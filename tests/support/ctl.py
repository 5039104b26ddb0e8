"""The command line as a process, with the environment of a service under test."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from typing import Any

from shared.settings import PREFIXES
from tests.support.service import ROOT, Service

ARGUMENTS = (sys.executable, "-m", "ctl")


class Result:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def json_lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    def __repr__(self) -> str:
        return f"Result({self.status}, {self.out!r}, {self.err!r})"


def ctl(service: Service, *arguments: str, **environ: str) -> Result:
    """Args: environ: with settings in it that are not the service's, it is asked from elsewhere, not from its state
    directory, where its own are found."""
    if any(name.startswith(PREFIXES) for name in environ):
        environ = {"PERSISTENCE_STATE_DIR": "/nonexistent", **environ}
    done = subprocess.run(
        [*ARGUMENTS, *arguments],
        cwd=service.code,
        env={**service.environ, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=90,
        check=False,
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


class Terminal:
    """ctl in a terminal of its own: what a person sees and types."""

    def __init__(self, service: Service, *arguments: str) -> None:
        self.seen = ""
        self._primary, secondary = pty.openpty()
        self.process = subprocess.Popen(
            [*ARGUMENTS, *arguments],
            cwd=ROOT,
            env={**service.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"},
            stdin=secondary,
            stdout=secondary,
            stderr=secondary,
            start_new_session=True,
        )
        os.close(secondary)

    def read_until(self, text: str, timeout_s: float = 30) -> None:
        give_up_at = time.monotonic() + timeout_s
        while text not in self.seen:
            if time.monotonic() > give_up_at or not self._read(1):
                raise AssertionError(f"{text!r} was not shown: {self.seen!r}")

    def type(self, text: str) -> None:
        os.write(self._primary, text.encode())

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self, timeout_s: float = 30) -> int:
        """Reads what is left. Returns: the exit status."""
        give_up_at = time.monotonic() + timeout_s
        while self._read(1) and time.monotonic() < give_up_at:
            pass
        status = self.process.wait(timeout_s)
        os.close(self._primary)
        return status

    def _read(self, timeout_s: float) -> bool:
        """Returns: whether the other end is still open."""
        if not select.select([self._primary], [], [], timeout_s)[0]:
            return True
        try:
            data = os.read(self._primary, 65536)
        except OSError:  # EIO: the last process of the terminal has gone (pty(7))
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)
