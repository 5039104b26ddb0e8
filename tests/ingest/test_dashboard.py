from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from pathlib import Path

import orjson
import pytest

from ingest.app import create_app
from ingest.dashboard import STATIC, page
from ingest.forwarder import Forwarder
from ingest.history import History, Point
from ingest.metrics import RequestMetrics
from ingest.responses import App, Message
from shared import VERSION
from shared.settings import Service
from shared.validation import Policy

PAGE, POLICY, BUILD = page()
TEXT = PAGE.decode()


def get(app: App, path: str, query: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one request in the application itself."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "headers": [(b"host", b"127.0.0.1:8001")],
        "scheme": "http",
        "server": ("127.0.0.1", 8001),
        "client": ("127.0.0.1", 50000),
    }
    asyncio.run(app(scope, receive, send))
    headers = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:])


@pytest.fixture
def app(tmp_path: Path) -> App:
    forwarder = Forwarder(str(tmp_path / "none"), ack_timeout_s=1)
    return create_app(
        forwarder, RequestMetrics(tmp_path), History(tmp_path / "history"), Service(), asyncio.Event(), policy=Policy()
    )[0]


def test_the_page_brings_everything_it_needs() -> None:
    assert not re.search(r"{{\w+}}", TEXT)
    assert not re.search(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"'](?!data:)", TEXT)
    assert "@import" not in TEXT
    assert not re.search(r"url\(", TEXT)


def test_what_may_run_is_named_by_its_hash_and_nothing_else_may() -> None:
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", TEXT, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}';" in POLICY
    assert POLICY.startswith("default-src 'none';")
    assert "unsafe" not in POLICY
    assert "*" not in POLICY
    markup = re.sub(r"<(script|style)>.*?</\1>", "", TEXT, flags=re.DOTALL)
    assert not re.search(r"\s(?:on\w+|style)=", markup)


def test_the_library_keeps_its_licence_and_names_its_version() -> None:
    assert (STATIC / "uplot" / "LICENSE").read_text().startswith("The MIT License")
    assert re.search(r"uPlot \(v\d+\.\d+\.\d+\) \*/", TEXT)


def test_the_page_is_served_with_its_policy(app: App) -> None:
    status, headers, body = get(app, "/dashboard")
    assert (status, body) == (200, PAGE)
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["content-security-policy"] == POLICY


def test_the_history_is_answered_as_it_was_recorded(app: App, tmp_path: Path) -> None:
    status, headers, body = get(app, "/dashboard/history")
    document = orjson.loads(body)
    assert (status, headers["cache-control"]) == (200, "no-store")
    assert (document["version"], document["build"], document["points"]) == (VERSION, BUILD, [])
    assert document["session_statuses"] == []
    now = document["now"]
    files = History(tmp_path / "history")
    assert files.lead()
    for at in (now - 20, now - 10):
        files.append(Point(at, "healthy", problems={"failure": "<b>"}))
    files.close()
    points = orjson.loads(get(app, "/dashboard/history")[2])["points"]
    assert [(point["at"], point["problems"]) for point in points] == [
        (now - 20, {"failure": "<b>"}),
        (now - 10, {"failure": "<b>"}),
    ]
    (newest,) = orjson.loads(get(app, "/dashboard/history", f"after={now - 15}".encode())[2])["points"]
    assert newest["at"] == now - 10


@pytest.mark.parametrize("after", ["soon", "1e", "--1", "", "nan", "inf", "8%0B", "1_0", "%D9%A3"])
def test_a_time_that_is_none_is_a_400(app: App, after: str) -> None:
    status, _, body = get(app, "/dashboard/history", f"after={after}".encode())
    assert (status, orjson.loads(body)["error_code"]) == (400, "INVALID_PARAMETER")
