"""The configuration file as YAML: its faults are named by line, without the secrets that stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared import settings
from shared.config import load
from shared.settings import SECTIONS
from tests.support.configuration import refusal, refusals, write


@pytest.mark.parametrize(
    ("document", "lines"),
    [
        ("service: {port: 1}\nbuffer: {}\nservice: {host: a}\n", ["line 3: 'service' stands in line 1 already"]),
        ("service:\n  port: 1\n  port: 1\n", ["line 3: 'port' stands in line 2 already"]),
        ("records: {time_zone: {a: 1, a: 2}}", ["line 1: 'a' stands in line 1 already", "records.time_zone"]),
        ("service: &a {port: 1}\nservice: *a\n", ["line 2: 'service' stands in line 1 already"]),
    ],
)
def test_a_key_twice_is_refused_at_every_level(document: str, lines: list[str], tmp_path: Path) -> None:
    for found, expected in zip(refusals(write(tmp_path, document), {}), lines, strict=True):
        assert expected in found


def test_a_merged_mapping_is_no_key_twice(tmp_path: Path) -> None:
    path = write(tmp_path, "service: &a {port: 1, workers: 2}\nbuffer:\nlogging: {<<: {level: ERROR}, level: DEBUG}\n")
    assert load(path, {}).logging.level == "DEBUG"


def test_an_unknown_key_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, {"buffer": {"max_size": 5}}), {})
    assert message.startswith(f"{tmp_path}/c.yaml, line 2: 'buffer.max_size' = 5: unknown key; ")
    assert all(name in message for name in settings.Buffer.__struct_fields__)


def test_an_unknown_section_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, {"buffers": {"max_buffer_size": 5}}), {})
    assert message.startswith(f"{tmp_path}/c.yaml, line 1: 'buffers': unknown section; did you mean buffer? ")
    assert all(section in message for section in SECTIONS)


@pytest.mark.parametrize("document", [[1], "text", 5, {"service": [1]}, {"service": "x"}, {1: {}}, {"service": {1: 2}}])
def test_a_document_of_another_shape_is_refused(document: Any, tmp_path: Path) -> None:
    path = write(tmp_path, yaml.safe_dump(document))
    assert refusal(path, {}).startswith(path)


@pytest.mark.parametrize("document", ["", "# nothing\n", "service:\n", "service: {}\nbuffer:\n"])
def test_an_empty_file_or_section_means_the_defaults(document: str, tmp_path: Path) -> None:
    assert load(write(tmp_path, document), {}) == load(write(tmp_path, "{}"), {})


@pytest.mark.parametrize(
    "document",
    [
        'database: {password: "hunter2" x}',
        "service:\n  auth_token: hunter2: x\n",
        "database:\n\tpassword: hunter2\n",
        *(f"database:\n  password: {secret}\n" for secret in ("*hunter2", "!hunter2", "!hunter's", "!!int/hunter2")),
    ],
)
def test_a_file_that_is_not_yaml_is_refused_by_line_without_what_stands_there(document: str, tmp_path: Path) -> None:
    path = write(tmp_path, document)
    message = refusal(path, {})
    assert re.match(rf"{re.escape(path)}, line [12], column \d+: is not YAML: ", message)
    assert "hunter" not in message


@pytest.mark.parametrize("name", ["database.pasword", "database.pswd", "database.psssword", "service.tokn", "paswort"])
def test_the_value_of_a_misspelt_secret_is_not_shown(name: str, tmp_path: Path) -> None:
    section, _, key = name.rpartition(".")
    document = {section: {key: "hunter2"}} if section else {key: "hunter2"}
    assert "hunter2" not in refusal(write(tmp_path, document), {})


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for content in (b"\xff\xfe\xff", b"service: \x01"):
        path.write_bytes(content)
        assert refusal(str(path), {}).startswith(str(path))


def test_a_named_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere.yaml")
    assert missing in refusal(None, {"PERSISTENCE_CONFIG": missing})
    assert missing in refusal(missing, {})


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(str(tmp_path), {})


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("service:\n  port: 2001-99-99\n", "not YAML"),
        ("service:\n  port: !!int x\n", "not YAML"),
        ("service:\n  port: !!int ''\n", "not YAML"),
        ("service:\n  port: !!bool x\n", "not YAML"),
        ("service:\n  port: !!timestamp x\n", "not YAML"),
        ("[" * 5000, "not YAML"),
        ("service:\n  host: &a [*a]\n", "service.host"),
        ("service:\n  port: &a [*a]\n", "service.port"),
        ("database:\n  host: &a [*a]\n", "database.host"),
        ('service:\n  host: "\\ud800"\n', "service.host"),
        ("service:\n  port: 0x" + "f" * 5000, "service.port"),
        ("buffer:\n  " + "x" * 900 + ": 1\n", "buffer"),
    ],
)
def test_what_yaml_can_say_and_no_operator_means_is_refused_in_one_short_line(
    text: str, key: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    message = refusal(str(path), {})
    assert key in message
    assert len(message) < 1000


@pytest.mark.parametrize("text", ["[hunter2]", "database: hunter2", "database: [{password: hunter2}]"])
def test_a_document_of_another_shape_is_refused_without_what_stands_there(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert "hunter2" not in refusal(str(path), {})
