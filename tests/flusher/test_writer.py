from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from bench.machine import ALL, on_cores
from flusher import dead_letters, segments
from flusher.answers import IDLE_PRIORITY, Alive, Failed, Written
from flusher.batch import MAX_ARRIVAL
from flusher.dead_letters import DeadLetter
from flusher.mysql_errors import ErrorClass, Flavour
from flusher.segments import Entry
from flusher.sql import Rows
from flusher.store import Store, StoreError
from flusher.writer import NICE, PREPARING_NICE, Writer, prepared, runs_idle
from shared.config import load
from shared.records import V1_RULES
from tests.support.flusher import sessions_body, task_body
from tests.support.mariadb import MariaDB
from tests.support.segments import filled
from tests.support.service import ROOT, session, task, threads, wait_until

ARRIVAL = 1_700_000_000_000_000
MAX_BYTES = 1 << 20


class Place:
    """A writer of this process on the real database, its journal and its dead letters."""

    def __init__(self, directory: Path, mariadb: MariaDB, database: str) -> None:
        self.mariadb = mariadb
        self.database = database
        self.store = Store(mariadb.server(database))
        self.dead_letters = directory / "dead_letters.jsonl"
        self.directory = directory

    def segment(self, *bodies: bytes, kind: int = 2, count: int = 1) -> Path:
        entries = [Entry(kind, count, ARRIVAL + number, body) for number, body in enumerate(bodies)]
        return self.segment_of(entries)

    def segment_of(self, entries: Sequence[Entry], floor: int = 0) -> Path:
        return filled(self.directory, entries, floor)

    def write(self, path: Path, max_bytes: int = MAX_BYTES) -> Written | Failed:
        return Writer(self.store, self.dead_letters, max_bytes).write(path, prepared(path))

    def refuse(self, condition: str, name: str = "poison") -> None:
        self.execute(f"ALTER TABLE translation_tasks ADD CONSTRAINT {name} CHECK (NOT ({condition}))")

    def accept_again(self, name: str = "poison") -> None:
        self.execute(f"ALTER TABLE translation_tasks DROP CONSTRAINT {name}")

    def execute(self, statement: str) -> list[Any]:
        return self.mariadb.execute(statement, (), self.database)

    def tasks(self) -> dict[str, str]:
        return dict(self.execute("SELECT task_id, source_text FROM translation_tasks"))

    def letters(self) -> list[DeadLetter]:
        return [letter for _, letter in dead_letters.read(self.dead_letters)]


@pytest.fixture
def place(tmp_path: Path, mariadb: MariaDB, database: str) -> Iterator[Place]:
    made = Place(tmp_path, mariadb, database)
    store = made.store
    yield made
    store.close()


def is_written(answer: Written | Failed) -> Written:
    assert isinstance(answer, Written), answer
    return answer


def is_failed(answer: Written | Failed) -> Failed:
    assert isinstance(answer, Failed), answer
    return answer


def test_a_segment_of_both_kinds_is_written_and_counted(place: Place) -> None:
    path = place.segment_of(
        [
            Entry(2, 2, ARRIVAL, task_body(task("a", source_text="old"), task("b"))),
            Entry(1, 1, ARRIVAL + 1, sessions_body(session())),
            Entry(2, 1, ARRIVAL + 2, task_body(task("a", source_text="new"))),
        ]
    )

    answer = is_written(place.write(path))

    assert answer.rows == {"sessions": 1, "tasks": 2}
    assert (answer.records, answer.coalesced, answer.dead_lettered, answer.damaged_bytes) == (4, 1, 0, 0)
    assert answer.statements == 3
    assert answer.last_error is None
    assert place.tasks()["a"] == "new"
    assert path.exists()
    assert not place.dead_letters.exists()


