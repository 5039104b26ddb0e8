"""Composition root of one ingest worker: `python -m ingest.worker FD`, FD being the listening socket.

Its stdin is a pipe from the parent: when it closes, the parent is gone, and the worker drains and ends.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys
from pathlib import Path

import uvicorn
import uvloop

from ingest.app import create_app
from ingest.forwarder import Forwarder
from shared import logs
from shared.config import load_or_exit
from shared.wire import SOCKET_NAME

log = logging.getLogger("ingest")

KEEP_ALIVE_S = 75
GRACEFUL_S = 15
"""How long requests under way may take to finish when the worker stops; an ack's deadline fits in."""


class _Orphaned(asyncio.Protocol):
    """Sees the end of stdin."""

    def __init__(self, server: uvicorn.Server) -> None:
        self._server = server

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's signature
        if not self._server.should_exit:
            log.warning("the parent is gone: finishing what is under way")
            self._server.should_exit = True


async def serve(server: uvicorn.Server, listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: _Orphaned(server), sys.stdin)
    gc.collect()
    gc.freeze()
    await server.serve(sockets=[listener])


def main() -> None:
    config = load_or_exit()
    logging_config = config.logging
    logs.setup("ingest", level=logging_config.level, format=logging_config.format, file=logging_config.file)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    os.umask(0o077)
    listener = socket.socket(fileno=int(sys.argv[1]))
    socket_path = Path(config.state_directory, SOCKET_NAME)
    forwarder = Forwarder(str(socket_path), ack_timeout_s=config.service.ack_timeout)
    app = create_app(forwarder, config.service, max_records=config.buffer.max_batch_size)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # a caller must not be able to say that it is on this machine
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACEFUL_S,
        )
    )
    uvloop.run(serve(server, listener))


if __name__ == "__main__":
    main()
