"""docs/OPERATIONS.md, "Command line": every command is run in order, and answers as the page says, figures aside."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator

import pytest

from flusher.schema import FILE
from flusher.store import schema_statements
from tests.support.mariadb import MariaDB
from tests.support.service import ROOT, SESSIONS, TASKS, Service, session, task, wait_until

PAGE = ROOT / "docs" / "OPERATIONS.md"
DATABASE = "ai_terminal"


@pytest.fixture
def node(start_service: Callable[..., Service], mariadb: MariaDB) -> Iterator[Service]:
    """A node with a backlog of 36 records and 12 dead letters."""
    mariadb.drop_database(DATABASE)
    connection = mariadb.connect()
    for statement in schema_statements(FILE.read_text(encoding="utf-8"), DATABASE):
        connection.query(statement)
    connection.close()
    constraint = "ALTER TABLE translation_tasks ADD CONSTRAINT no_poison CHECK (source_text <> 'poison')"
    mariadb.execute(constraint, (), DATABASE)
    service = start_service(mariadb, DATABASE, BUFFER_FLUSH_INTERVAL=3600)
    wait_until(lambda: service.get("/health").json["status"] == "healthy")
    refused = [task(f"t{number}", source_text="poison") for number in range(100, 112)]
    assert service.post(TASKS, {"tasks": [task(f"t{number}") for number in range(60)] + refused}).status == 202
    assert service.flush().json["dead_lettered"] == 12
    assert service.post(TASKS, {"tasks": [task(f"t{n}", status="completed") for n in range(35)]}).status == 202
    assert service.post(SESSIONS, {"sessions": [session("s1")]}).status == 202
    service.start_reader()
    wait_until(lambda: service.stats()["at_risk"]["unsynced_records"] == 0)
    yield service
    mariadb.drop_database(DATABASE)


def run(command: str, service: Service) -> str:
    """What a person sees who types it; the paths are those of the page."""
    client = f'mariadb() {{ command mariadb --no-defaults -uroot --socket={service.environ["DB_SOCKET"]} "$@"; }}; '
    done = subprocess.run(
        ["bash", "-c", client + command],
        cwd=ROOT,
        env={**service.environ, "SERVICE_AUTH_TOKEN": "", "DB_PASSWORD": ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=90,
        check=False,
    )
    text = done.stdout.decode()
    for found, shown in (
        (str(service.directory), "/srv/persistence/var"),
        (service.environ["DB_SOCKET"], "/run/mysqld/mysqld.sock"),
        (str(ROOT), "/srv/persistence"),
        (f":{service.port}", ":8001"),
        (f"port: {service.port}", "port: 8001"),
    ):
        text = text.replace(found, shown)
    return "".join(line.rstrip() + "\n" for line in text.splitlines())


def masked(text: str) -> list[str]:
    """Lines without what differs from run to run: figures, bars, the server's version, widths of columns."""
    text = re.sub(r"[\d.]+-MariaDB\S*", "VERSION", text)
    text = re.sub(r"[▁-█]+", "BARS", text)
    text = re.sub(r"\d[\d,.]*", "0", text)
    return [" ".join(line.split()) for line in text.splitlines()]


def blocks(page: str) -> list[str]:
    section = re.split(r"^## ", page.partition("\n## Command line\n")[2], flags=re.MULTILINE)[0]
    return re.findall(r"```console\n(.*?)```", section, re.DOTALL)


def written_anew(block: str, service: Service) -> str:
    """The block with the answers of now."""
    commands = [line for line in block.splitlines() if line.startswith("$ ")]
    return "".join(f"{command}\n{run(command[2:], service)}" for command in commands)


@pytest.mark.timeout(240)
def test_every_command_answers_as_the_page_says(node: Service) -> None:
    found = blocks(PAGE.read_text(encoding="utf-8"))
    assert len(found) > 5
    for block in found:
        assert masked(written_anew(block, node)) == masked(block)


def test_every_command_has_its_place_on_the_page() -> None:
    text = "\n".join(blocks(PAGE.read_text(encoding="utf-8")))
    for command in (
        *("status", "top", "flush", "config check", "journal inspect", "db init", "db check"),
        *("sessions list", "sessions show", "sessions export", "sessions purge"),
        *("deadletters list", "deadletters show", "deadletters replay"),
    ):
        assert f"./scripts/ctl.sh {command}" in text


def test_the_masks_hide_figures_and_nothing_else() -> None:
    assert masked("12 tasks refused") == masked("7 tasks refused")
    assert masked("12 tasks refused") != masked("12 tasks written")