@pytest.mark.parametrize("arrival", [MAX_ARRIVAL + 1, 2**64 - 1])
def test_an_entry_whose_arrival_no_column_holds_is_a_dead_letter_and_stops_nothing(place: Place, arrival: int) -> None:
    path = place.segment_of(
        [Entry(2, 1, arrival, task_body(task("a"))), Entry(2, 1, MAX_ARRIVAL, task_body(task("b")))]
    )

    answer = is_written(place.write(path))

    assert (answer.rows["tasks"], answer.dead_lettered) == (1, 1)
    assert set(place.tasks()) == {"b"}
    assert [(letter.arrival, letter.error) for letter in place.letters()] == [
        (arrival, "its arrival lies after the year 9999")
    ]


def test_an_empty_segment_asks_nothing_of_the_database(place: Place) -> None:
    place.store = Store(place.mariadb.server("no_such_database"))

    answer = is_written(place.write(place.segment_of([])))

    assert (answer.records, answer.statements) == (0, 0)


def test_one_poison_row_of_a_thousand_becomes_a_dead_letter_and_the_others_are_written(place: Place) -> None:
    place.refuse("source_text = 'poison'")
    tasks = [task(f"{number:04}", source_text="poison" if number == 617 else "good") for number in range(1000)]

    answer = is_written(place.write(place.segment(task_body(*tasks), count=1000)))

    assert answer.rows["tasks"] == 999
    assert (answer.records, answer.coalesced, answer.dead_lettered) == (1000, 0, 1)
    assert answer.dead_arrivals == {ARRIVAL: 1}
    assert answer.last_error is not None
    assert str(place.mariadb.check_failed) in answer.last_error
    assert place.execute("SELECT COUNT(*) FROM translation_tasks") == [(999,)]
    assert answer.statements < 50  # some for each of log2(1000) steps, not for each row
    (letter,) = place.letters()
    assert (letter.kind, letter.key, letter.error_code, letter.arrival) == (
        "tasks",
        ("s1", "0617"),
        place.mariadb.check_failed,
        ARRIVAL,
    )
    assert "poison" in letter.error
    assert letter.record == tasks[617]


def test_a_dead_letter_replayed_after_the_cause_is_gone_is_written_unless_something_newer_is(place: Place) -> None:
    place.refuse("source_text = 'poison'")
    body = task_body(task("a", source_text="poison"), task("b", source_text="poison"), task("c"))
    is_written(place.write(place.segment(body, count=3)))
    place.accept_again()
    is_written(place.write(place.segment_of([Entry(2, 1, ARRIVAL + 10, task_body(task("b", source_text="newer")))])))

    for letter in place.letters():
        is_written(place.write(place.segment_of([Entry(2, 1, letter.arrival, task_body(letter.record))])))

    assert place.tasks()["a"] == "poison"
    assert place.tasks()["b"] == "newer"


def test_the_column_is_named_when_the_server_names_it(place: Place) -> None:
    place.store.ping()
    place.execute("ALTER TABLE translation_tasks MODIFY batch_id VARCHAR(3) NOT NULL")
    body = task_body(task("a"), task("b", batch_id="long"), task("c"))

    is_written(place.write(place.segment(body, count=3)))

    (letter,) = place.letters()
    assert (letter.key, letter.error_code, letter.column) == (("s1", "b"), 1406, "batch_id")


def test_an_older_state_of_a_refused_key_is_written_in_its_place(place: Place) -> None:
    place.refuse("source_text like 'poison%'")
    states = ["good", "older", "poison 1", "poison 2"]
    bodies = [task_body(task("a", source_text=text)) for text in states]
    others = [task_body(task(f"other {number}")) for number in range(20)]

    answer = is_written(place.write(place.segment(*bodies, *others)))

    assert place.tasks()["a"] == "older"
    assert sorted(letter.record["source_text"] for letter in place.letters()) == ["poison 1", "poison 2"]
    assert answer.rows["tasks"] == 21
    assert (answer.records, answer.coalesced, answer.dead_lettered) == (24, 1, 2)
    assert answer.dead_arrivals == {ARRIVAL + 2: 1, ARRIVAL + 3: 1}


