"""What backends have in their records, without pandas: test_frames.py has the values of a DataFrame."""

from __future__ import annotations

import json
import time
from collections import OrderedDict, UserDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from client.persistence_client import _encode, _Unusable
from tests.client.conftest import Connect, Scripted, settled, together, warnings
from tests.support.service import session, task

pytestmark = pytest.mark.usefixtures("short_pauses")


class Status(Enum):
    DONE = "completed"


class Priority(IntEnum):
    HIGH = 2


@dataclass
class Cell:
    row: int
    notes: list[Any] = field(default_factory=list)


class Point(NamedTuple):
    x: int
    y: float


ID = UUID(int=5)
NAN = float("nan")
VALUES: list[tuple[Any, Any]] = [
    (NAN, None),
    (Decimal("NaN"), None),
    (1.5, 1.5),
    (True, True),
    (2**63, 2**63),
    ("é\n👋", "é\n👋"),
    (Decimal("0.10"), "0.10"),
    (ID, str(ID)),
    (Path("a/b"), "a/b"),
    (Status.DONE, "completed"),
    (Priority.HIGH, 2),
    (date(2026, 11, 23), "2026-11-23"),
    (datetime(2026, 11, 23, 1, 2, 3, 4, timezone.utc), "2026-11-23T01:02:03.000004+00:00"),
    (datetime(1900, 1, 1, tzinfo=ZoneInfo("Asia/Shanghai")), "1900-01-01T00:00:00+08:05:43"),
    ({1, 2}, [1, 2]),
    ((1, (NAN,)), [1, [None]]),
    (Point(1, NAN), [1, None]),
    (Cell(3, [NAN, ID]), {"row": 3, "notes": [None, str(ID)]}),
    (MappingProxyType({"a": {ID: Status.DONE, 1: NAN}}), {"a": {str(ID): "completed", "1": None}}),
    (OrderedDict(a=[{"b": NAN}]), {"a": [{"b": None}]}),
]


@pytest.mark.parametrize(("value", "sent"), VALUES, ids=[str(type(value).__name__) for value, _ in VALUES])
def test_values_are_sent_as_json_has_them(value: Any, sent: Any) -> None:
    """Also beside a NaN, for which the whole record is looked through."""
    for beside in (1, NAN):
        assert json.loads(_encode({"value": value, "nan": beside}, "tasks[0]"))["value"] == sent


ENDLESS: dict[str, Any] = {}
ENDLESS["self"] = ENDLESS
DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]


class Hostile:
    def __getattr__(self, name: str) -> Any:
        raise ZeroDivisionError(name)


UNSENDABLE: list[tuple[Any, str]] = [
    (1j, "complex"),
    (object(), "object"),
    (b"bytes", "bytes"),
    (memoryview(b"bytes"), "memoryview"),
    (timedelta(1), "timedelta"),
    (float("inf"), "infinity"),
    (Decimal("-Infinity"), "infinity"),
    ("\ud800", "text with a lone surrogate"),
    (10**5000, "an integer over 64 bits"),
    (Hostile(), "Hostile"),
    (Cell, "type"),
    (iter([]), "list_iterator"),
]


@pytest.mark.parametrize(("value", "name"), UNSENDABLE, ids=[name for _, name in UNSENDABLE])
def test_what_cannot_be_sent_is_named_with_its_field_and_type(value: Any, name: str) -> None:
    for given, where in ((value, "tasks[3].cost"), ({"a": [0, value]}, "tasks[3].cost.a[1]")):
        with pytest.raises(_Unusable) as caught:
            _encode(task(cost=given), "tasks[3]")
        assert str(caught.value) == f"{where}: {name} cannot be sent"


