from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from shared import settings
from shared.config import DEFAULT, load, load_with_sources, masked, unknown_variables
from shared.exposure import local_url
from shared.settings import ENVIRONMENT, PREFIXES, SECTIONS, Config
from tests.support.configuration import refusal, refusals, write
from tests.support.service import ROOT

MIB = 1024 * 1024
SHIPPED = ROOT / "config" / "config.yaml"

SESSION_STATUSES = (
    *("created", "analyzed", "split_complete", "pending", "executing", "processing", "running"),
    *("paused", "stopped", "completed", "failed", "cancelled"),
)
TASK_STATUSES = ("pending", "processing", "completed", "failed", "cancelled", "skipped")
# Every key: its default in the contract; another value as YAML has it, a third as the environment has it, and as it is
# then in effect.
VALUES: dict[str, tuple[Any, Any, str, Any]] = {
    "service.host": ("0.0.0.0", "192.0.2.1", "::1", "::1"),
    "service.port": (8001, 9001, "9002", 9002),
    "service.workers": (1, 2, "3", 3),
    "service.max_body_bytes": (10485760, 2048, "4096", 4096),
    "service.max_connections": (5000, 1, "7", 7),
    "service.max_clock_skew": (300, 0, "1.5", 1.5),
    "service.ack_timeout": (10, 0.5, "2", 2),
    "service.auth_token": (None, "from-file", "from-environment", "from-environment"),
    "service.auth_token_file": (None, str(ROOT / "LICENSE"), str(ROOT / ".gitignore"), str(ROOT / ".gitignore")),
    "service.protected_mode": (True, True, "false", False),
    "service.allowed_hosts": ((), ["a.example.org"], "b.example.org, c", ("b.example.org", "c")),
    "service.drain_delay": (0, 0.5, "3", 3),
    "service.tls_cert": (None, "a", "b", "b"),
    "service.tls_key": (None, "a", "b", "b"),
    "records.time_zone": ("UTC", "Asia/Shanghai", "-03:30", "-03:30"),
    "records.session_statuses": (SESSION_STATUSES, ["new"], "new, split by sheet", ("new", "split by sheet")),
    "records.task_statuses": (TASK_STATUSES, ["新"], "x", ("x",)),
    "records.unknown_fields": ("keep", "ignore", "reject", "reject"),
    "buffer.max_buffer_size": (1000, 1, "5", 5),
    "buffer.flush_interval": (30, 0.01, "0.5", 0.5),
    "buffer.max_batch_size": (1000, 1, "7", 7),
    "journal.directory": ("<state>/journal", "/a", "/b", "/b"),
    "journal.max_bytes": (1024 * MIB, MIB, "2097152", 2 * MIB),
    "journal.fsync": ("interval", "never", "always", "always"),
    "dead_letters.max_bytes": (64 * MIB, 1024, "2048", 2048),
    "database.host": (("localhost",), ["a", "b"], "c, d", ("c", "d")),
    "database.port": (3306, 1, "65535", 65535),
    "database.socket": (None, "/a", "/b", "/b"),
    "database.user": ("root", "a", "b", "b"),
    "database.password": ("", "a", "12345", "12345"),
    "database.database": ("ai_terminal", "a", "b", "b"),
    "database.pool_size": (10, 1, "64", 64),
    "database.pool_recycle": (3600, 1, "60", 60),
    "database.connect_timeout": (5, 1, "2", 2),
    "database.read_timeout": (60, 15, "16", 16),
    "database.write_timeout": (60, 1, "2", 2),
    "database.ssl_mode": (None, "DISABLED", "VERIFY_IDENTITY", "VERIFY_IDENTITY"),
    "database.ssl_ca": (None, "a", "b", "b"),
    "database.ssl_cert": (None, "a", "b", "b"),
    "database.ssl_key": (None, "a", "b", "b"),
    "read.enabled": (True, True, "false", False),
    "read.host": (None, ["a", "b"], "c, d", ("c", "d")),
    "read.port": (None, 1, "65535", 65535),
    "read.user": (None, "a", "b", "b"),
    "read.password": (None, "a", "", ""),
    "read.pool_size": (2, 1, "64", 64),
    "read.timeout": (5, 0.1, "1.5", 1.5),
    "read.auth_token": (None, "from-file", "new old", "new old"),
    "cluster.nodes": ((), ["http://a"], "http://b, http://c", ("http://b", "http://c")),
    "logging.level": ("INFO", "ERROR", "DEBUG", "DEBUG"),
    "logging.format": ("text", "text", "json", "json"),
    "logging.file": ("logs/persistence_service.log", "a", "b", "b"),
}
KEYS = sorted(VALUES)

