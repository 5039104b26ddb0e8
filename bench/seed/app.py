"""The single-process design that this project replaces, in its usual form, to be measured beside it.

FastAPI and pydantic take a batch, two lists are the buffer, and a task of the same process writes them with aiomysql's
executemany when 1000 records are in or 30 s have passed. What is in the lists is lost when the process dies. Run as its
users would: `uvicorn app:app`, one worker, with the uvloop and httptools that `uvicorn[standard]` brings.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from typing import Any, Literal

import aiomysql
from fastapi import FastAPI
from pydantic import BaseModel, Field

MAX_BUFFER_SIZE = 1000
FLUSH_INTERVAL_S = 30


class Session(BaseModel):
    session_id: str = Field(min_length=1, max_length=36)
    filename: str = Field(min_length=1, max_length=255)
    file_path: str = Field(min_length=1, max_length=512)
    status: Literal["pending", "processing", "completed", "failed", "cancelled"]
    llm_provider: str = Field(min_length=1, max_length=50)
    game_info: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    total_tasks: int = Field(0, ge=0)
    completed_tasks: int = Field(0, ge=0)
    failed_tasks: int = Field(0, ge=0)
    processing_tasks: int = Field(0, ge=0)
    updated_at: datetime | None = None


class Task(BaseModel):
    task_id: str = Field(min_length=1, max_length=64)
    batch_id: str = Field(min_length=1, max_length=64)
    session_id: str = Field(min_length=1, max_length=36)
    sheet_name: str = Field(min_length=1, max_length=255)
    column_name: str = Field(min_length=1, max_length=255)
    row_index: int = Field(ge=0)
    source_text: str = Field(min_length=1, max_length=65535)
    status: Literal["pending", "processing", "completed", "failed"]
    target_text: str | None = Field(None, max_length=65535)
    context: str | None = Field(None, max_length=65535)
    error_message: str | None = Field(None, max_length=65535)
    confidence: float | None = Field(None, ge=0, le=1)
    retry_count: int = Field(0, ge=0)
    start_time: datetime | None = None
    end_time: datetime | None = None
    duration_ms: int | None = Field(None, ge=0)
    updated_at: datetime | None = None


class Sessions(BaseModel):
    sessions: list[Session] = Field(min_length=1, max_length=1000)


class Tasks(BaseModel):
    tasks: list[Task] = Field(min_length=1, max_length=1000)


def upsert(table: str, model: type[BaseModel], key: str) -> str:
    names = list(model.model_fields)
    updates = ", ".join(f"{name} = VALUES({name})" for name in names if name != key)
    return (
        f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join(['%s'] * len(names))})"
        f" ON DUPLICATE KEY UPDATE {updates}"
    )


UPSERT_SESSIONS = upsert("translation_sessions", Session, "session_id")
UPSERT_TASKS = upsert("translation_tasks", Task, "task_id")


def values(record: BaseModel) -> tuple[Any, ...]:
    return tuple(column(value) for value in record.__dict__.values())


def column(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).replace(tzinfo=None) if value.tzinfo else value
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return value


class Buffer:
    def __init__(self, pool: aiomysql.Pool) -> None:
        self.pool = pool
        self.sessions: list[Session] = []
        self.tasks: list[Task] = []
        self.flushing = asyncio.Lock()
        self.background: set[asyncio.Task[None]] = set()

    def added(self) -> None:
        if len(self.sessions) + len(self.tasks) >= MAX_BUFFER_SIZE and not self.flushing.locked():
            task = asyncio.create_task(self.flush())
            self.background.add(task)
            task.add_done_callback(self.background.discard)

    async def flush(self) -> None:
        async with self.flushing:
            while self.sessions or self.tasks:
                sessions, self.sessions = self.sessions, []
                tasks, self.tasks = self.tasks, []
                try:
                    await self.write(sessions, tasks)
                except Exception:
                    self.sessions = sessions + self.sessions
                    self.tasks = tasks + self.tasks
                    raise

    async def write(self, sessions: list[Session], tasks: list[Task]) -> None:
        now = datetime.now(timezone.utc)
        for record in (*sessions, *tasks):
            if record.updated_at is None:
                record.updated_at = now
        async with self.pool.acquire() as connection, connection.cursor() as cursor:
            for at in range(0, len(sessions), MAX_BUFFER_SIZE):
                part = sessions[at : at + MAX_BUFFER_SIZE]
                await cursor.executemany(UPSERT_SESSIONS, [values(record) for record in part])
                await connection.commit()
            for at in range(0, len(tasks), MAX_BUFFER_SIZE):
                part = tasks[at : at + MAX_BUFFER_SIZE]
                await cursor.executemany(UPSERT_TASKS, [values(record) for record in part])
                await connection.commit()

    async def flush_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_INTERVAL_S)
            await self.flush()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    pool = await aiomysql.create_pool(
        unix_socket=os.environ["DB_SOCKET"],
        user="root",
        db=os.environ["DB_DATABASE"],
        charset="utf8mb4",
        minsize=1,
        maxsize=10,
    )
    app.state.buffer = Buffer(pool)
    timer = asyncio.create_task(app.state.buffer.flush_now_and_then())
    yield
    timer.cancel()
    await app.state.buffer.flush()
    pool.close()
    await pool.wait_closed()


app = FastAPI(lifespan=lifespan)


def accepted(count: int) -> dict[str, Any]:
    return {"status": "accepted", "count": count, "timestamp": datetime.now(timezone.utc).isoformat()}


@app.get("/ready")
async def ready() -> dict[str, bool]:
    return {"ready": True}


@app.post("/api/v1/persistence/sessions/batch", status_code=202)
async def sessions_batch(batch: Sessions) -> dict[str, Any]:
    buffer: Buffer = app.state.buffer
    buffer.sessions.extend(batch.sessions)
    buffer.added()
    return accepted(len(batch.sessions))


@app.post("/api/v1/persistence/tasks/batch", status_code=202)
async def tasks_batch(batch: Tasks) -> dict[str, Any]:
    buffer: Buffer = app.state.buffer
    buffer.tasks.extend(batch.tasks)
    buffer.added()
    return accepted(len(batch.tasks))
