"""The page beside the service: its languages, its own faults, an upgrade, the keyboard."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from ingest.dashboard import STATIC, page
from tests.dashboard.pages import Pages, chart, url_of
from tests.support.service import Service

HTML, _, BUILD = page()
STRINGS = (STATIC / "strings.js").read_text()


def history(points: list[dict[str, Any]], **more: Any) -> Callable[[Page], None]:
    """Answers in the service's place."""

    def answer(route: Route) -> None:
        now = time.time()
        document = {
            "version": "1",
            "build": BUILD,
            "session_statuses": [],
            "interval_seconds": 2,
            "window_seconds": 600,
        }
        shown = [
            {"at": now - 2 * (len(points) - number), "status": "healthy", **one} for number, one in enumerate(points)
        ]
        route.fulfill(json={**document, "now": now, "points": shown, **more})

    return lambda page: page.route("**/dashboard/history*", answer)


def test_both_languages_have_every_text(service: Service, pages: Pages) -> None:
    opened = pages.open(url_of(service))
    texts = opened.evaluate("STRINGS")
    assert texts["en"].keys() == texts["zh"].keys()
    for key, text in texts["en"].items():
        assert set(re.findall(r"{(\w+)}", text)) == set(re.findall(r"{(\w+)}", texts["zh"][key])), key
    scripts = "".join(file.read_text() for file in STATIC.glob("*.js"))
    used = set(re.findall(r"\bt\(\"([\w.]+)\"", scripts)) | set(
        re.findall(r'data-(?:t|label)="([\w.]+)"', HTML.decode())
    )
    assert len(used) > 50
    assert used <= texts["en"].keys()


def test_the_browsers_language_is_spoken_and_can_be_switched(service: Service, pages: Pages) -> None:
    opened = pages.open(url_of(service), language="zh-CN")
    expect(opened.locator("#service")).to_have_text("服务 正常")
    expect(opened.locator("html")).to_have_attribute("lang", "zh-CN")
    latin = opened.locator("#tiles dt", has_text=re.compile("[A-Za-z]"))
    expect(latin).to_have_count(0)
    opened.get_by_role("button", name="English").click()
    expect(opened.locator("#service")).to_have_text("Service healthy")
    opened.reload()
    expect(opened.locator("#service")).to_have_text("Service healthy")
    opened.get_by_role("button", name="中文").click()
    expect(opened.locator("#service")).to_have_text("服务 正常")


def test_a_fault_of_the_page_is_not_blamed_on_the_service(service: Service, pages: Pages) -> None:
    opened = pages.open(url_of(service), prepare=history([{"status": "unheard of"}]))
    expect(opened.locator("#lost")).to_contain_text("This page has a fault of its own, the service is not its cause")
    assert pages.complaints
    pages.complaints.clear()


def test_the_page_of_another_version_is_loaded_anew_once(service: Service, pages: Pages) -> None:
    asked: list[str] = []

    def prepare(opened: Page) -> None:
        history([{"database": "up"}], build="another")(opened)
        opened.on("request", lambda request: asked.append(request.url.partition("/dashboard")[2]))

    opened = pages.open(url_of(service), prepare=prepare)
    expect(opened.locator("#service")).to_have_text("Service healthy")
    for _ in range(2):
        opened.wait_for_event("request")
    assert asked.count("") == 2


def test_a_chart_is_read_by_keyboard(service: Service, pages: Pages) -> None:
    points = [{"database": "up", "backlog": count} for count in (1, 20, 300)]
    opened = pages.open(url_of(service), prepare=history(points))
    plot = chart(opened, "Backlog")
    shown = opened.locator("figure").filter(has=plot).locator("figcaption ul")
    expect(shown).to_have_text("300 records")
    plot.focus()
    for key, read in (("ArrowLeft", "300"), ("ArrowLeft", "20"), ("Home", "1"), ("ArrowRight", "20"), ("End", "300")):
        opened.keyboard.press(key)
        expect(shown).to_have_text(re.compile(rf"^[\d:]{{8}} \([\d:]{{8}} UTC\)\s*{read} records?$"))
    opened.keyboard.press("Escape")
    expect(shown).to_have_text("300 records")


@pytest.mark.parametrize(
    ("points", "now", "over"),
    [
        ([{"failure": "a"}, {}, {}, {}, {}], [], ["A write failed and is tried again: a"]),
        ([{"failure": "a"}, {"failure": "b"}, {"failure": "c"}], ["A write failed and is tried again: c"], []),
        (
            [{"tables": "a"}, {}, {}, {}, {"rights": "b"}],
            ["A right or the login is missing: b"],
            ["Tables or settings do not fit: a"],
        ),
        ([{"new kind": "a"}], ["new kind: a"], []),
    ],
)
def test_a_problem_is_one_line_a_kind(
    service: Service, points: list[dict[str, str]], now: list[str], over: list[str], pages: Pages
) -> None:
    opened = pages.open(url_of(service), prepare=history([{"database": "up", "problems": one} for one in points]))
    expect(opened.locator("#problems li > :last-child")).to_have_text(now)
    expect(opened.locator("#over li:not(.muted) > :last-child")).to_have_text(over)
