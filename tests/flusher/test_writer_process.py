"""The writer as a child process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.machine import ALL, on_cores
from flusher.answers import IDLE_PRIORITY
from flusher.segments import Entry
from flusher.writer import NICE, PREPARING_NICE, runs_idle
from shared.config import load
from tests.support.flusher import sessions_body, task_body
from tests.support.service import ROOT, session, task, threads, wait_until
from tests.support.writer import ARRIVAL, Place, is_written


class Child:
    """`python -m flusher.writer`, by hand."""

    def __init__(self, place: Place, directory: Path, user: str = "root", arguments: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flusher.writer", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                "PATH": os.environ["PATH"],
                "PERSISTENCE_STATE_DIR": str(directory),
                "DB_SOCKET": place.mariadb.socket,
                "DB_DATABASE": place.database,
                "DB_USER": user,
                "LOGGING_FILE": str(directory / "log"),
            },
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def send(self, line: bytes) -> None:
        self.stdin.write(line + b"\n")
        self.stdin.flush()

    def ask(self, command: dict[str, Any]) -> Any:
        self.send(json.dumps(command).encode())
        return json.loads(self.stdout.readline())

    def end(self) -> None:
        if not self.stdin.closed:
            self.stdin.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        self.stdout.close()


@pytest.fixture
def child(place: Place, tmp_path: Path) -> Iterator[Child]:
    made = Child(place, tmp_path)
    yield made
    made.end()


def test_the_child_answers_one_line_of_json_for_each_line_it_is_given(place: Place, child: Child) -> None:
    first = place.segment(task_body(task("a")))
    second = place.segment(task_body(task("b")))

    assert child.ask({"ping": True})["answer"] == "alive"
    written = child.ask({"write": str(first)})
    assert (written["answer"], written["rows"]) == ("written", {"sessions": 0, "tasks": 1})
    assert child.ask({"write": str(second)})["answer"] == "written"
    assert child.ask({"write": str(second) + "-not-there"})["answer"] == "failed"
    assert child.ask({"write": str(second)})["answer"] == "written"
    assert set(place.tasks()) == {"a", "b"}
    assert first.exists()


def opened_by_a_reader(fifo: Path) -> int | None:
    try:
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None  # nobody reads it yet


def test_the_child_prepares_the_next_segment_while_the_database_is_at_work(place: Place, child: Child) -> None:
    first = place.segment(task_body(task("a")))
    content = place.segment(task_body(task("b"))).read_bytes()
    second = first.with_name("fifo")
    os.mkfifo(second)
    holder = place.mariadb.connect(place.database)
    try:
        holder.query("LOCK TABLES translation_tasks WRITE")
        for path in (first, second):
            child.send(json.dumps({"write": str(path)}).encode())
        fd = wait_until(lambda: opened_by_a_reader(second), what="the second segment is read")
        os.write(fd, content)
        os.close(fd)
    finally:
        holder.query("UNLOCK TABLES")
        holder.close()

    answers = [json.loads(child.stdout.readline()) for _ in range(2)]
    assert [answer["rows"]["tasks"] for answer in answers] == [1, 1]
    assert set(place.tasks()) == {"a", "b"}


def test_asking_the_database_goes_before_preparing_and_accepting_before_both(child: Child) -> None:
    assert child.ask({"ping": True})["answer"] == "alive"

    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert [os.getpriority(os.PRIO_PROCESS, thread) for thread in threads(child.process.pid)] == [
        min(own + NICE, 19),
        PREPARING_NICE,
    ]


@pytest.mark.parametrize(
    ("cores", "arguments", "expected"),
    [
        (ALL, [IDLE_PRIORITY], os.SCHED_IDLE if len(ALL) > 1 else os.SCHED_OTHER),
        (ALL, [], os.SCHED_OTHER),
        (ALL[:1], [IDLE_PRIORITY], os.SCHED_OTHER),
    ],
    ids=["idle", "normal", "one core"],
)
def test_a_first_writer_is_at_idle_priority_where_there_are_other_cores(
    place: Place, tmp_path: Path, cores: Sequence[int], arguments: Sequence[str], expected: int
) -> None:
    with on_cores(cores):
        child = Child(place, tmp_path, arguments=arguments)
    try:
        assert child.ask({"ping": True})["answer"] == "alive"
        assert [os.sched_getscheduler(thread) for thread in threads(child.process.pid)] == [expected] * 2
    finally:
        child.end()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({"DB_SOCKET": "/s"}, True), ({"DB_HOST": "127.0.0.1"}, True), ({"DB_HOST": "db.example"}, False)],
)
def test_only_beside_a_database_on_this_machine_a_writer_is_at_idle_priority(
    variables: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    database = load("/dev/null", variables).database
    assert runs_idle([IDLE_PRIORITY], database) is expected
    assert not runs_idle([], database)


def test_the_child_ends_when_its_stdin_closes(child: Child) -> None:
    assert child.ask({"ping": True})["answer"] == "alive"
    child.stdin.close()

    assert child.process.wait(30) == 0


def test_the_child_ends_without_a_word_when_nobody_reads_its_answers(child: Child, capfd: Any) -> None:
    assert child.ask({"ping": True})["answer"] == "alive"
    child.stdout.close()
    child.send(b'{"ping": true}')

    assert child.process.wait(30) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("how", ["stdin closes", "killed"])
def test_a_child_that_ends_in_the_middle_of_a_query_leaves_nothing_half_written(
    place: Place, child: Child, how: str
) -> None:
    bodies = [Entry(1, 1, ARRIVAL, sessions_body(session())), Entry(2, 1, ARRIVAL, task_body(task("a")))]
    path = place.segment_of(bodies)
    holder = place.mariadb.connect(place.database)
    try:
        holder.query("LOCK TABLES translation_tasks WRITE")
        child.send(json.dumps({"write": str(path)}).encode())
        waiting = (
            "SELECT COUNT(*) FROM information_schema.processlist"
            f" WHERE db = '{place.database}' AND state LIKE '%metadata lock%'"
        )
        wait_until(lambda: place.execute(waiting) == [(1,)], what="the child's upsert waits for the lock")
        if how == "killed":
            child.process.send_signal(signal.SIGKILL)
        else:
            child.stdin.close()
        status = child.process.wait(30)
        assert status == (-signal.SIGKILL if how == "killed" else 0)
    finally:
        holder.query("UNLOCK TABLES")
        holder.close()

    wait_until(lambda: place.execute("SELECT COUNT(*) FROM translation_sessions") == [(0,)])
    assert path.exists()
    assert is_written(place.write(path)).rows == {"sessions": 1, "tasks": 1}


def test_two_writers_with_overlapping_keys_do_not_deadlock(place: Place, tmp_path: Path) -> None:
    keys = [(session_id, f"{number:03}") for session_id in "ab" for number in range(250)]
    paths = [
        place.segment(
            task_body(*[task(task_id, session_id=session_id, source_text=str(turn)) for session_id, task_id in order]),
            count=500,
        )
        for turn, order in enumerate([keys, keys[::-1]] * 4)
    ]
    children = [Child(place, tmp_path) for _ in range(2)]
    try:
        for pair in zip(paths[::2], paths[1::2], strict=True):
            waiting = list(zip(children, pair, strict=True))
            while waiting:
                for child, path in waiting:
                    child.send(json.dumps({"write": str(path)}).encode())
                answers = [json.loads(child.stdout.readline()) for child, _ in waiting]
                # A wait for a lock may take long on a busy machine; sorted keys never deadlock (1213).
                assert all(answer["answer"] == "written" or answer["number"] == 1205 for answer in answers)
                waiting = [one for one, answer in zip(waiting, answers, strict=True) if answer["answer"] != "written"]
    finally:
        for child in children:
            child.stdin.close()
            child.process.wait(30)
            child.stdout.close()
    assert place.execute("SELECT session_id, task_id FROM translation_tasks ORDER BY 1, 2") == keys
