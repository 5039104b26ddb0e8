"""`journal inspect`: what lies in the segment files, whether the flusher runs or not. Opened to read, never to write.

While it runs, a segment may go between listing and reading (its rows are in the database then), and the active one may
be read in the middle of an append.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from shared.bodies import InvalidBody, decode_raw
from shared.records import KIND_OF_CODE

_LOOKS = 5
_BETWEEN_LOOKS_S = 0.02


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
    """Bytes of an append that had not ended, at the end of the newest: nobody was promised them, and no damage."""


@dataclass(frozen=True, slots=True)
class Found:
    """One record, or the text of an entry that is not JSON."""

    entry: int
    arrival: int
    kind: str
    key: tuple[str, ...]
    record: Any


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

    Exit status: 0 all readable, 1 damage was found, 2 nothing to read there.
    """
    with_records = with_records or bool(keys)
    directory = None if paths else Path(configuration().journal.directory)
    views = []
    for path in segments_in(paths or [directory] if directory else paths):
        try:
            contents = settled(path)
        except FileNotFoundError:
            continue  # written and gone since we listed it
        except OSError as error:
            raise Stop(f"{path}: {error.strerror}") from error
        view = view_of(path, contents, newest=is_newest(path))
        views.append(view)
        if with_records:
            print_records(view, contents, keys, as_json=as_json)
    if directory is not None:
        views = with_active(views)
    if not with_records:
        print_views(views, as_json=as_json)
    elif not as_json:
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


def settled(
    path: Path, look: Callable[[Path], Contents] = read, pause: Callable[[float], None] = time.sleep
) -> Contents:
    """Reads a segment; again while its end is damaged and it still grows: that is an append under way."""
    contents = look(path)
    for _ in range(_LOOKS):
        if not contents.damage or contents.damage[-1].offset + contents.damage[-1].length != contents.size:
            break
        pause(_BETWEEN_LOOKS_S)
        again = look(path)
        if again.size == contents.size and again.damage == contents.damage:
            break
        contents = again
    return contents


def is_newest(path: Path) -> bool:
    """Of the segments in its directory that wait."""
    return path.suffix == SUFFIX and path.name == max(each.name for each in path.parent.glob(f"*{SUFFIX}"))


def view_of(path: Path, contents: Contents, *, newest: bool) -> SegmentView:
    records: dict[str, int] = {}
    for entry in contents.entries:
        name = kind_name(entry)
        records[name] = records.get(name, 0) + entry.count
    arrivals = [entry.arrival for entry in contents.entries]
    return SegmentView(
        path=str(path),
        state="set aside" if path.name.endswith(BROKEN_SUFFIX) else "waiting",
        version=contents.version,
        bytes=contents.size,
        entries=len(contents.entries),
        records=records,
        first_arrival=min(arrivals, default=0),
        last_arrival=max(arrivals, default=0),
        damage=contents.damage[:-1] if newest and contents.torn else contents.damage,
        torn=contents.torn if newest else 0,
    )


def with_active(views: list[SegmentView]) -> list[SegmentView]:
    """A flusher at work appends to the newest segment of its journal."""
    newest = max((view.path for view in views if view.state == "waiting"), default=None)
    if newest is None or not flusher_runs(Path(configuration().state_directory)):
        return views
    return [msgspec.structs.replace(view, state="active") if view.path == newest else view for view in views]


def flusher_runs(state_directory: Path) -> bool:
    """Whether somebody holds the lock of the state directory.

    Read from /proc/locks (proc(5)): to try the lock ourselves could make a flusher fail that starts just now. The
    device is left out, since some file systems show another one there.
    """
    try:
        inode = (state_directory / "flusher.lock").stat().st_ino
        locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    return any(" FLOCK " in lock and f":{inode} " in lock for lock in locks)


def kind_name(entry: Entry) -> str:
    kind = KIND_OF_CODE.get(entry.kind)
    return kind.name if kind else f"kind {entry.kind}"


def records_of(contents: Contents) -> Iterator[Found]:
    """Every record as it was received, in the order of arrival."""
    for number, entry in enumerate(contents.entries):
        kind = KIND_OF_CODE.get(entry.kind)
        items: list[Any]
        try:
            items = decode_raw(kind, entry.body) if kind else [text_of(entry)]
        except InvalidBody:
            items = [text_of(entry)]
        for item in items:
            fields = kind.key if kind and isinstance(item, dict) else ()
            key = tuple(str(item.get(name) or "") for name in fields)
            yield Found(number, entry.arrival, kind_name(entry), key, item)


def text_of(entry: Entry) -> str:
    return bytes(entry.body).decode(errors="backslashreplace")


def print_views(views: list[SegmentView], *, as_json: bool) -> None:
    if as_json:
        emit({"segments": [msgspec.to_builtins(view) for view in views]})
        return
    now = time.time()
    terminal = console()
    rows: list[list[str | Text]] = []
    for view in views:
        records = ", ".join(f"{name} {count:,}" for name, count in view.records.items()) or "none"
        oldest = age(max(0.0, now - view.first_arrival / 1e6)) if view.first_arrival else "-"
        damage = plural(sum(part.length for part in view.damage), "byte") if view.damage else "none"
        if view.torn:
            damage += f"; {plural(view.torn, 'byte')} of an append that had not ended"
        style = "bold red" if view.damage else ""
        rows.append(
            [
                printable(Path(view.path).name),
                view.state,
                size(view.bytes),
                f"{view.entries:,}",
                records,
                oldest,
                Text(damage, style),
            ]
        )
    if rows:
        columns = ("segment", "state", "size", "entries", "records", "oldest", "damage")
        terminal.print(table(*columns, rows=rows, right=("size", "entries", "oldest")))
    total = sum(sum(view.records.values()) for view in views)
    terminal.print(f"{plural(total, 'record')} in {plural(len(views), 'segment')}")
    print_damage(views)


def print_damage(views: list[SegmentView]) -> None:
    for view in views:
        for part in view.damage:
            where = f"{plural(part.length, 'byte')} at offset {part.offset:,} cannot be read"
            console().print(f"damage: {printable(view.path)}: {where}", style="bold red")


def print_records(view: SegmentView, contents: Contents, keys: Sequence[str], *, as_json: bool) -> None:
    """Printed segment by segment: a journal may be larger than what memory should hold."""
    for found in records_of(contents):
        if not is_chosen(found.key, keys):
            continue
        if as_json:
            emit(
                {
                    "segment": view.path,
                    "entry": found.entry,
                    "arrival": found.arrival,
                    "kind": found.kind,
                    "record": found.record,
                }
            )
        else:
            name = printable(Path(view.path).name)
            click.secho(
                f"{name} entry {found.entry}, {found.kind} {key_text(found.key)}, received {moment(found.arrival)}",
                bold=True,
            )
            click.echo(pretty(found.record))
