"""The first user's backend in small: two workbooks at once, ids counted within each, naive local times, values of a
frame, fields beyond ours, all states.

    python tests/support/first_user.py client|http URL BEGIN

BEGIN: seconds since 1970 of the first state. Sends everything, flushes, and prints as JSON the rows that must stand in
the tables (times in UTC), and what the client dropped. A program of its own, so that TZ and pandas are its own.
"""

from __future__ import annotations

import http.client
import json
import math
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

try:
    import pandas as pd
except ImportError:
    pd = None

TASKS = 120
STEP_S = 10
FINAL = ("completed", "completed", "failed", "cancelled", "skipped")
SESSION_STATES = ("created", "analyzed", "split_complete", "executing", "completed")
TIMES = ("start_time", "end_time", "updated_at")
_EXTRA = ("char_count", "cost", "is_final", "reviewer_notes", "source_lang", "target_lang", "llm_model", "token_count")
_CELLS = {
    "row_index": [float(number) for number in range(TASKS)],
    "source_text": [f"第{number}句" if number % 7 else "" for number in range(TASKS)],
    "context": ["" if number % 2 else math.nan for number in range(TASKS)],
    "char_count": list(range(TASKS)),
    "cost": [number / 8 for number in range(TASKS)],
    "is_final": [number % 2 == 0 for number in range(TASKS)],
    "reviewer_notes": [math.nan] * TASKS,
}


def cells() -> list[dict[str, Any]]:
    """The rows of a workbook; with pandas there the values are those of its frame: numpy's, NaN and NaT."""
    if pd is None:
        return [{name: column[number] for name, column in _CELLS.items()} for number in range(TASKS)]
    frame = pd.DataFrame(_CELLS)
    return [{name: frame[name].iloc[number] for name in frame} for number in range(TASKS)]


def local(seconds: float) -> datetime:
    """What datetime.now() gives at that moment: local, without a zone."""
    return datetime.fromtimestamp(seconds)


def states(book: int, begin: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every state of a workbook in the order of time, as (kind, record)."""
    session_id = f"0000000{book}-aaaa-4bbb-8ccc-0123456789ab"
    at = begin

    def session(status: str, done: int) -> tuple[str, dict[str, Any]]:
        record = {
            "session_id": session_id,
            "filename": f"工作簿{book}.xlsx",
            "status": status,
            "total_tasks": TASKS,
            "completed_tasks": float(done),
            "metadata": {"glossary": {"剑": "ดาบ"}, "temperature": 0.3},
            "target_langs": ["th", "en"],
            "updated_at": local(at),
        }
        return "sessions", record

    for status in SESSION_STATES[:-1]:
        yield session(status, 0)
        at += 1
    for number, cell in enumerate(cells()):
        first = {
            "session_id": session_id,
            "task_id": f"TASK_{number:04}",
            "batch_id": "",
            "sheet_name": "UI",
            "column_name": "C",
            "status": "pending",
            "retry_count": None,
            "source_lang": "zh",
            "target_lang": "th",
            "metadata": {"cell_ref": f"C{number}"},
            **cell,
            "updated_at": local(at),
        }
        yield "tasks", first
        batch = f"BATCH_TH_NORMAL_{number // 20:03}"
        second = {**first, "batch_id": batch, "status": "processing", "start_time": local(at + 1)}
        yield "tasks", {**second, "updated_at": local(at + 1)}
        status = FINAL[number % len(FINAL)]
        third = {**second, "status": status, "end_time": local(at + 2), "updated_at": local(at + 2)}
        if status == "completed":
            third |= {"target_text": f"ประโยค {number}", "confidence": 1.0000001, "duration_ms": 1234.6}
            third |= {"context": {"reference_en": "sword"}, "llm_model": "m-1", "token_count": 17}
        elif status == "failed":
            third |= {"error_message": "429 from the model", "retry_count": 3.0}
        yield "tasks", third
        at += STEP_S
    yield session(SESSION_STATES[-1], TASKS)


def plain(value: Any) -> Any:
    """A value as JSON has it; what a frame calls missing is null."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and math.isnan(value) else value


def row_of(kind: str, record: dict[str, Any]) -> dict[str, Any]:
    """What must stand in the table: our fields as they are stored, all others under `extra`."""
    row = {name: plain(value) for name, value in record.items()}
    for name in TIMES:
        if row.get(name) is not None:
            row[name] = row[name].astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f")
    if kind == "sessions":
        row["completed_tasks"] = int(row["completed_tasks"])
        extra = {"target_langs": row.pop("target_langs")}
        return {**row, "extra": extra}
    row["row_index"] = int(row["row_index"])
    row["retry_count"] = int(row["retry_count"] or 0)
    if "confidence" in row:
        row |= {"confidence": 1.0, "duration_ms": 1235}
    extra = {name: row.pop(name) for name in _EXTRA if name in row}
    return {**row, "extra": extra}


def send_with_client(url: str) -> tuple[Callable[[str, list[dict[str, Any]]], None], Callable[[], int]]:
    """Returns: send(kind, records) and finish(), which says how many records the client has dropped."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "client"))
    from persistence_client import PersistenceClient  # noqa: PLC0415 -- only where it is wanted

    client = PersistenceClient(url).sync

    def send(kind: str, records: list[dict[str, Any]]) -> None:
        if kind == "tasks":
            client.persist_tasks(records)
        else:
            client.persist_session(records[0])

    def finish() -> int:
        assert client.flush_all()["status"] == "flushed"
        client.close()
        return client.counters.dropped

    return send, finish


def send_as_http(url: str) -> tuple[Callable[[str, list[dict[str, Any]]], None], Callable[[], int]]:
    """As a backend without our client does it: json.dumps, a time as str() writes it."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)

    def post(path: str, body: str) -> None:
        connection.request("POST", f"/api/v1/persistence/{path}", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
        assert response.status in (200, 202), text

    def send(kind: str, records: list[dict[str, Any]]) -> None:
        found = [{name: plain(value) for name, value in record.items()} for record in records]
        post(f"{kind}/batch", json.dumps({kind: found}, default=str))

    def finish() -> int:
        post("flush", "")
        return 0

    return send, finish


def main() -> None:
    mode, url, begin = sys.argv[1], sys.argv[2], float(sys.argv[3])
    send, finish = (send_with_client if mode == "client" else send_as_http)(url)
    rows: dict[str, dict[str, Any]] = {"sessions": {}, "tasks": {}}
    for both in zip(states(1, begin), states(2, begin), strict=True):
        for kind, record in both:
            send(kind, [record])
            key = "/".join(record[name] for name in ("session_id", "task_id") if name in record)
            rows[kind][key] = row_of(kind, record)
    print(json.dumps({"rows": rows, "dropped": finish(), "pandas": pd and pd.__version__}))


if __name__ == "__main__":
    main()
