"""GET /docs: the API for people, each request to be tried out. One page that brings everything it needs.

It is openapi-explorer 2.4.820 (static/openapi_explorer, Apache-2.0, from npm as it is) with some lines that ask for the
token and load openapi.json. Like the dashboard it holds no data and is served without a token.
"""

from __future__ import annotations

from pathlib import Path

import falcon
import falcon.asgi

from ingest.dashboard import STATIC, source, together


def page(static: Path = STATIC) -> tuple[bytes, str]:
    """Returns: the page, and the Content-Security-Policy that lets in its own scripts alone. Raises: OSError."""
    style = together(static, "docs.css")
    script = together(static, "openapi_explorer/openapi-explorer.min.js", "docs.js")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {source(script)}",
            "style-src 'unsafe-inline'",  # the explorer makes its own; nothing that a style could ask for may be loaded
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    html = (static / "docs.html").read_text(encoding="utf-8")
    return html.replace("{{style}}", style).replace("{{script}}", script).encode(), policy


class Docs:
    def __init__(self) -> None:
        self._page, self._policy = page()

    async def on_get(self, _request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
        response.content_type = "text/html; charset=utf-8"
        response.set_header("Content-Security-Policy", self._policy)
        response.set_header("Referrer-Policy", "no-referrer")
        response.set_header("Cache-Control", "no-cache")
        response.data = self._page
