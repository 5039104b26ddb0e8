"""The faults of our tables, and the clauses that fix them. Pure: sql/schema.sql and facts in, faults out.

A writer writes nothing while there is a fault that is not harmless (invariant 8); `ctl db check` shows faults, `ctl db
upgrade` fixes them. Harmless differences are no faults: a wider column, a further index, a further column with a
default.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from pathlib import Path

from flusher.facts import FORBIDDEN_MODES, SESSION, Column, Facts, Table
from flusher.mysql_errors import ErrorClass, Flavour
from shared.records import KINDS, Kind

FILE = Path(__file__).resolve().parent.parent / "sql" / "schema.sql"
COLLATIONS = {Flavour.MYSQL: "utf8mb4_0900_bin", Flavour.MARIADB: "utf8mb4_nopad_bin"}
"""They compare byte by byte and keep trailing spaces; utf8mb4_bin does not (PAD SPACE)."""
RIGHTS = "SELECT, INSERT, UPDATE"
ALL_RIGHTS = f"{RIGHTS}, CREATE, ALTER, INDEX, DROP"
"""For `ctl db init` and `ctl db upgrade`."""
COMMENT = "persistence-service tables, version "
_ADDED = {"created_at", "extra", "metadata"}
"""Our tables of earlier versions may lack these columns. A table that lacks others is another program's."""
_INTEGERS = ("int", "bigint")
_TEXTS = ("mediumtext", "longtext")
_TEXT_BYTES = {"text": 65535, "mediumtext": 2**24 - 1, "longtext": 2**32 - 1}
_COLUMN = re.compile(r"\s+(\w+)\s+([A-Z]+(?:\([\d,]+\))?)\s+((?:NOT )?NULL)\b *(.*?),?")
_INDEX = re.compile(r"\s+KEY (\w+) \(([\w, ]+)\),?")
_COMMENT = re.compile(r"\s+COMMENT='(.*)';")
_ASSIGNED = re.compile(r"(?:\bset|\binto|,)\s+new\s*\.\s*`?(\w+)", re.IGNORECASE)


class Step(IntEnum):
    """The order in which remedies can be applied: a foreign key keeps columns and keys from being changed."""

    NO_STATEMENT = 0
    FOREIGN_KEY = 1
    UNIQUE_KEY = 2
    COLUMN = 3
    KEY = 4
    REST = 5


@dataclass(frozen=True, slots=True)
class Fault:
    """`clause` of an ALTER TABLE fixes it; without one, `remedy` names the operator's step. A harmless fault costs time
    or clarity, never a value."""

    table: str
    what: str
    detail: str
    step: Step = Step.NO_STATEMENT
    clause: str = ""
    remedy: str = ""
    harmless: bool = False
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class Definition:
    """A column of sql/schema.sql. `rest` follows NULL or NOT NULL: its default."""

    type: str
    nullable: bool
    rest: str


@dataclass(slots=True)
class Expected:
    """A table of sql/schema.sql: its columns, its secondary indexes, its comment."""

    columns: dict[str, Definition] = field(default_factory=dict)
    indexes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    comment: str = ""


@cache
def expected_tables() -> dict[str, Expected]:
    """Parses sql/schema.sql, which has one column a line."""
    tables: dict[str, Expected] = {}
    table = Expected()
    for line in FILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("CREATE TABLE"):
            table = tables[line.split()[-2]] = Expected()
        elif found := _COLUMN.fullmatch(line):
            table.columns[found[1]] = Definition(found[2], found[3] == "NULL", found[4])
        elif found := _INDEX.fullmatch(line):
            table.indexes[found[1]] = tuple(name.strip() for name in found[2].split(","))
        elif found := _COMMENT.fullmatch(line):
            table.comment = found[1]
    return tables


def faults(facts: Facts) -> list[Fault]:
    """All faults, in the order in which they can be fixed."""
    found = [*_faults_of_session(facts)]
    for kind in KINDS:
        expected = expected_tables()[kind.table]
        table = facts.tables.get(kind.table)
        if table is None:
            detail = f"is not there, or {facts.user} may not see it"
            found.append(Fault(kind.table, kind.table, detail, remedy="./scripts/ctl.sh db init"))
        elif lacks := _lacking(table, expected):
            detail = f"another program's table: it has no column {', '.join(lacks)}"
            remedy = (
                "name another database (database.database) or rename that table, then ./scripts/ctl.sh db init;"
                " if it is ours after all, add what it lacks"
            )
            found.append(Fault(kind.table, kind.table, detail, remedy=remedy, foreign=True))
        else:
            found += _faults_of_table(kind, table, expected, COLLATIONS[facts.flavour])
    return sorted(found, key=lambda fault: fault.step)


