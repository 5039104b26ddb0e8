"""`deadletters list|show|replay`: records that the database refused.

They are in a file of this node: listing needs no service, a replay needs the flusher.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from ctl.output import (
    ExitStatus,
    Stop,
    Wrong,
    configuration,
    console,
    emit,
    finish,
    is_chosen,
    json_option,
    key_option,
    key_text,
    moment,
    plural,
    pretty,
    printable,
    progress,
    table,
)
from flusher import dead_letters
from flusher.dead_letters import DeadLetter
from flusher.replay import NotReplayed, is_replayable, replay
from shared.wire import SOCKET_NAME

_ERROR_SHOWN = 100


@click.group()
def deadletters() -> None:
    """Records that the database refused for their content."""


def chosen_by(command: Callable[..., Any]) -> Callable[..., Any]:
    error = click.option("--error", "errors", multiple=True, type=int, help="Those refused with this error number.")
    return key_option(error(command))


def all_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return chosen_by(click.option("--all", "everything", is_flag=True, help="All of them.")(json_option(command)))


def choose(keys: Sequence[str], errors: Sequence[int]) -> list[tuple[bytes, DeadLetter]]:
    """The letters chosen, with their lines. Raises: Stop where the file cannot be read."""
    path = letters_path()
    try:
        return [
            (line, letter)
            for line, letter in dead_letters.read(path)
            if is_chosen(letter.ids, keys) and (not errors or letter.error_code in errors)
        ]
    except OSError as error:
        raise Stop(f"{path}: {error.strerror}") from error


def need_a_choice(keys: Sequence[str], errors: Sequence[int], everything: bool) -> None:
    if not (keys or errors or everything):
        raise click.UsageError("which ones: --key KEY, --error NUMBER or --all")


def letters_path() -> Path:
    return Path(configuration().state_directory, dead_letters.FILE_NAME)


@deadletters.command("list")
@chosen_by
@click.option("--limit", type=click.IntRange(0), default=20, show_default=True, help="The newest so many; 0: all.")
@json_option
def list_letters(keys: Sequence[str], errors: Sequence[int], limit: int, as_json: bool) -> None:
    """Their number, the reasons, and the newest of them without content.

    Exit status: 0, also where there are some (status tells); 2 the file cannot be read.
    """
    letters = [letter for _, letter in choose(keys, errors)]
    reasons = Counter((letter.kind, letter.error_code, letter.column) for letter in letters).most_common()
    shown = letters[-limit:]
    if as_json:
        named = [dict(zip(("kind", "error_code", "column"), reason, strict=True)) for reason, _ in reasons]
        emit(
            {
                "count": len(letters),
                "reasons": [{**one, "count": count} for one, (_, count) in zip(named, reasons, strict=True)],
                "letters": [without_record(letter) for letter in shown],
            }
        )
        return
    terminal = console()
    if not letters:
        terminal.print("no dead letters")
        return
    for (kind, number, column), count in reasons:
        where = f", column {column}" if column else ""
        terminal.print(f"{count:,} {kind} refused with error {number}{where}")
    terminal.print()
    rows = [
        (moment(letter.time), letter.kind, key_text(letter.ids), str(letter.error_code), shortened(letter.error))
        for letter in shown
    ]
    terminal.print(table("refused at", "kind", "key", "error", "message", rows=rows))
    if len(shown) < len(letters):
        terminal.print(f"the newest {len(shown)} of {plural(len(letters), 'dead letter')}; --limit 0 lists all")


def without_record(letter: DeadLetter) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(letter)
    del document["record"]
    return {**document, "replayable": is_replayable(letter)}


def shortened(message: str) -> str:
    text = printable(message)
    return text if len(text) <= _ERROR_SHOWN else text[: _ERROR_SHOWN - 1] + "…"


@deadletters.command()
@all_option
def show(keys: Sequence[str], errors: Sequence[int], everything: bool, as_json: bool) -> None:
    """The letters with their records, as they were received; as JSON, one a line.

    Exit status: 0, 1 there is no such dead letter, 2 usage or the file cannot be read.
    """
    need_a_choice(keys, errors, everything)
    letters = [letter for _, letter in choose(keys, errors)]
    for letter in letters:
        if as_json:
            emit(msgspec.to_builtins(letter))
            continue
        where = f" ({letter.column})" if letter.column else ""
        click.secho(f"{letter.kind} {key_text(letter.ids)}", bold=True)
        click.echo(f"received {moment(letter.arrival)}, refused {moment(letter.time)}")
        click.echo(f"error {letter.error_code}{where}: {printable(letter.error)}")
        click.echo(pretty(letter.record))
    if not letters:
        raise Wrong("there is no such dead letter")


@deadletters.command("replay")
@all_option
def replay_letters(keys: Sequence[str], errors: Sequence[int], everything: bool, as_json: bool) -> None:
    """Sends them through acceptance again and writes them. Mend the cause of the refusals first.

    A newer row stays as it is. Letters with the same reason go in growing rounds: if the first is refused again, the
    others are held back.

    Exit status: 0 none of those chosen is left, 1 some stay or are refused again, 2 usage or no flusher.
    """
    need_a_choice(keys, errors, everything)
    chosen = choose(keys, errors)
    able = [(line, letter) for line, letter in chosen if is_replayable(letter)]
    counts = {
        "chosen": len(chosen),
        "written": 0,
        "refused_again": 0,
        "held_back": 0,
        "not_replayable": len(chosen) - len(able),
    }
    problem = None
    socket_path = Path(configuration().state_directory) / SOCKET_NAME
    with progress("dead letters", len(able), as_json=as_json) as advance:
        try:
            for done in replay(letters_path(), socket_path, able) if able else ():
                counts["written"] += done.written
                counts["refused_again"] += done.refused
                counts["held_back"] += done.held_back
                advance(counts["written"] + counts["refused_again"] + counts["held_back"], "")
        except (NotReplayed, OSError) as error:
            problem = str(error)
    if as_json:
        emit({**counts, "error": problem})
    else:
        tell(counts)
    if problem:
        stop = Wrong if counts["written"] or counts["refused_again"] else Stop
        raise stop(f"{plural(counts['written'], 'dead letter')} of {len(chosen):,} replayed: {problem}")
    finish(ExitStatus.WRONG if counts["written"] != len(chosen) else ExitStatus.ALL_RIGHT)


def tell(counts: dict[str, int]) -> None:
    terminal = console()
    terminal.print(f"{plural(counts['written'], 'dead letter')} replayed and written")
    for name, noun, words, style in (
        ("refused_again", "record", "refused again, a dead letter as before", "bold red"),
        ("held_back", "dead letter", "held back: refused for the same reason", "yellow"),
        ("not_replayable", "dead letter", "cannot be replayed: its record did not decode (deadletters show)", "yellow"),
    ):
        if counts[name]:
            terminal.print(f"{plural(counts[name], noun)} {words}", style=style)
