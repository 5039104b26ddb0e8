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

from ingest import openapi
from ingest.access import Access
from ingest.batches import BatchRoute
from ingest.dashboard import Dashboard, Points
from ingest.docs import Docs
from ingest.forwarder import Forwarder
from ingest.guard import Guard
from ingest.health import LIVENESS, Health, Ready
from ingest.history import History, Recorder
from ingest.metrics import RequestMetrics
from ingest.reading import Reading
from ingest.request_ids import request_id
from ingest.responses import App, ErrorResponse, internal_error
from ingest.stats import Flush, Metrics, Stats
from shared.reading import ROUTES
from shared.records import KINDS, SESSIONS
from shared.settings import Service
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


class Fixed:
    """Answers every GET with the same document."""

    def __init__(self, document: bytes) -> None:
        self._document = document

    async def on_get(self, _request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
        response.data = self._document


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
) -> tuple[App, dict[bytes, BatchRoute]]:
    """Every path of the contract. The forwarder starts and ends with the application's lifespan, so does recording.

    Args: leaving: set from when no load balancer should send more; read_token: one that may only GET.
    Returns: the application, and the routes with a fast path past it, by target.
    """
    health = Health(forwarder, time.monotonic())
    access = Access(
        service.auth_token,
        read_token=read_token,
        protected_mode=service.protected_mode,
        allowed_hosts=service.allowed_hosts,
    )
    batches = {
        kind.path: BatchRoute(
            Validator(kind, policy, partial(metrics.ignore, kind.name)),
            forwarder,
            access,
            max_body_bytes=service.max_body_bytes,
            reject=metrics.reject,
        )
        for kind in KINDS
    }
    dashboard = Dashboard()
    table: dict[str, object] = {
        **batches,
        "/": Fixed(LIVENESS),
        "/health": health,
        "/ready": Ready(health, leaving),
        "/metrics": Metrics(forwarder, metrics.exposition),
        "/dashboard": dashboard,
        "/docs": Docs(),
        "/dashboard/history": Points(history, build=dashboard.build, statuses=policy.statuses.get(SESSIONS.name, ())),
        "/openapi.json": Fixed(openapi.document(policy)),
        "/api/v1/persistence/flush": Flush(forwarder),
        "/api/v1/persistence/stats": Stats(forwarder, lambda: metrics.node().rejected),
    }
    app = falcon.asgi.App()
    recorder = Recorder(history, forwarder.stats, metrics.node, tuple(batches))
    app.add_middleware(Lifespan(forwarder, recorder))
    for path, resource in table.items():
        app.add_route(path, resource)
    app.add_error_handler(ErrorResponse, _pass_on)
    app.add_error_handler(Exception, _bug)
    routes = {
        path: frozenset(method for method in ("GET", "POST") if hasattr(resource, f"on_{method.lower()}"))
        for path, resource in table.items()
    }
    routes |= dict.fromkeys(ROUTES, frozenset(("GET",)))
    guard = Guard(
        cast(App, app),
        access,
        reading=reading,
        routes=routes,
        posts_with_body=frozenset(batches),
        max_body_bytes=service.max_body_bytes,
        reject=metrics.reject,
    )
    return guard, {path.encode(): batch for path, batch in batches.items()}


async def _pass_on(
    _request: falcon.asgi.Request, _response: falcon.asgi.Response, error: ErrorResponse, _params: dict[str, Any]
) -> None:
    """The guard answers."""
    raise error


async def _bug(
    request: falcon.asgi.Request, _response: falcon.asgi.Response, error: Exception, _params: dict[str, Any]
) -> None:
    extra = {"request_id": request_id(request.scope)}
    log.error("%s %s failed", request.method, request.path, exc_info=error, extra=extra)
    raise internal_error()
