"""`db init`, `db check`, `db upgrade`: makes, checks and changes the tables on every host."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
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
    plural,
    printable,
    styled,
    table,
)
from flusher import tables
from flusher.facts import Facts
from flusher.mysql_errors import ErrorClass
from flusher.schema import alter, create, keyless, look, missing, open_store, refusal
from flusher.sql import Row, with_values
from flusher.store import Store, StoreError
from shared.records import KINDS, Kind, Record
from shared.settings import Database

EXAMPLES: dict[type, Any] = {
    msgspec.inspect.StrType: "ctl-db-check",
    msgspec.inspect.IntType: 0,
    msgspec.inspect.FloatType: 0.0,
    msgspec.inspect.DateTimeType: datetime(2000, 1, 1),
    msgspec.inspect.RawType: msgspec.Raw(b"{}"),
}
"""A valid value of a required field, by its type."""
UPGRADE_S = 7 * 24 * 3600


class HostView(msgspec.Struct, frozen=True):
    """The findings on one host of database.host."""

    host: str
    reached: bool
    read_only: bool
    findings: list[Finding]


def user_option(command: Callable[..., Any]) -> Callable[..., Any]:
    text = "Enter the database as this user; with the password in MYSQL_PWD, or it is asked for."
    return click.option("--user", help=text)(command)


def entered_by(user: str | None) -> Database:
    """The service's database, entered by a user with more rights than the service."""
    database = configuration().database
    if user is None:
        return database
    password = os.environ.get("MYSQL_PWD")
    if password is None:
        password = click.prompt(f"Password of {user}", hide_input=True, default="", show_default=False)
    return msgspec.structs.replace(database, user=user, password=password)


@click.group()
def db() -> None:
    """The database."""


@db.command()
@user_option
@json_option
def init(user: str | None, as_json: bool) -> None:
    """Makes the missing database and tables (sql/schema.sql); changes no existing one.

    Exit status: 0 they are there, 1 the server refuses, 2 it is not reached.
    """
    database = entered_by(user)
    store = open_store(database)
    try:
        create(store, database.database)
    except StoreError as error:
        raise stopped(store, database, error) from error
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
    """Connection, version, settings, tables, columns, keys, and our rights, by writes that are rolled back.

    Each host of database.host is looked at. Exit status: 0 all right, 1 something is wrong, 2 no host is reached.
    """
    database = configuration().database
    views = list(map(look_at, single(database)))
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


@db.command()
@click.option("--yes", is_flag=True, help="Apply the statements without asking.")
@user_option
def upgrade(user: str | None, yes: bool) -> None:
    """Changes tables of an earlier version, or of an earlier service with the same columns, to ours. Keeps all rows.

    Shows the statements and applies them after a yes. Each is done or not done as a whole; run it again after an
    interruption. Tables of another program are left alone.

    Exit status: 0 the tables are ours, 1 they are not, 2 the server is not reached.
    """
    database = entered_by(user)
    store, facts = writable(database)
    try:
        faults = tables.faults(facts) if facts else []
        refuse(faults, keyless(store, facts) if facts else {})
        makes = missing(facts, database.database)
        alters = tables.statements(faults, database.database)
        for line in "\n".join([*(f"{one};" for one in makes), *alters]).splitlines():
            click.echo(printable(line))
        if (makes or alters) and not yes and not click.confirm(f"Apply to {database.database} at {store.host}?"):
            raise Wrong("nothing was changed")
        if makes:
            store.execute(makes, database=facts is not None)
        left = apply(store, database.database)
    except StoreError as error:
        raise stopped(store, database, error) from error
    finally:
        store.close()
    if left:
        raise Wrong(
            "\n".join(f"{fault.what}: {fault.detail}: {tables.statement(fault, database.database)}" for fault in left)
        )
    click.echo("the tables are ours")


def apply(store: Store, database: str) -> list[tables.Fault]:
    """Alters the tables, looking anew after each statement. Returns: the faults that stay. Raises: StoreError."""
    done = ""
    while True:
        faults = tables.faults(store.describe())
        statement = next(iter(tables.statements(faults, database)), done)
        if statement == done:
            return [fault for fault in faults if not fault.harmless]
        click.echo(f"altering {statement.split()[2]} ...")
        alter(store, statement)
        done = statement


def refuse(faults: Sequence[tables.Fault], keyless: dict[str, int]) -> None:
    """Raises: Wrong where no statement of ours may touch the tables."""
    for fault in faults:
        if fault.foreign:
            raise Wrong(f"{fault.what}: {fault.detail}; nothing was changed; {fault.remedy}")
    for name, count in keyless.items():
        raise Wrong(
            f"{plural(count, 'row')} of {name} with NULL in the key (session_id, task_id); nothing was changed; give"
            " them a value or delete them"
        )


def single(database: Database) -> list[Database]:
    """The configuration for each host alone."""
    return [database] if database.socket else [msgspec.structs.replace(database, host=(one,)) for one in database.host]


def writable(database: Database) -> tuple[Store, Facts | None]:
    """Returns: the first host that takes writes, and its facts. Raises: Stop."""
    failed: Stop | None = None
    for one in single(database):
        # An ALTER TABLE may take hours, and goes on in the server if we leave.
        store = open_store(msgspec.structs.replace(one, read_timeout=UPGRADE_S))
        try:
            facts = look(store)
            if facts is None or facts.settings["read_only"] in ("0", "OFF"):
                return store, facts
            failed = failed or Wrong(f"{store.host} takes no writes (read_only)")
        except StoreError as error:
            failed = failed or stopped(store, one, error)
        store.close()
    assert failed is not None
    raise failed


def stopped(store: Store, database: Database, error: StoreError) -> Stop:
    stop = Stop if error.error_class is ErrorClass.RECONNECT else Wrong
    return stop(f"the tables cannot be made or changed as {refusal(store, database, error)}")


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
        faults = tables.faults(facts)
        findings += check(facts, faults, database.database, recycle_s=database.pool_recycle)
        read_only = any(finding.what == "read_only" and finding.state != "ok" for finding in findings)
        if not read_only and all(fault.harmless for fault in faults):
            findings += [rehearsed(store, facts, kind, database.database) for kind in KINDS]
        return HostView(store.host, reached=True, read_only=read_only, findings=findings)
    finally:
        store.close()


def standing_by(view: HostView) -> HostView:
    """A read-only host is no fault if another takes the writes."""
    findings = [
        replace(finding, state="warning", mend=None) if finding.what == "read_only" and view.read_only else finding
        for finding in view.findings
    ]
    return msgspec.structs.replace(view, findings=findings)


def sample(kind: Kind, key: str) -> Record:
    """A record of a kind with its required fields only."""
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
    """Writes a record with an unused key, as a flush does, and rolls it back."""
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
