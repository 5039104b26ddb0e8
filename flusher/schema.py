"""Creates missing tables, and alters those of earlier versions.

`python -m flusher.schema [--wait SECONDS]` makes what is missing and says whether the tables are ours.
"""

from __future__ import annotations

import sys
import time

from flusher import tables
from flusher.facts import Facts
from flusher.mysql_errors import ErrorClass
from flusher.store import Store, StoreError, schema_statements
from flusher.tables import FILE
from shared.config import load_or_exit
from shared.process import close_to_others
from shared.records import KINDS
from shared.settings import Database

NO_DATABASE = 1049
ALGORITHMS = (", ALGORITHM=INSTANT", ", ALGORITHM=INPLACE, LOCK=NONE", "")
"""Of ALTER TABLE, the lightest first; the last may copy the table and block writes."""
NOT_BY_THIS_ALGORITHM = {1845, 1846, 4092}
DONE_ALREADY = {1060, 1061, 1068, 1091}
"""The server may finish a statement of a killed client before it is tried again."""
REMEDIES = {
    1062: "two rows have the same session_id and task_id: delete one",
    1205: "a transaction holds the table: try again when it has ended",
    1833: "drop that foreign key first",
}


def open_store(database: Database) -> Store:
    return Store(database)


def create(store: Store, database: str) -> Facts:
    """Creates the missing database and tables; needs no CREATE right if none is missing. Blocks.

    Returns: what is there now. Raises: StoreError.
    """
    facts = look(store)
    made = missing(facts, database)
    if made:
        store.execute(made, database=facts is not None)
        facts = store.describe()
    assert facts is not None
    return facts


def look(store: Store) -> Facts | None:
    """Returns: None if the database does not exist. Blocks. Raises: StoreError."""
    try:
        return store.describe()
    except StoreError as error:
        if error.number != NO_DATABASE:
            raise
        return None


def missing(facts: Facts | None, database: str) -> list[str]:
    """The statements of sql/schema.sql that create it."""
    made = schema_statements(FILE.read_text(encoding="utf-8"), database)
    if facts is None:
        return made
    names = [f" {kind.table} (" for kind in KINDS if kind.table not in facts.tables]
    return [one for one in made if one.startswith("USE") or any(name in one for name in names)] if names else []


def keyless(store: Store, facts: Facts) -> dict[str, int]:
    """Counts, by table, the rows with NULL in a column of our key. Raises: StoreError."""
    found: dict[str, int] = {}
    for kind in KINDS:
        table = facts.tables.get(kind.table)
        nullable = [name for name in kind.key if table and name in table.columns and table.columns[name].nullable]
        if nullable:
            condition = " OR ".join(f"{name} IS NULL" for name in nullable)
            ((count,),) = store.select(f"SELECT COUNT(*) FROM {kind.table} WHERE {condition}")  # noqa: S608 -- constants
            found |= {kind.table: count} if count else {}
    return found


def alter(store: Store, statement: str) -> None:
    """Runs an ALTER TABLE with the lightest algorithm that the server offers. Blocks.

    Raises: StoreError.
    """
    for algorithm in ALGORITHMS:
        try:
            store.execute([statement.rstrip(";") + algorithm])
            return
        except StoreError as error:
            if error.number in DONE_ALREADY:
                return
            if error.number not in NOT_BY_THIS_ALGORITHM:
                raise


def main() -> None:
    close_to_others()
    config = load_or_exit()
    wait_s = float(sys.argv[2]) if sys.argv[1:2] == ["--wait"] else 0.0
    store = open_store(config.database)
    give_up_at = time.monotonic() + wait_s
    while True:
        try:
            facts = create(store, config.database.database)
        except StoreError as error:
            if error.error_class is ErrorClass.RECONNECT and time.monotonic() < give_up_at:
                time.sleep(0.1)
                continue
            sys.exit(f"database: the tables cannot be made as {refusal(store, config.database, error)}")
        faults = tables.faults(facts)
        ours = all(fault.harmless for fault in faults)
        print("the tables are ours" if ours else f"nothing is written: {tables.summary(faults)}")
        return


def refusal(store: Store, database: Database, error: StoreError) -> str:
    """The user, the host, the error and the remedy. For a terminal: it may contain a key."""
    remedy = REMEDIES.get(error.number) or tables.remedy_of(
        error.number, error.error_class, database.database, f"{database.user}@%", tables.ALL_RIGHTS
    )
    why = f"error {error.number} ({error.error_class.value}): {error.detail}"
    return f"{database.user!r} at {store.host}: {why}" + (f"; {remedy}" if remedy else "")


if __name__ == "__main__":
    main()
