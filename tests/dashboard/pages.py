"""What tests of the dashboard do with its page."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect

from tests.support.service import Service

SLOWEST_MS = 30_000
"""A machine that runs other tests beside may need long for what takes a second."""


class Pages:
    """Opens pages, and remembers what the browser complained of."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self.complaints: list[str] = []

    def open(
        self,
        url: str,
        *,
        width: int = 1280,
        dark: bool = False,
        language: str = "en-GB",
        zone: str = "Asia/Shanghai",
        prepare: Callable[[Page], Any] | None = None,
    ) -> Page:
        context = self._browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            locale=language,
            timezone_id=zone,
        )
        context.set_default_timeout(SLOWEST_MS)
        page = context.new_page()
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        if prepare is not None:
            prepare(page)
        page.goto(url)
        return page


def url_of(service: Service) -> str:
    return f"http://127.0.0.1:{service.port}/dashboard"


def tile(page: Page, name: str) -> Locator:
    return page.locator("#tiles > div").filter(has=page.locator("dt", has_text=re.compile(f"^{name}$")))


def expect_figure(page: Page, name: str, text: str | re.Pattern[str]) -> None:
    expect(tile(page, name).locator(".value")).to_have_text(text)


def chart(page: Page, name: str) -> Locator:
    return page.locator(f'.plot[aria-label^="{name}"]')


def said_of(page: Page, name: str) -> str:
    """What a screen reader says of a chart."""
    label = chart(page, name).get_attribute("aria-label")
    assert label is not None
    return label


def expect_accessible(page: Page) -> None:
    """axe finds nothing: contrast, names, roles, order of headings."""
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
