"""Shared by all commands: exit statuses, JSON or text, tables, times, sizes and ages in words.

Rules: answers go to stdout, an error in one line to stderr. Text of records passes printable() before a terminal sees
it. Names are never cut or folded: the terminal itself wraps long lines.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from shared import running
from shared.clock import EPOCH
from shared.config import ConfigError, load
from shared.settings import DEFAULT_STATE_DIRECTORY, Config

_CONTROLS = {code: f"\\u{code:04x}" for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}
STYLES = dict.fromkeys(("healthy", "up", "ok"), "green") | dict.fromkeys(("degraded", "unknown", "warning"), "yellow")


class ExitStatus(IntEnum):
    ALL_RIGHT = 0
    WRONG = 1
    NOT_REACHED = 2


class Stop(click.ClickException):
    """Ends the command with one line on stderr for each reason: it cannot do its work."""

    exit_code = int(ExitStatus.NOT_REACHED)

    def show(self, file: Any = None) -> None:
        for line in self.message.split("\n"):
            click.echo(f"ctl: {printable(line)}", file=file or sys.stderr)


class Wrong(Stop):
    """The command looked, and found something that a person must mend."""

    exit_code = int(ExitStatus.WRONG)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")(command)


def key_option(command: Callable[..., Any]) -> Callable[..., Any]:
    text = "Those with this session_id, task_id or both (S/T); may be repeated."
    return click.option("--key", "keys", multiple=True, help=text)(command)


def is_chosen(key: Sequence[str], keys: Sequence[str]) -> bool:
    """Whether --key names this key, in full or by one of its ids. Without --key every key is chosen."""
    return not keys or not {*key, "/".join(key)}.isdisjoint(keys)


def key_text(key: Sequence[str]) -> str:
    return printable("/".join(key))


@lru_cache
def configuration() -> Config:
    """The running service's configuration, else this environment's. Raises: Stop, with a line for each fault."""
    try:
        own = os.path.realpath(os.environ.get("PERSISTENCE_STATE_DIR") or DEFAULT_STATE_DIRECTORY)
        settings = running.found(Path(own))
        if settings is None:
            return load(None, os.environ)
        if unlike := running.unlike(settings, os.environ):
            text = f"ctl: {', '.join(unlike)} not used: the service runs with other settings (process {settings.pid})"
            click.echo(text, err=True)
        return load(None, settings.environment)
    except PermissionError:
        raise Stop(f"PERSISTENCE_STATE_DIR = {own}: is another user's; run this as the service's user") from None
    except ConfigError as error:
        raise Stop("\n".join(f"configuration: {line}" for line in error.lines)) from error


def console() -> Console:
    return Console(highlight=False, emoji=False, markup=False, soft_wrap=True)


def emit(document: Any) -> None:
    """A JSON document on stdout, on one line: for jq and for logs."""
    click.echo(orjson.dumps(document))


def finish(status: ExitStatus) -> None:
    click.get_current_context().exit(int(status))


def table(*columns: str, rows: Iterable[Sequence[str | Text]], right: Sequence[str] = ()) -> Text:
    """Args: columns: their names, all empty for a table without a header; right: the right-aligned columns."""
    lines = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    if any(columns):
        lines.insert(0, [Text(name, "bold") for name in columns])
    widths = [max(cell.cell_len for cell in column) for column in zip(*lines, strict=True)]
    made = []
    for line in lines:
        for place, cell in enumerate(line):
            gap = widths[place] - cell.cell_len
            if columns[place] in right:
                cell.pad_left(gap)
            elif place < len(line) - 1:
                cell.pad_right(gap)
        made.append(Text("  ").join(line))
    return Text("\n").join(made)


def pairs(rows: Iterable[tuple[str, str | Text]]) -> Text:
    """Names on the left, their values on the right."""
    return table("", "", rows=[(Text(name, "bold"), value) for name, value in rows])


def styled(state: str) -> Text:
    return Text(state, style=STYLES.get(state, "bold red"))


@contextmanager
def progress(noun: str, total: int, *, as_json: bool) -> Iterator[Callable[[int, str], None]]:
    """A bar on stderr in a terminal; none in a log or with --json. Yields: a function of the number done and a text."""
    terminal = Console(stderr=True)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(noun),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=terminal, disable=as_json or not terminal.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda done, text: bar.update(task, completed=done, description=text)


def printable(text: str) -> str:
    """Escapes control characters: text of a record must not steer a terminal."""
    return text.translate(_CONTROLS)


def pretty(document: Any) -> str:
    """JSON for a person: indented, non-Latin scripts unescaped, control characters escaped."""
    lines = orjson.dumps(document, option=orjson.OPT_INDENT_2).decode().split("\n")
    return "\n".join(map(printable, lines))


def size(count: float) -> str:
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024 or unit == "GiB":
            break
    return f"{count:.1f} {unit}"


def age(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def moment(given: int | str | None) -> str:
    """The one form in which times are shown. Args: given: µs since 1970 UTC, which damage may have made any number, or
    ISO 8601 in UTC."""
    try:
        text = (EPOCH + timedelta(microseconds=given)).isoformat() if isinstance(given, int) else given or "?"
    except OverflowError:
        return f"{given} µs"
    return f"{text[:19]}Z"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
