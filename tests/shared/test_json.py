"""JSON as RFC 8259 has it: the cases of JSONTestSuite (Nicolas Seriot, "Parsing JSON is a Minefield") as values of a
record's field, read on the fast path and on the slow one."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from shared.bodies import InvalidBody
from shared.records import TASKS
from shared.validation import InvalidRecord
from tests.support.bodies import body_of, check, count
from tests.support.service import task, values_of

_CASES = [line.split(" ", 1) for line in (Path(__file__).parent / "json_cases.txt").read_text().splitlines()[1:]]
VALID, INVALID, BEYOND_64_BITS = ([ast.literal_eval(text) for mark, text in _CASES if mark == name] for name in "yni")


def test_the_cases_are_there() -> None:
    assert len(VALID) > 80
    assert len(INVALID) > 200


def body_with(value: bytes) -> bytes:
    return body_of(TASKS, task(x="@")).replace(b'"@"', value)


@pytest.mark.parametrize("value", VALID)
def test_what_is_json_is_taken_with_its_value(value: bytes) -> None:
    body = body_with(value)
    assert values_of(check(TASKS, body))[0]["extra"]["x"] == json.loads(value)
    assert count(TASKS, body) == 1
    assert values_of(check(TASKS, body.replace(b'"row_index":1', b'"row_index":"1"')))[0]["extra"]["x"] == json.loads(
        value
    )


@pytest.mark.parametrize("value", INVALID)
@pytest.mark.parametrize("field", ["x", "metadata", "created_at", "source_text"])
def test_what_is_no_json_is_refused_as_such(value: bytes, field: str) -> None:
    body = body_of(TASKS, task(**{field: "@"})).replace(b'"@"', value)
    with pytest.raises(InvalidBody) as raised:
        check(TASKS, body)
    assert raised.value.code == "INVALID_JSON"


@pytest.mark.parametrize("value", INVALID)
def test_nor_is_a_body_of_it(value: bytes) -> None:
    for body in (value, b'{"tasks":' + value, b'{"tasks":[' + value + b"]}"):
        with pytest.raises((InvalidBody, InvalidRecord)):
            check(TASKS, body)


@pytest.mark.parametrize("value", BEYOND_64_BITS)
def test_an_integer_that_parsers_round_is_refused_for_that(value: bytes) -> None:
    with pytest.raises(InvalidRecord) as raised:
        check(TASKS, body_with(value))
    assert raised.value.errors[0].message == "holds an integer beyond 64 bits"
