"""A translation backend with the client dropped in: translates until its stdin closes, then says what it knows."""

import asyncio
import json
import random
import sys
import time

from services.persistence.persistence_client import persistence_client

calls_s, last_states = [], {}


async def persist(task):
    started_at = time.perf_counter()
    await persistence_client.persist_tasks([task])
    calls_s.append(time.perf_counter() - started_at)


async def translate(task_id):
    task = {"task_id": task_id, "batch_id": "b1", "session_id": "s1", "sheet_name": "UI", "column_name": "C"}
    task |= {"row_index": 7, "source_text": "Start game", "retry_count": 0}
    for status in ("pending", "processing", *random.choices(("processing", "completed", "failed"), k=3)):
        task |= {"status": status, "retry_count": task["retry_count"] + 1, "target_text": f"{status} {time.time()}"}
        await persist(task)
        await asyncio.sleep(random.uniform(0, 0.5))
    last_states[task_id] = [task["status"], task["retry_count"], task["target_text"]]


async def main():
    stdin_closed = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    translations = []
    while not stdin_closed.done():
        translations.append(asyncio.create_task(translate(f"t{len(translations)}")))
        await asyncio.sleep(0.005)
    await asyncio.gather(*translations)
    flushed = await persistence_client.flush_all()
    print(json.dumps([flushed, last_states, calls_s, persistence_client.counters]))
    await persistence_client.aclose()


asyncio.run(main())
