"""What is sent: a pool of distinct, realistic tasks, and bodies and files made of them.

Ids must be new in every request, or the database would see updates only, and making them must cost the sender next to
nothing. So each task's text is kept in two pieces around the place of the request's number, and a body is one join of
ready pieces with that number. wrk.lua does the same with the file that write() makes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from random import Random, randrange
from typing import Any
from uuid import UUID

import orjson

from shared.records import Task

POOL = 2000
"""Distinct tasks."""
BODIES = 250
"""Distinct bodies of every batch size: as many runs of neighbours in the pool, wrapping around."""
STRIDE = 7
"""Between the first tasks of two bodies; has no factor in common with POOL."""
NUMBER_BYTES = 14
"""A request's number, of fixed width so that a body's length does not change."""
MARK = "\x01"
"""Stands for the number in pool files; no JSON text contains it unescaped."""

_ENGLISH_TEXT = """
the player must find a hidden key before sunrise and open gate of old tower while enemies guard every road
collect ten silver coins to upgrade your sword or trade them with merchant quest completed reward received
warning this item cannot be sold after binding press any button to continue loading please wait new level
"""
_CHINESE_TEXT = """
玩家 必须 在 日出 之前 找到 隐藏 的 钥匙 并 打开 古塔 大门 收集 十枚 银币 升级 你的 宝剑 或者 与 商人 交换 任务 完成
获得 奖励 警告 该 道具 绑定 后 无法 出售 按 任意 键 继续 正在 加载 请 稍候 新 等级 已 解锁 敌人 守卫 着 每 一条 道路
"""
_ENGLISH, _CHINESE = _ENGLISH_TEXT.split(), _CHINESE_TEXT.split()
_STATUSES = ("pending", "processing", "completed", "completed")
COLUMNS = tuple(Task.__struct_fields__)
_TIMES = {"start_time", "end_time", "updated_at"}


def number(run: str, count: int) -> bytes:
    """NUMBER_BYTES characters that rise; wrk.lua puts its thread's number, from 1 on, where 00 stands."""
    return b"%b00%07d" % (run.encode(), count)


_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_RUN_CHARACTERS = 5
_MOST_RUNS = 10_000
_runs = itertools.count(randrange(len(_DIGITS) ** _RUN_CHARACTERS - _MOST_RUNS))
"""From a place of its own in every start of the benchmark: a peer keeps what it was sent the last time, and should
insert like the others, not update."""


def new_run() -> str:
    """5 characters that no other sender uses; later ones sort higher."""
    rest, characters = next(_runs), ""
    for _ in range(_RUN_CHARACTERS):
        rest, digit = divmod(rest, len(_DIGITS))
        characters = _DIGITS[digit] + characters
    return characters


def pool(size: int = POOL, seed: int = 4) -> list[dict[str, Any]]:
    """Tasks as a caller would send them; task_id holds MARK where the request's number goes."""
    random = Random(seed)
    began_at = datetime(2026, 11, 23, 10, 0, tzinfo=timezone.utc)
    sessions = [str(UUID(int=random.getrandbits(128), version=4)) for _ in range(size // 50 or 1)]
    tasks = []
    for index in range(size):
        status = random.choice(_STATUSES)
        started_at = began_at + timedelta(milliseconds=random.randrange(3_600_000))
        took_ms = random.randrange(400, 9000)
        task: dict[str, Any] = {
            "task_id": f"{MARK}-{index:05}",
            "batch_id": f"batch-{index // 10:06}",
            "session_id": sessions[index % len(sessions)],
            "sheet_name": random.choice(("UI", "Dialogue", "道具", "Quests", "任务文本")),
            "column_name": random.choice(("EN", "TH", "译文", "PT")),
            "row_index": random.randrange(1, 60_000),
            "source_text": text(random),
            "status": status,
            "updated_at": started_at.isoformat(),
        }
        if index % 4 == 0:
            task["context"] = text(random)
        if status != "pending":
            task["start_time"] = started_at.isoformat()
        if status == "completed":
            task |= {
                "target_text": text(random),
                "confidence": round(random.uniform(0.6, 1), 4),
                "end_time": (started_at + timedelta(milliseconds=took_ms)).isoformat(),
                "duration_ms": took_ms,
                "updated_at": (started_at + timedelta(milliseconds=took_ms)).isoformat(),
            }
        tasks.append(task)
    return tasks


def text(random: Random) -> str:
    """20 to 200 characters, English, Chinese, or both in turns."""
    wanted = random.randrange(20, 201)
    share = random.choice((0.0, 0.5, 1.0))
    parts: list[str] = []
    length = 0
    while length < wanted:
        if random.random() < share:
            part = "".join(random.choices(_CHINESE, k=3))
        else:
            part = " ".join(random.choices(_ENGLISH, k=3)) + " "
        parts.append(part)
        length += len(part)
    return "".join(parts)[:wanted].strip().ljust(20, "。")


def write(path: Path, tasks: Sequence[dict[str, Any]]) -> None:
    """The pool as JSON lines, for wrk.lua."""
    path.write_bytes(b"".join(_json(task) + b"\n" for task in tasks))


def bodies(tasks: Sequence[dict[str, Any]], batch: int, count: int = BODIES) -> list[list[bytes]]:
    """Bodies as pieces: `number.join(pieces)` is one."""
    return _joined([_json(task) for task in tasks], batch, count, head=b'{"tasks":[', separator=b",", tail=b"]}")


def files(tasks: Sequence[dict[str, Any]], rows: int, count: int) -> list[list[bytes]]:
    """The same tasks as files for LOAD DATA, as pieces."""
    return _joined([_tsv(task) for task in tasks], rows, count, head=b"", separator=b"\n", tail=b"\n")


def _joined(
    texts: Sequence[bytes], batch: int, count: int, *, head: bytes, separator: bytes, tail: bytes
) -> list[list[bytes]]:
    """Runs of neighbours: a run longer than the pool would repeat ids, so it is refused."""
    if batch > len(texts):
        raise ValueError(f"a batch of {batch} needs as many tasks; the pool has {len(texts)}")
    halves = [text.split(MARK.encode()) for text in texts]
    between = [halves[index - 1][1] + separator + halves[index][0] for index in range(len(halves))]
    made = []
    for number_of_body in range(count):
        first = number_of_body * STRIDE % len(halves)
        at = [(first + offset) % len(halves) for offset in range(batch)]
        made.append([head + halves[first][0], *(between[index] for index in at[1:]), halves[at[-1]][1] + tail])
    return made


def _json(task: dict[str, Any]) -> bytes:
    return orjson.dumps(task).replace(b"\\u0001", MARK.encode())


def _tsv(task: dict[str, Any]) -> bytes:
    return "\t".join(_tsv_value(value) for value in _row(task)).encode()


def _tsv_value(value: Any) -> str:
    if value is None:
        return "\\N"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S.%f")
    return str(value).replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")


def _row(task: dict[str, Any]) -> Iterator[Any]:
    """Values in the order of COLUMNS, times in UTC."""
    for name in COLUMNS:
        value = task.get(name, 0 if name == "retry_count" else None)
        if value is not None and name in _TIMES:
            value = datetime.fromisoformat(value).astimezone(timezone.utc)
        yield value
