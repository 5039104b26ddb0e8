"""The dashboard in Chromium, on the real service: what a person sees in every state of the node."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from ingest.history import History, Point
from tests.dashboard.pages import Pages, expect_accessible, expect_figure, said_of, url_of
from tests.support.load import Load
from tests.support.mariadb import MariaDB
from tests.support.service import TASKS, Service, task, wait_until

HISTORY = "/dashboard/history"
TOKEN = "s3cret-t0ken"
MARKUP = "<img src=x onerror=\"document.title='run'\"><b>bold</b>"
POSITIVE = re.compile(r"^[\d,.]*[1-9][\d,.]*k? /s$")


def test_a_fresh_service_is_healthy_and_has_nothing_to_show(service: Service, pages: Pages) -> None:
    page = pages.open(url_of(service))
    expect(page.locator("#service")).to_have_text("Service healthy")
    expect(page.locator("#database")).to_have_text("Database up")
    expect(page.locator("#lost")).to_be_hidden()
    for name, shown in (
        ("Accepted", "0 /s"),
        ("Backlog", "0 records"),
        ("Oldest waiting", "0 s"),
        ("Latency", "–"),
        ("Flush", re.compile(r"^none for \d+ s$")),
        ("Refused", "0 /s"),
        ("Dead letters", "0"),
    ):
        expect_figure(page, name, shown)
    expect(page.locator("#problems li")).to_have_count(0)
    expect(page.locator("#over")).to_have_text("Nothing.")
    expect(page.locator("#refused")).to_have_text("None.")
    expect(page).to_have_title("✓ healthy · Persistence Service")
    assert re.search(r"^Latency, last \d+ s\. p50: nothing; p95: nothing; p99: nothing\.", said_of(page, "Latency"))
    # The window begins at the first point, in the reader's zone, and with UTC at hand.
    expect(page.locator("#span")).to_have_text(re.compile(r"^Database, last (\d|1\d|20) s:$"))
    expect(page.locator("#past")).to_have_text("always writable")
    expect(page.locator("#zone")).to_have_text("(times in UTC+8, Asia/Shanghai)")


def test_a_busy_service_shows_what_comes_what_goes_and_what_waits(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str, pages: Pages
) -> None:
    service = start_service(mariadb, database, BUFFER_FLUSH_INTERVAL=1, SERVICE_WORKERS=2)
    with Load(service, clients=1, batch=20, pause_s=0.02):
        page = pages.open(url_of(service))
        expect_figure(page, "Accepted", POSITIVE)
        expect_figure(page, "Written", POSITIVE)
        expect_figure(page, "Latency", re.compile(r"^[\d.]+ m?s$"))
        expect_figure(page, "Flush", re.compile(r"^[\d.]+ m?s$"))
    assert re.search(r"Accepted: .*, at most [1-9]", said_of(page, "Records/s"))


def test_every_request_is_counted_whichever_worker_took_it_and_whichever_answers(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, SERVICE_WORKERS=2)

    def points() -> list[dict[str, Any]]:
        return service.get(HISTORY).json["points"]

    wait_until(points)
    for number in range(40):
        assert service.post(TASKS, {"tasks": [task(f"t{number}"), task(f"u{number}")]}).status == 202

    def requests() -> int:
        found = points()
        return sum(
            round((point["requests"] or 0) * (point["at"] - before["at"]))
            for before, point in itertools.pairwise(found)
        )

    wait_until(lambda: requests() == 40, what="all requests are in the points")
    answers = [[point["at"] for point in points()] for _ in range(20)]
    assert all(times[: len(answers[0])] == answers[0] for times in answers)


def test_a_lost_connection_is_said_and_found_again_with_what_was_recorded(service: Service, pages: Pages) -> None:
    page = pages.open(url_of(service))
    expect(page.locator("#database")).to_have_text("Database up")
    before = {point["at"] for point in service.get(HISTORY).json["points"]}
    assert service.ingest is not None
    service.ingest.terminate()
    service.ingest.wait(30)
    expect(page.locator("#lost")).to_have_text(
        re.compile(
            r"^Connection lost\. No answer from the service\. Nothing has come since [\d:]{8}: the figures are old\."
        )
    )
    expect(page.locator("#figures")).to_have_class("old")
    expect(page).to_have_title("✕ Connection lost · Persistence Service")
    assert pages.complaints
    assert all("ERR_CONNECTION_REFUSED" in text for text in pages.complaints)
    pages.complaints.clear()

    service.start_ingest()
    service.wait_ready()
    expect(page.locator("#lost")).to_be_hidden()
    expect(page.locator("#figures")).not_to_have_class("old")
    after = {point["at"] for point in service.get(HISTORY).json["points"]}
    assert before
    assert before <= after
    pages.complaints.clear()  # of before it was ready


def test_the_token_is_asked_for_kept_over_a_reload_and_forgotten(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str, pages: Pages
) -> None:
    service = start_service(mariadb, database, SERVICE_AUTH_TOKEN=TOKEN)
    page = pages.open(url_of(service))
    expect(page.locator("#ask")).to_be_visible()
    expect(page.locator("#figures")).to_be_hidden()
    expect(page.get_by_label("Token", exact=True)).to_be_focused()

    page.get_by_label("Token", exact=True).fill("another")
    page.keyboard.press("Enter")
    expect(page.locator("#asked")).to_contain_text("That was not the token")
    page.get_by_label("Token", exact=True).fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator("#service")).to_have_text("Service healthy")
    expect(page.locator("#ask")).to_be_hidden()
    assert TOKEN not in page.url

    page.reload()
    expect(page.locator("#service")).to_have_text("Service healthy")

    page.get_by_role("button", name="Forget the token").click()
    expect(page.locator("#ask")).to_be_visible()
    expect(page.locator("#figures")).to_be_hidden()
    page.reload()
    expect(page.locator("#ask")).to_be_visible()
    # 401 and 403 are what the browser is told to expect here.
    assert all(re.search(r"status of 40[13]", text) for text in pages.complaints)
    pages.complaints.clear()


# ---- on points made up here


@pytest.fixture(scope="module")
def ten_minutes(mariadb: MariaDB, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with ten minutes behind it: steady, an outage from the fifth to the seventh, texts with markup."""
    database = mariadb.create_database()
    service = Service(tmp_path_factory.mktemp("s"), mariadb, database)
    files = History(service.directory / "history")
    assert files.lead()
    now = time.time()
    for second in range(0, 600, 2):
        files.append(made_up(now - 600 + second, second))
    files.close()
    service.start()
    yield service
    service.stop()
    mariadb.drop_database(database)


