"""How fast the same server stack answers when it does nothing: a bare ASGI callable, and the same in Falcon.

`python -m bench.ceilings ceiling-asgi|ceiling-falcon PORT`, with the server, event loop and parser of the service.
"""

from __future__ import annotations

import sys
from typing import Any

import falcon
import falcon.asgi
import uvicorn

from shared.records import TASKS

ANSWER = b'{"status":"accepted","count":1,"timestamp":"2026-11-23T10:15:30.123456Z"}'
"""As long as the service's own."""
_START = {
    "type": "http.response.start",
    "status": 202,
    "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())],
}
_BODY = {"type": "http.response.body", "body": ANSWER}


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body, answers 202."""
    while (await receive()).get("more_body"):
        pass
    await send(_START)
    await send(_BODY)


class Resource:
    """Reads the body, answers 202."""

    async def on_post(self, request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
        await request.stream.read()
        response.status = falcon.HTTP_202
        response.content_type = falcon.MEDIA_JSON
        response.data = ANSWER


def in_falcon() -> Any:
    app = falcon.asgi.App()
    app.add_route(TASKS.path, Resource())
    return app


def main() -> None:
    name, port = sys.argv[1:]
    uvicorn.run(
        bare if name == "ceiling-asgi" else in_falcon(),
        host="127.0.0.1",
        port=int(port),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=2048,
    )


if __name__ == "__main__":
    main()
