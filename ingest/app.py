"""The ASGI application: guard around Falcon, every path in one table."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any, cast

import falcon
import falcon.asgi

from ingest import openapi, resources
from ingest.cycle import App
from ingest.forwarder import Forwarder
from ingest.guard import Guard
from ingest.metrics import RequestMetrics
from ingest.resources import Problem
from shared.config import Service
from shared.records import KINDS

log = logging.getLogger(__name__)


class ForwarderLifespan:
    """Connects at startup and disconnects at shutdown (ASGI lifespan)."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder

    async def process_startup(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:  # noqa: ARG002 -- ASGI's names
        self._forwarder.start()

    async def process_shutdown(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:  # noqa: ARG002 -- ASGI's names
        await self._forwarder.close()


def create_app(
    forwarder: Forwarder, metrics: RequestMetrics, service: Service, leaving: asyncio.Event, *, max_records: int
) -> App:
    """Every path of the contract. The forwarder starts and ends with the application's lifespan.

    Args: leaving: set from when no load balancer should send more.
    """
    health = resources.Health(forwarder, time.monotonic())
    table: dict[str, object] = {
        kind.path: resources.Batch(kind, forwarder, max_records=max_records, max_clock_skew_s=service.max_clock_skew)
        for kind in KINDS
    }
    posts_with_body = frozenset(table)
    table |= {
        "/": resources.Liveness(),
        "/health": health,
        "/ready": resources.Ready(health, leaving),
        "/metrics": resources.Metrics(forwarder, metrics.exposition),
        "/openapi.json": resources.OpenApi(openapi.document(max_records)),
        "/api/v1/persistence/flush": resources.Flush(forwarder),
        "/api/v1/persistence/stats": resources.Stats(forwarder),
    }
    app = falcon.asgi.App()
    app.add_middleware(ForwarderLifespan(forwarder))
    for path, resource in table.items():
        app.add_route(path, resource)
    app.add_error_handler(Problem, _problem)
    app.add_error_handler(Exception, _bug)
    routes = {
        path: frozenset(method for method in ("GET", "POST") if hasattr(resource, f"on_{method.lower()}"))
        for path, resource in table.items()
    }
    return Guard(
        cast(App, app),
        routes=routes,
        posts_with_body=posts_with_body,
        auth_token=service.auth_token,
        protected_mode=service.protected_mode,
        max_body_bytes=service.max_body_bytes,
    )


async def _problem(
    _request: falcon.asgi.Request, response: falcon.asgi.Response, problem: Problem, _params: dict[str, Any]
) -> None:
    response.status = problem.status
    response.data = problem.body
    for name, value in problem.headers.items():
        response.set_header(name, value)


async def _bug(
    request: falcon.asgi.Request, response: falcon.asgi.Response, error: Exception, params: dict[str, Any]
) -> None:
    log.error("%s %s failed", request.method, request.path, exc_info=error)
    await _problem(request, response, Problem(500, "INTERNAL_ERROR", "this is a fault of the service"), params)