def made_up(at: float, second: int) -> Point:
    down = 300 <= second < 420
    return Point(
        at=at,
        status="degraded" if down else "healthy",
        cause="locked" if down else None,
        reason=MARKUP if down else None,
        database="not_writable" if down else "up",
        problems={"locked": MARKUP} if down else {},
        refused={MARKUP: 3} if down else {},
        backlog=400 * (second - 300) if down else 20,
        oldest_s=12.5,
        flush_interval_s=5,
        unsynced=3,
        journal_percent=0.1,
        dead_letters=2,
        writers=1,
        # Once, at the very beginning of the window.
        accepted=9000 if 40 <= second < 44 else 400,
        written=0 if down else 400,
        rows=0 if down else 300,
        flush_ms=None if down else 9,
        coalesced_percent=None if down else 25,
        requests=40,
        p50_ms=0.5,
        p95_ms=1,
        p99_ms=2,
    )


def test_a_page_opened_fresh_has_the_last_ten_minutes(ten_minutes: Service, pages: Pages) -> None:
    page = pages.open(url_of(ten_minutes))
    for _ in range(2):
        # On a busy machine the start of the service is a gap.
        expect(page.locator("#past")).to_have_text(
            re.compile(r"^not writable for (2 min 0 s|1 min 5\d s)(, not known for .*)?$")
        )
        assert re.search(r"Accepted: .*, at most 9,000;", said_of(page, "Records/s"))
        page.reload()


def test_texts_of_the_service_are_shown_as_text(ten_minutes: Service, pages: Pages) -> None:
    page = pages.open(url_of(ten_minutes))
    for shown in ("#over li", "#refused li"):
        expect(page.locator(shown, has_text=MARKUP).first).to_be_visible()
    assert page.locator("img").count() == 0
    assert page.locator("#over b", has_text=re.compile("^bold$")).count() == 0
    expect(page).to_have_title(re.compile("Persistence Service"))