# Values that must be refused, and a word of what is allowed that the refusal must carry.
REFUSED: list[tuple[str, Any, str]] = [
    ("service.host", "", "length >= 1"),
    ("service.host", ["a"], "str"),
    ("service.port", 0, ">= 1"),
    ("service.port", 65536, "<= 65535"),
    ("service.port", "eighty", "int"),
    ("service.port", 80.5, "int"),
    ("service.port", True, "int"),
    ("service.port", None, "int"),
    ("service.workers", 0, ">= 1"),
    ("service.workers", 65, "<= 64"),
    ("service.max_body_bytes", 1023, ">= 1024"),
    ("service.max_body_bytes", 64 * MIB + 1, "<= 67108864"),
    ("service.max_connections", 0, ">= 1"),
    ("service.max_connections", 1_000_001, "<= 1000000"),
    ("service.max_clock_skew", -1, ">= 0"),
    ("service.max_clock_skew", float("nan"), ">= 0"),
    ("service.ack_timeout", 0, "> 0"),
    ("service.ack_timeout", 601, "<= 600"),
    ("service.auth_token", "", "length >= 1"),
    ("service.auth_token", ["one", 2], "str"),
    ("service.auth_token", "schlüssel", "matching"),
    ("service.protected_mode", "maybe", "bool"),
    ("service.allowed_hosts", ["http://a"], "matching"),
    ("records.time_zone", "Asia/Shangai", "did you mean Asia/Shanghai?"),
    ("records.time_zone", "../../etc/passwd", "IANA name"),
    ("records.time_zone", "+24:00", "IANA name"),
    ("records.time_zone", 600, "str"),
    ("records.session_statuses", [], "length >= 1"),
    ("records.session_statuses", ["a", "b", "a"], "'a' twice"),
    ("records.task_statuses", ["x" * 33], "length <= 32"),
    ("records.task_statuses", [""], "length >= 1"),
    ("records.task_statuses", [1], "str"),
    ("records.unknown_fields", "drop", "ignore, keep, reject"),
    ("buffer.max_buffer_size", 0, ">= 1"),
    ("buffer.max_buffer_size", 1_000_001, "<= 1000000"),
    ("buffer.flush_interval", 0, ">= 0.01"),
    ("buffer.flush_interval", float("nan"), ">= 0.01"),
    ("buffer.flush_interval", float("inf"), "<= 86400"),
    ("buffer.max_batch_size", 0, ">= 1"),
    ("journal.directory", 5, "str"),
    ("journal.max_bytes", MIB - 1, ">= 1048576"),
    ("journal.fsync", "sometimes", "always, interval, never"),
    ("dead_letters.max_bytes", 1023, ">= 1024"),
    ("database.host", [], "length >= 1"),
    ("database.host", ["a", ""], "length >= 1"),
    ("database.host", 5, "array"),
    *(("database.host", ["a", host], "[::1]:3307") for host in ("db:0", "db:65536", "db:x", "[::1", "db:1:x", "a b")),
    ("database.port", 0, ">= 1"),
    ("database.socket", "", "length >= 1"),
    ("database.user", "", "length >= 1"),
    ("database.password", 12345, "str"),
    ("database.database", "x" * 65, "length <= 64"),
    ("database.pool_size", 0, ">= 1"),
    ("database.pool_size", 65, "<= 64"),
    ("database.pool_recycle", 0, "> 0"),
    ("database.connect_timeout", 0, ">= 1"),
    ("database.read_timeout", 14, ">= 15"),
    ("database.write_timeout", 0, ">= 1"),
    ("database.ssl_mode", "ON", "DISABLED, PREFERRED, REQUIRED, VERIFY_CA, VERIFY_IDENTITY"),
    ("database.ssl_ca", 5, "str"),
    ("database.ssl_cert", 5, "str"),
    ("database.ssl_key", 5, "str"),
    ("logging.level", "info", "DEBUG"),
    ("logging.format", "xml", "json"),
    ("logging.file", None, "str"),
]


