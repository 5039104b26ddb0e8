"""What a database says of itself, as data: the store asks with the questions here, `ctl db check` judges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flusher.mysql_errors import Flavour
from shared.records import KINDS

SETTINGS = ("sql_mode", "max_allowed_packet", "read_only", "wait_timeout")
OURS = f"TABLE_SCHEMA = DATABASE() AND TABLE_NAME IN ({', '.join(repr(kind.table) for kind in KINDS)})"
_TABLES = f"SELECT TABLE_NAME, COALESCE(ENGINE, '') FROM information_schema.TABLES WHERE {OURS}"  # noqa: S608
_COLUMNS = (
    "SELECT TABLE_NAME, COLUMN_NAME, LOWER(COLUMN_TYPE), IS_NULLABLE = 'YES',"  # noqa: S608 -- constants from KINDS
    " COLUMN_DEFAULT IS NOT NULL OR LOWER(EXTRA) LIKE '%auto_increment%' OR LOWER(EXTRA) LIKE '%generated%',"
    f" CHARACTER_SET_NAME, COLLATION_NAME FROM information_schema.COLUMNS WHERE {OURS} ORDER BY ORDINAL_POSITION"
)
_INDEXES = (
    "SELECT TABLE_NAME, INDEX_NAME, MAX(NON_UNIQUE) = 0, GROUP_CONCAT(COLUMN_NAME ORDER BY SEQ_IN_INDEX)"  # noqa: S608
    f" FROM information_schema.STATISTICS WHERE {OURS} GROUP BY TABLE_NAME, INDEX_NAME"
)
_FOREIGN_KEYS = (
    "SELECT TABLE_NAME, CONSTRAINT_NAME FROM information_schema.TABLE_CONSTRAINTS"  # noqa: S608
    f" WHERE {OURS} AND CONSTRAINT_TYPE = 'FOREIGN KEY'"
)


@dataclass(frozen=True, slots=True)
class Column:
    """`type` as information_schema writes it, in lower case; `character_set` and `collation` None for other types."""

    name: str
    type: str
    nullable: bool
    fills_itself: bool
    character_set: str | None
    collation: str | None


@dataclass(frozen=True, slots=True)
class Index:
    name: str
    unique: bool
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    engine: str
    columns: dict[str, Column]
    indexes: dict[str, Index]
    foreign_keys: tuple[str, ...]


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
    """Args: select: runs one question and gives its rows. Blocks, and raises, as that does."""
    (settings,) = select(f"SELECT CURRENT_USER(), {', '.join(f'@@{name}' for name in SETTINGS)}")
    engines = dict(select(_TABLES))
    columns = [(table, Column(*values)) for table, *values in select(_COLUMNS)]
    indexes = select(_INDEXES)
    foreign_keys = select(_FOREIGN_KEYS)
    tables = {
        table: Table(
            engine=engine,
            columns={column.name: column for of, column in columns if of == table},
            indexes={
                name: Index(name, bool(unique), tuple(parts.split(",")))
                for of, name, unique, parts in indexes
                if of == table
            },
            foreign_keys=tuple(name for of, name in foreign_keys if of == table),
        )
        for table, engine in engines.items()
    }
    return Facts(host, flavour, version, settings[0], dict(zip(SETTINGS, map(str, settings[1:]), strict=True)), tables)