def test_markup_put_in_by_force_is_refused_by_the_browser(ten_minutes: Service, pages: Pages) -> None:
    page = pages.open(url_of(ten_minutes))
    outcome = page.evaluate(
        "() => { try { document.body.innerHTML = '<p>x'; return 'put in' } catch (e) { return e.name } }"
    )
    assert outcome == "TypeError"
    pages.complaints.clear()  # the browser says that it did


@pytest.mark.parametrize("language", ["en-GB", "zh-CN"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_everything_can_be_read_in_every_width_and_in_both_schemes(
    ten_minutes: Service, pages: Pages, *, dark: bool, language: str
) -> None:
    page = pages.open(url_of(ten_minutes), width=320, dark=dark, language=language)
    expect(page.locator("#over li", has_text="bold").first).to_be_visible()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in re.findall(r"\d+", background)[:3]) < 150) == dark
    for state in ("good", "warn", "bad"):
        page.evaluate(f"document.getElementById('database').className = 'lamp {state}'")
        expect_accessible(page)
    for width in (320, 390, 820, 1280, 1920):
        page.set_viewport_size({"width": width, "height": 900})
        wait_until(lambda: page.evaluate(FITTING), what="the charts have the width of their boxes")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


FITTING = """() => [...document.querySelectorAll(".plot")]
  .every((box) => box.querySelector(".uplot").offsetWidth === box.clientWidth)"""


PROTECTED = {"detail": "set <b>service.auth_token</b>", "error_code": "PROTECTED_MODE", "errors": []}
OLD = {"version": "1", "now": 1e9, "interval_seconds": 2, "window_seconds": 600}


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (403, json.dumps(PROTECTED), r"^Connection lost\. The service refuses: set <b>service\.auth_token</b>\."),
        (502, "<html>Bad gateway</html>", r"^Connection lost\. Something else answers there \(502\)\."),
        (200, json.dumps({**OLD, "points": []}), r"^No figures yet"),
        (
            200,
            json.dumps({**OLD, "points": [{"at": 1e9 - 60, "status": "healthy", "database": "up"}]}),
            r"^No new figures since [\d:]{8}: the service answers, but records none",
        ),
    ],
)
def test_what_is_wrong_with_the_answer_is_said(
    ten_minutes: Service, status: int, body: str, said: str, pages: Pages
) -> None:
    address = "**/dashboard/history*"
    answer = {"status": status, "body": body, "content_type": "application/json"}
    page = pages.open(
        url_of(ten_minutes), prepare=lambda made: made.route(address, lambda route: route.fulfill(**answer))
    )
    expect(page.locator("#lost")).to_have_text(re.compile(said))
    if status == 200:
        expect(page.locator("#live")).not_to_contain_text("Connection lost")
    page.unroute(address)
    expect(page.locator("#service")).to_have_text("Service healthy")
    expect(page.locator("#lost")).to_be_hidden()
    pages.complaints = [text for text in pages.complaints if f"status of {status}" not in text]


def test_it_works_behind_a_path_prefix(ten_minutes: Service, pages: Pages) -> None:
    prefix = f"http://127.0.0.1:{ten_minutes.port}/ops/persistence"

    def prepare(page: Page) -> None:
        """A proxy that takes the prefix off, and answers nothing else."""
        page.route(lambda url: not url.startswith(f"{prefix}/"), lambda route: route.abort())
        page.route(
            f"{prefix}/**",
            lambda route: route.fulfill(response=route.fetch(url=route.request.url.replace("/ops/persistence", ""))),
        )

    page = pages.open(f"{prefix}/dashboard", prepare=prepare)
    expect(page.locator("#service")).to_have_text("Service healthy")
    expect(page.locator("#host")).to_contain_text("/ops/persistence")
    page.unroute_all(behavior="wait")


def test_the_service_keeps_the_history_to_itself(ten_minutes: Service) -> None:
    directory = Path(ten_minutes.directory, "history")
    assert directory.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in directory.iterdir())