def beside(key: str) -> dict[str, str]:
    """What a key cannot be without."""
    others = {
        "read.auth_token": {"SERVICE_AUTH_TOKEN": "t0ken"},
        "journal.max_bytes": {"SERVICE_MAX_BODY_BYTES": "1024"},
    }
    return others.get(key, {})


def value_of(loaded: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(loaded, section), name)


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith((*PREFIXES, "MYSQL_"))}
    return subprocess.run(
        [sys.executable, "-m", "shared.config", *arguments],
        cwd=ROOT,
        env={**clean, **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_these_are_all_the_keys_there_are() -> None:
    assert {f"{section}.{name}" for section, type_ in SECTIONS.items() for name in type_.__struct_fields__} == set(KEYS)
    assert sorted(ENVIRONMENT.values()) == KEYS  # each has its variable


@pytest.mark.parametrize("key", KEYS)
def test_a_key_left_out_has_the_contracts_default(key: str, tmp_path: Path) -> None:
    expected = str(tmp_path / "journal") if key == "journal.directory" else VALUES[key][0]
    loaded = load(write(tmp_path, ""), {"PERSISTENCE_STATE_DIR": str(tmp_path)})
    assert value_of(loaded, key) == expected


@pytest.mark.parametrize("key", KEYS)
def test_the_file_overrides_the_default(key: str, tmp_path: Path) -> None:
    section, name = key.split(".")
    value = VALUES[key][1]
    loaded = load(write(tmp_path, {section: {name: value}}), beside(key))
    assert value_of(loaded, key) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize("variable", sorted(ENVIRONMENT))
def test_the_environment_overrides_the_file(variable: str, tmp_path: Path) -> None:
    key = ENVIRONMENT[variable]
    section, name = key.split(".")
    default, in_file, text, expected = VALUES[key]
    loaded = load(write(tmp_path, {section: {name: in_file}}), {variable: text, **beside(key)})
    assert value_of(loaded, key) == expected
    assert expected not in (in_file, default)  # or this would show nothing


@pytest.mark.parametrize(
    ("variable", "key"),
    [
        ("SERVICE_HOST", "service.host"),
        ("SERVICE_PORT", "service.port"),
        ("SERVICE_WORKERS", "service.workers"),
        ("SERVICE_AUTH_TOKEN", "service.auth_token"),
        ("BUFFER_MAX_SIZE", "buffer.max_buffer_size"),
        ("BUFFER_FLUSH_INTERVAL", "buffer.flush_interval"),
        ("JOURNAL_DIRECTORY", "journal.directory"),
        ("JOURNAL_FSYNC", "journal.fsync"),
        ("DB_HOST", "database.host"),
        ("DB_PORT", "database.port"),
        ("DB_USER", "database.user"),
        ("DB_PASSWORD", "database.password"),
        ("DB_DATABASE", "database.database"),
        ("DB_SOCKET", "database.socket"),
        ("SERVICE_ALLOWED_HOSTS", "service.allowed_hosts"),
        ("RECORDS_TIME_ZONE", "records.time_zone"),
    ],
)
def test_the_variables_that_the_contract_names_keep_their_names(variable: str, key: str) -> None:
    assert ENVIRONMENT[variable] == key


@pytest.mark.parametrize(
    ("variable", "key", "text"),
    [
        ("MYSQL_HOST", "database.host", "db"),
        ("MYSQL_PORT", "database.port", "3307"),
        ("MYSQL_USER", "database.user", "app"),
        ("MYSQL_PASSWORD", "database.password", "p"),
        ("MYSQL_DATABASE", "database.database", "games"),
        ("DB_NAME", "database.database", "games"),
    ],
)
def test_a_backends_names_are_read_where_ours_are_unset(variable: str, key: str, text: str, tmp_path: Path) -> None:
    section, name = key.split(".")
    _, in_file, ours, _ = VALUES[key]
    path = write(tmp_path, {section: {name: in_file}})
    expected = {"database.host": ("db",), "database.port": 3307}.get(key, text)
    assert value_of(load(path, {variable: text}), key) == expected
    if variable != "DB_NAME":
        own = next(name for name, one in ENVIRONMENT.items() if one == key)
        assert value_of(load(path, {variable: text, own: ours}), key) == VALUES[key][3]


def test_a_host_of_the_environment_goes_before_a_socket_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, {"database": {"socket": "/s"}})
    assert load(path, {"MYSQL_HOST": "db"}).database.socket is None
    assert load(path, {}).database.socket == "/s"
    assert load(path, {"DB_HOST": "db", "DB_SOCKET": "/t"}).database.socket == "/t"


def test_two_names_of_one_setting_that_disagree_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    message = refusal(path, {"DB_NAME": "a", "DB_DATABASE": "b"})
    assert message == "DB_DATABASE = 'b' and DB_NAME = 'a' mean database.database; set one of them"
    assert load(path, {"DB_NAME": "a", "DB_DATABASE": "a"}).database.database == "a"


def test_everything_that_is_wrong_is_named_at_once_with_the_nearest_known_key(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "service:\n  prot: 5\n  flush_interval: 3\n  auth_tokn: hunter2\nport: 3\nmysql: {url: hunter2}\n"
        "buffer: 4\njournal: {fsync: maybe}\nservice:\n  workers: 0\n",
    )
    lines = refusals(path, {"DB_PORT": "x", "SERVICE_AUTH_TOKEN_FILE": "/nowhere"})
    expected = [
        f"{path}, line 9: 'service' stands in line 1 already",
        f"{path}, line 2: 'service.prot' = 5: unknown key; did you mean service.port? allowed: host, port, ",
        f"{path}, line 3: 'service.flush_interval' = 3: unknown key; did you mean buffer.flush_interval? ",
        f"{path}, line 4: 'service.auth_tokn': unknown key; did you mean service.auth_token? ",
        f"{path}, line 5: 'port' = 3: unknown section; did you mean service.port or database.port or read.port? ",
        f"{path}, line 6: 'mysql': unknown section; allowed: service, ",
        f"{path}, line 7: buffer must be a mapping of keys, not int",
        f"{path}, line 10: service.workers = 0: Expected `int` >= 1",
        f"{path}, line 8: journal.fsync = 'maybe': allowed are always, interval, never",
        "DB_PORT: database.port = 'x': Expected `int`",
        "service.auth_token_file = '/nowhere': cannot be read: No such file or directory",
    ]
    assert len(lines) == len(expected)
    assert [line for line, start in zip(lines, expected, strict=True) if not line.startswith(start)] == []
    assert "hunter2" not in str(lines)


def test_a_misspelt_variable_is_warned_of_with_the_nearest_name_and_no_other_programs_is() -> None:
    known = dict.fromkeys([*ENVIRONMENT, "DB_NAME", "MYSQL_HOST", "PERSISTENCE_STATE_DIR", "PERSISTENCE_URL"], "")
    assert unknown_variables({**known, "MYSQL_ROOT_PASSWORD": "", "HOME": "", "PORT": ""}) == []
    assert unknown_variables({"MYSQL_PASWORD": "", "PERSISTANCE_STATE_DIR": ""}) == [
        "MYSQL_PASWORD is no variable of this service; did you mean MYSQL_PASSWORD?",
        "PERSISTANCE_STATE_DIR is no variable of this service; did you mean PERSISTENCE_STATE_DIR?",
    ]
    found = unknown_variables({"SERVICE_PROT": "", "BUFFER_MAX_BUFFER_SIZE": "", "DB_1": ""})
    assert [line.partition("; did you mean ")[::2] for line in found] == [
        ("BUFFER_MAX_BUFFER_SIZE is no variable of this service", "BUFFER_MAX_SIZE?"),
        ("DB_1 is no variable of this service", ""),
        ("SERVICE_PROT is no variable of this service", "SERVICE_PORT?"),
    ]


def test_an_empty_variable_counts_as_unset(tmp_path: Path) -> None:
    assert load(write(tmp_path, {"service": {"port": 9001}}), {"SERVICE_PORT": ""}).service.port == 9001


@pytest.mark.parametrize(("key", "value", "allowed"), REFUSED)
def test_a_wrong_value_in_the_file_is_refused_in_one_line_with_key_value_and_what_is_allowed(
    key: str, value: Any, allowed: str, tmp_path: Path
) -> None:
    section, name = key.split(".")
    path = write(tmp_path, {section: {name: value}})
    message = refusal(path, {})
    assert message.startswith(f"{path}, line 2: {key} = ")
    assert allowed in message
    if key in settings.SECRETS:
        assert "********" in message
        assert str(value) not in message or value == ""
    else:
        assert repr(value) in message


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("SERVICE_PORT", "0x50", "int"),
        ("SERVICE_PORT", "65536", "<= 65535"),
        ("SERVICE_PROTECTED_MODE", "maybe", "bool"),
        ("BUFFER_FLUSH_INTERVAL", "nan", ">= 0.01"),
        ("BUFFER_FLUSH_INTERVAL", "soon", "float"),
        ("JOURNAL_FSYNC", "ALWAYS", "always, interval, never"),
        ("LOGGING_LEVEL", "TRACE", "DEBUG"),
        ("DB_DATABASE", "x" * 65, "length <= 64"),
    ],
)
def test_a_wrong_variable_is_named_by_its_own_name(variable: str, value: str, allowed: str, tmp_path: Path) -> None:
    message = refusal(write(tmp_path, ""), {variable: value})
    assert message.startswith(f"{variable}: {ENVIRONMENT[variable]} = {value!r}: ")
    assert allowed in message


