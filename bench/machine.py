"""The machine: who runs on which core, how much memory a process took, what to call it all in a report."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.service import threads

ALL = tuple(sorted(os.sched_getaffinity(0)))
PINS = len(ALL) >= 2
SERVICE = ALL[:1]
"""Ingest, flusher and writers, or whichever contender is measured, in pinned cells."""
LOAD = ALL[1:2] or ALL
"""Load and database in pinned cells."""


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Processes started meanwhile by this thread, and their children, run on `cores` only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def pin(pid: int, cores: Sequence[int]) -> None:
    """Moves all threads of a running process."""
    _each_thread(pid, lambda thread: os.sched_setaffinity(thread, cores))


def give_way(pid: int, yes: bool) -> None:
    """All threads of a running process, and those that they start, get a core only where nobody else wants it, or as
    usual again. Nothing changes where this user may not take it back."""
    if may_take_back():
        policy = os.SCHED_IDLE if yes else os.SCHED_OTHER
        _each_thread(pid, lambda thread: os.sched_setscheduler(thread, policy, os.sched_param(0)))


@cache
def may_take_back() -> bool:
    return subprocess.run(["chrt", "--idle", "0", "chrt", "--other", "0", "true"], capture_output=True).returncode == 0


@cache
def realtime() -> tuple[str, ...]:
    """Words before a command that give it real-time priority, where this user may."""
    words = ("chrt", "-f", "10")
    try:
        allowed = subprocess.run([*words, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    return words if allowed else ()


def _each_thread(pid: int, do: Callable[[int], None]) -> None:
    for thread in threads(pid):
        try:
            do(thread)
        except ProcessLookupError:
            pass  # a thread that has just ended


def peak_rss_mb(pid: int) -> float | None:
    """The most memory that the process has held (VmHWM); None if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    return None


def description(directory: Path) -> dict[str, Any]:
    """Args: directory: where state directories and the database lie."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory_kb = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "processor": model or platform.machine(),
        "cores": len(ALL),
        "memory_gib": round(memory_kb / 2**20, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "wrk": _says("wrk", "--version")[0].strip(),
        "filesystem": _says("df", "--output=fstype", str(directory))[-1].strip(),
        "pins": PINS,
        "realtime": bool(realtime()),
        "database_gives_way": PINS and may_take_back(),
    }


def _says(*command: str) -> list[str]:
    """The lines that a program prints, at least one."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path})
    return (done.stdout or done.stderr).splitlines() or [""]
