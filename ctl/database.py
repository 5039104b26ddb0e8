"""`db init` and `db check`: making the tables, and finding out whether every host of the database takes our writes."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

import click
import msgspec
from rich.text import Text

from ctl.checks import Finding, check, refused, worst
from ctl.output import (
    ExitStatus,
    Stop,
    Wrong,
    configuration,
    console,
    emit,
    finish,
    json_option,
    printable,
    styled,
    table,
)
from flusher.facts import Facts
from flusher.mysql_errors import ErrorClass
from flusher.rows import Row, with_values
from flusher.schema import FILE, create, open_store
from flusher.store import Store, StoreError
from shared.config import Database
from shared.records import KINDS, Kind, Record

EXAMPLES: dict[type, Any] = {
    msgspec.inspect.StrType: "ctl-db-check",
    msgspec.inspect.IntType: 0,
    msgspec.inspect.FloatType: 0.0,
    msgspec.inspect.DateTimeType: datetime(2000, 1, 1),
    msgspec.inspect.RawType: msgspec.Raw(b"{}"),
}
"""What a required field may be, by its type."""


class HostView(msgspec.Struct, frozen=True):
    """A host of database.host, and what was found there."""

    host: str
    reached: bool
    read_only: bool
    findings: list[Finding]


@click.group()
def db() -> None:
    """The database."""


@db.command()
@json_option
def init(as_json: bool) -> None:
    """Makes the database and the tables that are missing (sql/schema.sql); changes none that is there.

    Exit status: 0 they are there, 1 the server refuses, 2 it is not reached.
    """
    database = configuration().database
    store = open_store(database)
    try:
        create(store, database.database)
    except StoreError as error:
        stop = Stop if error.error_class is ErrorClass.RECONNECT else Wrong
        raise stop(f"the tables cannot be made as {database.user!r} at {store.host}: {error.public}") from error
    finally:
        store.close()
    names = [kind.table for kind in KINDS]
    if as_json:
        emit({"host": store.host, "database": database.database, "tables": names})
    else:
        console().print(f"{', '.join(names)} are in {database.database} at {store.host}")


@db.command("check")
@json_option
def check_database(as_json: bool) -> None:
    """Connection, version, settings, tables, columns, keys, and our rights, by writing what is rolled back.

    Each host of database.host is looked at. Exit status: 0 all right, 1 something is wrong, 2 no host is reached.
    """
    database = configuration().database
    hosts = ("",) if database.socket else database.host
    views = [look_at(msgspec.structs.replace(database, host=(host,)) if host else database) for host in hosts]
    if any(view.reached and not view.read_only for view in views):
        views = [standing_by(view) for view in views]
    if as_json:
        emit({"database": database.database, "hosts": msgspec.to_builtins(views)})
    else:
        for view in views:
            print_view(view, database.database)
    if not any(view.reached for view in views):
        finish(ExitStatus.NOT_REACHED)
    wrong = any(worst(view.findings) == "wrong" for view in views)
    finish(ExitStatus.WRONG if wrong else ExitStatus.ALL_RIGHT)


def look_at(database: Database) -> HostView:
    """Args: database: with one host, or a socket."""
    store = open_store(database)
    try:
        facts = store.describe()
    except StoreError as error:
        user = f"{database.user}@%"
        finding = refused("connection", error, database.database, user)
        return HostView(store.host, error.error_class is not ErrorClass.RECONNECT, read_only=False, findings=[finding])
    try:
        findings = [Finding("ok", "connection", f"as {facts.user}")]
        schema = FILE.read_text(encoding="utf-8")
        findings += check(facts, schema, database.database, recycle_s=database.pool_recycle)
        read_only = any(finding.what == "read_only" and finding.state != "ok" for finding in findings)
        if not read_only:
            findings += [
                rehearsed(store, facts, kind, database.database) for kind in KINDS if can_rehearse(facts, kind)
            ]
        return HostView(store.host, reached=True, read_only=read_only, findings=findings)
    finally:
        store.close()


def standing_by(view: HostView) -> HostView:
    """A read-only host is as it should be where another takes the writes."""
    findings = [
        replace(finding, state="warning", mend=None) if finding.what == "read_only" and view.read_only else finding
        for finding in view.findings
    ]
    return msgspec.structs.replace(view, findings=findings)


def can_rehearse(facts: Facts, kind: Kind) -> bool:
    """Only where a rollback undoes it."""
    found = facts.tables.get(kind.table)
    return found is not None and found.engine.lower() == "innodb"


def sample(kind: Kind, key: str) -> Record:
    """A record of a kind with nothing but what must be there."""
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind.record):
        if field.name in kind.key:
            values[field.name] = key
        elif field.required:
            info = msgspec.inspect.type_info(field.type)
            values[field.name] = (
                info.values[0] if isinstance(info, msgspec.inspect.LiteralType) else EXAMPLES[type(info)]
            )
    return msgspec.convert(values, kind.record)


def rehearsed(store: Store, facts: Facts, kind: Kind, database: str) -> Finding:
    """Writes a record that nobody has, as a flush would, and rolls it back."""
    record = sample(kind, str(uuid4()))
    rows = {kind: with_values(kind, [Row(datetime.now(timezone.utc), record, 0, 0)])}
    try:
        store.write(rows, rehearse=True)
    except StoreError as error:
        return refused(f"writing to {kind.table}", error, database, facts.user)
    return Finding("ok", f"writing to {kind.table}", "takes a record (rolled back)")


def print_view(view: HostView, database: str) -> None:
    terminal = console()
    terminal.print(f"{database} at {view.host}: ", styled(worst(view.findings)), sep="")
    rows = [(styled(finding.state), finding.what, Text(printable(finding.detail))) for finding in view.findings]
    terminal.print(table("", "", "", rows=rows))
    for finding in view.findings:
        if finding.mend:
            terminal.print(f"  {finding.what}: {printable(finding.mend)}")
