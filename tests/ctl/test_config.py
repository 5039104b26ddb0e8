from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.ctl import ctl
from tests.support.mariadb import MariaDB
from tests.support.service import Service


def test_a_good_configuration_is_printed_without_its_secrets(short_path: Path, mariadb: MariaDB) -> None:
    service = Service(short_path, mariadb, "none", SERVICE_AUTH_TOKEN="s3cret", DB_PASSWORD="hush")
    text = ctl(service, "config", "check")
    assert text.status == 0
    assert f"port: {service.port}" in text.out
    document = ctl(service, "config", "check", "--json").json
    assert document["effective"]["service"]["port"] == service.port
    assert [secret for secret in ("s3cret", "hush") if secret in text.out + str(document)] == []


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"JOURNAL_FSYNC": "sometimes"}, ("journal.fsync = 'sometimes'", "interval")),
        ({"PERSISTENCE_CONFIG": "/nonexistent.yaml"}, ("/nonexistent.yaml",)),
        ({"SERVICE_TLS_CERT": "/nonexistent.pem"}, ("service.tls_cert = '/nonexistent.pem'", "No such file")),
        ({"SERVICE_TLS_KEY": "/nonexistent.pem"}, ("service.tls_cert is not",)),
    ],
)
def test_a_wrong_one_is_1_and_names_key_value_and_what_is_allowed(
    short_path: Path, mariadb: MariaDB, environ: dict[str, str], words: tuple[str, ...]
) -> None:
    service = Service(short_path, mariadb, "none")
    text = ctl(service, "config", "check", **environ)
    document = ctl(service, "config", "check", "--json", **environ)
    assert (text.status, text.out, text.err.count("\n"), document.status) == (1, "", 1, 1)
    assert [word for word in words if word not in text.err or word not in document.json["error"]] == []
