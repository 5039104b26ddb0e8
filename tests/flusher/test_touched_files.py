"""Each segment that somebody has touched: a line that names it, nothing lost but what was in it, and a way out."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from flusher import dead_letters
from flusher.answers import Answer
from flusher.mysql_errors import ErrorClass
from flusher.sql import Row
from flusher.triggers import FlushReason
from flusher.writer import Writer, prepared
from shared.records import Kind
from tests.support.flusher import FakeWriters, Node, failed, task_body
from tests.support.service import task


class Table:
    """A store that takes every row: their source texts."""

    statements = 1
    connected = True

    def __init__(self) -> None:
        self.texts: set[str] = set()

    def write(self, rows: Mapping[Kind, Sequence[Row]], ready: object) -> None:
        self.texts |= {row.record.source_text for kind_rows in rows.values() for row in kind_rows}  # type: ignore[attr-defined]


class RealWriters(FakeWriters):
    """The real order of a write, in this process, while `away` is False."""

    def __init__(self, table: Table, letters: Path) -> None:
        super().__init__()
        self.away = True
        self._writer = Writer(table, letters, 1 << 20)  # type: ignore[arg-type]

    async def ask(self, command: dict[str, Any]) -> Answer:
        if "write" not in command or self.away:
            return failed(ErrorClass.RECONNECT, 2002)
        path = Path(command["write"])
        return self._writer.write(path, prepared(path, command["size"]))


def delete(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    os.truncate(path, 0)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_unreadable(path: Path) -> None:
    """A loop of links, which not even root can read."""
    path.rename(path.with_suffix(".kept"))
    path.symlink_to(path)


TOUCHES = [delete, empty, truncate, spoil, replace_by_directory, make_unreadable]


def node_of(directory: Path, table: Table) -> tuple[Node, RealWriters]:
    (directory / "journal").mkdir(exist_ok=True)
    writers = RealWriters(table, directory / dead_letters.FILE_NAME)
    return Node(directory / "journal", writers=writers), writers


def submit(node: Node, text: str) -> None:
    node.submit(task_body(task(text, source_text=text)))


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
@pytest.mark.parametrize("target", ["sealed", "active"])
@pytest.mark.parametrize("touch", TOUCHES)
async def test_a_touched_segment_costs_at_most_what_was_in_it_and_has_a_way_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, touch: Callable[[Path], None], target: str, stopped: bool
) -> None:
    table = Table()
    node, writers = node_of(tmp_path, table)
    submit(node, "sealed")
    node.journal.seal(FlushReason.SIZE)
    submit(node, "active")
    path = next(segment.path for segment in node.journal if (segment is node.active) == (target == "active"))
    caplog.set_level("INFO")
    if stopped:
        await node.close()
        touch(path)
        node, writers = node_of(tmp_path, table)
    else:
        touch(path)
        node.journal.check_active_file()
    submit(node, "later")
    writers.away = False
    node.clock.now += 60
    rescued = target == "active" and not stopped and touch in (delete, replace_by_directory, make_unreadable)
    stuck = touch in (replace_by_directory, make_unreadable) and not rescued
    if stuck:
        node.ask_flush()
        await node.until(lambda: node.alarm and node.journal.waiting == 1)
    else:
        await node.ask_flush()
        node.clock.now += 60
        await node.ask_flush()

    assert len(node.acked()) == (1 if stopped else 3)
    lost = {"sealed", "active", "later"} - table.texts
    assert lost <= {target}
    assert not rescued or not lost
    if touch is not delete or not stopped:  # what is gone before the start, nobody knows of
        assert any(path.name in record.getMessage() for record in caplog.records)
    if stuck:
        alarm = node.alarm
        assert alarm is not None
        assert f"mv {path}" in alarm
        shutil.move(path, tmp_path / "elsewhere")
        node.clock.now += 60
        await node.ask_flush()
        assert "has vanished" in caplog.text
    assert node.alarm is None
    assert node.journal.waiting == 0
    assert not node.figures.database.bad
    await node.close()


async def test_a_segment_that_is_put_back_at_the_next_start_is_written(tmp_path: Path) -> None:
    table = Table()
    node, writers = node_of(tmp_path, table)
    submit(node, "kept")
    node.journal.seal(FlushReason.SIZE)
    path = next(iter(node.journal)).path
    path.rename(tmp_path / "elsewhere")
    writers.away = False
    flushed = await node.ask_flush()
    assert flushed.pending == 1  # nobody is told that it is written
    assert (node.figures.vanished, len(list(node.journal))) == (1, 1)
    await node.close()

    (tmp_path / "elsewhere").rename(path)
    node, writers = node_of(tmp_path, table)
    writers.away = False
    assert (await node.ask_flush()).pending == 0
    assert table.texts == {"kept"}
    await node.close()


async def test_a_caller_of_a_commit_is_not_told_of_one_when_its_segment_has_vanished(tmp_path: Path) -> None:
    node, writers = node_of(tmp_path, Table())
    node.submit(task_body(task("a")), want_commit=True)
    await node.settled()
    next(iter(node.journal)).path.unlink()
    writers.away = False
    node.clock.now += 60
    await node.ask_flush()
    assert node.figures.vanished == 1
    assert len(node.answers) == 1
    assert node.scheduler._callers._of_commits == {}
    await node.close()


async def test_a_journal_that_is_removed_whole_refuses_until_it_is_back_and_says_how(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was in it may come back with it: an unmounted disk, a directory that was moved."""

    table = Table()
    node, writers = node_of(tmp_path, table)
    submit(node, "sealed")
    node.journal.seal(FlushReason.SIZE)
    submit(node, "active")
    (tmp_path / "journal").rename(tmp_path / "moved")
    node.journal.check_active_file()
    writers.away = False
    submit(node, "refused")
    node.clock.now += 60
    node.ask_flush()
    await node.until(lambda: node.alarm)
    assert len(node.acked()) == 2
    assert len(node.rejected()) == 1
    refusing = node.intake.refusing
    assert refusing is not None
    assert "mkdir -p" in refusing.reason
    assert node.alarm is not None
    assert "mkdir -p" in node.alarm
    assert node.figures.vanished == 0

    (tmp_path / "moved").rename(tmp_path / "journal")
    node.intake.probe()
    assert node.intake.refusing is None
    submit(node, "later")
    node.clock.now += 60
    assert (await node.ask_flush()).pending == 0
    assert table.texts == {"sealed", "active", "later"}
    assert node.alarm is None
    await node.close()


