"""Copies of the service, started and stopped by the scripts, in a state directory and on a port of their own."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from pathlib import Path

from tests.support.load import task_ids
from tests.support.mariadb import MariaDB
from tests.support.service import ROOT, Service, processes_of, wait_until


class Copy(Service):
    """One copy of the service, started and stopped by the scripts."""

    def __init__(self, directory: Path, mariadb: MariaDB | None = None, **settings: object) -> None:
        # Without a database of its own run.sh makes a private one, which `database` then stands for.
        self.database = mariadb or MariaDB(directory / "mysql")
        super().__init__(directory, self.database, "ai_terminal", **settings)
        if mariadb is None:
            self.database.socket = str(directory / "mysql" / "mysqld.sock")
            for name in [name for name in self.environ if name.startswith("DB_")]:
                del self.environ[name]

    def script(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [f"./scripts/{name}", *arguments],
            cwd=ROOT,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def start(self) -> None:
        done = self.script("run.sh", "--detach")
        assert done.returncode == 0, done.stdout + done.stderr
        self.stop_command = done.stdout.partition("stop it with ")[2].strip()
        assert self.stop_command == f"PERSISTENCE_STATE_DIR={shlex.quote(str(self.directory))} ./scripts/stop.sh"
        assert f"http://127.0.0.1:{self.port}" in done.stdout
        assert done.stderr == ""

    def start_in_foreground(self) -> subprocess.Popen[bytes]:
        """As in a terminal: in a process group of its own, which gets the signal of Ctrl-C."""
        # A file, not a pipe: whoever reads a pipe to its end waits for every child too.
        with self.directory.with_suffix(".out").open("wb") as output:
            return subprocess.Popen(
                ["./scripts/run.sh"],
                cwd=ROOT,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def stop(self) -> None:
        done = self.script("stop.sh")
        assert done.returncode == 0, done.stdout + done.stderr
        wait_until(lambda: processes_of(self.directory) == {}, 5, "nothing is left")  # a lock goes before its process

    def ids(self) -> set[str]:
        return task_ids(self.database, self.environ.get("DB_DATABASE", "ai_terminal"))

    def is_ready(self) -> bool:
        try:
            return self.get("/ready").status == 200
        except OSError:
            return False

    def end(self) -> None:
        """Whatever is left of it, at once."""
        for process in processes_of(self.directory):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it ended with its parent
        wait_until(lambda: not processes_of(self.directory))


def one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """It failed, and said why in one line on stderr."""
    assert done.returncode != 0
    assert done.stderr.endswith("\n")
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr
