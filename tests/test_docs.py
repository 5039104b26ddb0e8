"""The documents are held to the code: what they show is run again, what they name exists.

A console block is `$ command` lines, each followed by what it printed. A command goes on over the lines of an open
single quote. Values that differ from run to run are named in VARYING; all others must be as shown.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.records import KINDS
from shared.settings import ENVIRONMENT, SECTIONS, reference
from shared.wire import Reason
from tests.support.mariadb import MariaDB
from tests.support.service import ROOT, Service, wait_until

README = ROOT / "README.md"
CHINESE = ROOT / "README.zh-CN.md"
DOCUMENTS = [README, CHINESE, *sorted((ROOT / "docs").glob("*.md"))]
API = ROOT / "docs" / "API.md"
API_CHINESE = ROOT / "docs" / "API.zh-CN.md"
DATA_MODELS = ROOT / "docs" / "DATA_MODELS.md"
TROUBLESHOOTING = ROOT / "docs" / "TROUBLESHOOTING.md"

VARYING = {
    "timestamp",
    "last_flush",
    "last_flush_time",
    "duration_ms",
    "average_flush_duration_ms",
    "total_flush_duration_seconds",
    "uptime_seconds",
    "capacity",
    "counts",
    "sum",
    "created_at",
    "as_of",
    "next",
}
"""Compared by type, and for times by form."""
RUN_BY = {
    "./scripts/run.sh": "tests/system/test_scripts.py",
    "PERSISTENCE_STATE_DIR=/tmp/second SERVICE_PORT=8002 LOGGING_FILE=/tmp/second/service.log"
    " ./scripts/run.sh --detach": "tests/system/test_scripts.py",
    "./scripts/install.sh": "tests/deploy/test_deployment.py",
    "CREATE USER 'persistence'@'10.0.0.%' IDENTIFIED BY '...' REQUIRE SSL;": "tests/deploy/test_deployment.py",
    "DB_HOST=db.example.org DB_USER=admin DB_PASSWORD=... .venv/bin/python -m flusher.schema": (
        "tests/deploy/test_deployment.py"
    ),
    ".venv/bin/python -m shared.config": "tests/deploy/test_deployment.py",
    ".venv/bin/supervisord -c supervisord.conf": "tests/deploy/test_deployment.py",
    "mkdir -p services/persistence": "tests/support/backend.py",
    "./scripts/stop.sh": "tests/system/test_scripts.py",
    "./scripts/ctl.sh db check": "tests/ctl/test_upgrade.py",
    "./scripts/cluster.sh up": "tests/system/test_chaos.py",
    "python scripts/simulate.py": "tests/test_simulate.py",
    "python scripts/simulate.py --check docs/outage.json": "tests/test_simulate.py",
}
"""Blocks of commands without answers, by their first line, and the test that runs them."""
NOT_RUN = {
    "DB_HOST=db.example.org DB_USER=persistence DB_PASSWORD=... ./scripts/run.sh": (
        "db.example.org is the reader's; tests/system/test_scripts.py runs it with DB_SOCKET"
    ),
    "useradd --system --home-dir /opt/persistence-service --shell /usr/sbin/nologin persistence": (
        "changes the machine, and needs systemd to run it; tests/deploy/test_systemd.py checks the unit"
    ),
    "(set -a; . /etc/persistence-service.env; runuser -u persistence -- ./scripts/ctl.sh status)": (
        "needs root, the user and the file of such an installation"
    ),
    "./scripts/bench.sh": "takes twelve minutes; a test makes a quick run of it",
    "./scripts/chaos.sh --faults 1000 --seed 11": "takes eight minutes; tests/system/test_chaos.py runs sixty faults",
}
"""Those that no test runs, and why."""
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_CODE_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def examples(document: Path) -> Iterator[tuple[str, str]]:
    """Every command of the console blocks, with the output shown for it."""
    for block in re.findall(r"^```console\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL):
        command: list[str] = []
        output: list[str] = []
        for line in block.splitlines():
            if line.startswith("$ "):
                if command:
                    yield "\n".join(command), "\n".join(output)
                command, output = [line[2:]], []
            elif "\n".join(command).count("'") % 2:
                command.append(line)
            else:
                output.append(line)
        yield "\n".join(command), "\n".join(output)


def parsed(output: str) -> Any:
    """JSON, and the status that curl prints behind it; any other text as it is."""
    document, _, status = output.rpartition(" ")
    for text, code in ((document, status), (output, "")):
        try:
            return {"body": json.loads(text), "status": code}
        except ValueError:
            pass
    return output


def differences(shown: Any, got: Any, where: str = "") -> Iterator[str]:
    """What is not as shown, in words."""
    name = where.rpartition(".")[2]
    if isinstance(shown, dict) and isinstance(got, dict):
        if list(shown) != list(got):
            yield f"{where}: keys {list(shown)} are shown, {list(got)} came"
        for key in shown.keys() & got.keys():
            yield from differences(shown[key], got[key], f"{where}.{key}")
    elif name in VARYING:
        if isinstance(shown, str) and isinstance(got, str):
            if not (_TIME.fullmatch(shown) and _TIME.fullmatch(got)):
                yield f"{where}: {shown!r} and {got!r} are not times of one form"
        elif type(shown) is not type(got):
            yield f"{where}: {shown!r} is shown, {got!r} came"
    elif isinstance(shown, list) and isinstance(got, list) and len(shown) == len(got):
        for one, other in zip(shown, got, strict=True):
            yield from differences(one, other, where)
    elif shown != got:
        yield f"{where}: {shown!r} is shown, {got!r} came"


@pytest.mark.parametrize("document", [README, API], ids=lambda path: path.name)
def test_every_command_shown_prints_what_is_shown(
    document: Path, start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    # Only a flush that the document asks for may change the figures.
    service = start_service(mariadb, database, BUFFER_FLUSH_INTERVAL=3600)
    service.start_reader()
    wait_until(lambda: service.get("/health").json["status"] == "healthy")
    wrong = []
    for command, shown in examples(document):
        real = command.replace("http://127.0.0.1:8001", f"http://127.0.0.1:{service.port}")
        real = real.replace("--socket=var/mysql/mysqld.sock", f"--socket={mariadb.socket}")
        real = real.replace(" ai_terminal ", f" {database} ")
        done = subprocess.run(
            ["bash", "-c", real], cwd=ROOT, env=service.environ, capture_output=True, text=True, timeout=60
        )
        got = (done.stdout + done.stderr).rstrip("\n")
        wrong += [f"{command.splitlines()[0]}\n  {text}" for text in differences(parsed(shown), parsed(got))]
    assert not wrong, "\n".join(wrong)


def commands(document: Path) -> Iterator[str]:
    """The first line of every block of commands, shown with their answers or without."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL):
        if language in ("sh", "console", "sql"):
            yield block.splitlines()[0].removeprefix("$ ").partition("  ")[0]


