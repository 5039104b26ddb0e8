"""The page Sessions: which runs are unfinished, how far each is, what has failed in one."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.dashboard.pages import Pages, expect_accessible, url_of
from tests.support.mariadb import MariaDB
from tests.support.service import SESSIONS, TASKS, Service, session, task, wait_until

AWKWARD = "50%/漢 <b>?#&"
TOKENS = {"SERVICE_AUTH_TOKEN": "all", "READ_AUTH_TOKEN": "reads"}
WRITE = {"Authorization": "Bearer all"}


def ago(minutes: float) -> str:
    return (datetime.now(timezone.utc) - timedelta(minutes=minutes)).isoformat()


def send(service: Service, *records: dict[str, Any], headers: dict[str, str] | None = None) -> None:
    sessions = [record for record in records if "task_id" not in record]
    tasks = [record for record in records if "task_id" in record]
    assert service.post(SESSIONS, {"sessions": sessions}, headers).status == 202
    assert service.post(TASKS, {"tasks": tasks}, headers).status == 202
    flushed = service.request("POST", "/api/v1/persistence/flush", headers=headers)
    assert flushed.status == 200, flushed


def runs(id_: str) -> tuple[dict[str, Any], ...]:
    """A session of 12 tasks: 6 completed, 2 failed, 4 pending."""
    tasks = [
        task(
            f"t{number:02}", session_id=id_, status="completed" if number < 6 else "failed" if number < 8 else "pending"
        )
        for number in range(12)
    ]
    for one in tasks[6:8]:
        one |= {"error_message": f"LLM: <i>timeout</i> {one['task_id']}", "row_index": 7}
    return session(id_, filename=f"{id_}.xlsx", status="executing"), *tasks


@pytest.fixture
def reading(start_service: Callable[..., Service], mariadb: MariaDB, database: str) -> Service:
    service = start_service(mariadb, database)
    service.start_reader()
    return service


def rows(page: Page) -> Any:
    return page.locator("#sessions-shown tbody tr")


def test_unfinished_sessions_are_listed_with_progress_and_old_ones_marked(reading: Service, pages: Pages) -> None:
    quiet = session("quiet", status="running", updated_at=ago(25))
    newer = session("tasks-are-newer", status="running", updated_at=ago(50))
    send(
        reading,
        *runs(AWKWARD),
        session("over", status="completed"),
        quiet,
        task(session_id="quiet", updated_at=ago(30)),
        newer,
        task(session_id="tasks-are-newer", updated_at=ago(2)),
    )
    page = pages.open(url_of(reading))
    page.get_by_role("link", name="Sessions").click()
    expect(page.locator("#sessions-said")).to_have_text("3 shown, newest first.")
    expect(page.locator("#figures")).to_be_hidden()
    expect_accessible(page)
    first = rows(page).filter(has_text=AWKWARD)
    expect(first).to_contain_text("6 of 12 tasks done, 2 failed")
    expect(first.locator("td").last).to_have_text(re.compile(r"^\d+ s ago$"))
    expect(rows(page).filter(has_text="quiet").locator(".quiet-run")).to_have_text(re.compile("^no news for 2[56] min"))
    expect(rows(page).filter(has_text="tasks-are-newer").locator("td").last).to_have_text(
        re.compile("^[23] min .*ago$")
    )
    expect(rows(page).filter(has_text="over")).to_have_count(0)

    page.get_by_role("link", name=f"{AWKWARD}.xlsx").click()
    expect(page.locator("#sessions-title")).to_have_text(f"Session {AWKWARD}")
    expect(page.locator(".facts")).to_contain_text("failed2")
    expect_accessible(page)
    expect(rows(page)).to_have_text(
        [re.compile(rf"^t0{number}Sheet1, 7LLM: <i>timeout</i> t0{number}[\d:]{{8}}$") for number in (6, 7)]
    )
    page.get_by_role("link", name="All unfinished sessions").click()
    expect(rows(page)).to_have_count(3)
    page.get_by_role("link", name="Node").click()
    expect(page.locator("#figures")).to_be_visible()


def test_a_session_is_found_by_its_id_or_said_to_be_missing(reading: Service, pages: Pages) -> None:
    send(reading, *runs("done"), session("done", status="completed"))
    page = pages.open(f"{url_of(reading)}#sessions", language="zh-CN")
    expect(page.locator("#sessions-said")).to_have_text("没有未完成的会话。")
    page.get_by_label("会话 ID").fill("done")
    page.keyboard.press("Enter")
    expect(page.locator("#sessions-shown")).to_contain_text("12 个任务中完成 6 个，失败 2 个")
    page.get_by_label("会话 ID").fill("none such")
    page.keyboard.press("Enter")
    expect(page.locator("#sessions-said")).to_have_text("数据库中没有此 ID 的会话。")
    expect(rows(page)).to_have_count(0)
    page.goto(f"{url_of(reading)}#sessions/50%")
    expect(page.locator("#sessions-said")).to_have_text(re.compile("^无法读取：URIError"))
    pages.complaints = [text for text in pages.complaints if "404" not in text]


def test_more_sessions_and_more_failed_tasks_come_when_asked_for(reading: Service, pages: Pages) -> None:
    sessions = [session(f"s{number:02}", status="running", updated_at=ago(number / 10)) for number in range(25)]
    failed = [task(f"t{number:02}", session_id="s00", status="failed") for number in range(60)]
    send(reading, *sessions, *failed)
    page = pages.open(f"{url_of(reading)}#sessions")
    expect(rows(page)).to_have_count(20)
    page.get_by_role("button", name="More").click()
    expect(rows(page)).to_have_count(25)
    expect(page.get_by_role("button", name="More")).to_have_count(0)
    page.goto(f"{url_of(reading)}#sessions/s00")
    expect(rows(page)).to_have_count(50)
    page.get_by_role("button", name="More").click()
    expect(rows(page)).to_have_count(60)


def test_without_a_reader_it_says_so_and_goes_on_by_itself(service: Service, pages: Pages) -> None:
    page = pages.open(f"{url_of(service)}#sessions")
    expect(page.locator("#sessions-said")).to_have_text(re.compile("^It cannot be read: the reader cannot be reached"))
    service.start_reader()
    page.get_by_role("button", name="Refresh").click()
    expect(page.locator("#sessions-said")).to_have_text("No session is unfinished.")
    pages.complaints = [text for text in pages.complaints if "503" not in text]


def test_the_token_that_only_reads_opens_it(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str, pages: Pages
) -> None:
    service = start_service(mariadb, database, **TOKENS)
    service.reader = service._start("reader")
    wait_until(lambda: service.request("GET", "/api/v1/persistence/sessions", headers=WRITE).status == 200)
    send(service, *runs("s1"), headers=WRITE)
    page = pages.open(f"{url_of(service)}#sessions")
    expect(page.locator("#ask")).to_be_visible()
    expect(page.locator("#sessions")).to_be_hidden()
    page.get_by_label("Token", exact=True).fill("reads")
    page.keyboard.press("Enter")
    expect(rows(page)).to_have_count(1)
    page.get_by_role("button", name="Forget the token").click()
    expect(page.locator("#ask")).to_be_visible()
    expect(page.locator("#sessions")).to_be_hidden()
    pages.complaints = [text for text in pages.complaints if not re.search("40[13]|503", text)]
