"""Composition root of the reader: one a node, beside flusher and ingest. It holds no data: kill it, start it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from pathlib import Path

import uvloop

from reader.database import Database
from reader.server import Reader
from shared import bodies, logs
from shared.config import load_or_exit
from shared.database import for_reader
from shared.process import check_built, close_to_others, lock_or_exit, peer_of
from shared.reading import MAX_CALL_BYTES, SOCKET_NAME
from shared.records import SESSIONS, TASKS, Rules
from shared.settings import Config

log = logging.getLogger("reader")

GRACEFUL_S = 5.0
"""How long answers under way may take after SIGTERM; ingest has stopped before."""
NICE = 5
"""Where cores are short, writing goes first."""
SWITCHED_OFF = 78
"""Our exit status where `read.enabled` is false; supervisord.conf takes it for a good one, if we last startsecs."""


async def serve(config: Config, path: Path) -> None:
    reader = Reader(
        lambda: Database(for_reader(config), timeout_s=config.read.timeout),
        pool_size=config.read.pool_size,
        wait_s=config.read.timeout,
        statuses={SESSIONS: config.records.session_statuses, TASKS: config.records.task_statuses},
        to_utc=bodies.Reader(TASKS, Rules(config.records.time_zone)).time,
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    calls: set[asyncio.Task[None]] = set()

    def connected(stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, uid = peer_of(writer.get_extra_info("socket"))
        if uid != os.getuid():
            log.error("socket: a peer of user %d was refused", uid)
            writer.transport.abort()
            return
        task = loop.create_task(reader.serve(stream, writer))
        calls.add(task)
        task.add_done_callback(calls.discard)

    server = await asyncio.start_unix_server(connected, path=str(path), limit=MAX_CALL_BYTES, backlog=1024)
    log.info("answering at %s", path)
    await stop.wait()
    server.close()
    if calls:
        await asyncio.wait(calls, timeout=GRACEFUL_S)
    log.info("stopped; %d answers cut off", len(calls))


def main() -> None:
    close_to_others()
    check_built("reader")
    config = load_or_exit()
    logging_config = config.logging
    logs.setup("reader", level=logging_config.level, format=logging_config.format, file=logging_config.file)
    if not config.read.enabled:
        log.info("switched off (read.enabled)")
        time.sleep(2)
        sys.exit(SWITCHED_OFF)
    os.nice(NICE)
    state_directory = Path(config.state_directory)
    _lock = lock_or_exit(state_directory, "reader")
    path = state_directory / SOCKET_NAME
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.unlink(missing_ok=True)
        uvloop.run(serve(config, path))
    except OSError as error:
        sys.exit(f"reader: {path}: {error.strerror}")
    logging.shutdown()
    os._exit(0)  # nobody waits for the answer to a statement that still runs


if __name__ == "__main__":
    main()