def test_every_command_is_run_by_a_test_or_said_why_not() -> None:
    accounted = {**RUN_BY, **NOT_RUN}
    found = set()
    for document in DOCUMENTS:
        if document in (README, CHINESE, API):
            shown = [command.splitlines()[0].partition("  ")[0] for command, _ in examples(document)]
        elif document.name == "OPERATIONS.md":
            # tests/ctl/test_docs.py runs the blocks of this section.
            section = document.read_text().partition("\n## Command line\n")[2].partition("\n## ")[0]
            shown = re.findall(r"^\$ (.*?)(?:  .*)?$", section, re.MULTILINE)
        else:
            shown = []
        left = {command for command in commands(document) if command not in shown}
        found |= left
        assert left <= set(accounted), f"{document.name}: {left - set(accounted)}"
    assert found == set(accounted)
    for name in RUN_BY.values():
        assert (ROOT / name).exists()


def test_every_endpoint_is_shown_with_a_curl_and_listed(service: Service) -> None:
    known = set(service.get("/openapi.json").json["paths"])
    called = set()
    for command, _ in examples(API):
        called |= set(re.findall(r"http://127\.0\.0\.1:8001(/[^ ?']*)", command))
    called = {path.replace("/s-1", "/{session_id}").replace("/t-1", "/{task_id}") for path in called}
    assert known <= called
    for document in (API, API_CHINESE):
        assert set(re.findall(r"`(?:GET|POST) (/[^ `]*)`", document.read_text())) == known, document.name


def blocks(document: Path) -> list[str]:
    """The code blocks, without comments."""
    return [re.sub(r" +# .*", "", block) for block in _CODE_BLOCK.findall(document.read_text())]


