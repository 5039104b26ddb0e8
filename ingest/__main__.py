"""Composition root of ingest: owns the listening socket, keeps `service.workers` workers alive.

The socket outlives every worker, so a worker that dies or is replaced costs no connection: those that wait in the
socket's queue are taken by the next. SIGTERM: for service.drain_delay all goes on but for /ready, which turns 503; then
workers finish what is under way. SIGHUP: they are replaced one by one,
each new one started before an old one leaves.

A parent of our own instead of supervisord's fcgi-program: that one takes host, port and number of processes only from
its own file or from variables that must be set, and so could not follow config.yaml.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ingest.metrics import METRICS_DIRECTORY, fold
from shared import logs
from shared.config import Config, ConfigError, load, load_or_exit
from shared.exposure import TlsUnusable, check_tls
from shared.process import close_to_others, own_state_directory
from shared.wire import SOCKET_NAME

log = logging.getLogger("ingest")

BIND_TRIES_S = 3.0
"""After a kill -9 of the parent its orphaned workers hold the port until they notice."""
GRACEFUL_S = 20.0
"""After it, workers that still have not ended are killed. Above the workers' own 15 s."""
RESPAWN_S = 0.5
"""A worker that dies sooner than this after its start is started again only after this."""


def listen(host: str, port: int) -> socket.socket:
    """The listening socket, with TCP_NODELAY, which accepted connections inherit. Raises: SystemExit."""
    give_up_at = time.monotonic() + BIND_TRIES_S
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:  # UnicodeError: of a name that is none, such as ".local"
        sys.exit(f"ingest: service.host = {host!r}: {getattr(error, 'strerror', error)}")
    while True:
        # The protocol must be named: without it the workers' event loop does not know that it may set TCP_NODELAY.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            listener.bind(address)
            listener.listen(2048)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE and time.monotonic() < give_up_at:
                time.sleep(0.1)
                continue
            sys.exit(f"ingest: service.host = {host!r}, service.port = {port}: {error.strerror}")
        listener.set_inheritable(True)
        return listener


class Workers:
    """The children, by process id. Those that were asked to finish no longer count."""

    def __init__(self, start: Callable[[], subprocess.Popen[bytes]], ended: Callable[[int], None]) -> None:
        """Args: ended(process id): told of every worker that has ended."""
        self._start = start
        self._ended = ended
        self._children: dict[int, tuple[subprocess.Popen[bytes], float]] = {}
        self._leaving: set[int] = set()

    def __len__(self) -> int:
        return len(self._children) - len(self._leaving)

    def start(self) -> None:
        child = self._start()
        self._children[child.pid] = (child, time.monotonic())

    def reap(self) -> list[float]:
        """Takes the dead out. Returns: how long each had lived."""
        lived = []
        for pid, (child, started_at) in list(self._children.items()):
            if child.poll() is not None:
                del self._children[pid]
                self._leaving.discard(pid)
                lived.append(time.monotonic() - started_at)
                log.warning("worker %d ended, status %s", pid, child.returncode)
                self._ended(pid)
        return lived

    def replace(self) -> None:
        """Starts as many new workers as there are, then asks the old ones to finish."""
        old = [child for pid, (child, _) in self._children.items() if pid not in self._leaving]
        for _ in old:
            self.start()
        for child in old:
            self._leaving.add(child.pid)
            child.terminate()

    def announce_leaving(self) -> None:
        """/ready turns 503."""
        for child, _ in self._children.values():
            assert child.stdin is not None
            try:
                child.stdin.write(b"\n")
                child.stdin.flush()
            except OSError:
                continue  # it has just ended

    def terminate(self, timeout_s: float) -> None:
        """Asks all to finish, and kills those that do not within `timeout_s`. Blocks."""
        for child, _ in self._children.values():
            child.terminate()
        give_up_at = time.monotonic() + timeout_s
        for child, _ in self._children.values():
            try:
                child.wait(max(0.0, give_up_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("worker %d does not end: killed", child.pid)
                child.kill()
                child.wait()


def make_metrics_directory(state_directory: Path) -> Path:
    """Emptied once here, before any worker starts: files of an earlier run would be counted again."""
    directory = (state_directory / SOCKET_NAME).parent / METRICS_DIRECTORY
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True, mode=0o700)
    return directory


def keep_counts(metrics_directory: Path, pid: int) -> None:
    try:
        fold(metrics_directory, pid)
    except OSError as error:
        log.error("metrics: counts cannot be written: %s", error.strerror)


def check_start(config: Config) -> None:
    """What no worker could mend. Raises: SystemExit with one line."""
    try:
        check_tls(config.service)
    except TlsUnusable as error:
        sys.exit(f"ingest: {error}")
    own_state_directory(Path(config.state_directory))


def may_start_anew() -> bool:
    """Whether new workers would start: a mistake in what they read anew must not end those that work."""
    try:
        check_tls(load(None, os.environ).service)
    except (ConfigError, TlsUnusable) as error:
        for line in str(error).split("\n"):
            log.error("the workers stay as they are: %s", line)
        return False
    return True


def replace(workers: Workers) -> None:
    if may_start_anew():
        workers.replace()


def main() -> None:
    close_to_others()
    config = load_or_exit()
    logging_config = config.logging
    logs.setup("ingest", level=logging_config.level, format=logging_config.format, file=logging_config.file)
    check_start(config)
    # Every connection takes a descriptor; the usual soft limit of 1024 is for programs that use select().
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    waited_for = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
    signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    # A signal that is ignored is not waited for.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    listener = listen(config.service.host, config.service.port)
    try:
        metrics_directory = make_metrics_directory(Path(config.state_directory))
    except OSError as error:
        sys.exit(f"ingest: PERSISTENCE_STATE_DIR = {config.state_directory}: {error.strerror}")

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 -- our own interpreter and module
            [sys.executable, "-m", "ingest.worker", str(listener.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            # The child must not inherit the blocked signals.
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, waited_for),  # noqa: PLW1509 -- no threads here
        )

    workers = Workers(start, partial(keep_counts, metrics_directory))
    for _ in range(config.service.workers):
        workers.start()
    log.info("listening on %s port %d, %d workers", config.service.host, config.service.port, len(workers))
    while True:
        number = signal.sigwait(waited_for)
        if number in (signal.SIGTERM, signal.SIGINT):
            break
        if number == signal.SIGHUP:
            replace(workers)
            continue
        for lived_s in workers.reap():
            if len(workers) < config.service.workers:
                time.sleep(max(0.0, RESPAWN_S - lived_s))
                workers.start()
    if config.service.drain_delay:
        log.info("stopping in %g s; not ready from now on", config.service.drain_delay)
        workers.announce_leaving()
        # A second signal cuts it short.
        signal.sigtimedwait((signal.SIGTERM, signal.SIGINT), config.service.drain_delay)
    log.info("stopping")
    listener.close()
    workers.terminate(GRACEFUL_S)
    log.info("stopped")


if __name__ == "__main__":
    main()
