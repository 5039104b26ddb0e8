"""Composition root of one ingest worker: `python -m ingest.worker FD`, FD being the listening socket.

It writes `ready` to its stdout once it accepts. Its stdin is a pipe from the parent: a byte in it says that the node is
about to stop, and /ready turns 503; its end says that the parent is gone, and the worker drains and ends.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import socket
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import uvicorn
import uvloop

from ingest.app import create_app
from ingest.connection import MAX_SURPLUS, Connection
from ingest.deadlines import sweep_slowly
from ingest.forwarder import Forwarder
from ingest.history import HISTORY_DIRECTORY, History
from ingest.metrics import METRICS_DIRECTORY, RequestMetrics
from ingest.reading import MAX_CALLS, Reading
from ingest.responses import SITE_HEADERS
from ingest.workers import READY
from shared import logs
from shared.config import load_or_exit
from shared.process import close_to_others, keep_freed_memory
from shared.reading import SOCKET_NAME as READER_SOCKET_NAME
from shared.records import SESSIONS, TASKS
from shared.settings import Config
from shared.timers import logged, repeat
from shared.validation import Policy
from shared.wire import SOCKET_NAME

log = logging.getLogger("ingest")

TICK_S = 1.0
OWN_DESCRIPTORS = 36
"""Of logs, sockets and the event loop, with room to spare."""
GRACEFUL_S = 15
"""How long current requests may take when the worker stops; longer than an ack's deadline."""


class _Parent(asyncio.Protocol):
    """The other end of stdin."""

    def __init__(self, server: uvicorn.Server, leaving: asyncio.Event) -> None:
        self._server = server
        self._leaving = leaving

    def data_received(self, data: bytes) -> None:  # noqa: ARG002 -- asyncio's signature
        self._leaving.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's signature
        if not self._server.should_exit:
            log.warning("the parent is gone: finishing the current requests")
            self._server.should_exit = True


class Server(uvicorn.Server):
    """Says when it accepts, and publishes the last counts: uvicorn raises the signal again, so nothing after serve()
    runs."""

    metrics: RequestMetrics

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.server_state.default_headers = self.config.encoded_headers
        await super().startup(sockets)
        with suppress(OSError):  # the parent is gone, and stdin says so too
            os.write(sys.stdout.fileno(), READY)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        publish(self.metrics, connections=0)


def publish(metrics: RequestMetrics, connections: int) -> None:
    try:
        metrics.publish(connections)
    except OSError as error:
        log.error("metrics: counts cannot be written: %s", error.strerror)


async def serve(
    server: uvicorn.Server, listener: socket.socket, metrics: RequestMetrics, leaving: asyncio.Event
) -> None:
    loop = asyncio.get_running_loop()
    connections = server.server_state.connections
    timers = [
        loop.create_task(repeat("the worker's tick", TICK_S, partial(tick, server, metrics))),
        loop.create_task(repeat("the sweep of connections", 0.0, partial(sweep_slowly, connections))),
    ]
    await loop.connect_read_pipe(lambda: _Parent(server, leaving), sys.stdin)
    gc.collect()
    gc.freeze()
    await server.serve(sockets=[listener])
    for timer in timers:
        timer.cancel()


def tick(server: uvicorn.Server, metrics: RequestMetrics) -> None:
    if server.should_exit:
        # uvicorn has told all connections but those that were being accepted at that moment.
        for connection in list(server.server_state.connections):
            with logged("the shutdown of a connection"):
                connection.shutdown()
    publish(metrics, len(server.server_state.connections))


def connection_limits(wanted: int) -> tuple[int, int]:
    """As many connections as are wanted, or as descriptors allow, and how many more are listened to: without a
    descriptor, a connection could not even be told that there are too many."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = descriptors - OWN_DESCRIPTORS - min(MAX_CALLS, descriptors // 8)
    surplus = min(MAX_SURPLUS, room // 2)
    most = room - surplus
    if descriptors == resource.RLIM_INFINITY or most >= wanted:
        return wanted, MAX_SURPLUS
    log.warning(
        "service.max_connections: %d instead of %d, the limit of open files being %d", most, wanted, descriptors
    )
    return most, surplus


def policy_of(config: Config) -> Policy:
    records = config.records
    return Policy(
        statuses={SESSIONS.name: records.session_statuses, TASKS.name: records.task_statuses},
        time_zone=records.time_zone,
        unknown_fields=records.unknown_fields,
        max_records=config.buffer.max_batch_size,
        max_clock_skew_s=config.service.max_clock_skew,
    )


def main() -> None:
    close_to_others()
    keep_freed_memory()
    config = load_or_exit()
    logging_config = config.logging
    logs.setup("ingest", level=logging_config.level, format=logging_config.format, file=logging_config.file)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    listener = socket.socket(fileno=int(sys.argv[1]))
    socket_path = Path(config.state_directory, SOCKET_NAME)
    policy = policy_of(config)
    rules = policy.rules.encode()
    forwarder = Forwarder(str(socket_path), ack_timeout_s=config.service.ack_timeout, rules=rules)
    metrics = RequestMetrics(socket_path.parent / METRICS_DIRECTORY)
    most, surplus = connection_limits(config.service.max_connections)
    history = History(Path(config.state_directory, HISTORY_DIRECTORY))
    leaving = asyncio.Event()
    reader = str(Path(config.state_directory, READER_SOCKET_NAME)) if config.read.enabled else None
    reading = Reading(reader, forwarder, timeout_s=config.read.timeout, cut_off=metrics.cut_off)
    app, batches = create_app(
        forwarder,
        metrics,
        history,
        config.service,
        leaving,
        reading=reading,
        read_token=config.read.auth_token,
        policy=policy,
    )
    server = Server(
        uvicorn.Config(
            app,
            http=cast(
                Any,
                partial(
                    Connection,
                    max_connections=most,
                    max_surplus=surplus,
                    batches=batches,
                    observe=metrics.observe,
                    reject=metrics.reject,
                ),
            ),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            headers=SITE_HEADERS,
            proxy_headers=False,  # a caller must not be able to say that it is on this machine
            timeout_graceful_shutdown=GRACEFUL_S,
            ssl_certfile=config.service.tls_cert,
            ssl_keyfile=config.service.tls_key,
        )
    )
    server.metrics = metrics
    uvloop.run(serve(server, listener, metrics, leaving))


if __name__ == "__main__":
    main()
