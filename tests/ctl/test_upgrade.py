"""`db upgrade` from what is there: the tables are ours afterwards, with every row, or untouched and named."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flusher.store import Store
from flusher.tables import faults, statements
from shared.records import KINDS
from tests.flusher.test_store import NOON, rows_of, task
from tests.support.ctl import ARGUMENTS, Result, ctl
from tests.support.mariadb import MariaDB
from tests.support.service import ROOT, Service, wait_until
from tests.support.tables import FIRST_USER, FOREIGN, VERSION_1

DROP = "DROP TABLE IF EXISTS translation_tasks, translation_sessions"
TEN = "SELECT 0 AS n " + " ".join(f"UNION SELECT {digit}" for digit in range(1, 10))

NUMBER = "a.n + 10 * b.n + 100 * c.n + 1000 * d.n + 10000 * e.n"


@pytest.fixture
def node(short_path: Path, mariadb: MariaDB, database: str) -> Service:
    return Service(short_path, mariadb, database)


def make(mariadb: MariaDB, database: str, tables: Sequence[str], rows: int = 10) -> None:
    """The tables with two sessions and `rows` tasks of 2026-01-01 12:00."""
    db = mariadb.connect(database)
    for statement in (DROP, *tables):
        db.query(statement)
    if rows:
        db.query(
            "INSERT INTO translation_sessions (session_id, filename, file_path, status, llm_provider, updated_at)"
            " VALUES ('s0', 'f', '/f', 'pending', 'x', '2026-01-01 12:00:00'),"
            " ('s1', 'f', '/f', 'pending', 'x', '2026-01-01 12:00:00')"
        )
        reviewer = ", 'me'" if tables is FIRST_USER else ""
        db.query(
            "INSERT INTO translation_tasks (task_id, batch_id, session_id, sheet_name, column_name, row_index,"
            f" source_text, status, updated_at{', reviewer' if reviewer else ''}) WITH ten AS ({TEN}) SELECT"
            " CONCAT('TASK_', a.n, b.n, c.n, d.n, e.n), 'b', CONCAT('s', a.n % 2), '', 'A',"
            f" {NUMBER}, '你好🙂', 'pending',"
            f" '2026-01-01 12:00:00'{reviewer}"
            f" FROM ten a, ten b, ten c, ten d, ten e WHERE {NUMBER} < {rows}"
        )
    db.close()


def held(mariadb: MariaDB, database: str) -> list[Any]:
    return mariadb.execute(
        "SELECT session_id, task_id, row_index, source_text, updated_at FROM translation_tasks ORDER BY 1, 2",
        (),
        database,
    )


def definitions(mariadb: MariaDB, database: str) -> list[Any]:
    return [mariadb.execute(f"SHOW CREATE TABLE {kind.table}", (), database) for kind in KINDS]


def is_ours(node: Service) -> None:
    result = ctl(node, "db", "check", "--json")
    (host,) = result.json["hosts"]
    assert [found for found in host["findings"] if found["state"] != "ok"] == []
    assert result.status == 0


@pytest.mark.parametrize(
    "gone", ["DATABASE {}", f"TABLE {KINDS[0].table}, {KINDS[1].table}", f"TABLE {KINDS[1].table}"]
)
def test_from_nothing(node: Service, mariadb: MariaDB, database: str, gone: str) -> None:
    mariadb.connect(database).query(f"DROP {gone.format(database)}")

    assert ctl(node, "db", "upgrade", "--yes").status == 0

    is_ours(node)


@pytest.mark.parametrize(("tables", "rows"), [(VERSION_1, 100_000), (FIRST_USER, 1000)], ids=["version 1", "user"])
def test_from_earlier_tables_with_every_row(
    node: Service, mariadb: MariaDB, database: str, tables: tuple[str, ...], rows: int
) -> None:
    make(mariadb, database, tables, rows)
    before = held(mariadb, database)

    assert ctl(node, "db", "upgrade", "--yes").status == 0

    is_ours(node)
    assert len(before) == rows
    assert held(mariadb, database) == before
    store = Store(mariadb.server(database))
    newer = NOON + timedelta(days=1)
    store.write(rows_of(*[task("TASK_00000", session_id=one, updated_at=newer, row_index=7) for one in ("s0", "S0")]))
    store.close()
    assert len(held(mariadb, database)) == rows + 1
    assert ("s0", "TASK_00000", 7, task().source_text, newer) in held(mariadb, database)
    assert "the tables are ours" in ctl(node, "db", "upgrade", "--yes").out


def test_from_version_1_the_tables_stay_writable_meanwhile(mariadb: MariaDB, database: str) -> None:
    make(mariadb, database, VERSION_1)
    store = Store(mariadb.server(database))
    todo = statements(faults(store.describe()), database)

    store.execute([f"{one.rstrip(';')}, ALGORITHM=INPLACE, LOCK=NONE" for one in todo])

    assert faults(store.describe()) == []
    store.close()


def test_tables_of_another_program_are_left_alone(node: Service, mariadb: MariaDB, database: str) -> None:
    for tables in (FOREIGN, (VERSION_1[0], FOREIGN[1])):
        make(mariadb, database, tables, rows=0)
        before = definitions(mariadb, database)

        result = ctl(node, "db", "upgrade", "--yes")

        assert (result.status, result.out) == (1, "")
        assert "another program's table" in result.err
        assert "database.database" in result.err
        assert definitions(mariadb, database) == before


def test_a_counter_as_primary_key_becomes_a_key_of_its_own_and_rows_of_one_key_are_named(
    node: Service, mariadb: MariaDB, database: str
) -> None:
    counted = VERSION_1[1].replace("PRIMARY KEY (task_id)", "id INT AUTO_INCREMENT PRIMARY KEY, UNIQUE KEY (task_id)")
    make(mariadb, database, (VERSION_1[0], counted))
    mariadb.execute("ALTER TABLE translation_tasks DROP INDEX task_id", (), database)
    before = held(mariadb, database)
    for statement in (
        "CREATE TABLE one SELECT * FROM translation_tasks LIMIT 1",
        "UPDATE one SET id = 1000",
        "INSERT INTO translation_tasks SELECT * FROM one",
    ):
        mariadb.execute(statement, (), database)

    result = ctl(node, "db", "upgrade", "--yes")

    assert result.status == 1
    assert "two rows have the same session_id and task_id: delete one" in result.err
    assert len(held(mariadb, database)) == len(before) + 1
    mariadb.execute("DELETE FROM translation_tasks WHERE id = 1000", (), database)
    assert ctl(node, "db", "upgrade", "--yes").status == 0
    is_ours(node)
    assert held(mariadb, database) == before


def test_rows_without_a_session_have_no_place_in_the_key(node: Service, mariadb: MariaDB, database: str) -> None:
    make(mariadb, database, FIRST_USER)
    mariadb.execute("UPDATE translation_tasks SET session_id = NULL WHERE task_id LIKE '%0'", (), database)
    before = definitions(mariadb, database)

    result = ctl(node, "db", "upgrade", "--yes")

    assert (result.status, definitions(mariadb, database)) == (1, before)
    assert "rows of translation_tasks with NULL in the key" in result.err


@pytest.mark.parametrize(("answer", "status"), [("", 1), ("n\n", 1), ("y\n", 0)])
def test_it_asks_first(node: Service, mariadb: MariaDB, database: str, answer: str, status: int) -> None:
    make(mariadb, database, VERSION_1)
    before = definitions(mariadb, database)

    command = [*ARGUMENTS, "db", "upgrade"]
    done = subprocess.run(command, cwd=ROOT, env=node.environ, input=answer, capture_output=True, text=True, timeout=60)

    assert done.returncode == status
    assert "DROP PRIMARY KEY, ADD PRIMARY KEY (`session_id`, `task_id`)" in done.stdout
    assert (definitions(mariadb, database) == before) is (status == 1)


@pytest.mark.parametrize("tables", [VERSION_1, FIRST_USER], ids=["version 1", "first user"])
def test_killed_in_any_of_its_statements_it_ends_right_when_run_again(
    node: Service, mariadb: MariaDB, database: str, tables: tuple[str, ...]
) -> None:
    make(mariadb, database, tables)
    before = held(mariadb, database)
    store = Store(mariadb.server(database))
    todo = statements(faults(store.describe()), database)
    assert len(todo) == len(tables) + (tables is FIRST_USER)
    for number, statement in enumerate(todo):
        make(mariadb, database, tables)
        store.execute(todo[:number])
        table = statement.split()[2].rpartition(".")[2]
        with mariadb.locked(database, table):
            killed = subprocess.Popen([*ARGUMENTS, "db", "upgrade", "--yes"], cwd=ROOT, env=node.environ)
            wait_until(lambda: mariadb.hanging(database), what="the statement is under way")
            killed.send_signal(signal.SIGKILL)
            killed.wait(30)

        assert ctl(node, "db", "upgrade", "--yes").status == 0
        is_ours(node)
        assert held(mariadb, database) == before
    store.close()


def run_schema(node: Service, **environ: str) -> Result:
    """What run.sh does at every start."""
    command = [sys.executable, "-m", "flusher.schema"]
    done = subprocess.run(command, cwd=ROOT, env={**node.environ, **environ}, capture_output=True, timeout=60)
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def test_a_start_makes_only_what_is_missing_and_says_whose_tables_it_finds(
    node: Service, mariadb: MariaDB, database: str
) -> None:
    """With the rights that docs/DEPLOYMENT.md recommends: SELECT, INSERT, UPDATE."""
    mariadb.execute("CREATE USER beginner@localhost")
    mariadb.execute(f"GRANT SELECT, INSERT, UPDATE ON {database}.* TO beginner@localhost")
    try:
        assert run_schema(node, DB_USER="beginner").out == "the tables are ours\n"
        make(mariadb, database, VERSION_1)
        older = run_schema(node, DB_USER="beginner")
        assert older.status == 0
        assert "./scripts/ctl.sh db upgrade" in older.out
        upgrade = ctl(node, "db", "upgrade", "--yes", DB_USER="beginner")
        assert upgrade.status == 1
        assert "GRANT SELECT, INSERT, UPDATE, CREATE, ALTER, INDEX, DROP ON" in upgrade.err
        assert ctl(node, "db", "upgrade", "--user", "root", "--yes", DB_USER="beginner", MYSQL_PWD="").status == 0
        make(mariadb, database, FOREIGN, rows=0)
        assert "another program's table" in run_schema(node, DB_USER="beginner").out
        mariadb.execute(DROP, (), database)
        missing = run_schema(node, DB_USER="beginner")
        assert missing.status == 1
        assert "GRANT SELECT, INSERT, UPDATE, CREATE" in missing.err
        assert run_schema(node).out == "the tables are ours\n"
    finally:
        mariadb.execute("DROP USER beginner@localhost")
