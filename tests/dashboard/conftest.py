"""A real browser, and its pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.dashboard.pages import SLOWEST_MS, Pages
from tests.support.browser import browser as open_browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=SLOWEST_MS)
    with open_browser() as chromium:
        yield chromium


@pytest.fixture
def pages(browser: Browser) -> Iterator[Pages]:
    """Comes last of a test's arguments: the pages must be closed before their service is stopped."""
    made = Pages(browser)
    yield made
    for context in browser.contexts:
        context.close()
    assert made.complaints == []
