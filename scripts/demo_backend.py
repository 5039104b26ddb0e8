"""A small translation backend for scripts/demo.py: two workbooks, 20 workers, an LLM that fails one time in ten.

It keeps nothing of its own. Started again after a crash, it asks the service for its unfinished sessions and their
tasks, makes its frames of the answer and goes on. Each call of the LLM is a line in LEDGER, as on a bill.

    python scripts/demo_backend.py URL LEDGER --tasks N --seconds S
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))
from persistence_client import PersistenceClient, ReadFailed

try:
    import pandas as pd
except ImportError:  # the same with plain dicts
    pd = None  # type: ignore[assignment,unused-ignore]

WORKERS = 20
WORKBOOKS = ("quests.xlsx", "items.xlsx")
UNFINISHED = ("created", "split_complete", "executing")
T = TypeVar("T")


class Frame:
    """The tasks of a workbook, a row each: a DataFrame where there is pandas. Rows are read and changed by number."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows if pd is None else pd.DataFrame(rows).astype(object)
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, number: int) -> dict[str, Any]:
        with self._lock:
            return dict(self._rows[number] if isinstance(self._rows, list) else self._rows.loc[number])

    def change(self, number: int, **values: Any) -> dict[str, Any]:
        """Returns: the whole row."""
        with self._lock:
            if isinstance(self._rows, list):
                self._rows[number].update(values)
            else:
                for name, value in values.items():
                    self._rows.loc[number, name] = value
        return self.row(number)


class Backend:
    def __init__(self, url: str, ledger: Path, tasks: int, seconds: float) -> None:
        self._client = PersistenceClient(url).sync
        self._bill = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._tasks = tasks
        self._seconds = seconds

    def run(self) -> None:
        unfinished = answered(lambda: list(self._client.sessions(status=UNFINISHED, fresh=True)))
        if unfinished:
            print(f"backend: goes on with {len(unfinished)} sessions that the service gives back", flush=True)
            books = [(one, Frame(self._read(one["session_id"]))) for one in unfinished]
        else:
            books = [self._split(name) for name in WORKBOOKS]
        with ThreadPoolExecutor(WORKERS) as workers:
            for session, frame in books:
                self._client.persist_session({**session, "status": "executing", "updated_at": datetime.now()})
                for number in range(len(frame)):
                    if frame.row(number)["status"] != "completed":
                        workers.submit(self._translate, frame, number)
        for session, frame in books:
            done = {"status": "completed", "completed_tasks": len(frame), "updated_at": datetime.now()}
            self._client.persist_session({**session, **done})
        while self._client.flush_all().get("status") != "flushed":
            time.sleep(0.1)
        self._client.close()

    def _read(self, session_id: str) -> list[dict[str, Any]]:
        return answered(lambda: list(self._client.tasks(session_id, fresh=True)))

    def _split(self, filename: str) -> tuple[dict[str, Any], Frame]:
        session = {"session_id": str(uuid4()), "filename": filename, "total_tasks": self._tasks, "stage": "th"}
        self._client.persist_session({**session, "status": "split_complete", "updated_at": datetime.now()})
        rows = [
            {
                "session_id": session["session_id"],
                "task_id": f"TASK_{number:04}",
                "sheet_name": "UI",
                "row_index": number,
                "source_text": f"第 {number} 把剑",
                "source_lang": "zh",
                "target_lang": "th",
                "status": "pending",
                "target_text": None,
                "error_message": None,
                "retry_count": 0,
                "updated_at": datetime.now(),
            }
            for number in range(self._tasks)
        ]
        frame = Frame(rows)
        self._client.persist_tasks([frame.row(number) for number in range(len(frame))])
        return session, frame

    def _translate(self, frame: Frame, number: int) -> None:
        while True:
            row = frame.row(number)
            try:
                text = self._llm(row)
            except TimeoutError as error:
                changed = {"status": "failed", "error_message": str(error), "retry_count": int(row["retry_count"]) + 1}
                self._client.persist_tasks([frame.change(number, **changed, updated_at=datetime.now())])
                continue
            changed = {"status": "completed", "target_text": text, "error_message": None, "cost": 0.25}
            self._client.persist_tasks([frame.change(number, **changed, updated_at=datetime.now())])
            return

    def _llm(self, row: dict[str, Any]) -> str:
        os.write(self._bill, f"{os.getpid()} {row['session_id']} {row['task_id']}\n".encode())
        time.sleep(self._seconds * random.uniform(0.5, 1.5))
        if random.random() < 0.1:
            raise TimeoutError("429 from the model")
        return f"{row['source_lang']}>{row['target_lang']}: {row['source_text']}"


def answered(read: Callable[[], T]) -> T:
    """What the service gives back; asked again until it can."""
    while True:
        try:
            return read()
        except ReadFailed as error:
            print(f"backend: waits for the service: {error}", flush=True)
            time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("ledger", type=Path)
    parser.add_argument("--tasks", type=int, default=400, help="of each workbook")
    parser.add_argument("--seconds", type=float, default=1.0, help="that the LLM takes")
    options = parser.parse_args()
    Backend(options.url, options.ledger, options.tasks, options.seconds).run()


if __name__ == "__main__":
    main()
