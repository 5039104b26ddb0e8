"""What is wrong with a database, and the statement that mends it. Pure: sql/schema.sql and facts in, findings out.

What differs from sql/schema.sql but does its work passes: a wider column, a further index, a column more that fills
itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from flusher.facts import Column, Facts, Table
from flusher.mysql_errors import ErrorClass, Flavour
from flusher.store import MIN_PACKET_BYTES, SQL_MODE, StoreError
from shared.records import KINDS, Kind

State = Literal["ok", "warning", "wrong"]
OLDEST = {Flavour.MYSQL: (8, 0), Flavour.MARIADB: (10, 6)}
COLLATIONS = {Flavour.MYSQL: "utf8mb4_0900_bin", Flavour.MARIADB: "utf8mb4_nopad_bin"}
RIGHTS = "SELECT, INSERT, UPDATE"
_INTEGERS = ("int", "bigint")
_TEXTS = ("mediumtext", "longtext")
_COLUMN = re.compile(r"\s+(\w+)\s+([A-Z]+(?:\([\d,]+\))?)\s+((?:NOT )?NULL\b.*?),?")
_INDEX = re.compile(r"\s+KEY (\w+) \(([\w, ]+)\),?")


@dataclass(frozen=True, slots=True)
class Finding:
    """`mend` is a statement to run, or what else a person does; None where all is right."""

    state: State
    what: str
    detail: str
    mend: str | None = None


@dataclass(slots=True)
class Expected:
    """A table of sql/schema.sql: its columns' definitions and its secondary indexes."""

    columns: dict[str, str] = field(default_factory=dict)
    indexes: dict[str, tuple[str, ...]] = field(default_factory=dict)


def expected_tables(schema: str) -> dict[str, Expected]:
    """Args: schema: the text of sql/schema.sql, one column a line."""
    tables: dict[str, Expected] = {}
    table = Expected()
    for line in schema.splitlines():
        if line.startswith("CREATE TABLE"):
            table = tables[line.split()[-2]] = Expected()
        elif found := _COLUMN.fullmatch(line):
            table.columns[found[1]] = " ".join([found[2], found[3]])
        elif found := _INDEX.fullmatch(line):
            table.indexes[found[1]] = tuple(name.strip() for name in found[2].split(","))
    return tables


def check(facts: Facts, schema: str, database: str, *, recycle_s: float) -> list[Finding]:
    """Everything that can be judged without writing."""
    findings = [*_check_server(facts, recycle_s)]
    for name, expected in expected_tables(schema).items():
        kind = next(kind for kind in KINDS if kind.table == name)
        table = facts.tables.get(name)
        if table is None:
            findings.append(
                Finding("wrong", name, f"is not there, or {facts.user} may not see it", "./scripts/ctl.sh db init")
            )
            continue
        wrong = [*_check_table(facts, kind, table, expected, quoted(database))]
        findings += wrong or [Finding("ok", name, f"{len(expected.columns)} columns, key, indexes")]
    return findings


def _check_server(facts: Facts, recycle_s: float) -> Iterator[Finding]:
    oldest = OLDEST[facts.flavour]
    numbers = version_of(facts.version)
    if numbers < oldest:
        mend = f"{facts.flavour.value} {oldest[0]}.{oldest[1]} or later is needed"
        yield Finding("wrong", "version", facts.version, mend)
    else:
        yield Finding("ok", "version", facts.version)
    if facts.settings["read_only"] not in ("0", "OFF"):
        mend = "SET GLOBAL read_only = OFF; -- or name the primary as database.host"
        yield Finding("wrong", "read_only", "the server takes no writes", mend)
    else:
        yield Finding("ok", "read_only", "off")
    missing = sorted(set(SQL_MODE.split(",")) - set(facts.settings["sql_mode"].split(",")))
    if missing:
        mend = f"SET GLOBAL sql_mode = '{SQL_MODE}'; -- or let the proxy in between pass SET SESSION on"
        yield Finding("wrong", "sql_mode", f"our session lacks {', '.join(missing)}: values may be cut silently", mend)
    else:
        yield Finding("ok", "sql_mode", "strict in our session")
    packet = int(facts.settings["max_allowed_packet"])
    if packet < MIN_PACKET_BYTES:
        mend = "SET GLOBAL max_allowed_packet = 67108864; -- and in the server's configuration file"
        yield Finding("wrong", "max_allowed_packet", f"{packet:,} bytes; a record may need {MIN_PACKET_BYTES:,}", mend)
    else:
        yield Finding("ok", "max_allowed_packet", f"{packet:,} bytes")
    if int(facts.settings["wait_timeout"]) <= recycle_s:
        mend = "SET GLOBAL wait_timeout = 28800; -- or lower database.pool_recycle"
        detail = f"{facts.settings['wait_timeout']} s is not above database.pool_recycle = {recycle_s:g} s"
        yield Finding("warning", "wait_timeout", detail, mend)


