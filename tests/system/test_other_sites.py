"""What a page of a stranger, open in a browser on this machine, can do to a service without a token: nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

import pytest
from playwright.sync_api import Browser

from tests.support.browser import browser as open_browser
from tests.support.mariadb import MariaDB
from tests.support.service import FLUSH, STATS, TASKS, Service, task

BODY = json.dumps({"tasks": [task("strange")]})
SEND = """async ([url, options]) => {
  try { const answer = await fetch(url, options); return [answer.status, await answer.text()]; }
  catch (error) { return [0, String(error)]; }
}"""


class Blank(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


Stranger: TypeAlias = tuple[Browser, str]


@pytest.fixture(scope="module")
def stranger() -> Iterator[Stranger]:
    """The browser of a person on this machine, and the address of a site of somebody else's."""
    with (
        open_browser("--host-resolver-rules=MAP *.example 127.0.0.1") as browser,
        ThreadingHTTPServer(("127.0.0.1", 0), Blank) as server,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield browser, f"http://stranger.example:{server.server_port}/"
        server.shutdown()


def ask(browser: Browser, page_url: str, url: str, **options: Any) -> tuple[int, str]:
    """What a script in a page is answered; 0 where the browser does not tell it."""
    page = browser.new_page()
    page.goto(page_url)
    status, text = page.evaluate(SEND, [url, options])
    page.close()
    return status, text


@pytest.mark.parametrize("protected_mode", [True, False])
def test_a_page_of_a_stranger_neither_reads_nor_writes(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str, stranger: Stranger, protected_mode: bool
) -> None:
    browser, site = stranger
    service = start_service(mariadb, database, SERVICE_PROTECTED_MODE=protected_mode)
    ours = f"http://localhost:{service.port}"
    rebound = f"http://rebound.example:{service.port}"
    json_post = {"method": "POST", "body": BODY, "headers": {"Content-Type": "application/json"}}

    # DNS rebinding: its own name points here.
    for path, options in ((STATS, {}), ("/dashboard/history", {}), (FLUSH, {"method": "POST"}), (TASKS, json_post)):
        status, text = ask(browser, f"{rebound}/dashboard", path, **options)
        assert (status, json.loads(text)["error_code"]) == (403, "HOST_NOT_ALLOWED")
    # Across sites the browser sends, and does not tell.
    for path, options in ((STATS, {}), (FLUSH, {"method": "POST"}), (TASKS, {"method": "POST", "body": BODY})):
        assert ask(browser, site, ours + path, mode="no-cors", **options)[0] == 0
    assert ask(browser, site, ours + TASKS, **json_post)[0] == 0

    assert service.stats()["accepted"] == {"sessions": 0, "tasks": 0}
    assert service.stats()["flush_info"]["flush_count_today"] == 0
    assert service.stats()["rejected"]["CROSS_SITE"] >= 1
    # Our own page may do all of it.
    assert ask(browser, f"{ours}/dashboard", STATS)[0] == 200
    assert mariadb.execute("SELECT COUNT(*) FROM translation_tasks", (), database) == [(0,)]


def test_a_person_may_follow_a_link_to_us(service: Service, stranger: Stranger) -> None:
    browser, site = stranger
    page = browser.new_page()
    page.goto(site)
    with page.expect_navigation() as navigation:
        page.evaluate("(url) => { location.href = url }", f"http://localhost:{service.port}/health")
    assert navigation.value.status == 200
    page.close()
