"""docs/DEPLOYMENT.md, done as it says: every command and statement that can be run here, in a copy of the project."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mariadb import MariaDB
from tests.support.service import ROOT, TASKS, Service, alive, task, wait_until

PAGE = ROOT / "docs" / "DEPLOYMENT.md"
DATABASE = "ai_terminal"
TOKEN = {"Authorization": "Bearer s3cret"}


class Installation(Service):
    """A copy of the project's files with the virtual environment of the tests; its state is in its own var/."""

    def __init__(self, directory: Path, mariadb: MariaDB) -> None:
        super().__init__(
            directory, mariadb, DATABASE, DB_USER="persistence", DB_PASSWORD="pass-word", SERVICE_AUTH_TOKEN="s3cret"
        )
        for name in ("PERSISTENCE_STATE_DIR", "PERSISTENCE_CONFIG", "LOGGING_FILE", "DB_DATABASE"):
            del self.environ[name]
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, directory / name)
        (directory / ".venv").symlink_to(ROOT / ".venv")

    def run(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.directory, env=self.environ, capture_output=True, text=True, timeout=90
        )
        assert done.returncode == 0, command + done.stdout + done.stderr
        return done.stdout

    def supervisor(self) -> int:
        try:
            return int((self.directory / "var" / "supervisord.pid").read_text())
        except (FileNotFoundError, ValueError):
            return 0


@pytest.fixture
def installation(short_path: Path, mariadb: MariaDB) -> Iterator[Installation]:
    mariadb.drop_database(DATABASE)
    made = Installation(short_path, mariadb)
    yield made
    if made.supervisor() and alive(made.supervisor()):
        os.kill(made.supervisor(), signal.SIGTERM)
        wait_until(lambda: not alive(made.supervisor()), 60)
    mariadb.drop_database(DATABASE)
    for user in ("admin", "persistence"):
        mariadb.execute(f"DROP USER IF EXISTS {user}@localhost")


def test_the_page_from_installing_to_stopping(installation: Installation, mariadb: MariaDB) -> None:
    page = PAGE.read_text(encoding="utf-8")

    def shown(text: str) -> str:
        """The command as it stands on the page."""
        (found,) = set(re.findall(rf"(?:^|`)({re.escape(text)}[^`\n#]*)", page, re.MULTILINE))
        return str(found).strip()

    run = installation.run
    assert "installed" in run(shown("./scripts/install.sh").split("`")[0])
    assert (installation.directory / "var").stat().st_mode & 0o777 == 0o700

    mariadb.execute("CREATE USER admin@localhost IDENTIFIED BY 'x'")
    mariadb.execute(f"GRANT CREATE ON {DATABASE}.* TO admin@localhost")
    values = {"DB_HOST=db.example.org": f"DB_SOCKET={mariadb.socket}", "DB_PASSWORD=...": "DB_PASSWORD=x"}
    command = shown("DB_HOST=db.example.org DB_USER=admin")
    for old, new in values.items():
        assert old in command
        command = command.replace(old, new)
    run(command)

    (statements,) = re.findall(r"^```sql\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    # There is no network between the two here, and so no TLS.
    here = statements.replace("10.0.0.%", "localhost").replace(" REQUIRE SSL", "").replace("'...'", "'pass-word'")
    for statement in filter(None, map(str.strip, here.split(";"))):
        mariadb.execute(statement)

    configuration = run(shown(".venv/bin/python -m shared.config"))
    assert "s3cret" not in configuration
    assert "pass-word" not in configuration

    run(shown(".venv/bin/supervisord -c"))
    installation.wait_ready()
    wait_until(lambda: run(shown(".venv/bin/supervisorctl -c supervisord.conf status")).count("RUNNING") == 3)
    sent = 0

    def send() -> None:
        nonlocal sent
        sent += 1
        assert installation.post(TASKS, {"tasks": [task(f"t{sent}")]}, TOKEN).status == 202

    send()
    for upgrade in ("restart flusher reader", "signal HUP ingest", "restart ingest"):
        run(shown(f".venv/bin/supervisorctl -c supervisord.conf {upgrade}"))
        installation.wait_ready()
        send()
    run("./scripts/flush.sh")
    assert mariadb.execute("SELECT COUNT(*) FROM translation_tasks", (), DATABASE) == [(sent,)]

    supervisor = installation.supervisor()
    run(shown(".venv/bin/supervisorctl -c supervisord.conf shutdown"))
    wait_until(lambda: not alive(supervisor), 60)
    with pytest.raises(OSError, match="refused"):
        installation.get("/")
