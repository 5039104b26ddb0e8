"""The start of the journal: lock it, take in the segments of earlier runs, count their records in the background.

A segment under any number is taken in: one that an operator restored under a name that this service does not give is
renamed, so that numbers never outgrow their 20 digits. Everything else in the directory is left alone and logged.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

from flusher import segments
from flusher.journal import DIGITS, PROBE_NAME, Journal
from flusher.segments import SUFFIX
from flusher.triggers import FlushReason

log = logging.getLogger(__name__)

_NAME = re.compile(r"(\d+)\.segment(\.broken)?", re.ASCII)
_REWRITE_NAME = re.compile(r"\d{20}\.rewrite", re.ASCII)
MAX_SEQUENCE = 10**18
MAX_ARRIVAL = int(datetime(9900, 1, 1, tzinfo=timezone.utc).timestamp()) * 1_000_000
"""Later arrivals are ignored: the ones that follow must still be dates with four-digit years."""


def open_journal(directory: Path) -> Journal:
    """Creates, locks and recovers a journal. Blocks. Raises: SystemExit."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        hold(directory)  # first: an append of another flusher looks like a torn tail
        journal = Journal(directory)
        recover(journal)
    except OSError as error:
        sys.exit(f"flusher: journal.directory = {directory}: {error.strerror}")
    return journal


def hold(directory: Path) -> int:
    """Locks a journal for this process, also against a flusher with another state directory.

    Returns: the descriptor that holds the lock. Raises: SystemExit, OSError.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"flusher: journal.directory = {directory}: another flusher is at work in it; each needs its own")
    return fd


def recover(journal: Journal) -> None:
    """Queues the segments of earlier runs, oldest first, and sets `last_arrival`. Blocks. Raises: OSError.

    Cuts off the newest segment's torn tail and removes unfinished copies.
    """
    found, misnamed = _scan(journal)
    newest = found[-1:]
    renamed = [_rename(journal, path) for path in misnamed]
    last = [*found[-2:], *renamed]  # a crash may have left the newest without its header
    found += renamed
    for path in found:
        if path.is_file() and not path.stat().st_size:
            log.warning("journal: %s is empty: its records are lost, removed by somebody or by a power cut", path)
    journal.last_arrival = max((_last_arrival(path, mend=path in newest) for path in last), default=0)
    for path in found:
        journal.take_in(path)


async def count_records(journal: Journal) -> None:
    """Fills in the counts of recovered segments, while requests are accepted."""
    for segment in [segment for segment in journal if segment.reason is FlushReason.RECOVERY]:
        try:
            found = await asyncio.to_thread(segments.summarize, segment.path)
        except OSError:
            continue  # it is written by now, or the writer reports the fault
        segment.records.update(found.records)
        # It may be of another boot, so only the wall clock knows its age.
        segment.opened_at = time.monotonic() - max(0.0, time.time() - found.first_arrival / 1e6)


def _scan(journal: Journal) -> tuple[list[Path], list[Path]]:
    """Returns: segments under our names, oldest first, and those under other numbers."""
    found: list[Path] = []
    misnamed: list[Path] = []
    for path in sorted(journal.directory.iterdir()):
        name = _NAME.fullmatch(path.name)
        if name is not None:
            number, is_broken = int(name[1]), name[2] is not None
            if number < MAX_SEQUENCE:
                journal.next_sequence = max(journal.next_sequence, number + 1)  # also past broken ones
            journal.set_aside += is_broken
            if not is_broken:
                (found if number < MAX_SEQUENCE and len(name[1]) == DIGITS else misnamed).append(path)
        elif _REWRITE_NAME.fullmatch(path.name) and path.is_file():
            path.unlink()  # an unfinished copy; its original is there
        elif path.name not in ("lost+found", PROBE_NAME):
            log.warning(
                "journal: %s is no file of this service and is left alone; if it is a segment, name it"
                " NUMBER%s and restart the flusher, else move it elsewhere",
                path,
                SUFFIX,
            )
    return found, misnamed


def _rename(journal: Journal, path: Path) -> Path:
    renamed = journal.next_path()
    log.warning("journal: %s is taken in as %s: this service gives no such number", path, renamed.name)
    return path.rename(renamed)


def _last_arrival(path: Path, *, mend: bool) -> int:
    """The last arrival, in µs, that a segment may contain. Args: mend: cut off its torn tail."""
    try:
        contents = segments.read(path)
        modified_at = path.stat().st_mtime_ns // 1000
    except OSError as error:
        # No reason to refuse the start: the writer meets it too and raises the alarm.
        log.error("journal: %s cannot be read: %s", path, error.strerror)
        return time.time_ns() // 1000
    if mend and contents.torn:
        log.info("journal: %d bytes of an append that had not ended are cut off %s", contents.torn, path.name)
        os.truncate(path, contents.size - contents.torn)
    # Only arrivals that a CRC covers: a damaged one far in the future would stamp everything that follows.
    arrivals = [contents.floor, modified_at, *(entry.arrival for entry in contents.entries)]
    return max(arrival if arrival < MAX_ARRIVAL else 0 for arrival in arrivals)
