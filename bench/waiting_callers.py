"""`python -m bench.waiting_callers [--callers N]`: the flusher's memory while N wait for a commit in an outage.

One flusher without a database takes N submits without and N with `ack=committed`; one that waits must cost nothing.
"""

from __future__ import annotations

import argparse
import socket
import tempfile
from pathlib import Path
from types import SimpleNamespace

from shared.wire import SOCKET_NAME, Ack, Decoder, Submit, encode
from tests.support.service import Service, wait_until

AT_ONCE = 1000
BODY = b'{"tasks":[{"session_id":"s1","task_id":"t1","source_text":"text","status":"pending"}]}'


def resident_kib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])


def submit(service: Service, callers: int, *, want_commit: bool) -> int:
    """Returns: the flusher's memory in KiB when all have been acknowledged and wait."""
    assert service.flusher is not None
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(service.directory / SOCKET_NAME))
        decoder = Decoder()
        for first in range(0, callers, AT_ONCE):
            frames = [encode(Submit(first + at, 2, 1, BODY, want_commit=want_commit)) for at in range(AT_ONCE)]
            connection.sendall(b"".join(frames))
            acked = 0
            while acked < AT_ONCE:
                acked += sum(one.count for one in decoder.feed(connection.recv(65536)) if isinstance(one, Ack))
        return resident_kib(service.flusher.pid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--callers", type=int, default=1_000_000)
    callers = parser.parse_args().callers
    with tempfile.TemporaryDirectory(prefix="callers-", dir="/tmp") as directory:
        nowhere = SimpleNamespace(socket="/tmp/there-is-none")
        service = Service(Path(directory), nowhere, "none", JOURNAL_FSYNC="never")  # type: ignore[arg-type]
        service.start_flusher()
        wait_until((service.directory / SOCKET_NAME).exists)
        try:
            print(f"10,000 that wait: {submit(service, 10 * AT_ONCE, want_commit=True):,} KiB")
            for want_commit in (False, True):
                kib = submit(service, callers, want_commit=want_commit)
                print(f"{callers:,} more that {'' if want_commit else 'do not '}wait: {kib:,} KiB")
        finally:
            service.kill()


if __name__ == "__main__":
    main()