@pytest.mark.parametrize("text", ["false", "False", "FALSE", "0"])
def test_protected_mode_is_lifted_only_by_a_clear_no(text: str, tmp_path: Path) -> None:
    assert load(write(tmp_path, ""), {"SERVICE_PROTECTED_MODE": text}).service.protected_mode is False


@pytest.mark.parametrize("text", ["null", "none", "false", "0"])
def test_no_word_in_the_environment_turns_authentication_off(text: str, tmp_path: Path) -> None:
    assert load(write(tmp_path, ""), {"SERVICE_AUTH_TOKEN": text}).service.auth_token == text


def test_without_a_named_file_config_yaml_is_read_where_it_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(None, {}).service.port == 8001
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.yaml").write_text("service: {port: 9001}")
    assert load(None, {}).service.port == 9001


def test_persistence_config_names_another_file(tmp_path: Path) -> None:
    path = write(tmp_path, {"service": {"port": 9003}})
    assert load(None, {"PERSISTENCE_CONFIG": path}).service.port == 9003


def test_the_state_directory_is_absolute_and_holds_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, "")
    by_default = load(path, {})
    assert by_default.state_directory == str(tmp_path / "var")
    assert by_default.journal.directory == str(tmp_path / "var" / "journal")
    elsewhere = load(path, {"PERSISTENCE_STATE_DIR": "other"})
    assert elsewhere.state_directory == str(tmp_path / "other")
    assert elsewhere.journal.directory == str(tmp_path / "other" / "journal")


