"""Composition root of ingest: owns the listening socket, keeps `service.workers` workers alive.

The socket outlives every worker, so a worker that dies or is replaced costs no connection: those that wait in the
socket's queue are taken by the next. SIGTERM: for service.drain_delay all goes on but for /ready, which turns 503; then
workers finish what is under way. SIGHUP: they are replaced; the old ones leave when the new ones accept.

A parent of our own instead of supervisord's fcgi-program: that one takes host, port and number of processes only from
its own file or from variables that must be set, and so could not follow config.yaml.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ingest.metrics import METRICS_DIRECTORY, fold, node_counts
from ingest.rejections import Rejections
from ingest.workers import Workers
from shared import logs
from shared.config import ConfigError, load, load_or_exit
from shared.exposure import TlsUnusable, check_tls
from shared.process import check_built, close_to_others, lock_or_exit
from shared.settings import Config
from shared.timers import logged
from shared.wire import SOCKET_NAME

log = logging.getLogger("ingest")

MIN_DESCRIPTORS = 64
BIND_TRIES_S = 3.0
"""After a kill -9 of the parent its orphaned workers hold the port until they notice."""
GRACEFUL_S = 20.0
"""After it, workers that still have not ended are killed. Above the workers' own 15 s."""
LOOK_S = 1.0
"""Between two looks at the counts of the workers, which publish as often."""


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


def tell_rejections(rejections: Rejections, metrics_directory: Path, now: float) -> None:
    with logged("the look at refused records"):
        rejections.tell(node_counts(metrics_directory).rejected, now)


def check_start(config: Config) -> int:
    """Checks what no worker can mend. Returns: the lock of the state directory. Raises: SystemExit with one line."""
    try:
        check_tls(config.service)
    except TlsUnusable as error:
        sys.exit(f"ingest: {error}")
    check_built("ingest")
    return lock_or_exit(Path(config.state_directory), "ingest")


def may_start_anew() -> bool:
    """Whether new workers would start: a mistake in the configuration must not end the old ones."""
    try:
        check_tls(load(None, os.environ).service)
    except (ConfigError, TlsUnusable) as error:
        for line in str(error).split("\n"):
            log.error("the workers stay as they are: %s", line)
        return False
    return True


def _next_signal(waited_for: Sequence[signal.Signals], timeout_s: float) -> int | None:
    """Blocks until there is one, or for `timeout_s`; then there is none."""
    found = signal.sigtimedwait(waited_for, timeout_s)
    return None if found is None else found.si_signo


def main() -> None:
    close_to_others()
    config = load_or_exit()
    logging_config = config.logging
    logs.setup("ingest", level=logging_config.level, format=logging_config.format, file=logging_config.file)
    held = check_start(config)
    # Every connection takes a descriptor; the usual soft limit of 1024 is for programs that use select().
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < MIN_DESCRIPTORS:
        sys.exit(f"ingest: the limit of open files is {most}, and {MIN_DESCRIPTORS} are needed: raise it (ulimit -n)")
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
            stdout=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            # The child must not inherit the blocked signals.
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, waited_for),  # noqa: PLW1509 -- no threads here
        )

    workers = Workers(start, partial(keep_counts, metrics_directory), wanted=config.service.workers)
    workers.step()
    log.info("listening on %s port %d, %d workers", config.service.host, config.service.port, len(workers))
    rejections = Rejections()
    while True:
        number = _next_signal(waited_for, min(LOOK_S, workers.wait_s or LOOK_S))
        tell_rejections(rejections, metrics_directory, time.monotonic())
        if number in (signal.SIGTERM, signal.SIGINT):
            break
        if number == signal.SIGHUP and may_start_anew():
            workers.replace()
        workers.step()
    if config.service.drain_delay:
        log.info("stopping in %g s; not ready from now on", config.service.drain_delay)
        workers.announce_leaving()
        # A second signal cuts it short.
        signal.sigtimedwait((signal.SIGTERM, signal.SIGINT), config.service.drain_delay)
    log.info("stopping")
    listener.close()
    workers.terminate(GRACEFUL_S)
    tell_rejections(rejections, metrics_directory, math.inf)
    log.info("stopped")
    os.close(held)


if __name__ == "__main__":
    main()
