"""What each of our processes sets up first: private files, memory and cores; locks; memory that is reused."""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import socket
import stat
import struct
import sys
from importlib import import_module
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_PEERCRED = struct.Struct("3i")
KEPT_BYTES = 16 * 1024 * 1024
LARGE_BYTES = 1024 * 1024


def close_to_others() -> None:
    """Makes new files private and disables core dumps, which would hold tokens, passwords and records.

    A process that is not dumpable also leaves /proc/PID/environ and /proc/PID/mem to root (prctl(2), proc(5)). A child
    is dumpable again, so each process calls this itself.
    """
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def end_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Makes the kernel signal us when the parent dies (prctl(2)): a killed supervisord leaves no orphans."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def open_own(path: str | Path, flags: int) -> int:
    """Opens or creates a private file. A file or link of another user but root is refused: it may be a trap.

    Raises: OSError; PermissionError with the reason as its strerror. Blocks.
    """
    real = os.fspath(path)
    try:
        if stat.S_ISLNK((link := os.lstat(real)).st_mode):
            _refuse_strangers(link, "the symbolic link")
            real = os.path.realpath(real)
    except FileNotFoundError:
        pass
    fd = os.open(real, flags & ~os.O_TRUNC | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        _refuse_strangers(os.fstat(fd), "the file")
        if flags & os.O_TRUNC:
            os.ftruncate(fd, 0)
    except OSError:
        os.close(fd)
        raise
    return fd


def _refuse_strangers(found: os.stat_result, what: str) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise PermissionError(1, f"{what} belongs to user {found.st_uid}, and this is user {os.geteuid()}")


def lock(state_directory: Path, name: str) -> int:
    """Allows one process of a name in a state directory, as long as the returned descriptor is open.

    Raises: BlockingIOError if another process holds the lock; OSError.
    """
    fd = open_own(state_directory / f"{name}.lock", os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise
    return fd


def check_built(name: str) -> None:
    """For composition roots: workers and writers need the extension. Raises: SystemExit with one line."""
    try:
        import_module("shared.fast_validator")
    except ImportError as error:
        sys.exit(f"{name}: {error}: ./scripts/install.sh builds shared/fast_validator.cpp anew")


def lock_or_exit(state_directory: Path, name: str) -> int:
    """For composition roots: secures the state directory and locks it. Raises: SystemExit with one line."""
    own_state_directory(state_directory)
    if os.environ.get("SUPERVISOR_ENABLED"):
        end_with_parent()
    try:
        return lock(state_directory, name)
    except BlockingIOError:
        sys.exit(f"{name}: another {name} is at work in {state_directory}; ./scripts/stop.sh stops it")
    except OSError as error:
        sys.exit(f"{name}: {state_directory}/{name}.lock: {error.strerror}; is PERSISTENCE_STATE_DIR the right one?")


def keep_freed_memory() -> None:
    """Keeps up to KEPT_BYTES of freed memory in the process, except pieces from LARGE_BYTES on.

    By default glibc returns the memory of bodies at once, and the kernel clears every page again for the next ones: a
    quarter of the flusher's work on large batches (mallopt(3)). Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)


def own_state_directory(path: Path) -> None:
    """Creates the directory, or checks that it is private. Raises: SystemExit with one line.

    A directory that is open to others is made private only if it is empty: it may be /var, named by mistake.
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
        sys.exit(f"{where}: {error.strerror}; name another, or make it one that this user may write to")


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """Process and user at the other end (SO_PEERCRED, unix(7)); the process is 0 if it is not visible here."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    pid, uid, _ = _PEERCRED.unpack(credentials)
    return pid, uid
