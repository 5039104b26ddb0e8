"""What a process of ours does before anything else: no other user reads its files, its memory or its core, and the
memory of one body serves the next."""

from __future__ import annotations

import ctypes
import os
import resource
import stat
import sys
from pathlib import Path

_PR_SET_DUMPABLE = 4
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 16 * 1024 * 1024
LARGE_BYTES = 1024 * 1024


def close_to_others() -> None:
    """New files are ours alone, and no core is written: tokens, the database's password and records would be in it.

    Not being dumpable also gives /proc/PID/environ and /proc/PID/mem to root (prctl(2), proc(5)). A child starts
    dumpable again, so each calls this for itself.
    """
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def keep_freed_memory() -> None:
    """Up to KEPT_BYTES that were freed stay with the process, but for pieces from LARGE_BYTES on.

    By itself glibc returns what some bodies took as soon as they are gone, and the kernel clears every page anew for
    the next ones: a quarter of the flusher's work on large batches (mallopt(3)). Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)


def own_state_directory(path: Path) -> None:
    """Makes it, or makes sure that it is ours alone. Raises: SystemExit with one line.

    One that is open to others is closed only while it is empty: it may be /var, which somebody has named by mistake.
    """
    where = f"PERSISTENCE_STATE_DIR = {path}"
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = path.stat()
        if found.st_uid != os.geteuid():
            sys.exit(
                f"{where}: belongs to user {found.st_uid}, and this is user {os.geteuid()}; chown it or name another"
            )
        mode = stat.S_IMODE(found.st_mode)
        if mode & 0o077:
            if any(entry.name != "lost+found" for entry in path.iterdir()):
                sys.exit(
                    f"{where}: is open to others (mode {mode:o}) and not empty; chmod 700 it if it is the service's"
                    " alone, or name another"
                )
            path.chmod(0o700)
    except OSError as error:
        sys.exit(f"{where}: {error.strerror}")
