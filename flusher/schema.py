"""`python -m flusher.schema [--wait SECONDS]`: applies sql/schema.sql to the configured database. Idempotent."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from flusher.mysql_errors import ErrorClass
from flusher.store import Store, StoreError, schema_statements
from flusher.writer import server_of
from shared.config import Database, load_or_exit
from shared.process import close_to_others

FILE = Path(__file__).resolve().parent.parent / "sql" / "schema.sql"


def open_store(database: Database) -> Store:
    return Store(server_of(database))


def create(store: Store, database: str) -> None:
    """Makes the database and the tables that are missing. Blocks. Raises: StoreError."""
    store.execute(schema_statements(FILE.read_text(encoding="utf-8"), database))


def main() -> None:
    close_to_others()
    config = load_or_exit()
    wait_s = float(sys.argv[2]) if sys.argv[1:2] == ["--wait"] else 0.0
    store = open_store(config.database)
    give_up_at = time.monotonic() + wait_s
    while True:
        try:
            create(store, config.database.database)
        except StoreError as error:
            if error.error_class is ErrorClass.RECONNECT and time.monotonic() < give_up_at:
                time.sleep(0.1)
                continue
            database = config.database
            user = f"{database.user!r} at {store.host}"
            sys.exit(f"database: the tables cannot be made as {user}: {error.public}")
        return


if __name__ == "__main__":
    main()
