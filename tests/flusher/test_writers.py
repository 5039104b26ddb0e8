from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from flusher.answers import IDLE_PRIORITY, Alive, Failed
from flusher.writers import WriterDied, Writers, _Child
from tests.support.service import wait_until

# A child that answers with its own process id as the host, and does what the path of a segment says.
CHILD = r"""
import json, os, signal, sys
for line in sys.stdin:
    command = json.loads(line)
    word = command.get("write", "")
    if word == "die":
        os._exit(1)
    if word == "half":
        sys.stdout.write('{"answer":"alive",')
        sys.stdout.flush()
        os._exit(1)
    if word == "garbage":
        print("Traceback (most recent call last):", flush=True)
        continue
    if word == "silent":
        continue
    if word in ("lost", "kept"):
        answer = {"answer": "failed", "error_class": "retry", "number": 1, "message": "", "connected": word == "kept"}
        print(json.dumps(answer), flush=True)
        continue
    if word == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if word.startswith("/"):
        open(word + ".begun", "w").close()
        open(word).close()  # a fifo: waits for the test
    version = "x" * 3_000_000 if word == "long" else ""
    print(json.dumps({"answer": "alive", "host": str(os.getpid()), "version": version}), flush=True)
"""


@pytest.fixture
def writers(request: pytest.FixtureRequest) -> AbstractAsyncContextManager[Writers]:
    marker = request.node.get_closest_marker("writers")
    return of_children(**(marker.kwargs if marker else {"slow_command_s": 30.0}))


@asynccontextmanager
async def of_children(slow_command_s: float) -> AsyncIterator[Writers]:
    writers = Writers(30.0, (sys.executable, "-c", CHILD), slow_command_s=slow_command_s)
    try:
        yield writers
    finally:
        await writers.terminate()


async def pid_of(writers: Writers, word: str = "") -> int:
    answer = await writers.ask({"write": word})
    assert isinstance(answer, Alive)
    return int(answer.host)


async def held_up(writers: Writers, fifo: Path) -> asyncio.Task[int]:
    """A child at work until somebody opens `fifo` to write. Returns: what pid_of() will have."""
    os.mkfifo(fifo)
    asked = asyncio.create_task(pid_of(writers, str(fifo)))
    await asyncio.to_thread(wait_until, Path(f"{fifo}.begun").exists)
    return asked


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def test_one_child_serves_one_command_after_the_other(writers: Writers) -> None:
    assert await pid_of(writers) == await pid_of(writers)
    assert (writers.processes, writers.busy) == (1, 0)


async def test_a_child_at_work_gets_a_second_command_and_no_third_and_answers_in_their_order(
    writers: Writers, tmp_path: Path
) -> None:
    fifos = [tmp_path / "a", tmp_path / "b"]
    first = await held_up(writers, fifos[0])
    second = asyncio.create_task(pid_of(writers))
    await asyncio.sleep(0)
    third = await held_up(writers, fifos[1])
    assert (writers.processes, writers.busy) == (2, 2)
    assert not second.done()
    for fifo in fifos:
        await asyncio.to_thread(lambda fifo=fifo: fifo.open("w").close())

    assert await first == await second != await third


async def test_both_commands_of_a_child_that_ends_are_given_back(writers: Writers, tmp_path: Path) -> None:
    fifo = tmp_path / "a"
    os.mkfifo(fifo)
    pid = await pid_of(writers)
    asked = [asyncio.create_task(writers.ask({"write": word})) for word in (str(fifo), "")]
    await asyncio.to_thread(wait_until, Path(f"{fifo}.begun").exists)
    os.kill(pid, signal.SIGKILL)

    assert [type(found) for found in await asyncio.gather(*asked, return_exceptions=True)] == 2 * [WriterDied]
    assert (writers.processes, writers.busy) == (0, 0)
    assert await pid_of(writers) != pid


@pytest.mark.writers(slow_command_s=0.0)
async def test_a_child_whose_command_is_held_up_gets_no_second_one(writers: Writers, tmp_path: Path) -> None:
    fifos = [tmp_path / "a", tmp_path / "b"]
    asked = [await held_up(writers, fifo) for fifo in fifos]
    assert writers.busy == 2
    for fifo in fifos:
        await asyncio.to_thread(lambda fifo=fifo: fifo.open("w").close())

    assert len(set(await asyncio.gather(*asked))) == 2
    assert (writers.processes, writers.busy) == (2, 0)


