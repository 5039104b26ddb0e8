"""`python -m tests.dashboard.screenshots [DIRECTORY]`: the pictures of docs/img, of a real service under a real load.

Six and a half minutes of work, two without a database, its return, and a table that refuses a record. Nothing in the
pictures is made up; what is in them differs from run to run.
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
from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.support.browser import browser as open_browser
from tests.support.mariadb import MariaDB
from tests.support.service import ROOT, SESSIONS, TASKS, Service, session, task, wait_until

OUTAGE_AT_S = 390
BACK_AT_S = 510
END_AT_S = 610
MOST_BYTES = 100_000
STATES = ("pending", "processing", "completed")


class Work:
    """A translation run: batches of tasks that go through their states, faster and slower."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.started_at = time.monotonic()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def wait_until(self, second: float) -> None:
        self._stopped.wait(max(0, self.started_at + second - time.monotonic()))

    def _run(self) -> None:
        connection = self._service.connect()
        self._service.post(SESSIONS, {"sessions": [session()]}, connection=connection)
        for number in itertools.count():
            for status in STATES:
                size = 24 + round(10 * math.sin((time.monotonic() - self.started_at) / 40))
                tasks = [task(f"t{number}-{index}", batch_id=f"b{number}", status=status) for index in range(size)]
                assert self._service.post(TASKS, {"tasks": tasks}, connection=connection).status == 202
                if self._stopped.wait(0.06):
                    connection.close()
                    return


def shoot(browser: Browser, service: Service, file: Path, *, width: int = 1180, dark: bool = False) -> None:
    phone = width < 500
    context = browser.new_context(
        viewport={"width": width, "height": 844},
        color_scheme="dark" if dark else "light",
        device_scale_factor=2 if phone else 1,
        has_touch=phone,
    )
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{service.port}/dashboard")
    expect(page.locator("#tiles > div")).to_have_count(8)
    page.screenshot(path=file, full_page=not phone)
    subprocess.run(["pngquant", "--force", "--strip", "--ext", ".png", file], check=True, timeout=60)
    context.close()
    print(f"{file}: {file.stat().st_size} bytes", flush=True)
    assert file.stat().st_size < MOST_BYTES, f"{file} is too large for a document"


def run(directory: Path, mariadb: MariaDB, service: Service, database: str) -> None:
    work = Work(service)
    work.start()
    try:
        work.wait_until(OUTAGE_AT_S)
        with open_browser() as browser:
            shoot(browser, service, directory / "dashboard-busy.png")
        mariadb.stop()
        work.wait_until(BACK_AT_S - 10)
        with open_browser() as browser:
            shoot(browser, service, directory / "dashboard-outage.png")
            shoot(browser, service, directory / "dashboard-phone.png", width=390)
        work.wait_until(BACK_AT_S)
        mariadb.start()
        work.wait_until(END_AT_S)
        with open_browser() as browser:
            shoot(browser, service, directory / "dashboard-recovery.png")
            mariadb.execute(
                "ALTER TABLE translation_tasks ADD CONSTRAINT no_poison CHECK (source_text <> 'poison')", (), database
            )
            service.post(TASKS, {"tasks": [task("refused", source_text="poison")]})
            wait_until(lambda: service.stats()["dead_letters"]["count"], what="a dead letter")
            time.sleep(4)
            shoot(browser, service, directory / "dashboard-dark.png", dark=True)
    finally:
        work.stop()


def main() -> None:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "img"
    directory.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix="ps-", dir="/tmp"))
    try:
        for name in ("database", "service"):
            (temporary / name).mkdir()
        mariadb = MariaDB(temporary / "database")
        mariadb.install()
        mariadb.start()
        database = mariadb.create_database()
        service = Service(temporary / "service", mariadb, database, BUFFER_FLUSH_INTERVAL=2)
        service.start()
        try:
            run(directory, mariadb, service, database)
        finally:
            service.stop()
            mariadb.stop()
    finally:
        shutil.rmtree(temporary)


if __name__ == "__main__":
    main()