def test_secrets_are_masked_and_nothing_else_is(tmp_path: Path) -> None:
    path = write(tmp_path, {"service": {"auth_token": "t0ken"}, "database": {"password": "pa55word"}})
    loaded = load(path, {})
    document = masked(loaded)
    assert document["service"]["auth_token"] == "********"
    assert document["database"]["password"] == "********"
    plain = msgspec.to_builtins(loaded)
    for section, name in (("service", "auth_token"), ("database", "password")):
        del plain[section][name]
        del document[section][name]
    assert document == plain


def test_secrets_that_are_not_set_are_shown_as_such(tmp_path: Path) -> None:
    document = masked(load(write(tmp_path, ""), {}))
    assert document["service"]["auth_token"] is None
    assert document["database"]["password"] == ""


def test_config_yaml_lists_every_key_and_sets_none_off_its_default() -> None:
    text = SHIPPED.read_text(encoding="utf-8")
    state = {"PERSISTENCE_STATE_DIR": "/state"}
    assert load(str(SHIPPED), state) == load("/dev/null", state)
    # A host that stands there would be one that somebody has named: run.sh makes no private database then.
    assert load_with_sources(str(SHIPPED), state).sources["database.host"] == DEFAULT
    # A key without a value to show stands in its section as a comment.
    listed = set()
    for part in re.split(r"(?m)^(?=\w+:)", text)[1:]:
        section = part.partition(":")[0]
        commented = set(re.findall(r"(?m)^  # (\w+):", part)) & set(SECTIONS[section].__struct_fields__)
        listed |= {f"{section}.{name}" for name in (yaml.safe_load(part)[section] or {}).keys() | commented}
    assert listed == set(KEYS)