def summary(found: Sequence[Fault]) -> str:
    """One sentence: whose tables they are, and the worst fault."""
    first = min(found, key=lambda fault: (not fault.foreign, fault.harmless, fault.step is not Step.KEY))
    more = sum(not fault.harmless for fault in found) - 1
    older = any(fault.clause.startswith("COMMENT") for fault in found) and not first.foreign
    whose = "the tables are of an earlier version: " if older else ""
    mends = ", ./scripts/ctl.sh db upgrade mends it" if first.clause else ""
    also = f" ({more} more)" if more else ""
    return f"{whose}{first.what}: {first.detail}{also}; ./scripts/ctl.sh db check shows all{mends}"


def statement(fault: Fault, database: str) -> str:
    """The statement or step that fixes one fault."""
    return f"ALTER TABLE {quoted(database)}.{fault.table} {fault.clause};" if fault.clause else fault.remedy


def statements(found: Sequence[Fault], database: str) -> list[str]:
    """The statements that fix all faults that have a clause: foreign keys first, then one for each table."""
    clauses: dict[tuple[bool, str], list[str]] = {}
    for fault in found:
        if fault.clause:
            clauses.setdefault((fault.step is not Step.FOREIGN_KEY, fault.table), []).append(fault.clause)
    return [
        f"ALTER TABLE {quoted(database)}.{table} {', '.join(parts)};" for (_, table), parts in sorted(clauses.items())
    ]


def _faults_of_session(facts: Facts) -> Iterator[Fault]:
    for name, wanted in SESSION.items():
        found = set(facts.settings[name].split(","))
        modes = {"lacks": {*wanted.split(",")} - found, "has": FORBIDDEN_MODES & found}
        wrong = " and ".join(f"{verb} {', '.join(sorted(names))}" for verb, names in modes.items() if names)
        if wrong:
            detail = f"our session {wrong}: values may be changed silently"
            remedy = f"SET GLOBAL {name} = '{wanted}'; -- or let the proxy in between pass SET SESSION on"
            yield Fault("", name, detail, remedy=remedy)


def _lacking(table: Table, expected: Expected) -> list[str]:
    """The missing columns that show that a table was never ours."""
    if table.comment.startswith(COMMENT):
        return []
    return [name for name in expected.columns if name not in table.columns and name not in _ADDED]


def _faults_of_table(kind: Kind, table: Table, expected: Expected, collation: str) -> Iterator[Fault]:
    name = kind.table
    for foreign_key in table.foreign_keys:
        detail = f"{foreign_key}: a foreign key refuses a task that arrives before its session"
        yield Fault(name, name, detail, Step.FOREIGN_KEY, f"DROP FOREIGN KEY {quoted(foreign_key)}")
    for column_name, definition in expected.columns.items():
        yield from _faults_of_column(kind, column_name, definition, table.columns.get(column_name), collation)
    for column in table.columns.values():
        if column.name not in expected.columns and not column.nullable and not column.fills_itself:
            detail = "is not ours, and takes neither NULL nor a default: every insert fails"
            clause = f"MODIFY COLUMN {quoted(column.name)} {column.type} NULL"
            yield Fault(name, f"{name}.{column.name}", detail, Step.COLUMN, clause)
    yield from _faults_of_keys(kind, table, expected)
    for trigger, body in table.triggers:
        changed = sorted({*map(str.lower, _ASSIGNED.findall(body))} & {*expected.columns})
        if changed:
            remedy = f"DROP TRIGGER {quoted(trigger)}; -- or let it change only columns that are not ours"
            yield Fault(name, name, f"trigger {trigger} changes {', '.join(changed)}", remedy=remedy)
    if table.engine.lower() != "innodb":
        detail = f"engine is {table.engine or 'unknown'}: a batch is not written as a whole"
        yield Fault(name, name, detail, Step.REST, "ENGINE=InnoDB")
    if table.comment != expected.comment:
        detail = f"its comment is not {expected.comment!r}"
        yield Fault(name, name, detail, Step.REST, f"COMMENT={literal(expected.comment)}", harmless=True)


