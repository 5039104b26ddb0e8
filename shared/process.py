"""What a process of ours does before anything else, so that no other user reads its files, its memory or its core."""

from __future__ import annotations

import ctypes
import os
import resource
import stat
import sys
from pathlib import Path

_PR_SET_DUMPABLE = 4


def close_to_others() -> None:
    """New files are ours alone, and no core is written: tokens, the database's password and records would be in it.

    Not being dumpable also gives /proc/PID/environ and /proc/PID/mem to root (prctl(2), proc(5)). A child starts
    dumpable again, so each calls this for itself.
    """
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def own_state_directory(path: Path) -> None:
    """Makes it, or makes sure that it is ours, and closes it to others. Raises: SystemExit with one line."""
    where = f"PERSISTENCE_STATE_DIR = {path}"
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = path.stat()
        if found.st_uid != os.geteuid():
            sys.exit(
                f"{where}: belongs to user {found.st_uid}, and this is user {os.geteuid()}; chown it or name another"
            )
        if stat.S_IMODE(found.st_mode) & 0o077:
            path.chmod(0o700)
    except OSError as error:
        sys.exit(f"{where}: {error.strerror}")
