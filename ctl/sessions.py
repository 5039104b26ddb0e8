"""`sessions list|show|export|purge`: what the database has of a run, for people and scripts; old runs deleted.

All but purge ask the service over HTTP; purge works on the database itself, as a user who may DELETE there.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import click
import orjson

from ctl.database import entered_by, user_option, writable
from ctl.node import node_of, url_option
from ctl.output import (
    Stop,
    Wrong,
    age,
    configuration,
    console,
    emit,
    json_option,
    pairs,
    plural,
    printable,
    progress,
    table,
)
from flusher.purge import Purge, journaled, pause_s, tasks_of
from flusher.schema import refusal
from flusher.store import Store, StoreError

_PAGE = 200
_FAILED_SHOWN = 20
_LOOK_AGAIN_S = 30.0
"""How often the journal is looked at while sessions are deleted."""
_AGE = re.compile(r"([1-9]\d{0,4})([dh])")


@click.group()
def sessions() -> None:
    """Sessions and their tasks, as the database has them."""


def fresh_option(command: Callable[..., Any]) -> Callable[..., Any]:
    text = "What the node has accepted is in the database first."
    return click.option("--fresh", is_flag=True, help=text)(command)


@sessions.command("list")
@click.option("--status", help="Those in one of these states: running,paused.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="The newest so many.")
@fresh_option
@url_option
@json_option
def list_sessions(status: str | None, limit: int, fresh: bool, url: str | None, as_json: bool) -> None:
    """The sessions, newest news first.

    Exit status: 0, 2 usage or nobody answers.
    """
    node = node_of(url)
    found: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None and len(found) < limit:
        most = min(_PAGE, limit - len(found))
        page = node.read(status=status, limit=most, cursor=cursor or None, fresh=fresh and not cursor)
        found += page["sessions"]
        cursor = page["next"]
    if as_json:
        emit({"sessions": found, "as_of": page["as_of"], "pending_records": page["pending_records"]})
        return
    texts = ("session_id", "status", "filename")
    rows = [(*(printable(one[name]) for name in texts), news(one)) for one in found]
    console().print(table("session", "status", "file", "last news", rows=rows) if rows else "no sessions")


def news(session: dict[str, Any]) -> str:
    updated_at = datetime.fromisoformat(session["updated_at"].replace("Z", "+00:00"))
    return f"{age(max(0.0, (datetime.now(timezone.utc) - updated_at).total_seconds()))} ago"


@sessions.command()
@click.argument("session_id")
@fresh_option
@url_option
@json_option
def show(session_id: str, fresh: bool, url: str | None, as_json: bool) -> None:
    """A session, how far its tasks are, and what the failed ones say.

    Exit status: 0, 2 usage, nobody answers, or there is no such session.
    """
    node = node_of(url)
    session = node.read(session_id, fresh=fresh)
    if as_json:
        emit(session)
        return
    progress = session.pop("progress")
    tasks = f"{progress['total']:,}"
    if progress["by_status"]:
        tasks += ": " + ", ".join(f"{printable(name)} {count:,}" for name, count in progress["by_status"].items())
        tasks += f"; the last {progress['last_task_at']}"
    rows = [(printable(name), printable(as_text(value))) for name, value in session.items() if value not in (None, "")]
    terminal = console()
    terminal.print(pairs([*rows, ("last news", news(session)), ("tasks", tasks)]))
    if progress["by_status"].get("failed"):
        fields = "task_id,error_message"
        failed = node.read(session_id, "tasks", status="failed", limit=_FAILED_SHOWN, fields=fields)["tasks"]
        rows = [(printable(one["task_id"]), printable(one["error_message"] or "")) for one in failed]
        terminal.print()
        terminal.print(table("failed", "message", rows=rows))


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


@sessions.command()
@click.argument("session_id")
@click.option("--status", help="Tasks in one of these states.")
@click.option("--fields", help="These fields alone: task_id,target_text.")
@fresh_option
@url_option
def export(session_id: str, status: str | None, fields: str | None, fresh: bool, url: str | None) -> None:
    """All tasks of a session as JSON, one a line, in the order of their ids.

    Exit status: 0 all of them, 2 usage, nobody answers, or the answer broke off.
    """
    last, count = b"", -1
    for line in node_of(url).stream(session_id, "tasks", status=status, fields=fields, fresh=fresh):
        sys.stdout.buffer.write(last)
        last, count = line, count + 1
    if not last.endswith(b"\n") or orjson.loads(last) != {"end": True, "count": count}:
        raise Stop(f"the answer broke off after {plural(max(0, count), 'task')}")


def days_or_hours(text: str) -> timedelta:
    found = _AGE.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"{text}: days or hours, as 90d or 12h")
    return timedelta(**{"days" if found[2] == "d" else "hours": int(found[1])})


@sessions.command()
@click.option("--older-than", required=True, type=days_or_hours, metavar="90d", help="No news for so long; or 12h.")
@click.option("--status", required=True, help="In one of these states: completed,failed.")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted.")
@user_option
@json_option
def purge(older_than: timedelta, status: str, dry_run: bool, user: str | None, as_json: bool) -> None:
    """Deletes old sessions with their tasks, 1,000 tasks at a time, with pauses by the server's load.

    An interrupted run goes on with the next one. Nothing is deleted while the journal of this node holds records of a
    session that would go.

    Exit status: 0 done, 1 refused or interrupted, 2 usage, or the database is not reached.
    """
    statuses = list(dict.fromkeys(status.split(",")))
    allowed = configuration().records.session_statuses
    if unknown := [one for one in statuses if one not in allowed]:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(allowed)} (records.session_statuses)")
    database = entered_by(user)
    store, _ = writable(database)
    old = Purge(statuses, datetime.now(timezone.utc).replace(tzinfo=None) - older_than)
    done = {"sessions": 0, "tasks": 0}
    try:
        chosen = old.sessions(store)
        refuse_journaled(chosen)
        if dry_run:
            done = {"sessions": len(chosen), "tasks": tasks_of(store, chosen)}
        else:
            with progress("sessions", len(chosen), as_json=as_json) as advance:
                for deleted_tasks, deleted_sessions in delete(old, store, chosen):
                    done["tasks"] += deleted_tasks
                    done["sessions"] += deleted_sessions
                    advance(done["sessions"], plural(done["tasks"], "task"))
    except StoreError as error:
        raise Wrong(f"after {counted(done)}: refused as {refusal(store, database, error)}") from error
    except KeyboardInterrupt:
        raise Wrong(f"interrupted after {counted(done)}; the next run goes on") from None
    finally:
        store.close()
    if as_json:
        emit({**done, "dry_run": dry_run})
    else:
        click.echo(f"{counted(done)} {'would be deleted' if dry_run else 'deleted'}")


def delete(old: Purge, store: Store, chosen: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yields: tasks and sessions deleted. Blocks between two, too. Raises: StoreError, Wrong."""
    look_again_at = time.monotonic() + _LOOK_AGAIN_S
    for number, session_id in enumerate(chosen):
        if time.monotonic() > look_again_at:
            refuse_journaled(chosen[number:])
            look_again_at = time.monotonic() + _LOOK_AGAIN_S
        began_at = time.monotonic()
        for deleted in old.delete(store, session_id):
            yield deleted
            time.sleep(pause_s(store, time.monotonic() - began_at))
            began_at = time.monotonic()


def refuse_journaled(chosen: Sequence[str]) -> None:
    """Raises: Wrong, Stop."""
    directory = Path(configuration().journal.directory)
    try:
        waiting = journaled(directory).intersection(chosen)
    except OSError as error:
        raise Stop(f"{directory}: {error.strerror}") from error
    if waiting:
        some = ", ".join(map(printable, sorted(waiting)[:3]))
        raise Wrong(f"the journal holds records of {plural(len(waiting), 'such session')} ({some}): flush, then again")


def counted(done: dict[str, int]) -> str:
    return f"{plural(done['sessions'], 'session')} and {plural(done['tasks'], 'task')}"
