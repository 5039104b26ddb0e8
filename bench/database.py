"""The database that every contender and every limit writes to: one private server, set up as for production."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.machine import ALL, PINS, give_way, pin
from flusher.mysql_errors import Flavour
from tests.support.mariadb import MariaDB

OPTIONS = (
    "--innodb-buffer-pool-size=1G",
    "--innodb-flush-log-at-trx-commit=1",  # a commit is on the disk
    "--max-allowed-packet=64M",
    "--local-infile=1",  # for LOAD DATA LOCAL
    "--performance-schema=OFF",
)
REDO_LOG = {Flavour.MARIADB: "--innodb-log-file-size=2G", Flavour.MYSQL: "--innodb-redo-log-capacity=2G"}
"""A sustained run fits in it. Once it is full, with 512M after a million rows, no write goes on for seconds."""
TABLES = ("translation_sessions", "translation_tasks")


class Database:
    """start(), then empty() between contenders. Its data is thrown away, so it is killed in the end, not stopped."""

    def __init__(self, directory: Path, server: type[MariaDB] = MariaDB) -> None:
        self.mariadb = server(directory, REDO_LOG[server.flavour], *OPTIONS)
        self.name = ""
        self._db: Any = None

    def start(self) -> None:
        self.mariadb.install()
        self.mariadb.start()
        self.name = self.mariadb.create_database()
        self._db = self.mariadb.connect(self.name)

    def version(self) -> str:
        return f"{self.mariadb.flavour.value} {self._db.get_server_info()}"

    def move_to(self, cores: Sequence[int]) -> None:
        """Where it may run on any core, the service's too, it gives way, as run.sh has it do."""
        assert self.mariadb.process is not None
        pin(self.mariadb.process.pid, cores)
        self.give_way(cores == ALL and PINS)

    def give_way(self, yes: bool) -> None:
        assert self.mariadb.process is not None
        give_way(self.mariadb.process.pid, yes)

    def empty(self) -> None:
        """Waits until nobody else uses the tables: a killed writer's transaction may still be under way. Whoever is
        next starts with an empty redo log, instead of paying for what others have written."""
        give_up_at = time.monotonic() + 60
        while self.others():
            assert time.monotonic() < give_up_at, "connections of an ended contender stay"
            time.sleep(0.01)
        for table in TABLES:
            self._db.query(f"TRUNCATE {table}")
        if self.mariadb.flavour is Flavour.MARIADB:  # MySQL has it for its own developers only
            self._db.query("SET GLOBAL innodb_log_checkpoint_now=1")

    def others(self) -> int:
        return self._number(
            f"SELECT COUNT(*) FROM information_schema.processlist WHERE db='{self.name}' AND id<>CONNECTION_ID()"
        )

    def tasks(self, where: str = "") -> int:
        """Committed rows; counting them takes the server milliseconds per 100,000."""
        return self._number(f"SELECT COUNT(*) FROM translation_tasks {where}")

    def statements(self) -> int:
        """Statements that clients have sent since the server's start, those of this connection taken out."""
        counted = []
        for scope in ("SESSION", "GLOBAL"):
            self._db.query(f"SHOW {scope} STATUS LIKE 'Questions'")
            ((_, value),) = self._db.store_result().fetch_row(0)
            counted.append(int(value))
        own, everybody = counted
        return everybody - (own + 1)

    def _number(self, statement: str) -> int:
        self._db.query(statement)
        return int(self._db.store_result().fetch_row()[0][0])