def test_config_yaml_names_every_variable() -> None:
    text = SHIPPED.read_text(encoding="utf-8")
    assert [variable for variable in ENVIRONMENT if not re.search(rf"\b{variable}\b", text)] == []


def test_the_command_prints_what_is_in_effect_with_secrets_masked(tmp_path: Path) -> None:
    path = write(tmp_path, {"service": {"port": 9001}, "database": {"password": "pa55word"}})
    ended = run(PERSISTENCE_CONFIG=path, SERVICE_AUTH_TOKEN="t0ken", DB_HOST="a,b", PERSISTENCE_STATE_DIR="/state")
    assert ended.returncode == 0
    assert ended.stderr == ""
    assert "t0ken" not in ended.stdout
    assert "pa55word" not in ended.stdout
    printed = yaml.safe_load(ended.stdout)
    assert printed["service"]["port"] == 9001
    assert printed["service"]["auth_token"] == "********"
    assert printed["database"]["host"] == ["a", "b"]
    assert printed["journal"]["directory"] == "/state/journal"
    assert printed["state_directory"] == "/state"
    for shown in ("port: 9001  # " + path + ", line 4", 'host: ["a", "b"]  # DB_HOST', "workers: 1"):
        assert f"  {shown}\n" in ended.stdout  # each with where it comes from
    assert {f"{s}.{n}" for s in SECTIONS for n in printed[s]} == set(KEYS)


def test_the_command_warns_of_a_misspelt_variable() -> None:
    ended = run(SERVICE_PROT="1")
    assert ended.returncode == 0
    assert ended.stderr == (
        "configuration: warning: SERVICE_PROT is no variable of this service; did you mean SERVICE_PORT?\n"
    )


@pytest.mark.parametrize(
    ("document", "environ", "private"),
    [
        ("", {}, "yes"),
        ("database: {user: a}", {"DB_PORT": "3307"}, "yes"),
        ("database: {host: localhost}", {}, "no"),
        ("database: {socket: /s}", {}, "no"),
        ("", {"DB_HOST": "db"}, "no"),
        ("", {"MYSQL_HOST": "db"}, "no"),
        ("", {"DB_SOCKET": "/s"}, "no"),
        ("", {"DB_HOST": ""}, "yes"),
    ],
)
def test_check_says_whether_run_sh_makes_a_private_database(
    document: str, environ: dict[str, str], private: str, tmp_path: Path
) -> None:
    ended = run("--check", PERSISTENCE_CONFIG=write(tmp_path, document), **environ)
    assert f"private={private}" in ended.stdout.split()


def test_the_command_refuses_a_wrong_configuration_with_one_line_and_a_status() -> None:
    ended = run(SERVICE_PORT="0")
    assert ended.returncode != 0
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert "SERVICE_PORT" in line
    assert "service.port = '0'" in line
    assert ">= 1" in line


