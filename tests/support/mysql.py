"""The real MySQL that scripts/mysql.sh fetches, private like the MariaDB whose place it takes."""

from __future__ import annotations

import getpass
import os
import subprocess
from functools import cache
from pathlib import Path

from flusher.mysql_errors import Flavour
from tests.support.mariadb import MariaDB

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "mysql.sh"


@cache
def program() -> Path:
    """The server; fetched when it is missing. Raises: OSError with the script's one line where it can't be had."""
    done = subprocess.run([SCRIPT], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise OSError(done.stderr.strip())
    return Path(done.stdout.strip(), "mysqld")


def is_fetched() -> bool:
    """Whether program() has its server at hand: a test's condition must not fetch one."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return any(cache.glob("persistence-service/mysql-*/mysqld"))


class MySQL(MariaDB):
    flavour = Flavour.MYSQL
    check_failed = 3819

    def install(self) -> None:
        installed = subprocess.run(
            [
                *self._server(),
                "--initialize-insecure",
                f"--user={getpass.getuser()}",
                f"--datadir={self.directory / 'data'}",
                f"--tmpdir={self._tmpdir()}",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert installed.returncode == 0, installed.stdout

    def _server(self) -> list[str]:
        return [str(program()), "--performance-schema=OFF", "--skip-log-bin"]


SERVERS: dict[str, type[MariaDB]] = {"mariadb": MariaDB, "mysql": MySQL}
"""By the names that --database takes."""
