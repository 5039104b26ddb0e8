"""The fuzzers in a short form; ./scripts/fuzz.sh is the long one."""

from __future__ import annotations

import asyncio
import inspect
import random
from pathlib import Path
from typing import Any

import pytest

from flusher import sql as encoders
from shared.validation import Validator
from tests.fuzz import bodies, targets
from tests.fuzz.__main__ import CORPUS, OF_BODIES
from tests.fuzz.campaign import Campaign, Outcome, keep
from tests.fuzz.draw import Draw
from tests.fuzz.rows import Differential
from tests.support.mariadb import MariaDB

SECONDS = 4


def campaign(mariadb: MariaDB, directory: Path, seconds: int = SECONDS, engine: str = "") -> Campaign:
    return Campaign(mariadb, directory, seconds, engine=engine, keep=False)


@pytest.mark.parametrize("name", sorted(targets.TARGETS))
def test_what_fuzzers_have_found_before_ends_in_a_documented_answer(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs
    for path in inputs:
        targets.TARGETS[name](path.read_bytes())


@pytest.mark.parametrize("name", [*targets.TARGETS, "rows", *OF_BODIES])
def test_no_fuzzer_finds_anything_in_a_few_seconds(name: str, mariadb: MariaDB, tmp_path: Path) -> None:
    outcome = asyncio.run(long_enough(name, mariadb, tmp_path, 10))
    assert outcome.finding is None
    assert outcome.inputs > 10


async def long_enough(name: str, mariadb: MariaDB, path: Path, inputs: int, seconds: int = SECONDS) -> Outcome:
    """Again with ten times the time if other programs left too little of it."""
    for limit in (seconds, 10 * seconds):
        directory = path / str(limit)
        directory.mkdir()
        outcome = await campaign(mariadb, directory, limit).run(name)
        if outcome.inputs > inputs:
            break
    return outcome


@pytest.mark.timeout(400)
def test_schemathesis_finds_nothing_in_a_few_seconds(mariadb: MariaDB, short_path: Path) -> None:
    outcome = asyncio.run(long_enough("api", mariadb, short_path, 100, 3 * SECONDS))
    assert outcome.finding is None
    assert outcome.inputs > 100


@pytest.mark.parametrize("engine", ["atheris", "hypothesis"])
def test_a_finding_is_reported_with_the_way_to_see_it_again(engine: str, mariadb: MariaDB, tmp_path: Path) -> None:
    if engine == "atheris":
        pytest.importorskip("atheris", reason="atheris has no wheel for this platform; hypothesis takes its place")
    outcome = asyncio.run(campaign(mariadb, tmp_path, 20, engine).run("canary"))
    assert outcome.engine == engine
    assert "the canary was found" in str(outcome.finding)
    assert "python -m tests.fuzz canary --input" in str(outcome.finding)


def test_most_of_what_the_fuzzers_make_gets_past_the_first_check(mariadb: MariaDB, database: str) -> None:
    """Else they would try nothing but refusals."""
    chance = random.Random(1)
    differential = Differential(mariadb.socket, database)
    for _ in range(300):
        differential(chance.randbytes(chance.randrange(60)))
    assert differential.rows > 20
    assert {Draw(chance.randbytes(40)).body()[0].name for _ in range(20)} == {"sessions", "tasks"}


def test_the_database_would_be_caught_changing_a_value(
    mariadb: MariaDB, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    differential = Differential(mariadb.socket, database)
    differential(b"")
    differential.store.execute(["DELETE FROM translation_sessions", "COMMIT"])
    mariadb.execute("ALTER TABLE translation_sessions MODIFY filename VARCHAR(3) NOT NULL", (), database)
    differential.store.close()
    # A strict session would refuse the row, and the writer these tables: other tests' subjects.
    monkeypatch.setattr("flusher.connection._SESSION", "sql_mode=''")
    monkeypatch.setattr("flusher.tables.faults", lambda facts: [])
    with pytest.raises(AssertionError, match="the database warns"):
        differential(b"")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('b"%.4f"', 'b"%.2f"'),
        ("orjson.dumps(parsed)", "orjson.dumps({})"),
        ('if b"\\\\" in found:\n        found, end_of_row', "if False:\n        found, end_of_row"),
        ("utc(value) if isinstance(value, datetime)", "value.replace(tzinfo=None) if isinstance(value, datetime)"),
    ],
)
def test_the_differential_notices_an_encoder_that_is_wrong(
    right: str, wrong: str, mariadb: MariaDB, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = inspect.getsource(encoders)
    assert source.count(right) == 1
    names: dict[str, Any] = {"__name__": encoders.__name__}
    exec(source.replace(right, wrong), names)
    monkeypatch.setattr("flusher.batch.with_values", names["with_values"])
    differential = Differential(mariadb.socket, database)
    chance = random.Random(2)

    def try_many() -> None:
        for _ in range(2000):
            differential(chance.randbytes(chance.randrange(300)))

    with pytest.raises(AssertionError, match=r"is stored for|are no literals"):
        try_many()


def test_a_fast_path_that_takes_too_much_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    count = Validator.count
    monkeypatch.setattr(
        Validator, "count", lambda self, body, now_s: count(self, body.replace(b'"done"', b'"failed"'), now_s)
    )
    with pytest.raises(AssertionError):
        bodies.mutate(random.Random(1), lambda: True)


def test_a_step_that_takes_too_long_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MOST_S", {10_000: 1e-9})
    with pytest.raises(SystemExit, match="of the limit"):
        bodies.climb(random.Random(1), lambda: True)


def test_the_smallest_new_inputs_are_kept(tmp_path: Path) -> None:
    found, corpus = tmp_path / "found", tmp_path / "corpus"
    found.mkdir()
    for size in range(200):
        (found / f"{size:03}").write_bytes(b"x" * size * 10)
    keep(found, corpus)
    keep(found, corpus)
    assert sorted(path.name for path in corpus.iterdir()) == [f"{size:03}" for size in range(52)]
