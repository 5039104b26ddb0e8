"""`db init` and `db check` against a real server: each fault is named, and the statement printed mends it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ctl.checks import Finding, version_of
from ctl.database import HostView, standing_by
from shared.records import KINDS
from tests.support.ctl import Result, ctl
from tests.support.mariadb import MariaDB
from tests.support.service import Service, free_port
from tests.support.tables import FAULTS, FIRST_USER


@pytest.fixture
def node(short_path: Path, mariadb: MariaDB, database: str) -> Service:
    """A configured node that does not run: the command needs none."""
    return Service(short_path, mariadb, database)


def findings(result: Result, state: str) -> list[dict[str, Any]]:
    return [found for host in result.json["hosts"] for found in host["findings"] if found["state"] == state]


def test_our_own_tables_are_all_right_and_no_row_is_left(node: Service, mariadb: MariaDB, database: str) -> None:
    result = ctl(node, "db", "check", "--json")
    assert result.status == 0
    assert findings(result, "wrong") == findings(result, "warning") == []
    assert {found["what"] for found in findings(result, "ok")} >= {
        "connection",
        "sql_mode",
        "writing to translation_sessions",
        "writing to translation_tasks",
    }
    for kind in KINDS:
        assert mariadb.execute(f"SELECT COUNT(*) FROM {kind.table}", (), database) == [(0,)]


@pytest.mark.parametrize(("breaks", "named"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_of_a_table_is_named_and_its_statement_mends_it(
    node: Service, mariadb: MariaDB, database: str, breaks: str, named: str
) -> None:
    mariadb.execute(breaks, (), database)

    result = ctl(node, "db", "check", "--json")

    assert result.status == 1
    wrong = findings(result, "wrong")
    assert named in " ".join(found["what"] + found["detail"] for found in wrong)
    for found in wrong:
        mariadb.execute(found["mend"], (), database)
    mended = ctl(node, "db", "check", "--json")
    assert (mended.status, findings(mended, "wrong")) == (0, [])


def test_the_remedies_apply_in_the_order_in_which_they_are_printed(
    node: Service, mariadb: MariaDB, database: str
) -> None:
    """With 1833 and 1832 otherwise: the foreign key goes first."""
    for statement in ("DROP TABLE translation_tasks, translation_sessions", *FIRST_USER):
        mariadb.execute(statement, (), database)

    for line in ctl(node, "db", "check").out.splitlines():
        if line.startswith("  translation_"):
            mariadb.execute(line.partition(": ")[2], (), database)

    result = ctl(node, "db", "check", "--json")
    assert (result.status, findings(result, "wrong"), findings(result, "warning")) == (0, [], [])


def test_a_missing_index_is_a_warning_and_a_table_that_holds_more_is_all_right(
    node: Service, mariadb: MariaDB, database: str
) -> None:
    mariadb.execute("ALTER TABLE translation_tasks DROP INDEX ix_tasks_batch", (), database)
    mariadb.execute("ALTER TABLE translation_tasks MODIFY sheet_name VARCHAR(500) NOT NULL, ADD note INT", (), database)
    result = ctl(node, "db", "check", "--json")
    assert result.status == 0
    (warning,) = findings(result, "warning")
    mariadb.execute(warning["mend"], (), database)
    assert findings(ctl(node, "db", "check", "--json"), "warning") == []


def test_a_constraint_that_refuses_an_ordinary_record_is_found_by_writing_one(
    node: Service, mariadb: MariaDB, database: str
) -> None:
    mariadb.execute("ALTER TABLE translation_tasks ADD CONSTRAINT never CHECK (row_index > 5)", (), database)
    result = ctl(node, "db", "check", "--json")
    assert result.status == 1
    (wrong,) = findings(result, "wrong")
    assert wrong["what"] == "writing to translation_tasks"
    assert "(data)" in wrong["detail"]


def test_init_makes_what_is_missing_and_check_says_so_before(node: Service, mariadb: MariaDB, database: str) -> None:
    mariadb.drop_database(database)
    before = ctl(node, "db", "check", "--json")
    assert before.status == 1
    (wrong,) = findings(before, "wrong")
    assert wrong["mend"] == "./scripts/ctl.sh db init"

    for _ in range(2):
        assert ctl(node, "db", "init").status == 0

    assert ctl(node, "db", "check").status == 0
    mariadb.execute("DROP TABLE translation_sessions", (), database)
    assert "translation_sessions" in ctl(node, "db", "check").out
    assert ctl(node, "db", "init", "--json").json["tables"] == ["translation_sessions", "translation_tasks"]
    assert ctl(node, "db", "check").status == 0


def test_a_server_that_is_away_is_2(node: Service) -> None:
    port = free_port()
    away = {"DB_SOCKET": "", "DB_HOST": "127.0.0.1", "DB_PORT": str(port)}
    result = ctl(node, "db", "check", "--json", **away)
    assert result.status == 2
    assert "database.host" in findings(result, "wrong")[0]["mend"]
    assert f"127.0.0.1', port {port}: refused, or no answer" in findings(result, "wrong")[0]["detail"]
    init = ctl(node, "db", "init", **away)
    assert init.status == 2
    assert len(init.err.splitlines()) == 1


@pytest.fixture
def user(mariadb: MariaDB) -> Iterator[str]:
    mariadb.execute("CREATE USER app@localhost IDENTIFIED BY 'right'")
    yield "app"
    mariadb.execute("DROP USER app@localhost")


def test_missing_rights_are_found_and_granted_by_the_statement(
    node: Service, mariadb: MariaDB, database: str, user: str
) -> None:
    mariadb.execute(f"GRANT SELECT ON {database}.* TO app@localhost")
    login = {"DB_USER": user, "DB_PASSWORD": "right"}

    result = ctl(node, "db", "check", "--json", **login)

    assert result.status == 1
    wrong = findings(result, "wrong")
    assert {found["what"] for found in wrong} == {f"writing to {kind.table}" for kind in KINDS}
    mariadb.execute(wrong[0]["mend"])
    assert ctl(node, "db", "check", **login).status == 0
    assert ctl(node, "db", "init", **login).status == 0
    mariadb.execute("DROP TABLE translation_tasks", (), database)
    refused = ctl(node, "db", "init", **login)
    assert refused.status == 1
    assert "error 1142" in refused.err
    assert f"GRANT SELECT, INSERT, UPDATE, CREATE, ALTER, INDEX, DROP ON `{database}`.* TO 'app'@" in refused.err


def test_a_wrong_password_and_no_right_at_all_are_1(node: Service, mariadb: MariaDB, user: str) -> None:
    wrong = ctl(node, "db", "check", "--json", DB_USER=user, DB_PASSWORD="wrong")
    assert wrong.status == 1
    assert "1045" in findings(wrong, "wrong")[0]["detail"]
    nothing = ctl(node, "db", "check", "--json", DB_USER=user, DB_PASSWORD="right")
    assert nothing.status == 1
    assert findings(nothing, "wrong")[0]["mend"].startswith("GRANT SELECT, INSERT, UPDATE ON")


def test_settings_of_the_server_are_found_and_mended(short_path: Path, own_mariadb: MariaDB) -> None:
    database = own_mariadb.create_database()
    node = Service(short_path, own_mariadb, database)
    own_mariadb.execute("SET GLOBAL read_only = 1")
    own_mariadb.execute("SET GLOBAL max_allowed_packet = 65536")
    own_mariadb.execute("SET GLOBAL wait_timeout = 60")

    result = ctl(node, "db", "check", "--json")

    assert result.status == 1
    assert {found["what"] for found in findings(result, "wrong")} == {"read_only", "max_allowed_packet"}
    assert [found["what"] for found in findings(result, "warning")] == ["wait_timeout"]
    for found in findings(result, "wrong") + findings(result, "warning"):
        own_mariadb.execute(found["mend"])
    mended = ctl(node, "db", "check", "--json")
    assert (mended.status, findings(mended, "warning")) == (0, [])


def test_a_read_only_host_beside_one_that_takes_writes_is_standing_by() -> None:
    view = HostView("b", reached=True, read_only=True, findings=[Finding("wrong", "read_only", "takes no writes", "x")])
    assert [found.state for found in standing_by(view).findings] == ["warning"]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("8.0.36", (8, 0)),
        ("10.11.6-MariaDB-0+deb12u1", (10, 11)),
        ("5.5.5-10.6.12-MariaDB", (10, 6)),
        ("8.4.0-tidb-v8.1.0", (8, 4)),
        ("unknown", (0, 0)),
    ],
)
def test_versions_are_read_in_every_form(text: str, version: tuple[int, int]) -> None:
    assert version_of(text) == version
