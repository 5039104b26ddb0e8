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
from pathlib import Path
from typing import Any

import uvloop

from flusher import dead_letters, segments
from flusher.backlog import Backlog
from flusher.flush import Flush
from flusher.intake import Intake
from flusher.journal import Journal
from flusher.placement import Placement
from flusher.server import FlusherProtocol, Peers
from flusher.state import Database
from flusher.stats import Figures, document
from flusher.syncer import Fsync, Syncer
from flusher.triggers import FlushPolicy
from flusher.writers import Writers
from shared import logs
from shared.config import Config, load_or_exit, unknown_variables
from shared.exposure import warnings
from shared.process import close_to_others, keep_freed_memory, own_state_directory
from shared.timers import repeat
from shared.wire import SOCKET_NAME

log = logging.getLogger("flusher")

DEAD_LETTERS_SEEN_S = 1.0
WATCH_S = 1.0
PEERS_GO_S = 5.0
"""How long a stopping flusher serves peers that do not leave; ingest stops before it, or at the same time."""
DRAIN_S = 10.0
"""How long it then writes. What a dead or slow database does not take stays in the journal."""

RESTART_DRAIN_S = 2.0
"""The same where the peers have stayed: their requests wait meanwhile, and the next flusher writes the rest anyway."""


def lock(state_directory: Path) -> int:
    """One flusher a state directory. Returns: the descriptor that holds the lock. Raises: SystemExit."""
    own_state_directory(state_directory)
    try:
        fd = os.open(state_directory / "flusher.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        sys.exit(f"flusher: PERSISTENCE_STATE_DIR = {state_directory}: {error.strerror}")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"flusher: another flusher is at work in {state_directory}")
    return fd


def socket_path(state_directory: Path) -> Path:
    """Where ingest finds us: in a directory that is closed to other users. Raises: SystemExit."""
    path = state_directory / SOCKET_NAME
    if len(os.fsencode(path)) > 107:
        sys.exit(f"flusher: {path}: a socket's path may have 107 bytes (unix(7)); shorten PERSISTENCE_STATE_DIR")
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.parent.chmod(0o700)
    path.unlink(missing_ok=True)
    return path


def open_journal(directory: Path) -> tuple[Journal, list[Path], int]:
    """Returns: the journal, what an earlier run left, and the last arrival that may have been given out."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        journal = Journal(directory)
        leftovers = journal.leftovers()
        floor = 0
        if leftovers:
            floor = last_given_out(leftovers[-1])
    except OSError as error:
        sys.exit(f"flusher: journal.directory = {directory}: {error.strerror}")
    return journal, leftovers, floor


def last_given_out(newest: Path) -> int:
    """The last arrival, in µs, of the newest segment, or a later time. Raises: OSError."""
    modified_at = newest.stat().st_mtime_ns // 1000
    try:
        contents = segments.read(newest)
    except OSError as error:
        # The writer meets it too, and its alarm stands; it is no reason to accept nothing.
        log.error("journal: %s cannot be read: %s", newest, error.strerror)
        return max(modified_at, time.time_ns() // 1000)
    # Only what a CRC covers: a damaged arrival far in the future would stamp everything that follows.
    return max(contents.floor, modified_at, *(entry.arrival for entry in contents.entries))


def with_records(leftovers: list[Path]) -> list[int]:
    """Sizes of those segments that hold more than their header; after a clean stop there is none."""
    return [size for size in (path.stat().st_size for path in leftovers) if size > segments.SEGMENT_HEADER_BYTES]


async def survey_leftovers(leftovers: list[Path], backlog: Backlog) -> None:
    """Fills in the counts of recovered segments while requests are already accepted."""
    for path in leftovers:
        try:
            found = await asyncio.to_thread(segments.survey, path)
        except OSError:
            continue  # it is written and gone, or the writer will say what is wrong with it
        for segment in backlog:
            if segment.path == path:
                segment.records.update(found.records)
                segment.first_arrival = found.first_arrival


async def count_dead_letters(path: Path, figures: Figures, writers: Writers) -> None:
    """Keeps the number of dead letters right: writers add to the file, an operator's replay takes out of it.

    Only while no writer is at work: what it has added, its answer would add once more.
    """
    seen: tuple[int, int, int] | None = None
    while True:
        try:
            status = path.stat()  # noqa: ASYNC240 -- takes microseconds
            now = (status.st_mtime_ns, status.st_size, figures.dead_lettered)
        except FileNotFoundError:
            now = (0, 0, figures.dead_lettered)
        if now != seen and not writers.busy:
            count = await asyncio.to_thread(dead_letters.count, path)
            if not writers.busy and now[2] == figures.dead_lettered:
                seen, figures.dead_letters_waiting = now, count
        await asyncio.sleep(DEAD_LETTERS_SEEN_S)


async def serve(config: Config) -> None:
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

    def watch() -> None:
        intake.probe()
        flush.look()

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    to_recover = with_records(leftovers)
    flush.start(leftovers, floor)
    path = socket_path(state_directory)
    server = await loop.create_unix_server(
        lambda: FlusherProtocol(peers, intake, flush, stats, placement), path=str(path), backlog=1024
    )
    background = [
        loop.create_task(repeat("watching over the journal", WATCH_S, watch)),
        loop.create_task(survey_leftovers(leftovers, backlog)),
        loop.create_task(count_dead_letters(state_directory / dead_letters.FILE_NAME, figures, writers)),
    ]
    if to_recover:
        log.info("recovering %d segments, %d bytes", len(to_recover), sum(to_recover))
    gc.collect()
    gc.freeze()
    log.info("accepting at %s", path)
    await stop.wait()

    log.info("stopping: serving until the peers have gone, writing what is left")
    flush.start_draining()
    drain_s = DRAIN_S
    try:
        await asyncio.wait_for(peers.gone.wait(), PEERS_GO_S)
    except asyncio.TimeoutError:
        log.info("%d peers stay: only the flusher is restarted, they will send again to the next one", len(peers))
        drain_s = RESTART_DRAIN_S
    server.close()
    peers.close()
    await flush.drain(drain_s)
    flush.stop()
    for task in background:
        task.cancel()
    await writers.terminate()
    await syncer.close()
    left = sum(backlog.records().values())
    log.log(logging.WARNING if left else logging.INFO, "stopped, %d records wait in the journal", left)


def main() -> None:
    close_to_others()
    keep_freed_memory()
    config = load_or_exit()
    logging_config = config.logging
    logs.setup("flusher", level=logging_config.level, format=logging_config.format, file=logging_config.file)
    held = lock(Path(config.state_directory))
    for warning in [*unknown_variables(os.environ), *warnings(config)]:
        log.warning("%s", warning)
    uvloop.run(serve(config))
    os.close(held)


if __name__ == "__main__":
    main()
