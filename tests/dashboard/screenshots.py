"""`python -m tests.dashboard.screenshots [DIRECTORY]`: a picture of the dashboard in each of its states.

A real service under a real load, four minutes in all. Nothing in the pictures is made up; what is in them differs from
run to run. Those that the documents show are copied to docs/img.
"""

from __future__ import annotations

import itertools
import math
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect

from tests.support.browser import browser as open_browser
from tests.support.mariadb import MariaDB
from tests.support.service import ROOT, SESSIONS, TASKS, Service, session, task, wait_until

IN_DOCS = ("recovery", "locked", "phone", "dark", "zh", "sessions")
MOST_BYTES = 120_000
BUSY_S, LOCKED_S, RECOVERY_S, DOWN_S = 90, 45, 25, 20
RUNS = ("UI_strings", "quest_dialogue", "item_descriptions")
STATES = ("pending", "processing", "completed")
FAULTY = "ALTER TABLE translation_tasks ADD CONSTRAINT no_poison CHECK (source_text <> 'poison')"


class Work:
    """Translation runs: batches of tasks that go through their states, faster and slower; one in forty fails."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Work:  # noqa: PYI034 -- Self came with Python 3.11
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        connection = self._service.connect()

        def post(path: str, kind: str, records: list[dict[str, Any]]) -> None:
            self._service.post(path, {kind: records}, connection=connection)

        for run in RUNS:
            post(SESSIONS, "sessions", [session(f"s-{run}", filename=f"{run}.xlsx", status="executing")])
            post(TASKS, "tasks", [task(f"TASK_{row:04}", session_id=f"s-{run}", row_index=row) for row in range(600)])
        for turn in itertools.count():
            size = 16 + round(8 * math.sin(time.monotonic() / 20))
            rows = [(5 * turn + row) % 600 for row in range(size)]
            for status in STATES:
                tasks = [
                    task(f"TASK_{row:04}", session_id=f"s-{RUNS[turn % 3]}", row_index=row, status=status)
                    for row in rows
                ]
                if status == "completed" and turn % 7 == 0:
                    tasks[0] |= {"status": "failed", "error_message": "LLM: no answer within 60 s"}
                post(TASKS, "tasks", tasks)
                if self._stopped.wait(0.06):
                    connection.close()
                    return


class Camera:
    def __init__(self, browser: Browser, directory: Path) -> None:
        self._browser = browser
        self._directory = directory

    def shoot(
        self,
        name: str,
        service: Service,
        *,
        view: str = "",
        width: int = 1180,
        language: str = "en-GB",
        dark: bool = False,
        ready: Callable[[Page], object] = lambda page: expect(page.locator("#tiles > div")).to_have_count(8),
    ) -> None:
        phone = width < 500
        context = self._browser.new_context(
            viewport={"width": width, "height": 844 if phone else 500},
            locale=language,
            timezone_id="Asia/Shanghai",
            color_scheme="dark" if dark else "light",
            device_scale_factor=2 if phone else 1,
            has_touch=phone,
        )
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{service.port}/dashboard{view}")
        ready(page)
        file = self._directory / f"dashboard-{name}.png"
        page.screenshot(path=file, full_page=not phone and not view)
        subprocess.run(["pngquant", "--force", "--strip", "--ext", ".png", file], check=True, timeout=60)
        context.close()
        print(f"{file}: {file.stat().st_size} bytes", flush=True)
        assert file.stat().st_size < MOST_BYTES, f"{file} is too large for a document"


def rows(page: Page) -> None:
    expect(page.locator("#sessions-shown tbody tr").first).to_be_visible()


def day(camera: Camera, mariadb: MariaDB, service: Service, database: str) -> None:
    """Work, a locked table under it, its end, and a record that the database refuses."""
    time.sleep(4)
    camera.shoot("fresh", service)
    with Work(service):
        time.sleep(BUSY_S)
        camera.shoot("load", service)
        camera.shoot("zh", service, language="zh-CN")
        camera.shoot("sessions", service, view="#sessions", ready=rows)
        camera.shoot("sessions-zh", service, view="#sessions", language="zh-CN", ready=rows)
        camera.shoot("session", service, view="#sessions/s-UI_strings", ready=rows)
        with mariadb.locked(database):
            time.sleep(LOCKED_S)
            camera.shoot("locked", service)
            camera.shoot("locked-zh", service, language="zh-CN")
            camera.shoot("phone", service, width=390)
        time.sleep(RECOVERY_S)
        service.post(TASKS, {"tasks": [task("t", status="unheard of")]})
        time.sleep(4)
        camera.shoot("recovery", service)
        mariadb.execute(FAULTY, (), database)
        service.post(TASKS, {"tasks": [task("refused", source_text="poison")]})
        wait_until(lambda: service.stats()["dead_letters"]["count"], what="a dead letter")
        time.sleep(4)
        camera.shoot("dead-letters", service)
        camera.shoot("dark", service, dark=True)


def outage(camera: Camera, mariadb: MariaDB, service: Service) -> None:
    """The database away until the journal is full."""
    with Work(service):
        time.sleep(DOWN_S)
        mariadb.stop()
        time.sleep(DOWN_S)
        camera.shoot("down", service)
        wait_until(lambda: service.get("/ready").status == 503, 120, "the journal is full")
        time.sleep(6)
        camera.shoot("full", service)
        mariadb.start()


@contextmanager
def running(directory: Path, mariadb: MariaDB, database: str, **settings: object) -> Iterator[Service]:
    directory.mkdir()
    service = Service(directory, mariadb, database, BUFFER_FLUSH_INTERVAL=2, **settings)
    service.start()
    try:
        yield service
    finally:
        service.stop()


def main() -> None:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "var" / "screenshots"
    directory.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix="ps-", dir="/tmp"))
    (temporary / "database").mkdir()
    mariadb = MariaDB(temporary / "database")
    mariadb.install()
    mariadb.start()
    try:
        with open_browser() as browser:
            camera = Camera(browser, directory)
            database = mariadb.create_database()
            with running(temporary / "day", mariadb, database) as service:
                service.start_reader()
                day(camera, mariadb, service, database)
            database = mariadb.create_database()
            with running(
                temporary / "outage", mariadb, database, JOURNAL_MAX_BYTES=2**22, SERVICE_MAX_BODY_BYTES=2**20
            ) as service:
                outage(camera, mariadb, service)
            with running(temporary / "token", mariadb, database, SERVICE_AUTH_TOKEN="s3cret") as service:
                camera.shoot("token", service, ready=lambda page: expect(page.locator("#ask")).to_be_visible())
    finally:
        mariadb.stop()
        shutil.rmtree(temporary)
    for name in IN_DOCS:
        shutil.copy(directory / f"dashboard-{name}.png", ROOT / "docs" / "img")


if __name__ == "__main__":
    main()
