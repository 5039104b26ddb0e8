"""GET /docs in a real browser, with its policy in force: the document is shown, and requests can be tried out."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect

from ingest.dashboard import STATIC
from ingest.docs import page
from tests.dashboard.pages import Pages
from tests.support.mariadb import MariaDB
from tests.support.service import Service


def open_docs(service: Service, pages: Pages) -> Page:
    return pages.open(f"http://127.0.0.1:{service.port}/docs")


def try_out(page: Page, summary: str) -> None:
    page.get_by_text(summary, exact=True).first.click()
    page.get_by_role("button", name="Execute").click()


def test_requests_are_tried_out_and_nothing_comes_from_elsewhere(service: Service, pages: Pages) -> None:
    asked = list[str]()
    opened = open_docs(service, pages)
    opened.on("request", lambda request: asked.append(request.url))
    expect(opened.locator("#ask")).to_be_hidden()
    expect(opened.get_by_text("Accept 1 to 1000 tasks").first).to_be_visible()
    try_out(opened, "Detailed health")
    expect(opened.get_by_text('"healthy"').first).to_be_visible()
    assert asked == [f"http://127.0.0.1:{service.port}/health"]


def test_the_page_asks_for_the_token_and_sends_it(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str, pages: Pages
) -> None:
    service = start_service(mariadb, database, SERVICE_AUTH_TOKEN="s3cret")
    opened = open_docs(service, pages)
    opened.get_by_label("Token").fill("wrong")
    opened.get_by_role("button", name="Authorize").click()
    expect(opened.get_by_role("alert")).to_contain_text("token")
    opened.get_by_label("Token").fill("s3cret")
    opened.get_by_role("button", name="Authorize").click()
    try_out(opened, "Buffer, flush and lifetime figures")
    expect(opened.get_by_text('"flush_info"').first).to_be_visible()
    assert all("Failed to load resource: the server responded with a status of 40" in one for one in pages.complaints)
    pages.complaints.clear()


def test_the_policy_lets_in_our_scripts_alone_and_the_package_comes_with_its_licence() -> None:
    text, policy = page()
    assert "script-src 'sha256-" in policy
    assert policy.count("unsafe") == policy.count("style-src 'unsafe-inline'") == 1
    assert "default-src 'none'" in policy
    assert b"{{" not in text.partition(b"<script>")[0]
    assert "Apache License" in (STATIC / "openapi_explorer" / "LICENSE").read_text()
