"""The server's description of our tables and session, as data; tables.py and `ctl db check` judge it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flusher.mysql_errors import Flavour
from shared.records import KINDS

SESSION = {
    "sql_mode": "STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ZERO_DATE,NO_ZERO_IN_DATE,NO_ENGINE_SUBSTITUTION",
    "time_zone": "+00:00",
}
"""Settings of our sessions: without them the server cuts, rounds or shifts values."""
FORBIDDEN_MODES = {"NO_BACKSLASH_ESCAPES", "ANSI_QUOTES"}
"""Parts of sql_mode that change the meaning of our literals."""
SETTINGS = (*SESSION, "max_allowed_packet", "read_only", "wait_timeout")
# Plain SELECTs without GROUP_CONCAT, CARDINALITY or a sum: no setting of the session and no cached statistics change
# what they answer. Of triggers only those show that the user may see (TRIGGER).
_NAMES = ", ".join(repr(kind.table) for kind in KINDS)
_OURS = f"TABLE_SCHEMA = DATABASE() AND TABLE_NAME IN ({_NAMES})"
_TABLES = f"SELECT TABLE_NAME, COALESCE(ENGINE, ''), TABLE_COMMENT FROM information_schema.TABLES WHERE {_OURS}"  # noqa: S608
_COLUMNS = (
    "SELECT TABLE_NAME, LOWER(COLUMN_NAME), LOWER(COLUMN_TYPE), IS_NULLABLE = 'YES', COLUMN_DEFAULT IS NOT NULL"  # noqa: S608
    " AND (COLUMN_DEFAULT <> 'NULL' OR IS_NULLABLE = 'NO'),"  # as MariaDB writes that there is none
    f" LOWER(EXTRA), CHARACTER_SET_NAME, COLLATION_NAME FROM information_schema.COLUMNS WHERE {_OURS}"
    " ORDER BY ORDINAL_POSITION"
)
_JSON = (
    "SELECT TABLE_NAME, LOWER(CONSTRAINT_NAME) FROM information_schema.CHECK_CONSTRAINTS"  # noqa: S608
    f" WHERE CONSTRAINT_SCHEMA = DATABASE() AND TABLE_NAME IN ({_NAMES}) AND CHECK_CLAUSE LIKE 'json_valid(%'"
)
"""MariaDB's JSON is a LONGTEXT with a check of the column's name. The check's level is not selected: servers that are
too old do not know it."""
_INDEXES = (
    "SELECT TABLE_NAME, INDEX_NAME, NON_UNIQUE = 0, LOWER(COLUMN_NAME), SUB_PART"  # noqa: S608
    f" FROM information_schema.STATISTICS WHERE {_OURS} ORDER BY INDEX_NAME, SEQ_IN_INDEX"
)
_FOREIGN_KEYS = (
    "SELECT TABLE_NAME, CONSTRAINT_NAME FROM information_schema.TABLE_CONSTRAINTS"  # noqa: S608
    f" WHERE {_OURS} AND CONSTRAINT_TYPE = 'FOREIGN KEY'"
)
_TRIGGERS = (
    "SELECT EVENT_OBJECT_TABLE, TRIGGER_NAME, ACTION_STATEMENT FROM information_schema.TRIGGERS"  # noqa: S608
    f" WHERE EVENT_OBJECT_SCHEMA = DATABASE() AND EVENT_OBJECT_TABLE IN ({_NAMES}) AND ACTION_TIMING = 'BEFORE'"
)


@dataclass(frozen=True, slots=True)
class Column:
    """`type` and `extra` as information_schema writes them, in lower case; `character_set` and `collation` None for
    other types than texts."""

    name: str
    type: str
    nullable: bool
    has_default: bool
    extra: str
    character_set: str | None
    collation: str | None

    @property
    def counts_itself(self) -> bool:
        return "auto_increment" in self.extra

    @property
    def changes_itself(self) -> bool:
        return "on update" in self.extra

    @property
    def is_generated(self) -> bool:
        return "virtual generated" in self.extra or "stored generated" in self.extra

    @property
    def fills_itself(self) -> bool:
        return bool(self.has_default) or self.counts_itself or self.is_generated


@dataclass(frozen=True, slots=True)
class Index:
    """A column of which only a prefix is in the index is written "name(length)"."""

    name: str
    unique: bool
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """`triggers`: name and body of those that may change a row before it is stored."""

    engine: str
    comment: str
    columns: dict[str, Column]
    indexes: dict[str, Index]
    foreign_keys: tuple[str, ...]
    triggers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """`user` as the server matched it, `app@%`. Settings are those of our own session, by their names."""

    host: str
    flavour: Flavour
    version: str
    user: str
    settings: dict[str, str]
    tables: dict[str, Table]


def gather(select: Callable[[str], list[tuple[Any, ...]]], host: str, flavour: Flavour, version: str) -> Facts:
    """Args: select: runs a statement and returns its rows. Blocks and raises as that does."""
    (settings,) = select(f"SELECT CURRENT_USER(), {', '.join(f'@@{name}' for name in SETTINGS)}")
    json = set(select(_JSON)) if flavour is Flavour.MARIADB else set()
    columns = [
        (table, Column(name, "json" if (table, name) in json else type_, *values))
        for table, name, type_, *values in select(_COLUMNS)
    ]
    indexes: dict[tuple[str, str, bool], list[str]] = {}
    for table, name, unique, column, prefix in select(_INDEXES):
        part = f"{column}({prefix})" if prefix else column or "an expression"
        indexes.setdefault((table, name, bool(unique)), []).append(part)
    foreign_keys = select(_FOREIGN_KEYS)
    triggers = select(_TRIGGERS)
    tables = {
        table: Table(
            engine=engine,
            comment=comment,
            columns={column.name: column for of, column in columns if of == table},
            indexes={
                name: Index(name, unique, tuple(parts)) for (of, name, unique), parts in indexes.items() if of == table
            },
            foreign_keys=tuple(name for of, name in foreign_keys if of == table),
            triggers=tuple((name, body) for of, name, body in triggers if of == table),
        )
        for table, engine, comment in select(_TABLES)
    }
    return Facts(host, flavour, version, settings[0], dict(zip(SETTINGS, map(str, settings[1:]), strict=True)), tables)
