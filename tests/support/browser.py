"""Debian's Chromium, headless, on pages of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

CHROMIUM = "/usr/bin/chromium"
_QUIET = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def browser(*arguments: str) -> Iterator[Browser]:
    """While it is open, asyncio.run() cannot be used in the same thread. It has no sandbox, which root may not use:
    it opens only our own pages."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, chromium_sandbox=False, args=[*_QUIET, *arguments]
        )
        yield chromium
        chromium.close()
