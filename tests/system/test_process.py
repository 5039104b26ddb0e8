"""What the processes are and show: an unprivileged user's, no core, no secret anywhere."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.support.mariadb import MariaDB
from tests.support.service import FLUSH, STATS, TASKS, Answer, Service, processes_of, task, wait_until
from tests.support.strangers import STRANGER, needs_root
from tests.support.unprivileged import Unprivileged

TOKEN = "s3cret-t0ken"
PASSWORD = "hush-hush"
TEXT = "a sentence that only its writer may read"


@pytest.fixture
def user(mariadb: MariaDB) -> Iterator[str]:
    mariadb.execute(f"CREATE USER hushed@localhost IDENTIFIED BY '{PASSWORD}'")
    mariadb.execute("GRANT ALL ON *.* TO hushed@localhost")
    yield "hushed"
    mariadb.execute("DROP USER hushed@localhost")


@pytest.fixture
def unprivileged(mariadb: MariaDB, database: str, user: str) -> Iterator[Unprivileged]:
    directory = Path(tempfile.mkdtemp(prefix="ps-", dir="/tmp"))
    directory.chmod(0o755)
    mariadb.directory.chmod(0o755)  # its socket is there
    service = Unprivileged(directory, mariadb, database, SERVICE_AUTH_TOKEN=TOKEN, DB_USER=user, DB_PASSWORD=PASSWORD)
    try:
        service.start()
        yield service
    finally:
        service.stop()
        shutil.rmtree(directory, ignore_errors=True)


@needs_root
def test_the_whole_service_runs_as_a_user_without_rights_and_leaves_no_core(unprivileged: Unprivileged) -> None:
    service = unprivileged
    assert authorized(service, "POST", TASKS, b'{"tasks":[%b]}' % json_of(task())).status == 202
    assert authorized(service, "POST", FLUSH).json["tasks_written"] == 1

    uid = pwd.getpwnam(STRANGER).pw_uid
    processes = processes_of(service.directory)
    ours = {pid: line for pid, line in processes.items() if re.search(" -m (ingest|flusher|reader)", line)}
    names = {line.split()[2] for line in ours.values()}
    assert names == {"ingest", "ingest.worker", "flusher", "flusher.writer", "reader"}
    for pid in processes:
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert status["Uid"].split() == [str(uid)] * 4
        assert status["Groups"].strip() == ""
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    for pid in ours:
        # Not dumpable: what the kernel shows of it belongs to root, and no core is written.
        assert Path(f"/proc/{pid}/environ").stat().st_uid == 0
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert ["Max", "core", "file", "size", "0", "0", "bytes"] in map(str.split, limits.splitlines())

    for path in [service.directory, *service.directory.rglob("*"), *service.log.parent.rglob("*")]:
        mode = path.stat()
        assert mode.st_uid == uid, path
        by_supervisord = path.name.startswith("supervis") or path.name.endswith(".stderr.log")
        assert by_supervisord or not stat.S_IMODE(mode.st_mode) & 0o077, f"{path} is open to others"
    assert stat.S_IMODE(service.directory.stat().st_mode) == 0o700  # in which those of supervisord are

    writer = next(pid for pid, line in ours.items() if "flusher.writer" in line)
    worker = next(pid for pid, line in ours.items() if "ingest.worker" in line)
    for pid in (writer, worker):
        os.kill(pid, signal.SIGABRT)
        wait_until(lambda pid=pid: pid not in processes_of(service.directory))
    assert not [path for path in service.copy.rglob("core*") if path.is_file()]
    service.wait_ready()


def authorized(service: Service, method: str, path: str, body: bytes | None = None) -> Answer:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    return service.request(method, path, body, headers)


def json_of(record: dict[str, object]) -> bytes:
    return orjson.dumps(record)


def test_no_secret_and_no_record_is_in_logs_titles_documents_or_error_pages(
    mariadb: MariaDB, database: str, user: str, short_path: Path
) -> None:
    service = Service(
        short_path,
        mariadb,
        database,
        SERVICE_AUTH_TOKEN=TOKEN,
        DB_USER=user,
        DB_PASSWORD=PASSWORD,
        LOGGING_LEVEL="DEBUG",
    )
    shown: list[bytes] = []
    try:
        service.start()
        good = json_of(task(source_text=TEXT))
        for method, path, body in [
            ("POST", TASKS, b'{"tasks":[%b]}' % good),
            ("POST", TASKS, b'{"tasks":[%b,{}]}' % good),
            ("POST", TASKS, b'{"tasks":[%b' % good),
            ("POST", TASKS, b'{"sessions":[%b]}' % good),
            ("POST", TASKS, json_of(task(source_text=TEXT, status=TEXT))),
            ("POST", TASKS, b'{"tasks":[%b]}' % json_of(task("poison", source_text=TEXT))),
            ("POST", FLUSH, None),
            ("GET", "/openapi.json", None),
            ("GET", "/metrics", None),
            ("GET", STATS, None),
            ("GET", "/health", None),
            ("GET", "/no-such-path", None),
            ("DELETE", TASKS, None),
        ]:
            if b"poison" in (body or b""):
                check = "ALTER TABLE translation_tasks ADD CONSTRAINT c CHECK (task_id <> 'poison')"
                mariadb.execute(check, (), database)
            shown.append(authorized(service, method, path, body).body)
        wrong = (f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN)
        shown += [service.request("GET", STATS, headers={"Authorization": one}).body for one in wrong]
        mariadb.execute(f"SET PASSWORD FOR {user}@localhost = PASSWORD('another')")
        for pid in service.writers():
            os.kill(pid, signal.SIGKILL)
        authorized(service, "POST", TASKS, b'{"tasks":[%b]}' % json_of(task("later", source_text=TEXT)))
        shown.append(authorized(service, "POST", f"{FLUSH}?timeout=1").body)
        # Another of the killed writer's answers may come first.
        wait_until(lambda: b"1045" in service.get("/health").body, what="the wrong password is the reason")
        shown.append(service.get("/health").body)
        processes = processes_of(short_path)
        assert len(processes) >= 4
        shown += [Path(f"/proc/{pid}/{name}").read_bytes() for pid in processes for name in ("cmdline", "comm")]
    finally:
        service.stop()
    shown += [path.read_bytes() for path in short_path.iterdir() if path.suffix == ".stderr" or path.name == "log"]
    assert service.log.stat().st_size
    for secret in (TOKEN, PASSWORD, TEXT):
        assert not [text for text in shown if secret.encode() in text], secret