def _check_table(facts: Facts, kind: Kind, table: Table, expected: Expected, schema: str) -> Iterator[Finding]:
    name = f"{schema}.{kind.table}"
    if table.engine.lower() != "innodb":
        detail = f"engine is {table.engine or 'unknown'}: a batch is not written as a whole"
        yield Finding("wrong", kind.table, detail, f"ALTER TABLE {name} ENGINE=InnoDB;")
    for column, definition in expected.columns.items():
        yield from _check_column(f"{kind.table}.{column}", name, column, definition, table.columns.get(column))
    yield from _check_more_columns(kind, table, expected, name)
    yield from _check_characters(facts, kind, table, expected, name)
    yield from _check_keys(kind, table, expected, name)


def _check_column(what: str, table: str, name: str, definition: str, column: Column | None) -> Iterator[Finding]:
    wanted = definition.split(maxsplit=1)[0].lower()
    mend = f"ALTER TABLE {table} MODIFY COLUMN {quoted(name)} {definition};"
    if column is None:
        yield Finding("wrong", what, "is missing", f"ALTER TABLE {table} ADD COLUMN {quoted(name)} {definition};")
    elif not holds(column.type, wanted):
        yield Finding("wrong", what, f"is {column.type}, and must hold {wanted}", mend)
    elif not column.nullable and "NOT NULL" not in definition:
        yield Finding("wrong", what, "does not take NULL", mend)
    elif name == "created_at" and not column.fills_itself:
        yield Finding("wrong", what, "has no default", mend)


def _check_more_columns(kind: Kind, table: Table, expected: Expected, name: str) -> Iterator[Finding]:
    for column in table.columns.values():
        if column.name not in expected.columns and not column.nullable and not column.fills_itself:
            yield Finding(
                "wrong",
                f"{kind.table}.{column.name}",
                "is not ours, and takes neither NULL nor a default: every insert fails",
                f"ALTER TABLE {name} MODIFY COLUMN {quoted(column.name)} {column.type} NULL;",
            )


def _check_characters(facts: Facts, kind: Kind, table: Table, expected: Expected, name: str) -> Iterator[Finding]:
    collation = COLLATIONS[facts.flavour]
    mend = f"ALTER TABLE {name} CONVERT TO CHARACTER SET utf8mb4 COLLATE {collation};"
    narrow = [
        column.name
        for column in table.columns.values()
        if column.name in expected.columns and column.character_set not in (None, "utf8mb4", "binary")
    ]
    if narrow:
        detail = f"{', '.join(narrow)}: not every character fits {table.columns[narrow[0]].character_set}"
        yield Finding("wrong", kind.table, detail, mend)
    for key in kind.key:
        column = table.columns.get(key)
        if column is not None and column.collation not in (*COLLATIONS.values(), None):
            detail = f"collation is {column.collation}: keys that differ only in case, accent or spaces may be one row"
            yield Finding("wrong", f"{kind.table}.{key}", detail, mend)


def _check_keys(kind: Kind, table: Table, expected: Expected, name: str) -> Iterator[Finding]:
    primary = table.indexes.get("PRIMARY")
    if primary is None or primary.columns != kind.key:
        drop = "DROP PRIMARY KEY, " if primary else ""
        has = f"is ({', '.join(primary.columns)})" if primary else "is missing"
        mend = f"ALTER TABLE {name} {drop}ADD PRIMARY KEY ({', '.join(map(quoted, kind.key))});"
        yield Finding("wrong", kind.table, f"the primary key {has}, and must be ({', '.join(kind.key)})", mend)
    for index in table.indexes.values():
        if index.unique and index.name != "PRIMARY":
            detail = f"{index.name}: a second unique key lets a record overwrite another's row"
            yield Finding("wrong", kind.table, detail, f"ALTER TABLE {name} DROP INDEX {quoted(index.name)};")
    for foreign_key in table.foreign_keys:
        yield Finding(
            "wrong",
            kind.table,
            f"{foreign_key}: a foreign key refuses a task that arrives before its session",
            f"ALTER TABLE {name} DROP FOREIGN KEY {quoted(foreign_key)};",
        )
    for index_name, columns in expected.indexes.items():
        if not any(index.columns[: len(columns)] == columns for index in table.indexes.values()):
            listed = ", ".join(map(quoted, columns))
            detail = f"no index on ({', '.join(columns)}): queries by it read the whole table"
            yield Finding("warning", kind.table, detail, f"CREATE INDEX {index_name} ON {name} ({listed});")


