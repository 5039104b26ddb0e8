"""The ASGI application: guard around Falcon, every path in one table."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import falcon
import falcon.asgi

from ingest import openapi, resources
from ingest.cycle import App
from ingest.dashboard import Dashboard, Points
from ingest.forwarder import Forwarder
from ingest.guard import Guard
from ingest.history import History, Recorder
from ingest.metrics import RequestMetrics
from ingest.reading import Reading
from ingest.request_ids import request_id
from ingest.resources import Problem
from ingest.shortcut import Shortcut
from shared.config import Service
from shared.reading import ROUTES
from shared.records import KINDS
from shared.validation import Policy, Validator

log = logging.getLogger(__name__)


class Lifespan:
    """Connects and records from startup to shutdown (ASGI lifespan)."""

    def __init__(self, forwarder: Forwarder, recorder: Recorder) -> None:
        self._forwarder = forwarder
        self._recorder = recorder

    async def process_startup(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:  # noqa: ARG002 -- ASGI's names
        self._forwarder.start()
        self._recorder.start()

    async def process_shutdown(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:  # noqa: ARG002 -- ASGI's names
        self._recorder.close()
        await self._forwarder.close()


def create_app(
    forwarder: Forwarder,
    metrics: RequestMetrics,
    history: History,
    service: Service,
    leaving: asyncio.Event,
    *,
    reading: Reading | None = None,
    read_token: str | None = None,
    policy: Policy,
) -> tuple[App, dict[bytes, Shortcut]]:
    """Every path of the contract. The forwarder starts and ends with the application's lifespan, so does recording.

    Args: leaving: set from when no load balancer should send more; read_token: one that may only GET.
    Returns: the application, and the short ways past it, by path.
    """
    health = resources.Health(forwarder, time.monotonic())
    batches = {
        kind.path: resources.Batch(Validator(kind, policy, partial(metrics.ignore, kind.name)), forwarder)
        for kind in KINDS
    }
    table: dict[str, object] = {
        **batches,
        "/": resources.Liveness(),
        "/health": health,
        "/ready": resources.Ready(health, leaving),
        "/metrics": resources.Metrics(forwarder, metrics.exposition),
        "/dashboard": Dashboard(),
        "/dashboard/history": Points(history),
        "/openapi.json": resources.OpenApi(openapi.document(policy)),
        "/api/v1/persistence/flush": resources.Flush(forwarder),
        "/api/v1/persistence/stats": resources.Stats(forwarder, lambda: metrics.node().rejected),
    }
    app = falcon.asgi.App()
    recorder = Recorder(history, forwarder.stats, metrics.node, tuple(batches))
    app.add_middleware(Lifespan(forwarder, recorder))
    for path, resource in table.items():
        app.add_route(path, resource)
    app.add_error_handler(Problem, _problem)
    app.add_error_handler(Exception, _bug)
    routes = {
        path: frozenset(method for method in ("GET", "POST") if hasattr(resource, f"on_{method.lower()}"))
        for path, resource in table.items()
    }
    routes |= dict.fromkeys(ROUTES, frozenset(("GET",)))
    guard = Guard(
        cast(App, app),
        reading=reading,
        routes=routes,
        posts_with_body=frozenset(batches),
        auth_token=service.auth_token,
        read_token=read_token,
        protected_mode=service.protected_mode,
        allowed_hosts=service.allowed_hosts,
        max_body_bytes=service.max_body_bytes,
        reject=metrics.reject,
    )
    return guard, {path.encode(): Shortcut(batch, guard, forwarder) for path, batch in batches.items()}


async def _problem(
    _request: falcon.asgi.Request, _response: falcon.asgi.Response, problem: Problem, _params: dict[str, Any]
) -> None:
    """The guard answers."""
    raise problem


async def _bug(
    request: falcon.asgi.Request, _response: falcon.asgi.Response, error: Exception, _params: dict[str, Any]
) -> None:
    extra = {"request_id": request_id(request.scope)}
    log.error("%s %s failed", request.method, request.path, exc_info=error, extra=extra)
    raise Problem(500, "INTERNAL_ERROR", "this is a fault of the service")
