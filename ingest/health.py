"""GET /, /health and /ready."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import falcon.asgi
import orjson

from ingest.forwarder import FlusherUnavailable, Forwarder
from shared import VERSION
from shared.records import KINDS

LIVENESS = orjson.dumps({"service": "Persistence Service", "status": "running", "version": VERSION})


def no_flusher(error: FlusherUnavailable) -> str:
    """The cause "flusher" in words."""
    return f"{error}; .venv/bin/supervisorctl -c supervisord.conf status shows whether it runs"


class Health:
    """What the flusher says of itself, and what is said of one that does not answer."""

    def __init__(self, forwarder: Forwarder, started_at: float) -> None:
        self._forwarder = forwarder
        self._started_at = started_at

    async def on_get(self, _request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
        document = await self.document()
        response.status = 503 if document["status"] == "unhealthy" else 200
        response.data = orjson.dumps(document)

    async def document(self) -> dict[str, Any]:
        common = {"uptime_seconds": round(time.monotonic() - self._started_at, 3), "version": VERSION}
        try:
            stats = orjson.loads(await self._forwarder.stats())
        except FlusherUnavailable as error:
            empty = dict.fromkeys((*(f"{kind.name}_count" for kind in KINDS), "total_count", "capacity"), 0)
            return {
                "status": "unhealthy",
                "reason": no_flusher(error),
                "cause": "flusher",
                "since": None,
                "database": "unhealthy",
                "database_state": "unknown",
                "buffer": {**empty, "usage_percent": 0.0, "last_flush": None},
                **common,
            }
        state = stats["state"]
        return {
            "status": state["status"],
            "reason": state["reason"],
            "cause": state["cause"],
            "since": state["since"],
            "database": "healthy" if state["database"] == "up" else "unhealthy",
            "database_state": state["database"],
            "buffer": {**stats["buffer"], "last_flush": stats["flush_info"]["last_flush_time"]},
            **common,
        }


class Ready:
    """Whether a load balancer may send traffic here: records are accepted, and will be for a while."""

    def __init__(self, health: Health, leaving: asyncio.Event) -> None:
        self._health = health
        self._leaving = leaving

    async def on_get(self, _request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
        ready = False
        reason: str | None = "stopping"
        if not self._leaving.is_set():
            document = await self._health.document()
            ready = document["status"] != "unhealthy"
            reason = document["reason"] if not ready or document["database_state"] != "unknown" else None
        response.status = 200 if ready else 503
        response.data = orjson.dumps({"ready": ready, "reason": reason})
