"""GET /dashboard, one page that brings everything it needs, and GET /dashboard/history, what it shows.

The page holds no data and is served without a token, since a browser cannot send one before there is a page to ask for
it; its data are not. Its addresses are relative, so that it works behind any path prefix.
"""

from __future__ import annotations

import base64
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import falcon
import falcon.asgi
import orjson

from ingest.history import INTERVAL_S, WINDOW_S, History
from ingest.parameters import invalid_parameter, parse_number
from shared import VERSION

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("strings.js", "words.js", "charts.js", "state.js", "sessions.js", "dashboard.js")


def page(static: Path = STATIC) -> tuple[bytes, str, str]:
    """Returns: the page, styles and scripts in it, the Content-Security-Policy that lets in these and no others, and
    the page's build, by which an open page learns that it is out of date. Raises: OSError."""
    style = together(static, "uplot/uPlot.min.css", "dashboard.css")
    script = together(static, "uplot/uPlot.iife.min.js", *SCRIPTS)
    html = (static / "dashboard.html").read_text(encoding="utf-8")
    build = hashlib.sha256((html + style + script).encode()).hexdigest()[:16]
    html = html.replace("{{build}}", build)
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {source(script)}",
            f"style-src {source(style)}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
    return html.replace("{{style}}", style).replace("{{script}}", script).encode(), policy, build


def together(static: Path, *names: str) -> str:
    return "\n".join((static / name).read_text(encoding="utf-8") for name in names)


def source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


class Dashboard:
    def __init__(self) -> None:
        self._page, self._policy, self.build = page()

    async def on_get(self, _request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
        response.content_type = "text/html; charset=utf-8"
        response.set_header("Content-Security-Policy", self._policy)
        response.set_header("Referrer-Policy", "no-referrer")
        response.set_header("Cache-Control", "no-cache")
        response.data = self._page


class Points:
    """The recorded points that are younger than `?after=SECONDS` (since 1970), all of the window without it."""

    def __init__(
        self, history: History, *, build: str, statuses: Sequence[str], wall: Callable[[], float] = time.time
    ) -> None:
        """Args: build: of the page that we serve; statuses: of sessions, as configured."""
        self._history = history
        self._build = build.encode()
        self._statuses = orjson.dumps(statuses)
        self._wall = wall

    async def on_get(self, request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
        now = self._wall()
        points = self._history.read(_after(request.get_param("after")), now)
        response.set_header("Cache-Control", "no-store")
        response.data = (
            b'{"version":"%b","build":"%b","session_statuses":%b,"interval_seconds":%d,"window_seconds":%d,"now":%.3f,'
            b'"points":[%b]}'
            % (VERSION.encode(), self._build, self._statuses, INTERVAL_S, WINDOW_S, now, b",".join(points))
        )


def _after(value: str | None) -> float:
    """Raises: ErrorResponse."""
    after = 0.0 if value is None else parse_number(value)
    if not math.isfinite(after):
        raise invalid_parameter("after", value or "", "seconds since 1970")
    return after