def test_when_most_of_a_batch_is_refused_the_table_is_at_fault_and_nothing_is_dead_lettered(place: Place) -> None:
    place.refuse("source_text = 'poison'")
    tasks = [task(f"{number}", source_text="poison" if number < 6 else "good") for number in range(10)]
    path = place.segment(task_body(*tasks), count=10)

    answer = is_failed(place.write(path))

    number = place.mariadb.check_failed
    assert (answer.error_class, answer.number, answer.of_segment) == (ErrorClass.SCHEMA, number, True)
    assert place.letters() == []
    assert path.exists()
    place.accept_again()
    assert is_written(place.write(path)).rows["tasks"] == 10


@pytest.mark.parametrize("good", [0, 1, 9])
def test_dead_letters_that_are_refused_again_do_not_put_the_table_at_fault(place: Place, good: int) -> None:
    place.refuse("source_text = 'poison'")
    floor = ARRIVAL + 99
    replayed = [
        Entry(2, 1, ARRIVAL + number, task_body(task(f"{number}", source_text="poison"))) for number in range(99)
    ]
    new = [Entry(2, 1, floor + 1 + number, task_body(task(f"new {number}"))) for number in range(good)]

    answer = is_written(place.write(place.segment_of([*replayed, *new], floor=floor)))

    assert (answer.rows["tasks"], answer.dead_lettered) == (good, 99)


def test_of_the_others_beside_them_most_may_not_be_refused(place: Place) -> None:
    place.refuse("source_text = 'poison'")
    replayed = [Entry(2, 1, ARRIVAL + number, task_body(task(f"{number}"))) for number in range(99)]
    new = [
        Entry(2, 1, ARRIVAL + 100 + number, task_body(task(f"n{number}", source_text="poison"))) for number in range(10)
    ]

    answer = is_failed(place.write(place.segment_of([*replayed, *new], floor=ARRIVAL + 99)))

    assert (answer.error_class, answer.of_segment) == (ErrorClass.SCHEMA, True)


@pytest.mark.parametrize("depth", [100, 251, 252, 253, 300, 1000])
def test_a_refused_record_of_version_1_with_a_field_of_any_depth_is_kept_and_can_be_replayed(
    place: Place, depth: int
) -> None:
    place.refuse("task_id = 'bad'")
    body = task_body(task("bad"))[:-3] + b',"extra":' + b"[" * depth + b"]" * depth + b"}]}"

    path = place.segment_of([Entry(2, 1, ARRIVAL, body, V1_RULES)])
    assert is_written(place.write(path)).dead_lettered == 1

    (letter,) = place.letters()
    assert {name: value for name, value in letter.record.items() if name != "extra"} == task("bad")
    assert ("extra" in letter.record) is (depth < 252)
    assert orjson.loads(orjson.dumps({"tasks": [letter.record]}))["tasks"] == [letter.record]


