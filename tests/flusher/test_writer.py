from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from flusher import segments
from flusher.answers import Alive, Failed
from flusher.batch import MAX_ARRIVAL
from flusher.mysql_errors import ErrorClass, Flavour
from flusher.segments import Entry
from flusher.sql import Rows
from flusher.store import Store, StoreError
from flusher.writer import Writer
from shared.records import V1_RULES
from tests.support.flusher import sessions_body, task_body
from tests.support.service import session, task
from tests.support.writer import ARRIVAL, MAX_BYTES, Place, is_failed, is_written


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


def test_a_writer_without_memory_keeps_its_segment_says_so_and_lives(tmp_path: Path) -> None:
    class Store:
        statements = 0
        connected = True
        closed = False

        def close(self) -> None:
            self.closed = True

    store = Store()
    answer = Writer(store, tmp_path / "letters", 1).write(tmp_path / "1.segment", MemoryError())  # type: ignore[arg-type]
    assert isinstance(answer, Failed)
    assert "not enough memory" in answer.message
    assert (answer.error_class, answer.of_segment, store.closed) == (ErrorClass.STORAGE, True, True)