@pytest.mark.parametrize("endless", [ENDLESS, DEEP], ids=["a cycle", "100,000 deep"])
def test_what_is_nested_without_end_is_named(endless: Any) -> None:
    with pytest.raises(_Unusable, match=r"tasks\[3\].cost.*nested over 50 deep cannot be sent"):
        _encode(task(cost=endless), "tasks[3]")


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def set_zone(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield set_zone
    monkeypatch.undo()
    time.tzset()


NEW_YORK_FALLS_BACK = 1793511000
"""2026-11-01 05:30 UTC: half past one in New York, for the first time that night."""


@pytest.mark.parametrize(
    ("name", "naive", "sent"),
    [
        ("Asia/Shanghai", datetime(2026, 11, 23, 10, 15, 30), "2026-11-23T10:15:30+08:00"),
        ("Asia/Shanghai", datetime(1900, 1, 1), "1900-01-01T00:00:00+08:05:43"),
        ("UTC", datetime(2026, 11, 23), "2026-11-23T00:00:00+00:00"),
        ("America/Sao_Paulo", datetime(2026, 7, 1), "2026-07-01T00:00:00-03:00"),
        ("America/New_York", datetime(2026, 11, 1, 1, 30), "2026-11-01T01:30:00-04:00"),
        ("America/New_York", datetime(2026, 11, 1, 1, 30, fold=1), "2026-11-01T01:30:00-05:00"),
    ],
)
def test_a_datetime_without_a_zone_is_local(zone: Any, name: str, naive: datetime, sent: str) -> None:
    zone(name)
    assert json.loads(_encode({"start_time": naive}, ""))["start_time"] == sent


def test_states_of_the_night_on_which_clocks_are_set_back_keep_their_order(
    zone: Any, scripted: Scripted, connect: Connect
) -> None:
    zone("America/New_York")
    before, after = (datetime.fromtimestamp(NEW_YORK_FALLS_BACK + hours * 3600) for hours in (0, 1))
    assert before.replace(fold=0) == after.replace(fold=0)
    server = scripted()
    client = connect(server.url)
    with together():
        client.persist_tasks([task(status="completed", updated_at=after), task(updated_at=before)])
    assert [one["status"] for one in server.next().records] == ["completed"]


def test_the_callers_own_updated_at_decides_in_any_form(scripted: Scripted, connect: Connect) -> None:
    early, late = "2026-11-23T10:00:00Z", datetime(2026, 11, 23, 11, 30, tzinfo=timezone(timedelta(hours=1)))
    server = scripted()
    client = connect(server.url)
    with together():
        client.persist_tasks([task("t1", status="completed", updated_at=late), task("t1", updated_at=early)])
        # The service alone knows in which zone it reads a time without an offset.
        client.persist_tasks(
            [task("t2", updated_at="2026-11-23 10:00:00"), task("t2", updated_at="2026-11-23 09:00:00")]
        )
        client.persist_tasks([task("t2", updated_at=early)])
        client.persist_tasks(
            [task("t3", updated_at="tomorrow"), task("t3", updated_at={}), task("t3", updated_at=early)]
        )
        client.persist_tasks([task("t4", updated_at=missing) for missing in (None, NAN)])
    records = server.next().records
    sent = [(one["task_id"], one["updated_at"]) for one in records]
    assert sent[:3] == [("t1", late.isoformat()), ("t2", "2026-11-23 10:00:00"), ("t2", early)]
    assert sent[3:6] == [("t3", "tomorrow"), ("t3", {}), ("t3", early)]
    assert [name for name, _ in sent[6:]] == ["t4"]
    assert datetime.fromisoformat(sent[6][1]).tzinfo


def test_a_tasks_key_is_its_session_and_its_id(scripted: Scripted, connect: Connect) -> None:
    """Every workbook counts its tasks from TASK_0000; an id is the same as text and as what is sent as that text."""
    server = scripted()
    client = connect(server.url)
    with together():
        for workbook in ("s1", "s2"):
            client.persist_tasks([task("TASK_0000", session_id=workbook), task("TASK_0001", session_id=workbook)])
        client.persist_tasks([task(ID, status="completed"), task(str(ID), status="failed")])
    sent = [(one["session_id"], one["task_id"], one["status"]) for one in server.next().records]
    assert sent == [
        ("s1", "TASK_0000", "pending"),
        ("s1", "TASK_0001", "pending"),
        ("s2", "TASK_0000", "pending"),
        ("s2", "TASK_0001", "pending"),
        ("s1", str(ID), "failed"),
    ]


@dataclass
class Task:
    session_id: str = "s1"
    task_id: str = "t1"
    group_id: float = NAN


class Row(NamedTuple):
    session_id: str
    task_id: str


class Model:
    """As pydantic makes it."""

    def model_dump(self) -> dict[str, Any]:
        return {"session_id": "s1", "task_id": "t1"}


@pytest.mark.parametrize("one", [task(), Task(), Row("s1", "t1"), Model(), MappingProxyType(task())], ids=type)
def test_one_record_is_taken_for_a_list_of_one(scripted: Scripted, connect: Connect, one: Any) -> None:
    server = scripted()
    client = connect(server.url)
    client.persist_tasks(one)
    client.persist_tasks([one])
    assert server.next().ids == ["t1"]
    client.persist_session([session("s1"), session("s2")])
    assert server.next().ids == ["s1", "s2"]
    assert settled(client).dropped == 0


def test_later_changes_of_what_was_given_do_not_matter(scripted: Scripted, connect: Connect) -> None:
    server = scripted()
    state = session("s1", metadata={"rows": [1]})
    connect(server.url).persist_session(state)
    assert "updated_at" not in state
    state["status"] = "failed"
    state["metadata"]["rows"].append(2)
    [record] = server.next().records
    assert (record["status"], record["metadata"]) == ("processing", {"rows": [1]})


def broken_off() -> Iterator[dict[str, Any]]:
    yield task("before")
    raise KeyError("the caller's own fault")


class HostileMapping(UserDict):  # type: ignore[type-arg]
    def __getitem__(self, name: str) -> Any:
        raise ZeroDivisionError


def test_nothing_that_is_given_raises_and_each_fault_is_named(
    scripted: Scripted, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    faults: list[tuple[Any, str]] = [
        (None, "tasks[0]: NoneType is no record"),
        ([7], "tasks[0]: int is no record"),
        ("t1", "tasks[0]: str is no record"),
        ([{}], "tasks[0].session_id: NoneType is no id"),
        ([task(NAN)], "tasks[0].task_id: float is no id"),
        ([task(["t1"])], "tasks[0].task_id: list is no id"),
        ([task("new"), HostileMapping(a=1)], "tasks[1]: reading it raised ZeroDivisionError"),
        ([task(context={(1, 2): 3})], "tasks[0].context: dict cannot be sent"),
        ([task(context="x" * 11_000_000)], "tasks[0]: over 10485760 bytes"),
        (broken_off(), "tasks[0]: reading it raised KeyError"),
    ]
    server = scripted()
    client = connect(server.url)
    with together():
        for given, _ in faults:
            client.persist_tasks(given)
        client.persist_session(None)
    assert server.next().ids == ["new", "before"]
    assert settled(client)[:3] == (2, 0, len(faults) + 1)
    client.close()
    said = [line.partition(" dropped: ")[2] for line in warnings(caplog)]
    assert {fault for _, fault in faults} | {"sessions[0]: NoneType is no record"} == set(said)
    assert "caller" not in caplog.text
