"""Composition root of the flusher: lock, recover, serve, drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import uvloop

from flusher.figures import Figures
from flusher.intake import Intake
from flusher.placement import Placement
from flusher.recovery import count_records, open_journal
from flusher.scheduler import Scheduler
from flusher.segments import SEGMENT_HEADER_BYTES
from flusher.server import Connections, FlusherProtocol, Listener
from flusher.state import Database
from flusher.stats import Stats
from flusher.syncer import Fsync, Syncer
from flusher.triggers import FlushPolicy
from flusher.watch import EVERY_S, Watch
from flusher.writers import Writers
from shared import logs, running
from shared.config import load_or_exit, unknown_variables
from shared.exposure import warnings
from shared.process import check_built, close_to_others, keep_freed_memory, lock_or_exit
from shared.settings import Config
from shared.timers import repeat
from shared.wire import SOCKET_NAME

log = logging.getLogger("flusher")

PEERS_GO_S = 5.0
"""How long a stopping flusher serves peers that stay connected; usually ingest stops first."""
DRAIN_S = 10.0
"""How long it then writes; the rest stays in the journal."""
RESTART_DRAIN_S = 2.0
"""The same if peers have stayed: their requests wait meanwhile, and the next flusher writes the rest."""


async def serve(config: Config, lock_fd: int) -> None:
    state_directory = Path(config.state_directory)
    journal = open_journal(Path(config.journal.directory))
    to_recover = [segment.size for segment in journal if segment.size > SEGMENT_HEADER_BYTES]
    figures = Figures(time.monotonic(), Database(since=time.time()))
    database = config.database
    # Only a stopped writer is silent for so long: the database's own timeouts end every wait before.
    answer_timeout_s = 4 * (database.connect_timeout + database.read_timeout + database.write_timeout)
    writers = Writers(answer_timeout_s)
    syncer = Syncer(Fsync(config.journal.fsync), journal, clock=time.monotonic)
    scheduler = Scheduler(
        journal,
        writers,
        syncer,
        figures,
        policy=FlushPolicy(config.buffer.max_buffer_size, config.buffer.flush_interval),
        # Each takes half a core and most of one of the database's; more would slow accepting down.
        writers_at_once=max(1, len(os.sched_getaffinity(0)) // 2),
        pool_size=database.pool_size,
        random=random.random,
    )
    intake = Intake(journal, syncer, scheduler, figures, max_bytes=config.journal.max_bytes)
    peers = Connections()
    placement = Placement()

    stats = Stats(figures, journal, syncer, scheduler, intake, writers, peers)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    journal.try_open()
    scheduler.start()
    listener = Listener(lambda: FlusherProtocol(peers, intake, scheduler, stats.document, placement))
    watch = Watch(
        state_directory,
        lock_fd,
        journal=journal,
        intake=intake,
        scheduler=scheduler,
        figures=figures,
        writers=writers,
        listen=listener.listen,
        stop=stop.set,
    )
    await watch.start()
    background = [
        loop.create_task(repeat("a look at what is ours", EVERY_S, watch.look)),
        loop.create_task(count_records(journal)),
    ]
    for task in background:
        task.add_done_callback(partial(_ended, stop.set))
    if to_recover:
        log.info("recovering %d segments, %d bytes", len(to_recover), sum(to_recover))
    gc.collect()
    gc.freeze()
    log.info("accepting at %s", state_directory / SOCKET_NAME)
    await stop.wait()

    log.info("stopping: serving until the peers have gone, writing what is left")
    scheduler.start_draining()
    drain_s = DRAIN_S
    try:
        await asyncio.wait_for(peers.gone.wait(), PEERS_GO_S)
    except asyncio.TimeoutError:
        log.info("%d peers stay: only the flusher is restarted, they will send again to the next one", len(peers))
        drain_s = RESTART_DRAIN_S
    for task in background:
        task.cancel()
    listener.close()
    peers.close()
    await scheduler.drain(drain_s)
    scheduler.stop()
    await writers.terminate()
    await syncer.close()
    left = sum(journal.records().values())
    log.log(logging.WARNING if left else logging.INFO, "stopped, %d records wait in the journal", left)


def _ended(stop: Callable[[], None], task: asyncio.Task[None]) -> None:
    """A background task that fails ends the process; supervisord starts the next one."""
    if not task.cancelled() and task.exception() is not None:
        log.critical("a task of the flusher failed; it stops", exc_info=task.exception())
        stop()


def main() -> None:
    close_to_others()
    keep_freed_memory()
    config = load_or_exit()
    logging_config = config.logging
    logs.setup("flusher", level=logging_config.level, format=logging_config.format, file=logging_config.file)
    check_built("flusher")
    state_directory = Path(config.state_directory)
    held = lock_or_exit(state_directory, "flusher")
    for warning in [*unknown_variables(os.environ), *warnings(config)]:
        log.warning("%s", warning)
    try:
        running.leave(state_directory, os.environ)
    except OSError as error:
        sys.exit(f"flusher: PERSISTENCE_STATE_DIR = {state_directory}: cannot be written: {error.strerror}")
    uvloop.run(serve(config, held))
    running.forget(state_directory)


if __name__ == "__main__":
    main()
