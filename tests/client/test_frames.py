"""The rows and values of a DataFrame, with the pandas and numpy that users have: environments of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.client.conftest import Scripted
from tests.support import backend
from tests.support.frames import python_with
from tests.support.scripted import Reply
from tests.support.service import ROOT

PROGRAM = (ROOT / "tests" / "client" / "frames" / "program.py").read_text()
VERSIONS = {"pandas-2.1": ("1.24.", "2.1."), "newest": ("2.", "3.")}


@pytest.fixture(params=VERSIONS)
def python(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Returns: the name of an environment, and its interpreter."""
    return request.param, python_with(request.param)


ROWS: list[dict[str, Any]] = [
    {
        "session_id": "s1",
        "task_id": "TASK_0000",
        "source_text": "开始游戏",
        "target_text": "Start",
        "status": "completed",
        "row_index": 7,
        "confidence": 0.5,
        "duration_ms": 246.0,
        "start_time": "2026-11-23T10:15:30.123456+08:00",
        "end_time": "2026-11-23T10:15:31+09:00",
        "is_final": True,
        "char_count": 4,
        "group_id": "g",
        "reviewer_notes": None,
    },
    {
        **dict.fromkeys(
            ("target_text", "confidence", "duration_ms", "start_time", "end_time", "char_count", "group_id")
        ),
        "session_id": "s1",
        "task_id": "TASK_0001",
        "source_text": "Start",
        "status": "completed",
        "row_index": 8,
        "is_final": False,
        "reviewer_notes": None,
    },
]
VALUES = {
    "int64": -5,
    "uint64": 2**64 - 1,
    "float16": 0.5,
    "float64 NaN": None,
    "bool_": True,
    "str_": "text",
    "array": [[1.5, None], [2, 3]],
    "array of a point": 3,
    "datetime64": "2026-11-23T10:15:30.123456+08:00",
    "NaT": None,
    "array of times": ["2026-11-23T00:00:00+08:00", None],
    "timestamp": "2026-11-23T10:15:30+08:00",
    "timestamp of another zone": "2026-11-23T10:15:30-05:00",
    "pandas NaT": None,
    "pandas NA": None,
    "nested": {"a": [None, None, {"b": 1}], "3": "2026-11-23T00:00:00+08:00"},
    "categorical": ["a", None],
    "series": {"a": 1, "b": None},
}
UNSENDABLE = {
    "complex64": "complex",
    "timedelta64": "timedelta64",
    "Timedelta": "Timedelta",
    "infinity": "infinity",
    "DataFrame": "DataFrame",
    "bytes_": "bytes_",
    "datetime64": "datetime64",
}


@pytest.mark.timeout(400)
def test_rows_and_values_of_a_frame(
    python: tuple[str, str], scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TZ is Asia/Shanghai, as the first user's; numbers compare as numbers, 7 as 7.0."""
    name, interpreter = python
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    server = scripted(usual=lambda one: Reply(200, {"status": "flushed"}) if "flush" in one.path else Reply())
    place = backend.drop_in(tmp_path / "backend")
    with backend.start(place, PROGRAM, server.url, python=interpreter) as process:
        printed, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert errors == ""
    *warned, last = printed.splitlines()
    numpy, pandas, counters = json.loads(last)
    assert (numpy.startswith(VERSIONS[name][0]), pandas.startswith(VERSIONS[name][1])) == (True, True)

    requests = [server.next() for _ in range(server.requests.qsize())]
    tasks = [one for request in requests if "tasks" in request.path for one in request.records]
    for one in tasks:
        assert one.pop("updated_at").endswith("+00:00")
    assert tasks == ROWS * 6
    sessions = {
        one["session_id"]: one["metadata"]["value"]
        for request in requests
        if "sessions" in request.path
        for one in request.records
        if one["session_id"] != "s1"
    }
    assert sessions == VALUES
    said = [line.partition(" dropped: ")[2] for line in warned]
    assert said == [f"sessions[0].{field}: {kind} cannot be sent" for field, kind in UNSENDABLE.items()]
    assert counters[2] == len(UNSENDABLE)