@pytest.mark.parametrize("where", ["prepare", "write"])
def test_a_fault_of_ours_costs_one_segment_its_turn_and_no_writer_its_life(
    place: Place, where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    content = "s3cret"
    path = place.segment(task_body(task("a", source_text=content)))

    def fail(*_: Any) -> Any:
        raise KeyError(content)

    with monkeypatch.context() as broken:
        if where == "prepare":
            broken.setattr("flusher.writer.prepare", fail)
        else:
            broken.setattr(Store, "_query", fail)
        answer = is_failed(place.write(path))

    assert (answer.error_class, answer.number, answer.of_segment) == (ErrorClass.UNKNOWN, -1, True)
    assert "KeyError" in answer.message
    assert re.search(r"KeyError in test_writer\.py:\d+ fail < ", caplog.text)
    assert content not in caplog.text + answer.message
    assert is_written(place.write(path)).rows["tasks"] == 1


def test_up_to_half_of_a_batch_may_be_refused_for_its_content(place: Place) -> None:
    place.refuse("source_text = 'poison'")
    tasks = [task(f"{number}", source_text="poison" if number < 5 else "good") for number in range(10)]

    answer = is_written(place.write(place.segment(task_body(*tasks), count=10)))

    assert (answer.rows["tasks"], answer.dead_lettered) == (5, 5)


def test_a_small_batch_may_be_refused_whole(place: Place) -> None:
    place.refuse("source_text = 'poison'")
    tasks = [task(f"{number}", source_text="poison") for number in range(9)]

    assert is_written(place.write(place.segment(task_body(*tasks), count=9))).dead_lettered == 9


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (2, b"not json"),
        (2, b'{"tasks":[{"task_id":"only"}]}'),
        (2, b'{"sessions":[]}'),
        (77, b'{"from":"another version"}'),
        (2, b"\xfe\xfd"),
    ],
)
def test_an_entry_that_does_not_decode_becomes_a_dead_letter_as_it_is(place: Place, kind: int, body: bytes) -> None:
    path = place.segment_of(
        [
            Entry(2, 1, ARRIVAL, task_body(task("a"))),
            Entry(kind, 1, ARRIVAL + 1, body),
            Entry(2, 1, 1, task_body(task("b"))),
        ]
    )

    answer = is_written(place.write(path))

    assert answer.rows["tasks"] == 2
    assert (answer.dead_lettered, answer.dead_arrivals) == (1, {ARRIVAL + 1: 1})
    (letter,) = place.letters()
    assert letter.arrival == ARRIVAL + 1
    assert letter.record == body.decode(errors="backslashreplace")
    assert set(place.tasks()) == {"a", "b"}


def test_what_is_readable_in_a_damaged_segment_is_written_and_the_damage_is_counted(place: Place) -> None:
    path = place.segment(*[task_body(task(key)) for key in "abc"])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)

    answer = is_written(place.write(path))

    assert set(place.tasks()) == {"a", "c"}
    assert answer.damaged_bytes == segments.read(path).damaged_bytes > 0
    assert answer.records == 2


def test_full_dead_letters_fail_the_batch_instead_of_discarding_it(place: Place) -> None:
    place.refuse("source_text = 'poison'")
    path = place.segment(task_body(task("a", source_text="poison"), task("b")), count=2)

    answer = is_failed(place.write(path, max_bytes=100))

    assert (answer.error_class, answer.of_segment) == (ErrorClass.STORAGE, True)
    assert "100" in answer.message
    assert place.letters() == []
    assert path.exists()
    assert is_written(place.write(path)).dead_lettered == 1


def test_a_segment_that_cannot_be_read_is_a_failure_of_storage(place: Place, tmp_path: Path) -> None:
    answer = is_failed(place.write(tmp_path / "gone.segment"))

    assert (answer.error_class, answer.number, answer.of_segment) == (ErrorClass.STORAGE, 2, True)


@pytest.mark.parametrize(
    ("statement", "number"),
    [
        ("DROP TABLE translation_tasks", 1146),
        ("ALTER TABLE translation_tasks DROP COLUMN context", 1054),
        ("ALTER TABLE translation_tasks ADD COLUMN further INT NOT NULL", 1364),
    ],
)
def test_a_fault_of_the_table_writes_nothing_and_dead_letters_nothing(
    place: Place, statement: str, number: int
) -> None:
    """A fault that comes up right after the tables were found to be ours."""
    place.store.ping()
    place.execute(statement)

    answer = is_failed(place.write(place.segment(task_body(task("a")))))

    assert (answer.error_class, answer.number) == (ErrorClass.SCHEMA, number)
    assert not place.dead_letters.exists()


class ScriptedStore:
    """Refuses each batch as `verdict(rows)` says; `committed` has what it took."""

    def __init__(self, verdict: Callable[[list[str]], StoreError | None]) -> None:
        self.verdict = verdict
        self.connected = True
        self.statements = 0
        self.committed: list[str] = []

    def write(self, rows: Rows, ready: object = None) -> None:
        self.statements += 1
        keys = [getattr(row.record, kind.key[-1]) for kind, kind_rows in rows.items() for row in kind_rows]
        error = self.verdict(keys)
        if error is not None:
            raise error
        self.committed += keys


