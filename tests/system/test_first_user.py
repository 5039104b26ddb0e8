"""The first user's day, writing: all that his backend sends stands in the tables as he meant it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from shared.records import KINDS, Kind
from tests.support import first_user
from tests.support.frames import python_with
from tests.support.mariadb import MariaDB
from tests.support.service import Service

AUTUMN = datetime.fromisoformat("2026-10-25T00:50:00+00:00").timestamp()
"""Ten minutes before clocks in Berlin go back."""
SPRING = datetime.fromisoformat("2026-03-29T00:50:00+00:00").timestamp()


def stored(kind: Kind, expected: dict[str, dict[str, Any]], mariadb: MariaDB, database: str) -> dict[str, Any]:
    """The rows of a table by key, each with the columns that are expected of it."""
    key_columns = ("session_id", "task_id") if kind.name == "tasks" else ("session_id",)
    columns = sorted({name for row in expected.values() for name in row})
    found = {}
    for values in mariadb.execute(f"SELECT {','.join(columns)} FROM {kind.table}", (), database):
        row = dict(zip(columns, map(as_sent, values), strict=True))
        for name in ("metadata", "extra"):
            row[name] = json.loads(row[name]) if row.get(name) else None
        key = "/".join(row[name] for name in key_columns)
        found[key] = {name: row[name] for name in expected.get(key, row)}
        if isinstance(found[key].get("context"), str) and found[key]["context"].startswith("{"):
            found[key]["context"] = json.loads(found[key]["context"])
    return found


def as_sent(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S.%f")
    return float(value) if isinstance(value, Decimal) else value


def play(python: str, mode: str, service: Service, zone: str, begin: float) -> dict[str, Any]:
    """Runs the backend in its zone. Returns: what it printed."""
    program = [python, first_user.__file__, mode, f"http://127.0.0.1:{service.port}", str(begin)]
    run = subprocess.run(
        program, env={"TZ": zone, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=110
    )
    assert run.returncode == 0, run.stderr
    said: dict[str, Any] = json.loads(run.stdout)
    return said


@pytest.mark.parametrize(
    "case",
    [
        ("client", "Asia/Shanghai", None, None),
        ("client", "America/Sao_Paulo", None, "pandas-2.1"),
        ("client", "Europe/Berlin", AUTUMN, "newest"),
        ("http", "Asia/Shanghai", None, "newest"),
        # As text without an offset an hour that comes twice is no longer told from the other.
        ("http", "Europe/Berlin", SPRING, None),
    ],
    ids=lambda case: " ".join(filter(None, (*case[:2], case[3]))),
)
def test_both_workbooks_stand_in_the_tables_as_they_were_meant(
    start_service: Callable[..., Service],
    mariadb: MariaDB,
    database: str,
    case: tuple[str, str, float | None, str | None],
) -> None:
    mode, zone, begin, frames = case
    python = sys.executable if frames is None else python_with(frames)
    service = start_service(mariadb, database, RECORDS_TIME_ZONE=zone if mode == "http" else "UTC")

    said = play(python, mode, service, zone, begin or time.time() - first_user.TASKS * first_user.STEP_S)

    assert said["pandas"] is not None or frames is None
    assert said["dropped"] == 0
    assert service.stats()["rejected"] == {}
    for kind in KINDS:
        expected = said["rows"][kind.name]
        assert len(expected) == {"sessions": 2, "tasks": 2 * first_user.TASKS}[kind.name]
        assert stored(kind, expected, mariadb, database) == expected
