"""What a database says of itself, as data: the store asks, `ctl db check` judges."""

from __future__ import annotations

from dataclasses import dataclass

from flusher.mysql_errors import Flavour


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