@pytest.mark.parametrize("put_back", [False, True])
async def test_an_open_segment_that_cannot_be_rescued_yet_is_rescued_when_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, put_back: bool
) -> None:
    """Its file is gone, and no other can be opened, or the disk is full: nothing is lost while it is open."""

    def too_many(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    table = Table()
    node, writers = node_of(tmp_path, table)
    writers.away = False
    submit(node, "kept")
    path = node.active.path.rename(tmp_path / "elsewhere")
    with monkeypatch.context() as patch:
        patch.setattr(node.journal, "_create", too_many)
        for _ in range(3):
            node.clock.now += 4000
            node.journal.check_active_file()
            node.intake.probe()
            submit(node, "refused")
            flushed = await node.ask_flush(0.01)
            assert flushed.pending == 1
            assert node.intake.refusing is not None
            assert "ulimit -n" in node.intake.refusing.reason
    assert caplog.text.count("cannot be kept yet") == 1
    assert "accepting again" not in caplog.text

    if put_back:
        path.rename(node.active.path)
    node.journal.check_active_file()
    node.intake.probe()
    await node.until(lambda: table.texts == {"kept"})
    assert node.intake.refusing is None
    await node.close()


@pytest.mark.parametrize("fails", [errno.EIO, errno.EROFS, errno.EACCES])
async def test_a_segment_that_cannot_be_removed_is_kept_and_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    def refuse(path: Path, **_: object) -> None:
        raise OSError(fails, os.strerror(fails), str(path))

    table = Table()
    node, writers = node_of(tmp_path, table)
    writers.away = False
    submit(node, "kept")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        node.ask_flush()
        await node.until(lambda: node.alarm)
        assert node.journal.waiting == 1
    assert node.alarm is not None
    assert node.alarm.split("; ")[1]
    assert (await node.ask_flush()).pending == 0
    assert node.alarm is None
    await node.close()
