"""A service that answers as a test tells it, for what the real one does not do on demand: 503, silence, odd answers."""

from __future__ import annotations

import json
import queue
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What to answer, the service's own 202 by default; `hold` keeps the answer back until it is set, `lost` closes the
    connection instead."""

    status: int = 202
    document: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    hold: threading.Event | None = None
    lost: bool = False


@dataclass(frozen=True)
class Request:
    at: float
    connection: Any
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def records(self) -> list[dict[str, Any]]:
        [records] = json.loads(self.body).values()
        return records

    @property
    def ids(self) -> list[str]:
        return [one.get("task_id") or one["session_id"] for one in self.records]


class ScriptedServer:
    """Gives `replies` in order, then what `usual` makes of each request. next() waits for the next request.

    Args: tls: certificate and key, to be served with.
    """

    def __init__(
        self, *replies: Reply, usual: Callable[[Request], Reply] | None = None, tls: tuple[Path, Path] | None = None
    ) -> None:
        self.replies = deque(replies)
        self.usual = usual or (lambda _: Reply())
        self.requests: queue.Queue[Request] = queue.Queue()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(time.monotonic(), self.connection, self.path, headers, body)
                reply = outer.replies.popleft() if outer.replies else outer.usual(request)
                outer.requests.put(request)
                if reply.hold is not None:
                    reply.hold.wait(30)
                if reply.lost:
                    self.close_connection = True
                    return
                document = reply.document
                if document is None and reply.status == 202:
                    document = {
                        "status": "accepted",
                        "count": len(request.records),
                        "timestamp": "2026-11-23T10:15:30Z",
                    }
                answer = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response(reply.status)
                for name, value in {**reply.headers, "Content-Length": str(len(answer))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST  # noqa: N815 -- its name in the base class

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, address: Any) -> None:
                pass  # a client that gave up while its answer was held back

        self._server = Server(("127.0.0.1", 0), Handler)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def next(self, timeout_s: float = 20.0) -> Request:
        return self.requests.get(timeout=timeout_s)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def refusal(*errors: tuple[str, str], status: int = 422, code: str = "INVALID_RECORD") -> Reply:
    """As the real service refuses."""
    document = {
        "detail": f"the request has {len(errors)} errors; nothing of it is stored",
        "error_code": code,
        "errors": [{"field": name, "message": message} for name, message in errors],
    }
    return Reply(status, document)