def test_the_chinese_readme_has_the_same_commands_answers_names_and_links() -> None:
    """Whoever changes README.md changes README.zh-CN.md too."""
    assert blocks(CHINESE) == blocks(README)
    texts = [_CODE_BLOCK.sub("", document.read_text()) for document in (README, CHINESE)]
    for pattern in (r"^#+(?= )", r"\]\(((?!README|#)[^)]+)\)"):  # headings, links
        found = [re.findall(pattern, text, re.MULTILINE) for text in texts]
        assert found[0] == found[1]
        assert len(found[0]) > 6
    names = [set(re.findall(r"`[^`\n]+`", text)) for text in texts]
    assert names[0] == names[1]


def test_the_readmes_are_short_and_list_every_document() -> None:
    for document in (README, CHINESE):
        assert len(document.read_text().splitlines()) <= 150
    listed = set(re.findall(r"\]\((docs/[\w.-]+\.md)\)", README.read_text()))
    assert listed == {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}


def test_the_chinese_client_page_shows_programs_of_the_english_one() -> None:
    """They are run by tests/client/test_docs.py."""
    shown = blocks(ROOT / "docs" / "CLIENT.zh-CN.md")
    assert len(shown) > 3
    assert set(shown) <= set(blocks(ROOT / "docs" / "CLIENT.md"))


def rows(document: Path) -> Iterator[list[str]]:
    """The cells of every table row."""
    for line in document.read_text().splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_the_configuration_page_shows_every_key() -> None:
    assert reference() in (ROOT / "docs" / "CONFIGURATION.md").read_text()


def test_every_key_is_explained_in_the_configuration_file() -> None:
    text = (ROOT / "config" / "config.yaml").read_text()
    explained = set(re.findall(r"^ +(?:# )?(\w+):", text, re.MULTILINE))
    assert {key for section in SECTIONS.values() for key in section.__struct_fields__} <= explained
    assert set(ENVIRONMENT) <= set(re.findall(r"[A-Z]+(?:_[A-Z]+)+", text))


def sources(*packages: str) -> str:
    """The program text, with string literals that stand behind each other joined into one."""
    files = [path for package in packages for path in sorted((ROOT / package).iterdir()) if path.is_file()]
    files = [path for path in files if path.suffix != ".so"]
    text = "\n".join(path.read_text() for path in files)
    return re.sub(r"\"\s*\n\s*f?\"", "", text)


def test_every_error_code_is_documented_and_every_documented_one_exists() -> None:
    codes = {reason.name for reason in Reason}
    for package in ("ingest", "reader", "shared"):
        for path in (ROOT / package).glob("*.py"):
            if path.name not in ("config.py", "settings.py", "running.py", "process.py"):  # these name variables
                words = re.findall(r"[\"']([A-Z]+(?:_[A-Z]+)+)[\"']", path.read_text())
                codes |= {word for word in words if not word.startswith("VERIFY_")}
    for document in (API, API_CHINESE):
        documented = re.findall(r"^\| \d{3} `([A-Z_]+)` \|", document.read_text(), re.MULTILINE)
        assert sorted(documented) == sorted(codes), document.name


def test_the_record_tables_have_every_field_with_its_column() -> None:
    text = DATA_MODELS.read_text()
    schema = (ROOT / "sql" / "schema.sql").read_text()
    for kind in KINDS:
        section = text.partition(f"**{kind.record.__name__}**")[2].partition("**")[0]
        table = schema.partition(f"EXISTS {kind.table} (")[2].partition("PRIMARY KEY")[0]
        columns = dict(re.findall(r"^ +(\w+) +([A-Z]+(?:\([\d,]+\))?)", table, re.MULTILINE))
        shown = re.findall(r"^\| (\w+) \| .* \| (required|[^|]*) \| ([A-Z]+(?:\([\d,]+\))?)", section, re.MULTILINE)
        fields = msgspec.structs.fields(kind.record)
        assert [name for name, _, _ in shown] == [field.name for field in fields]
        assert {name: column for name, _, column in shown} == {field.name: columns[field.name] for field in fields}
        assert {name for name, default, _ in shown if default == "required"} == {
            field.name for field in fields if field.required
        }


def explained_messages() -> list[str]:
    """The first cells of TROUBLESHOOTING.md; `…` stands for what varies, or for the rest of a line."""
    return [message for cells in rows(TROUBLESHOOTING) for message in re.findall(r"`([^`]+)`", cells[0])]