@pytest.mark.parametrize("module", ["flusher", "ingest", "flusher.writer"])
def test_no_process_starts_with_a_wrong_configuration(module: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env={**os.environ, "PERSISTENCE_STATE_DIR": str(tmp_path / "state"), "DB_PORT": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode != 0
    (line,) = ended.stderr.splitlines()
    assert "DB_PORT" in line
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("0.0.0.0", "http://127.0.0.1:8001"),
        ("::", "http://[::1]:8001"),
        ("::1", "http://[::1]:8001"),
        ("192.0.2.1", "http://192.0.2.1:8001"),
    ],
)
def test_the_local_url_reaches_the_service_from_its_own_machine(host: str, expected: str) -> None:
    assert local_url(settings.Service(host=host)) == expected


def test_a_variable_that_is_no_text_is_refused_by_its_name(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, ""), {"DB_HOST": os.fsdecode(b"db\xff")})
    assert message.startswith("DB_HOST: database.host = ")


@pytest.mark.parametrize(
    ("given", "environ", "tokens"),
    [
        ("one", {}, "one"),
        ("  new   old ", {}, "new old"),
        (["new", "old"], {}, "new old"),
        ("old", {"SERVICE_AUTH_TOKEN": "new older"}, "new older"),
    ],
)
def test_several_tokens_are_taken(given: Any, environ: dict[str, str], tokens: str, tmp_path: Path) -> None:
    assert load(write(tmp_path, {"service": {"auth_token": given}}), environ).service.auth_token == tokens


def test_the_tokens_of_a_file_come_beside_the_others(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("new\nold\r\n\n")
    environ = {"SERVICE_AUTH_TOKEN_FILE": str(file)}
    assert load(write(tmp_path, ""), environ).service.auth_token == "new old"
    assert load(write(tmp_path, {"service": {"auth_token": "own"}}), environ).service.auth_token == "own new old"
    assert "new" not in str(masked(load(write(tmp_path, ""), environ)))


@pytest.mark.parametrize("content", [None, b"", b" \n\n", "schlüssel".encode(), b"a\x00b", b"\x1b"])
def test_a_token_file_without_a_token_stops_the_start_instead_of_opening_the_service(
    content: bytes | None, tmp_path: Path
) -> None:
    file = tmp_path / "tokens"
    if content is not None:
        file.write_bytes(content)
    message = refusal(write(tmp_path, ""), {"SERVICE_AUTH_TOKEN_FILE": str(file)})
    assert message.startswith(f"service.auth_token_file = '{file}'")


def test_a_token_that_may_only_read_without_one_that_may_write_is_refused_in_words(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, ""), {"READ_AUTH_TOKEN": "s3cret"})
    assert message == "read.auth_token = ********: without service.auth_token everybody may read; set both"


def test_a_journal_that_the_largest_body_does_not_fit_in_is_refused() -> None:
    sizes = {"JOURNAL_MAX_BYTES": str(2 * MIB), "SERVICE_MAX_BODY_BYTES": str(2 * MIB + 1)}
    assert refusal("/dev/null", sizes).startswith("journal.max_bytes = 2097152: a body of service.max_body_bytes")
    assert load("/dev/null", {**sizes, "SERVICE_MAX_BODY_BYTES": str(2 * MIB)}).journal.max_bytes == 2 * MIB


def test_contradictions_are_named_with_everything_else_that_is_wrong(tmp_path: Path) -> None:
    environ = {
        "READ_AUTH_TOKEN": "t0ken",
        "JOURNAL_MAX_BYTES": str(MIB),
        "SERVICE_PORT": "0",
        "SERVICE_AUTH_TOKEN_FILE": str(tmp_path / "missing"),
    }
    lines = refusals("/dev/null", environ)
    assert [line.split(" ")[0] for line in lines] == ["SERVICE_PORT:", "service.auth_token_file", "journal.max_bytes"]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("service.port", "integer >= 1, <= 65535"),
        ("service.ack_timeout", "number > 0, <= 600"),
        ("service.max_body_bytes", "integer >= 1024, <= 67108864"),
        ("read.enabled", "true, false"),
        ("journal.fsync", "always, interval, never"),
        ("records.task_statuses", "list of text 1 to 32 characters"),
        ("read.port", "integer >= 1, <= 65535"),
    ],
)
def test_the_reference_says_what_is_allowed(key: str, words: str) -> None:
    assert settings.allowed(key) == words
    assert f"  {words}\n" in settings.reference()