def holds(actual: str, wanted: str) -> bool:
    """Whether a column of type `actual` takes every value of type `wanted`; both as information_schema writes them."""
    actual_name, actual_sizes = _parts(actual)
    name, sizes = _parts(wanted)
    if name == "json":
        return actual_name in ("json", "longtext")  # MariaDB's JSON is LONGTEXT with a check
    if name in _INTEGERS:
        return actual_name in _INTEGERS[_INTEGERS.index(name) :]
    if name in _TEXTS:
        return actual_name in _TEXTS[_TEXTS.index(name) :]
    if name == "decimal" and actual_name == name:
        (digits, scale), (wanted_digits, wanted_scale) = actual_sizes, sizes
        return scale >= wanted_scale and digits - scale >= wanted_digits - wanted_scale
    return actual_name == name and actual_sizes >= sizes


def _parts(column_type: str) -> tuple[str, tuple[int, ...]]:
    """ "decimal(5,4)" -> ("decimal", (5, 4)); the display width of an integer says nothing."""
    found = re.match(r"(\w+)(?:\(([\d,]+)\))?", column_type)
    if found is None:
        return column_type, ()
    sizes = () if found[1] in _INTEGERS else tuple(int(number) for number in (found[2] or "").split(",") if number)
    return found[1], sizes


def version_of(text: str) -> tuple[int, int]:
    """ "5.5.5-10.11.6-MariaDB" -> (10, 11): MariaDB may put a version of MySQL in front, for old clients."""
    numbers = re.findall(r"(\d+)\.(\d+)\.\d+", text)
    major, minor = numbers[-1 if "mariadb" in text.lower() and text.startswith("5.5.5-") else 0] if numbers else (0, 0)
    return int(major), int(minor)


def refused(what: str, error: StoreError, database: str, user: str) -> Finding:
    """An error of the database as a finding; `user` as in CURRENT_USER()."""
    mend = _MENDS.get(error.number, _mend_by_class)
    return Finding("wrong", what, error.public, mend(error, database, user))


def _grant(_: StoreError, database: str, user: str) -> str:
    name, _at, host = user.rpartition("@")
    return f"GRANT {RIGHTS} ON {quoted(database)}.* TO {literal(name)}@{literal(host)};"


def _log_in(_: StoreError, database: str, user: str) -> str:
    name, _at, host = user.rpartition("@")
    account = f"{literal(name)}@{literal(host)}"
    return (
        f"CREATE USER IF NOT EXISTS {account} IDENTIFIED BY '...';"
        f" GRANT {RIGHTS} ON {quoted(database)}.* TO {account}; -- or mend database.user and database.password"
    )


def _init(_: StoreError, _database: str, _user: str) -> str:
    return "./scripts/ctl.sh db init"


def _mend_by_class(error: StoreError, _database: str, _user: str) -> str | None:
    if error.error_class is ErrorClass.RECONNECT:
        return "start the server, or mend database.host, port or socket"
    if error.error_class is ErrorClass.READ_ONLY:
        return "SET GLOBAL read_only = OFF; -- or name the primary as database.host"
    if error.error_class is ErrorClass.DATA:
        return "a constraint or trigger refuses an ordinary record: SHOW CREATE TABLE, SHOW TRIGGERS"
    return None


_MENDS: dict[int, Callable[[StoreError, str, str], str | None]] = {
    1044: _grant,
    1142: _grant,
    1143: _grant,
    1045: _log_in,
    1698: _log_in,
    1049: _init,
    1146: _init,
}


def quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def literal(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def worst(findings: Sequence[Finding]) -> State:
    states = {finding.state for finding in findings}
    return "wrong" if "wrong" in states else "warning" if "warning" in states else "ok"