def test_the_messages_of_the_troubleshooting_are_printed_by_the_code() -> None:
    text = sources("shared", "ingest", "flusher", "reader", "scripts")
    messages = explained_messages()
    assert len(messages) > 40
    missing = []
    for message in messages:
        # A script's die() and the name before it are apart in the source; numbers and classes are filled in.
        bare = re.sub(r"^run\.sh: |error \d+ …$|\((schema|read_only|storage)\)", "…", message)
        bare = re.sub(r"^POST …: 503 …$", "…", bare)  # the next test has these
        parts = [re.escape(part.strip()) for part in bare.split("…") if part.strip(" :")]
        if not re.search(r"[^\n]*".join(parts), text):
            missing.append(message)
    assert not missing


def test_every_error_that_is_logged_is_explained() -> None:
    explained = [re.escape(message).replace("…", ".*") for message in explained_messages()]
    formats = set()
    for package in ("shared", "ingest", "flusher", "reader"):
        for path in (ROOT / package).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("log.error", "log.critical"):
                    formats |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    assert len(formats) > 15
    worded = {text for text in formats if re.search(r"[a-z]{3}", re.sub(r"%[\d.]*[sdf]", "", text))}
    assert not [text for text in worded if not any(re.fullmatch(message, text) for message in explained)]


def test_every_script_and_path_named_exists() -> None:
    missing = []
    for document in DOCUMENTS:
        text = document.read_text()
        named = set(re.findall(r"\./(scripts/[\w.-]+)", text))
        named |= set(re.findall(r"`((?:shared|ingest|flusher|reader|sql|config|tests|scripts)/[\w./-]*)`", text))
        missing += [f"{document.name}: {path}" for path in sorted(named) if not (ROOT / path).exists()]
    for path in (ROOT / "scripts").glob("*.sh"):
        named = set(re.findall(r"\./(scripts/[\w.-]+)", path.read_text()))
        missing += [f"{path.name}: {name}" for name in sorted(named) if not (ROOT / name).exists()]
    texts = sources("shared", "ingest", "flusher", "reader", "config", "sql", "scripts")
    texts += (ROOT / "supervisord.conf").read_text()
    missing += [name for name in sorted(set(re.findall(r"docs/\w+\.md", texts))) if not (ROOT / name).exists()]
    modules = {module for document in DOCUMENTS for module in re.findall(r"python -m ([\w.]+)", document.read_text())}
    for module in modules:
        path = ROOT / module.replace(".", "/")
        if not (path.with_suffix(".py").exists() or (path / "__main__.py").exists()):
            missing.append(f"python -m {module}")
    assert not missing


def test_every_script_is_named() -> None:
    text = "".join(document.read_text() for document in DOCUMENTS)
    assert not [path.name for path in (ROOT / "scripts").glob("*.sh") if path.name not in text and path.stem != "lib"]


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_internal_link_leads_somewhere() -> None:
    broken = []
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)]+)\)", _CODE_BLOCK.sub("", document.read_text())):
            if link.startswith("https://"):
                continue
            name, _, fragment = link.partition("#")
            target = (document.parent / name).resolve() if name else document
            if not target.exists():
                broken.append(f"{document.name}: {link}")
            elif fragment:
                text = _CODE_BLOCK.sub("", target.read_text())
                if fragment not in {anchor(found) for found in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}:
                    broken.append(f"{document.name}: {link}")
    assert not broken


def test_no_tracked_file_names_a_machine_or_a_registry() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
    # Written in pieces, or this file would be the first to be found.
    forbidden = re.compile(
        r"/" + r"(?:work|home|root|Users)/\w"
        r"|index"
        + r"-url[ =]+http|find"
        + r"-links[ =]|/simple"
        + r"/|py"
        + r"pi\.|files\.python"
        + r"hosted|arti"
        + r"factory"
        r"|\b(?:10|192\.168|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d{1,3}){2,3}:\d+",
        re.IGNORECASE,
    )
    found = []
    for name in listed.stdout.split("\0"):
        path = ROOT / name
        if name and path.is_file():
            text = path.read_bytes().decode(errors="replace")
            found += [f"{name}: {match[0]}" for match in forbidden.finditer(text)]
    assert listed.stdout
    assert not found
