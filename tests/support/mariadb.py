"""A private MariaDB in a temporary directory: socket only, no TCP port, no password."""

from __future__ import annotations

import getpass
import itertools
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import MySQLdb

from flusher.mysql_errors import Flavour
from flusher.store import schema_statements
from flusher.tables import FILE as SCHEMA_FILE
from shared.settings import Database

_names = itertools.count(1)


class MariaDB:
    """start() and stop() as often as a test likes; the data stays."""

    flavour = Flavour.MARIADB
    check_failed = 4025
    """The error of a CHECK that is not met."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.socket = str(directory / "s")
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    def _tmpdir(self) -> Path:
        """Its own: a server that starts removes the temporary tables of all others in the same directory."""
        directory = self.directory / "tmp"
        directory.mkdir(exist_ok=True)
        return directory

    def install(self) -> None:
        installed = subprocess.run(
            [
                "mariadb-install-db",
                "--no-defaults",
                f"--user={getpass.getuser()}",
                f"--datadir={self.directory / 'data'}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                f"--tmpdir={self._tmpdir()}",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert installed.returncode == 0, installed.stdout

    def start(self, *options: str) -> None:
        with (self.directory / "log").open("ab") as log:
            self.process = self._popen(options, log)
        give_up_at = time.monotonic() + 60
        while True:
            try:
                self.connect().close()
                return
            except MySQLdb.OperationalError as error:
                if (
                    error.args[0] not in (2002, 2013)
                    or time.monotonic() > give_up_at
                    or self.process.poll() is not None
                ):
                    raise
            time.sleep(0.02)

    def _popen(self, options: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                *self._server(),
                f"--user={getpass.getuser()}",
                f"--datadir={self.directory / 'data'}",
                f"--socket={self.socket}",
                f"--pid-file={self.directory / 'pid'}",
                "--skip-networking",
                f"--tmpdir={self._tmpdir()}",
                "--innodb-buffer-pool-size=128M",
                "--innodb-flush-log-at-trx-commit=2",
                "--character-set-server=utf8mb4",
                *self.options,
                *options,
            ],
            stdout=subprocess.DEVNULL,
            stderr=log,
        )

    def _server(self) -> list[str]:
        return [shutil.which("mariadbd") or "/usr/sbin/mariadbd", "--no-defaults"]

    def stop(self, number: int = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(60)

    def connect(self, database: str | None = None, **options: Any) -> Any:
        if database:
            options["db"] = database
        return MySQLdb.connect(unix_socket=self.socket, user="root", charset="utf8mb4", autocommit=True, **options)

    def create_database(self) -> str:
        """A fresh database with the tables of sql/schema.sql."""
        name = f"t{next(_names)}"
        db = self.connect()
        for statement in schema_statements(SCHEMA_FILE.read_text(encoding="utf-8"), name):
            db.query(statement)
        db.close()
        return name

    def drop_database(self, name: str) -> None:
        # A test that has failed may have left a transaction, for which DROP would wait.
        for (connection,) in self.execute("SELECT id FROM information_schema.processlist WHERE db = %s", (name,)):
            with suppress(MySQLdb.OperationalError):  # it has gone by itself
                self.execute(f"KILL {connection}")
        self.execute(f"DROP DATABASE IF EXISTS `{name}`")

    def execute(self, statement: str, parameters: Sequence[object] = (), database: str | None = None) -> list[Any]:
        db = self.connect(database)
        try:
            cursor = db.cursor()
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall())
        finally:
            db.close()

    @contextmanager
    def locked(self, database: str, table: str = "translation_tasks") -> Iterator[None]:
        """Nobody else can read or write `table` in the meantime."""
        db = self.connect(database)
        try:
            db.query(f"LOCK TABLES {table} WRITE")
            yield
        finally:
            db.close()  # which unlocks

    def hanging(self, database: str) -> list[int]:
        """Connections whose statement waits for locked()."""
        return [
            connection
            for (connection,) in self.execute(
                "SELECT id FROM information_schema.processlist"
                " WHERE db = %s AND state = 'Waiting for table metadata lock'",
                (database,),
            )
        ]

    def server(self, database: str) -> Database:
        """What a Store needs to reach this server."""
        return Database(socket=self.socket, database=database)


def numbers(count: int) -> str:
    """A table of n from 0 in the place of one, in either server; it needs a name behind it."""
    return f"(WITH RECURSIVE s AS (SELECT 0 AS n UNION ALL SELECT n + 1 FROM s WHERE n < {count - 1}) SELECT n FROM s)"
