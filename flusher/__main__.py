"""Composition root of the flusher: lock, recover, serve, drain."""

from __future__ import annotations

import asyncio
import fcntl
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
from typing import Any

import uvloop

from flusher import segments
from flusher.backlog import Backlog, Segment
from flusher.flush import Flush
from flusher.intake import Intake
from flusher.journal import Journal, Leftover
from flusher.placement import Placement
from flusher.server import FlusherProtocol, Listener, Peers
from flusher.state import Database
from flusher.stats import Figures, document
from flusher.syncer import Fsync, Syncer
from flusher.triggers import FlushPolicy
from flusher.watch import EVERY_S, Watch
from flusher.writers import Writers
from shared import logs, running
from shared.config import Config, load_or_exit, unknown_variables
from shared.exposure import warnings
from shared.process import check_built, close_to_others, keep_freed_memory, lock_or_exit
from shared.timers import repeat
from shared.wire import SOCKET_NAME

log = logging.getLogger("flusher")

PEERS_GO_S = 5.0
"""How long a stopping flusher serves peers that do not leave; ingest stops before it, or at the same time."""
DRAIN_S = 10.0
"""How long it then writes. What a dead or slow database does not take stays in the journal."""

RESTART_DRAIN_S = 2.0
"""The same where the peers have stayed: their requests wait meanwhile, and the next flusher writes the rest anyway."""


def open_journal(directory: Path) -> tuple[Journal, list[Leftover], int]:
    """Held before anything in it is looked at: what is being written now looks like a torn tail.

    Returns: the journal, what an earlier run left, and the last arrival that may have been given out.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        hold(directory)
        journal = Journal(directory)
        return (journal, *journal.recover())
    except OSError as error:
        sys.exit(f"flusher: journal.directory = {directory}: {error.strerror}")


def hold(directory: Path) -> int:
    """A journal is one flusher's, also of two with different state directories.

    Returns: the descriptor that holds it. Raises: SystemExit.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"flusher: journal.directory = {directory}: another flusher is at work in it; each needs its own")
    return fd


async def survey_leftovers(recovered: list[Segment]) -> None:
    """Fills in the counts of recovered segments while requests are already accepted."""
    for segment in recovered:
        try:
            found = await asyncio.to_thread(segments.survey, segment.path)
        except OSError:
            continue  # it is written and gone, or the writer will say what is wrong with it
        segment.records.update(found.records)
        # Of another boot perhaps: only the wall clock knows how long ago that was.
        segment.opened_at = time.monotonic() - max(0.0, time.time() - found.first_arrival / 1e6)


async def serve(config: Config, lock_fd: int) -> None:
    state_directory = Path(config.state_directory)
    journal, leftovers, floor = open_journal(Path(config.journal.directory))
    backlog = Backlog()
    figures = Figures(time.monotonic(), Database(since=time.time()))
    database = config.database
    # A silent writer is one that is stopped: the database's own timeouts end every wait long before.
    answer_timeout_s = 4 * (database.connect_timeout + database.read_timeout + database.write_timeout)
    writers = Writers(answer_timeout_s)
    syncer = Syncer(
        Fsync(config.journal.fsync),
        cut_off=lambda segment, size: flush.cut_off(segment, size),  # noqa: PLW0108 -- flush comes later
        clock=time.monotonic,
    )
    flush = Flush(
        journal,
        backlog,
        writers,
        syncer,
        figures,
        policy=FlushPolicy(config.buffer.max_buffer_size, config.buffer.flush_interval),
        # Each keeps half a core of its own and most of one of the database's at work; more take accepting's time.
        writers_at_once=max(1, len(os.sched_getaffinity(0)) // 2),
        pool_size=database.pool_size,
        random=random.random,
    )
    intake = Intake(
        journal,
        backlog,
        syncer,
        flush,
        figures,
        max_bytes=config.journal.max_bytes,
        last_arrival=floor,
    )
    peers = Peers()
    placement = Placement()

    def stats() -> dict[str, Any]:
        intake.look()
        flush.look()
        return document(
            figures,
            backlog,
            journal,
            max_bytes=config.journal.max_bytes,
            flush_interval_s=config.buffer.flush_interval,
            unsynced_records=syncer.unsynced_records,
            acceptance=intake.acceptance,
            refusing=intake.refusing,
            writers=writers.processes,
            database_connections=writers.connected,
            connections=len(peers),
            longest_write_s=flush.longest_write_s(time.monotonic()),
            now=time.monotonic(),
            wall=time.time(),
        )

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # After a clean stop there are only headers.
    to_recover = [left.size for left in leftovers if left.size > segments.SEGMENT_HEADER_BYTES]
    flush.start(leftovers, floor)
    listener = Listener(lambda: FlusherProtocol(peers, intake, flush, stats, placement))
    watch = Watch(
        state_directory,
        lock_fd,
        journal=journal,
        intake=intake,
        flush=flush,
        figures=figures,
        writers=writers,
        listen=listener.listen,
        stop=stop.set,
    )
    await watch.start()
    background = [
        loop.create_task(repeat("a look at what is ours", EVERY_S, watch.look)),
        loop.create_task(survey_leftovers([segment for segment in backlog if segment.recovered])),
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
    flush.start_draining()
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
    await flush.drain(drain_s)
    flush.stop()
    await writers.terminate()
    await syncer.close()
    left = sum(backlog.records().values())
    log.log(logging.WARNING if left else logging.INFO, "stopped, %d records wait in the journal", left)


def _ended(stop: Callable[[], None], task: asyncio.Task[None]) -> None:
    """Nothing that goes on in the background may just cease: the next flusher begins anew."""
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