@pytest.mark.writers(slow_command_s=0.0)
async def test_the_first_child_yields_its_core_and_one_beside_it_does_not(writers: Writers, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    asked = await held_up(writers, fifo)
    second = await pid_of(writers)
    await asyncio.to_thread(lambda: fifo.open("w").close())
    first = await asked

    assert first != second
    assert IDLE_PRIORITY in arguments(first)
    assert IDLE_PRIORITY not in arguments(second)


def arguments(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


async def test_a_child_counts_as_connected_until_it_says_otherwise_or_ends(writers: Writers) -> None:
    seen = []
    for word in ("lost", "", "kept", "lost", "kept"):
        await writers.ask({"write": word})
        seen.append(writers.connected)
    assert seen == [0, 1, 1, 0, 1]
    with pytest.raises(WriterDied):
        await writers.ask({"write": "die"})
    assert writers.connected == 0


@pytest.mark.parametrize("word", ["die", "half", "garbage"])
async def test_a_child_that_ends_or_talks_nonsense_is_replaced(writers: Writers, word: str) -> None:
    first = await pid_of(writers)
    with pytest.raises(WriterDied):
        await writers.ask({"write": word})
    assert (writers.processes, writers.busy) == (0, 0)
    assert is_gone(first)

    assert await pid_of(writers) != first


@pytest.mark.parametrize("word", ["silent", "stopped"])
async def test_a_child_that_does_not_answer_in_time_is_killed_and_replaced(writers: Writers, word: str) -> None:
    first = await pid_of(writers)
    writers._answer_timeout_s = 0.05
    with pytest.raises(WriterDied, match="no answer in"):
        await writers.ask({"write": word})
    assert is_gone(first)

    writers._answer_timeout_s = 30.0
    assert await pid_of(writers) != first


async def test_a_child_killed_while_idle_is_replaced_by_the_next_command_or_the_one_after(writers: Writers) -> None:
    first = await pid_of(writers)
    os.kill(first, signal.SIGKILL)
    # The kernel may tell us before or after the next command is written.
    second = 0
    while not second:
        try:
            second = await pid_of(writers)
        except WriterDied:
            continue
    assert second != first


async def test_a_killed_child_under_way_is_noticed_at_once(writers: Writers, tmp_path: Path) -> None:
    pid = await pid_of(writers)
    asked = await held_up(writers, tmp_path / "a")
    os.kill(pid, signal.SIGKILL)

    with pytest.raises(WriterDied):
        await asked


async def test_an_answer_of_megabytes_is_read_whole(writers: Writers) -> None:
    answer = await writers.ask({"write": "long"})
    assert isinstance(answer, Alive)
    assert len(answer.version) == 3_000_000


@pytest.mark.writers(slow_command_s=0.0)
async def test_shrink_ends_idle_children_over_the_number_to_keep(writers: Writers, tmp_path: Path) -> None:
    fifo = tmp_path / "a"
    asked = await held_up(writers, fifo)
    idle = await pid_of(writers)

    writers.shrink(2)
    assert await pid_of(writers) == idle
    writers.shrink(1)
    assert (writers.processes, writers.busy) == (1, 1)
    await asyncio.to_thread(wait_until, lambda: is_zombie_or_gone(idle))
    await asyncio.to_thread(lambda: fifo.open("w").close())
    await asked


def is_zombie_or_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.writers(slow_command_s=0.0)
async def test_terminate_kills_idle_and_busy_children(writers: Writers, tmp_path: Path) -> None:
    busy = await held_up(writers, tmp_path / "a")
    idle = await pid_of(writers)
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    assert str(idle) in children

    await writers.terminate()

    with pytest.raises(WriterDied):
        await busy
    assert writers.processes == 0
    assert is_gone(idle)


async def test_a_cancelled_command_leaves_no_child_that_would_answer_the_next_one(
    writers: Writers, tmp_path: Path
) -> None:
    first = await pid_of(writers)
    asked = await held_up(writers, tmp_path / "a")
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert is_gone(first)
    assert writers.processes == 0


async def test_a_program_that_cannot_be_started_is_a_dead_writer() -> None:
    with pytest.raises(WriterDied, match="cannot be started"):
        await Writers(30.0, ("/no/such/program",)).ask({"ping": True})


async def test_a_child_that_one_command_could_not_start_is_not_started_by_the_next(
    writers: Writers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would know it, use it again or end it."""
    start = writers._start

    async def fail(_: object) -> asyncio.subprocess.Process:
        await asyncio.sleep(0)  # the other command waits for this one by then
        monkeypatch.setattr(writers, "_start", start)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(writers, "_start", fail)
    died = await asyncio.gather(pid_of(writers), pid_of(writers), return_exceptions=True)
    assert [type(one) for one in died] == [WriterDied, WriterDied]
    await pid_of(writers)
    assert writers.processes == 1


async def test_an_answer_of_the_real_kind_is_told_apart_by_its_tag() -> None:
    line = '{"answer":"failed","error_class":"schema","number":1146,"message":"no table"}'

    writers = Writers(30.0, (sys.executable, "-c", f"input(); print({line!r})"))
    answer = await writers.ask({"ping": True})
    assert answer == Failed(answer.error_class, 1146, "no table")  # type: ignore[union-attr]
    await writers.terminate()


def test_a_writer_that_died_before_it_was_asked_is_reported_as_dead() -> None:
    """Its pipe is closed then, and uvloop's write() to a closed pipe is a RuntimeError."""

    async def ask_the_dead() -> None:
        writers = Writers(5.0, command=("true",))
        child = _Child(0.0, ())
        child.process = await writers._start(child.arguments)
        assert child.process.stdin is not None
        await child.process.wait()
        while not child.process.stdin.is_closing():
            await asyncio.sleep(0)
        writers._choose = lambda: child  # type: ignore[method-assign] -- chosen before its end was seen
        with pytest.raises(WriterDied):
            await writers.ask({"ping": True})
        assert writers.busy == 0

    uvloop.run(asyncio.wait_for(ask_the_dead(), 60))