def test_a_batch_too_big_is_halved_until_it_fits_and_nothing_is_dead_lettered(place: Place) -> None:
    place.store = ScriptedStore(  # type: ignore[assignment]
        lambda keys: StoreError(ErrorClass.TOO_BIG, 1153, "too big") if len(keys) > 3 else None
    )
    body = task_body(*[task(f"{number:02}") for number in range(20)])

    answer = is_written(place.write(place.segment(body, count=20)))

    assert (answer.rows["tasks"], answer.dead_lettered) == (20, 0)
    assert place.store.committed == [f"{number:02}" for number in range(20)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("over", "tried"), [(1, 11), (15, 25)])
def test_a_single_row_over_a_limit_waits_and_is_no_dead_letter(place: Place, over: int, tried: int) -> None:
    """The others are written; where it is not one row but many, the limit stays and not each is tried."""
    keys = [f"{number:02}" for number in range(20)]
    place.store = ScriptedStore(  # type: ignore[assignment]
        lambda some: StoreError(ErrorClass.TOO_BIG, 1197, "the limit") if set(some) & set(keys[:over]) else None
    )

    answer = is_failed(place.write(place.segment(task_body(*map(task, keys)), count=20)))

    assert (answer.error_class, answer.number, answer.of_segment) == (ErrorClass.SCHEMA, 1197, True)
    assert answer.message.endswith("the limit")
    assert place.store.statements <= tried
    assert place.store.committed == (keys[over:] if over == 1 else [])  # type: ignore[attr-defined]
    assert not place.dead_letters.exists()


@pytest.mark.parametrize("error_class", [one for one in ErrorClass if one not in (ErrorClass.DATA, ErrorClass.TOO_BIG)])
def test_only_a_fault_of_the_rows_is_bisected(place: Place, error_class: ErrorClass) -> None:
    place.store = ScriptedStore(lambda keys: StoreError(error_class, 9, "detail"))  # type: ignore[assignment]
    body = task_body(*[task(f"{number}") for number in range(20)])

    answer = is_failed(place.write(place.segment(body, count=20)))

    assert (answer.error_class, answer.number) == (error_class, 9)
    assert place.store.statements == 1
    assert not place.dead_letters.exists()


def test_a_fault_in_the_middle_of_a_bisection_keeps_the_whole_segment(place: Place) -> None:
    def verdict(keys: list[str]) -> StoreError | None:
        if len(keys) == 1:
            return StoreError(ErrorClass.RECONNECT, 2013, "lost")
        return StoreError(ErrorClass.DATA, 4025, "poison")

    place.store = ScriptedStore(verdict)  # type: ignore[assignment]

    answer = is_failed(place.write(place.segment(task_body(task("a"), task("b")), count=2)))

    assert answer.error_class is ErrorClass.RECONNECT
    assert not place.dead_letters.exists()


def test_no_record_content_is_in_what_may_be_logged(place: Place) -> None:
    place.store.ping()
    place.execute("ALTER TABLE translation_tasks MODIFY task_id INT NOT NULL")
    path = place.segment(task_body(*[task(f"secret{number}") for number in range(10)]), count=10)

    answer = is_failed(place.write(path))

    assert answer.error_class is ErrorClass.SCHEMA
    assert "secret" not in answer.message


def test_ping_says_which_server_answers_or_why_none_does(place: Place) -> None:
    alive = Writer(place.store, place.dead_letters, MAX_BYTES).ping()
    away = Writer(Store(place.mariadb.server("gone")), place.dead_letters, MAX_BYTES).ping()

    assert isinstance(alive, Alive)
    assert ("MariaDB" in alive.version) is (place.mariadb.flavour is Flavour.MARIADB)
    assert isinstance(away, Failed)
    assert away.number == 1049


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
