"""What the flusher looks at once a second: its lock, its socket, its files, its dead letters."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from flusher import dead_letters
from flusher.answers import Alive
from flusher.mysql_errors import ErrorClass
from flusher.server import Connections, FlusherProtocol, Listener
from flusher.watch import LOCK_NAME, Watch
from shared.process import lock_or_exit
from shared.wire import SOCKET_NAME
from tests.flusher.test_dead_letters import MAX_BYTES, letter
from tests.support.flusher import Node, bodies_in, failed


class Watched:
    def __init__(self, directory: Path) -> None:
        (directory / "journal").mkdir()
        self.node = Node(directory / "journal")
        self.node.writers.ping = Alive("host", "10.11")
        self.stopped = False
        self.letters = directory / dead_letters.FILE_NAME
        self.socket = directory / SOCKET_NAME
        self.lock = directory / LOCK_NAME
        self.listener = Listener(
            lambda: FlusherProtocol(Connections(), self.node.intake, self.node.scheduler, dict, None)  # type: ignore[arg-type]
        )
        self.watch = Watch(
            directory,
            lock_or_exit(directory, "flusher"),
            journal=self.node.journal,
            intake=self.node.intake,
            scheduler=self.node.scheduler,
            figures=self.node.figures,
            writers=self.node.writers,  # type: ignore[arg-type]
            listen=self.listener.listen,
            stop=self.stop,
        )

    def stop(self) -> None:
        self.stopped = True

    async def connects(self) -> bool:
        try:
            _, writer = await asyncio.open_unix_connection(str(self.socket))
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True


@pytest.fixture
def watched(short_path: Path) -> AbstractAsyncContextManager[Watched]:
    return watching(short_path)


@asynccontextmanager
async def watching(directory: Path) -> AsyncIterator[Watched]:
    watched = Watched(directory)
    await watched.watch.look()
    try:
        yield watched
    finally:
        watched.listener.close()
        await watched.node.close()


def remove_run(watched: Watched) -> None:
    watched.socket.unlink()
    watched.socket.parent.rmdir()


def put_a_file(watched: Watched) -> None:
    watched.socket.unlink()
    watched.socket.write_text("not a socket")


@pytest.mark.parametrize("touch", [lambda watched: watched.socket.unlink(), remove_run, put_a_file])
async def test_a_socket_that_is_removed_or_replaced_is_made_anew(
    watched: Watched, caplog: pytest.LogCaptureFixture, touch: Callable[[Watched], None]
) -> None:
    assert await watched.connects()
    await watched.watch.look()
    assert caplog.text == ""
    touch(watched)
    await watched.watch.look()
    assert await watched.connects()
    assert str(watched.socket) in caplog.text


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_lock_that_is_removed_is_taken_anew(
    watched: Watched, short_path: Path, caplog: pytest.LogCaptureFixture, replaced: bool
) -> None:
    watched.lock.unlink()
    if replaced:
        watched.lock.touch()
    await watched.watch.look()
    assert str(watched.lock) in caplog.text
    with pytest.raises(SystemExit, match="another flusher is at work"):
        lock_or_exit(short_path, "flusher")
    assert not watched.stopped


async def test_of_two_flushers_the_one_whose_lock_was_removed_stops(watched: Watched, short_path: Path) -> None:
    watched.lock.unlink()
    other = lock_or_exit(short_path, "flusher")
    await watched.watch.look()
    assert watched.stopped
    os.close(other)


async def test_a_state_directory_that_is_moved_away_is_said_once_and_stops_nothing(
    watched: Watched, short_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = short_path.with_name(short_path.name + ".away")
    short_path.rename(away)
    for _ in range(3):
        await watched.watch.look()
    messages = [record.getMessage() for record in caplog.records]
    away.rename(short_path)
    await watched.watch.look()
    assert len(messages) == len(set(messages))
    assert any(message.startswith("the lock: ") for message in messages)
    assert await watched.connects()
    assert not watched.stopped
    watched.node.submit(b"body")
    assert watched.node.acked() == [1]


async def test_an_active_segment_that_is_removed_is_rescued_within_a_look(watched: Watched, short_path: Path) -> None:
    watched.node.writers.answer = lambda path: failed(ErrorClass.RECONNECT, 2002)
    watched.node.submit(b"kept")
    assert watched.node.journal.active is not None
    watched.node.active.path.unlink()
    await watched.watch.look()
    assert bodies_in(short_path / "journal") == [b"kept"]


async def test_dead_letters_are_counted_as_they_come_and_go(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    figures = watched.node.figures
    dead_letters.append(watched.letters, [letter("a"), letter("b")], MAX_BYTES)
    await watched.watch.look()
    assert figures.dead_letters_waiting == 2
    dead_letters.remove(watched.letters, [line for line, _ in dead_letters.read(watched.letters)][:1])
    await watched.watch.look()
    assert figures.dead_letters_waiting == 1

    watched.node.writers.busy = 1
    dead_letters.append(watched.letters, [letter("c")], MAX_BYTES)
    await watched.watch.look()
    assert figures.dead_letters_waiting == 1  # its answer will count it
    for _ in range(20):
        await watched.watch.look()
    assert figures.dead_letters_waiting == 2

    assert caplog.text == ""
    watched.letters.unlink()
    for _ in range(20):
        await watched.watch.look()
    assert figures.dead_letters_waiting == 0
    assert caplog.text.count("was removed by somebody, with 2 dead letters") == 1


@pytest.mark.parametrize("spoilt", ["directory", "loop"])
async def test_dead_letters_that_cannot_be_read_are_said_once_and_counted_again_later(
    watched: Watched, caplog: pytest.LogCaptureFixture, spoilt: str
) -> None:
    if spoilt == "directory":
        watched.letters.mkdir()
    else:
        watched.letters.symlink_to(watched.letters)
    for _ in range(3):
        await watched.watch.look()
    assert caplog.text.count("the dead letters: ") == 1
    watched.letters.rmdir() if spoilt == "directory" else watched.letters.unlink()
    dead_letters.append(watched.letters, [letter("a")], MAX_BYTES)
    await watched.watch.look()
    assert watched.node.figures.dead_letters_waiting == 1


def test_a_look_reads_only_what_has_come_since_the_last(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MiB of letters are not decoded each second."""
    path = short_path / dead_letters.FILE_NAME
    decoded: list[bytes] = []
    original = dead_letters._decoded
    monkeypatch.setattr(dead_letters, "_decoded", lambda line: (decoded.append(line), original(line))[1])
    count = dead_letters.Count(path)
    dead_letters.append(path, [letter(str(number)) for number in range(100)], MAX_BYTES)
    assert count.look() == 100
    decoded.clear()
    assert count.look() == 100
    assert decoded == []
    dead_letters.append(path, [letter("new")], MAX_BYTES)
    assert count.look() == 101
    assert len(decoded) == 1


async def test_segments_that_were_set_aside_are_no_problem_any_more_once_somebody_has_removed_them(
    watched: Watched, short_path: Path
) -> None:
    kept = short_path / "journal" / f"{9:020}.segment.broken"
    kept.touch()
    watched.node.journal.set_aside = 1
    await watched.watch.look()
    assert watched.node.journal.set_aside == 1
    kept.unlink()
    await watched.watch.look()
    assert watched.node.journal.set_aside == 0
