from __future__ import annotations

from datetime import datetime, timezone

import orjson
import pytest

from bench import tasks
from shared.bodies import decode
from shared.records import TASKS, utc
from tests.support.bodies import check, count

POOL = tasks.pool()


@pytest.mark.parametrize("batch", [1, 10, 100, 1000])
def test_bodies_are_distinct_and_the_service_takes_every_record(batch: int) -> None:
    made = [tasks.number("0000z", 7).join(pieces) for pieces in tasks.bodies(POOL, batch)]

    assert len(set(made)) == tasks.BODIES >= 200
    for body in made[:: max(1, batch // 10)]:
        now = datetime.now(timezone.utc)
        records = check(TASKS, body, now=now)
        assert count(TASKS, body, now=now) == batch
        assert len({record.task_id for record in records}) == len(records) == batch  # type: ignore[union-attr]


def test_two_requests_share_no_id_and_have_bodies_of_one_length() -> None:
    (pieces,) = tasks.bodies(POOL, 10, count=1)
    first, second = (tasks.number("00001", count).join(pieces) for count in (1, 2))

    ids = [{task["task_id"] for task in orjson.loads(body)["tasks"]} for body in (first, second)]
    assert not ids[0] & ids[1]
    assert len(first) == len(second)


def test_runs_differ_and_their_numbers_rise() -> None:
    runs = [tasks.new_run() for _ in range(100)]

    numbers = [tasks.number(run, count) for run in runs for count in (0, 9_999_999)]
    assert sorted(set(numbers)) == numbers
    assert {len(number) for number in numbers} == {tasks.NUMBER_BYTES}


def test_a_batch_larger_than_the_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="needs as many tasks"):
        tasks.bodies(POOL[:9], 10)


def test_files_hold_the_rows_that_bodies_do() -> None:
    (body,), (file,) = (
        [tasks.number("00001", 1).join(pieces)]
        for (pieces,) in (tasks.bodies(POOL, 10, count=1), tasks.files(POOL, 10, count=1))
    )

    records = decode(TASKS, body)
    lines = file.decode().splitlines()
    assert len(lines) == len(records) == 10
    for line, record in zip(lines, records, strict=True):
        row = dict(zip(tasks.COLUMNS, line.split("\t"), strict=True))
        for name in tasks.COLUMNS:
            value = getattr(record, name)
            if value is None:
                assert row[name] == "\\N"
            elif isinstance(value, datetime):
                assert datetime.fromisoformat(row[name]) == utc(value)
            else:
                assert row[name] == str(value)
