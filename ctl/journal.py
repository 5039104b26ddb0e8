"""`journal inspect`: the content of the segment files, whether the flusher runs or not. Opens them read-only.

While it runs, a segment may vanish between listing and reading (its rows are in the database then), and an append under
way shows as a torn tail of the active one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.text import Text

from ctl.output import (
    ExitStatus,
    Stop,
    age,
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
    size,
    table,
)
from flusher.segments import BROKEN_SUFFIX, SUFFIX, Contents, Damage, Entry, read
from shared import running
from shared.bodies import InvalidBody, decode_raw
from shared.records import KIND_OF_CODE


class SegmentView(msgspec.Struct, frozen=True):
    """A segment in figures. Arrivals in µs since 1970 UTC, 0 where there is no entry."""

    path: str
    state: str
    version: int | None
    bytes: int
    entries: int
    records: dict[str, int]
    first_arrival: int
    last_arrival: int
    damage: list[Damage]
    torn: int
    """Bytes of an unfinished append at the end of the newest segment: never acknowledged, so no damage."""


@click.group()
def journal() -> None:
    """The journal: acknowledged records that are not in the database yet."""


@journal.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--records", "with_records", is_flag=True, help="Print the records; as JSON, one a line.")
@key_option
@json_option
def inspect(paths: Sequence[Path], with_records: bool, keys: Sequence[str], as_json: bool) -> None:
    """Segments, entries, age and damage of the journal, or of the PATHs (segments, directories).

    Exit status: 0 all readable, 1 damage was found, 2 there is nothing to read.
    """
    with_records = with_records or bool(keys)
    works = not paths and running.found(Path(configuration().state_directory)) is not None
    views = []
    for path in segments_in(paths or [Path(configuration().journal.directory)]):
        try:
            contents = read(path)
            if contents.torn and not is_newest(path):
                contents = read(path)  # it was the newest a moment ago
        except FileNotFoundError:
            continue  # written and unlinked since the listing
        except OSError as error:
            raise Stop(f"{path}: {error.strerror}") from error
        view = view_of(path, contents, works=works)
        views.append(view)
        if with_records:
            print_records(view, contents, keys, as_json=as_json)
    if not with_records:
        print_views(views, as_json=as_json)
    if not as_json:
        print_damage(views)
    finish(ExitStatus.WRONG if any(view.damage for view in views) else ExitStatus.ALL_RIGHT)


def segments_in(paths: Sequence[Path]) -> list[Path]:
    """The files named, and the segments of the directories, oldest first. Raises: Stop."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            try:
                inside = sorted(path.iterdir())
            except OSError as error:
                raise Stop(f"{path}: {error.strerror}") from error
            found += [each for each in inside if each.name.endswith((SUFFIX, SUFFIX + BROKEN_SUFFIX))]
        elif os.path.exists(path):  # noqa: PTH110 -- False, too, where we may not look
            found.append(path)
        else:
            raise Stop(f"{path}: there is no such file or directory")
    return found


def is_newest(path: Path) -> bool:
    """Whether it is the newest waiting segment of its directory."""
    return path.suffix == SUFFIX and path.name == max(each.name for each in path.parent.glob(f"*{SUFFIX}"))


def view_of(path: Path, contents: Contents, *, works: bool) -> SegmentView:
    """Args: works: whether a flusher runs, and appends to the newest segment."""
    newest = is_newest(path)
    records: dict[str, int] = {}
    for entry in contents.entries:
        name = kind_name(entry)
        records[name] = records.get(name, 0) + entry.count
    arrivals = [entry.arrival for entry in contents.entries]
    set_aside = path.name.endswith(BROKEN_SUFFIX)
    return SegmentView(
        path=str(path),
        state="set aside" if set_aside else "active" if works and newest else "waiting",
        version=contents.version,
        bytes=contents.size,
        entries=len(contents.entries),
        records=records,
        first_arrival=min(arrivals, default=0),
        last_arrival=max(arrivals, default=0),
        damage=contents.damage[:-1] if newest and contents.torn else contents.damage,
        torn=contents.torn if newest else 0,
    )


def kind_name(entry: Entry) -> str:
    kind = KIND_OF_CODE.get(entry.kind)
    return kind.name if kind else f"kind {entry.kind}"


def records_of(entry: Entry) -> list[Any]:
    """The records as they were received; for an entry that is not JSON its text."""
    kind = KIND_OF_CODE.get(entry.kind)
    try:
        if kind:
            return decode_raw(kind, entry.body)
    except InvalidBody:
        pass
    return [bytes(entry.body).decode(errors="backslashreplace")]


def key_of(entry: Entry, record: Any) -> tuple[str, ...]:
    kind = KIND_OF_CODE.get(entry.kind)
    return tuple(str(record.get(name) or "") for name in kind.key) if kind and isinstance(record, dict) else ()


def print_views(views: list[SegmentView], *, as_json: bool) -> None:
    if as_json:
        emit({"segments": [msgspec.to_builtins(view) for view in views]})
        return
    if views:
        columns = ("segment", "state", "size", "entries", "records", "oldest", "damage")
        rows = map(row_of, views)
        console().print(table(*columns, rows=rows, right=("size", "entries", "oldest")))
    total = sum(sum(view.records.values()) for view in views)
    console().print(f"{plural(total, 'record')} in {plural(len(views), 'segment')}")


def row_of(view: SegmentView) -> list[str | Text]:
    records = ", ".join(f"{name} {count:,}" for name, count in view.records.items()) or "none"
    oldest = age(max(0.0, time.time() - view.first_arrival / 1e6)) if view.first_arrival else "-"
    damage = plural(sum(part.length for part in view.damage), "byte") if view.damage else "none"
    if view.torn:
        damage += f"; {plural(view.torn, 'byte')} of an append that had not ended"
    said = Text(damage, "bold red" if view.damage else "")
    return [printable(Path(view.path).name), view.state, size(view.bytes), f"{view.entries:,}", records, oldest, said]


def print_damage(views: list[SegmentView]) -> None:
    for view in views:
        for part in view.damage:
            where = f"{plural(part.length, 'byte')} at offset {part.offset:,} cannot be read"
            console().print(f"damage: {printable(view.path)}: {where}", style="bold red")


def print_records(view: SegmentView, contents: Contents, keys: Sequence[str], *, as_json: bool) -> None:
    """Prints segment by segment: a journal may be larger than memory."""
    for number, entry in enumerate(contents.entries):
        kind = kind_name(entry)
        for record in records_of(entry):
            key = key_of(entry, record)
            if not is_chosen(key, keys):
                continue
            if as_json:
                document = {"segment": view.path, "entry": number, "arrival": entry.arrival, "kind": kind}
                emit({**document, "record": record})
            else:
                name = printable(Path(view.path).name)
                head = f"{name} entry {number}, {kind} {key_text(key)}, received {moment(entry.arrival)}"
                click.secho(head, bold=True)
                click.echo(pretty(record))
