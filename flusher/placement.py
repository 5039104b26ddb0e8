"""Keeps the flusher off the core of its only ingest process while both have much to do.

Linux wakes a thread on its last core or on its waker's, and looks for a better one only while it thinks that some are
idle. A core that runs nothing but what gives way (SCHED_IDLE: the first writer, a database beside the service) is as
good as idle but counts as full, so that on two cores, while a flush runs, flusher and ingest share one for up to 100 ms
and requests queue up. docs/PERFORMANCE.md has what this gives.

Rules: belongs to the loop's thread, which it moves. Lets the kernel alone where there is little to do, where there are
several ingest processes, with one core, and where the way there is closed (no /proc, a sandbox).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable

EVERY_S = 0.002
BUSY = 0.25
"""Part of the time since the last look in which this thread wanted a core. Below it, to share one with ingest is
quicker: no sleeping core has to be woken."""
AGAIN_S = 60.0
"""After which it is tried again where it was not possible: the peer has just ended, or nothing may be seen or set."""
_PROCESSOR = 36
"""Which of the fields behind the name in /proc/PID/stat (proc(5), field 39): the core that it last ran on."""


def wanted_s() -> float:
    """For how long the calling thread has run or waited for a core, in all. Raises: OSError."""
    ran, waited, _ = _read("/proc/thread-self/schedstat").split()
    return 1e-9 * (int(ran) + int(waited))


def core_of(pid: int) -> int:
    """Where the first thread of a process runs, or last ran. Raises: OSError."""
    return int(_read(f"/proc/{pid}/stat").rpartition(b") ")[2].split()[_PROCESSOR])


def _read(path: str) -> bytes:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, 4096)
    finally:
        os.close(file)


def leave(core: int) -> None:
    """Moves the calling thread to another of the cores that it may use, if there is one; afterwards it may use all of
    them as before. Raises: OSError."""
    allowed = os.sched_getaffinity(0)
    others = allowed - {core}
    if others and others != allowed:
        os.sched_setaffinity(0, others)
        os.sched_setaffinity(0, allowed)


class Placement:
    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        wanted: Callable[[], float] = wanted_s,
    ) -> None:
        self._clock = clock
        self._wanted = wanted
        self._looked_at = -math.inf
        self._wanted_before = 0.0

    def look(self, peer: int) -> None:
        """To be called often; most calls look at the clock only. `peer`: id of the one process that sends."""
        now = self._clock()
        since = now - self._looked_at
        if since < EVERY_S:
            return
        try:
            wanted = self._wanted()
            busy = (wanted - self._wanted_before) / since
            self._looked_at, self._wanted_before = now, wanted
            if busy >= BUSY:
                core = core_of(os.getpid())
                if core == core_of(peer):
                    leave(core)
        except OSError:
            self._looked_at = now + AGAIN_S
