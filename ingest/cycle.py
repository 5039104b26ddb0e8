"""One request on the slow path: uvicorn's ASGI cycle, with errors as JSON, request ids and HTTP/1.0."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ingest.responses import App, CutOff, Message

log = logging.getLogger(__name__)
NO_ROUTE = "none"
"""Stands for the path of a request that no application has seen."""


class Cycle(RequestResponseCycle):
    """Of the request that `connection` has just read. Args: transport: write(), close() and is_closing();
    record_count: of a body that the fast path has counted; failed(): told when the application ends without a complete
    answer, which is logged."""

    scope: Any

    def __init__(
        self,
        connection: HttpToolsProtocol,
        transport: Any,
        keep_alive: bool,
        record_count: int | None,
        *,
        failed: Callable[[], None],
    ) -> None:
        path, _, query = connection.url.partition(b"?")
        scope: Any = {
            "type": "http",
            "asgi": {"version": connection.asgi_version, "spec_version": "2.3"},
            "http_version": connection.parser.get_http_version(),
            "scheme": connection.scheme,
            "root_path": "",
            "method": connection.parser.get_method().decode(),
            "path": path.decode("ascii"),  # not decoded: the read side decodes ids
            "raw_path": path,
            "query_string": query,
            "headers": connection.headers,
            "server": connection.server,
            "client": connection.client,
            "record_count": record_count,
        }
        super().__init__(
            scope=scope,
            transport=transport,
            flow=connection.flow,
            logger=log,
            access_logger=log,
            access_log=False,
            default_headers=connection.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=connection.expect_100_continue and scope["http_version"] == "1.1",
            keep_alive=keep_alive,
            on_response=connection.on_response_complete,
        )
        self.status = 0
        self._failed = failed
        self._task: asyncio.Task[Any] | None = None
        self._ends_with_connection = False

    @property
    def route(self) -> str:
        """For the metrics."""
        route: str = self.scope.get("route", NO_ROUTE)
        return route

    def cancel(self) -> None:
        """Its client has gone. A request that still waits for its body learns it there."""
        if self._task is not None and not self.more_body:
            self._task.cancel()

    async def run_asgi(self, app: App) -> None:  # type: ignore[override]
        if self.disconnected:
            return
        self._task = asyncio.current_task()
        try:
            await app(self.scope, self.receive, self.send)  # type: ignore[arg-type]
            if not (self.response_complete or self.disconnected):
                log.error("%s: the application did not answer", self.scope["path"])
        except CutOff as error:
            log.warning("%s: the answer was cut off: %s", self.route, error)
        except Exception:
            extra = {"request_id": self.scope["request_id"]} if "request_id" in self.scope else None
            log.exception("%s failed", self.scope["path"], extra=extra)
        finally:
            self._task = None  # a cancelled one refers to this frame, which would keep the body until gc runs
        if not (self.response_complete or self.disconnected):
            self._failed()

    async def send(self, message: Message) -> None:  # type: ignore[override]
        if message["type"] == "http.response.start" and not self.response_started:
            self.status = message["status"]
            fields = list(message["headers"])
            if "request_id" in self.scope:
                fields.append((b"x-request-id", self.scope["request_id"].encode()))
            message = {**message, "headers": fields}
            if self.scope["http_version"] == "1.0" and all(name != b"content-length" for name, _ in fields):
                # uvicorn would send it in chunks, which HTTP/1.0 does not know.
                self._ends_with_connection = True
                self.chunked_encoding = self.keep_alive = False
        elif self._ends_with_connection:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)  # type: ignore[arg-type]