def _faults_of_column(
    kind: Kind, name: str, wanted: Definition, column: Column | None, collation: str
) -> Iterator[Fault]:
    what = f"{kind.table}.{name}"
    text = wanted.type.lower() in _TEXTS or wanted.type.startswith("VARCHAR")
    characters = f" CHARACTER SET utf8mb4 COLLATE {collation}" if text else ""
    if column is None:
        null = "NULL" if wanted.nullable else "NOT NULL"
        clause = f"ADD COLUMN {quoted(name)} {wanted.type}{characters} {null} {wanted.rest}".rstrip()
        yield Fault(kind.table, what, "is missing", Step.COLUMN, clause)
        return
    enough, in_key = holds(column.type, wanted.type.lower()), name in kind.key
    reasons = [
        reason
        for stands, reason in (
            (not enough, f"is {column.type}, and must hold {wanted.type.lower()}"),
            (column.is_generated, "is generated, and takes no value"),
            (column.character_set not in (None, "utf8mb4"), f"not every character fits {column.character_set}"),
            (in_key and column.nullable, "is part of the key, and may not be NULL"),
            (wanted.nullable and not column.nullable, "does not take NULL"),
            (name == "created_at" and not column.fills_itself, "has no default"),
            (name == "created_at" and column.changes_itself, "changes with every update"),
        )
        if stands
    ]
    harmless = not reasons
    if text and column.collation not in (*COLLATIONS.values(), None):
        harmless = harmless and not in_key
        differ = "keys that differ only in case, accent or spaces are one" if in_key else "it compares by its own rules"
        reasons.append(f"collation is {column.collation}: {differ}")
    if not reasons:
        return
    type_ = column.type if enough and wanted.type != "JSON" else wanted.type
    null = "NULL" if not in_key and (wanted.nullable or column.nullable) else "NOT NULL"
    definition = f"COLUMN {quoted(name)} {type_}{characters} {null} {wanted.rest}".rstrip()
    if column.is_generated:
        remedy = f"ALTER TABLE {kind.table} DROP COLUMN {quoted(name)}, ADD {definition}; -- what it computed is lost"
        yield Fault(kind.table, what, "; ".join(reasons), remedy=remedy)
    else:
        yield Fault(kind.table, what, "; ".join(reasons), Step.COLUMN, f"MODIFY {definition}", harmless=harmless)


def _faults_of_keys(kind: Kind, table: Table, expected: Expected) -> Iterator[Fault]:
    name = kind.table
    counters = {column.name for column in table.columns.values() if column.counts_itself}
    primary = table.indexes.get("PRIMARY")
    if primary is None or primary.columns != kind.key:
        has = f"is ({', '.join(primary.columns)})" if primary else "is missing"
        clause = "DROP PRIMARY KEY, " if primary else ""
        if primary and counters.intersection(primary.columns):
            clause += f"ADD UNIQUE KEY ({quoted(primary.columns[0])}), "  # a column that counts itself needs a key
        clause += f"ADD PRIMARY KEY ({', '.join(map(quoted, kind.key))})"
        yield Fault(name, name, f"the primary key {has}, and must be ({', '.join(kind.key)})", Step.KEY, clause)
    for index in table.indexes.values():
        if index.unique and index.name != "PRIMARY" and not counters.intersection(index.columns):
            detail = f"{index.name}: a second unique key lets a record overwrite another's row"
            yield Fault(name, name, detail, Step.UNIQUE_KEY, f"DROP INDEX {quoted(index.name)}")
    for index_name, columns in expected.indexes.items():
        if not any(index.columns[: len(columns)] == columns for index in table.indexes.values()):
            clause = f"DROP INDEX {index_name}, " if index_name in table.indexes else ""
            clause += f"ADD INDEX {index_name} ({', '.join(map(quoted, columns))})"
            detail = f"no index on ({', '.join(columns)}): queries by it read the whole table"
            yield Fault(name, name, detail, Step.REST, clause, harmless=True)


def holds(actual: str, wanted: str) -> bool:
    """Whether a column of type `actual` takes every value of type `wanted`; both as information_schema writes them."""
    actual_name, actual_sizes = _parts(actual)
    name, sizes = _parts(wanted)
    if name == "json":
        return actual_name in ("json", "longtext")
    if name in _INTEGERS:
        return actual_name in _INTEGERS[_INTEGERS.index(name) :]
    if name in _TEXTS:
        return actual_name in _TEXTS[_TEXTS.index(name) :]
    if name == "varchar" and actual_name in _TEXT_BYTES:
        return _TEXT_BYTES[actual_name] >= 4 * sizes[0]
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


def remedy_of(number: int, error_class: ErrorClass, database: str, user: str, rights: str = RIGHTS) -> str | None:
    """The operator's step for an error of the database. Args: user: as in CURRENT_USER()."""
    name, _at, host = user.rpartition("@")
    account = f"{literal(name)}@{literal(host)}"
    grant = f"GRANT {rights} ON {quoted(database)}.* TO {account};"
    if number in (1044, 1142, 1143):
        return grant
    if number in (1045, 1698):
        create = f"CREATE USER IF NOT EXISTS {account} IDENTIFIED BY '...';"
        return f"{create} {grant} -- or mend database.user and database.password"
    if number in (1049, 1146):
        return "./scripts/ctl.sh db init"
    return {
        ErrorClass.RECONNECT: "start the server, or mend database.host, port or socket",
        ErrorClass.READ_ONLY: "SET GLOBAL read_only = OFF; -- or name the primary as database.host",
        ErrorClass.DATA: "a constraint or trigger refuses an ordinary record: SHOW CREATE TABLE, SHOW TRIGGERS",
    }.get(error_class)


def quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def literal(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
