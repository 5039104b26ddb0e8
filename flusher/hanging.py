"""Hangs up on a server that takes too long. The client library's own timeouts begin anew with every byte that comes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def hung_up_after(seconds: float, peer: str | int) -> Iterator[None]:
    """What is under way in this block then fails as if the server had gone.

    Args: peer: whose connections of this process are meant: a TCP port, or the path of a Unix socket.
    """
    timer = threading.Timer(seconds, _hang_up, (peer,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _hang_up(peer: str | int) -> None:
    for entry in Path("/proc/self/fd").iterdir():
        try:
            connection = socket.socket(fileno=int(entry.name))
        except OSError:
            continue  # no socket, or closed meanwhile
        try:
            address = connection.getpeername()
            if peer == (address[1] if isinstance(address, tuple) else address):
                connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # not connected
        finally:
            connection.detach()  # the client library closes it
