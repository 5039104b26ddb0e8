"""docs/OPERATIONS.md, "Capacity planning": the bytes of a record are measured, and the arithmetic is done again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from tests.support.mariadb import MariaDB
from tests.support.service import ROOT, TASKS, Service

BATCH = 100
SMALL = {
    "task_id": "t-1",
    "batch_id": "b-1",
    "session_id": "s-1",
    "sheet_name": "UI",
    "column_name": "C",
    "row_index": 7,
    "source_text": "Start game",
    "status": "completed",
    "target_text": "เริ่มเกม",
    "confidence": 0.98,
    "updated_at": "2026-11-23T10:15:32Z",
}
LARGE = {
    **SMALL,
    "task_id": "5f0c8f0e-3d1c-4a53-9c58-0d6f3a3b8f11",
    "batch_id": "batch-20261123-0001",
    "session_id": "9b2d7c1a-6e4f-4f0b-8a57-2f1e0c9d8b7a",
    "source_text": "开" * 80,
    "target_text": "ก" * 200,
    "context": "上" * 40,
    "start_time": "2026-11-23T10:15:30.120000Z",
    "end_time": "2026-11-23T10:15:32.480000Z",
    "duration_ms": 2360,
}


def section() -> str:
    text = (ROOT / "docs" / "OPERATIONS.md").read_text()
    return text.partition("\n## Capacity planning\n")[2].partition("\n## ")[0]


def batch(task: dict[str, Any], *, escaped: bool) -> bytes:
    return json.dumps({"tasks": [task] * BATCH}, ensure_ascii=escaped, separators=(",", ":")).encode()


def test_the_bytes_of_a_record_are_as_measured(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, BUFFER_FLUSH_INTERVAL=3600)
    shown = [int(number) for number in re.findall(r"^\| .* \| (\d+) \|$", section(), re.MULTILINE)]
    measured = []
    for body in (batch(SMALL, escaped=False), batch(LARGE, escaped=False), batch(LARGE, escaped=True)):
        before = service.stats()["buffer"]["journal_bytes"]
        assert service.post(TASKS, body).status == 202
        measured.append(round((service.stats()["buffer"]["journal_bytes"] - before) / BATCH))
    assert shown == measured
