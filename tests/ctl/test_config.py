from __future__ import annotations

from pathlib import Path

from tests.support.ctl import ctl
from tests.support.mariadb import MariaDB
from tests.support.service import Service


def test_a_good_configuration_is_printed_without_its_secrets(short_path: Path, mariadb: MariaDB) -> None:
    service = Service(short_path, mariadb, "none", SERVICE_AUTH_TOKEN="s3cret", DB_PASSWORD="hush")
    text = ctl(service, "config", "check")
    assert text.status == 0
    assert f"port: {service.port}" in text.out
    assert "SERVICE_AUTH_TOKEN" in text.out
    document = ctl(service, "config", "check", "--json").json
    assert document["effective"]["service"]["port"] == service.port
    assert "s3cret" not in text.out + str(document)
    assert "hush" not in text.out + str(document)


def test_a_wrong_one_is_1_and_names_key_value_and_what_is_allowed(short_path: Path, mariadb: MariaDB) -> None:
    service = Service(short_path, mariadb, "none")
    file = short_path / "config.yaml"
    file.write_text("journal:\n  fsync: sometimes\n")
    result = ctl(service, "config", "check", str(file))
    assert result.status == 1
    assert "journal.fsync" in result.err
    assert "sometimes" in result.err
    assert "interval" in result.err
    as_json = ctl(service, "config", "check", "--json", str(file))
    assert as_json.status == 1
    assert "journal.fsync" in as_json.json["error"]


def test_a_certificate_that_ingest_could_not_serve_with_is_wrong(short_path: Path, mariadb: MariaDB) -> None:
    service = Service(short_path, mariadb, "none")
    result = ctl(service, "config", "check", SERVICE_TLS_CERT="/nonexistent.pem")
    assert (result.status, result.out) == (1, "")
    assert result.err.splitlines() == [
        "ctl: configuration: service.tls_cert = '/nonexistent.pem', service.tls_key = None: No such file or directory"
    ]
    key_alone = ctl(service, "config", "check", "--json", SERVICE_TLS_KEY="/nonexistent.pem")
    assert key_alone.status == 1
    assert "service.tls_cert is not" in key_alone.json["error"]


def test_a_file_that_is_not_there_is_wrong(short_path: Path, mariadb: MariaDB) -> None:
    service = Service(short_path, mariadb, "none")
    assert ctl(service, "config", "check", str(short_path / "none.yaml")).status == 1
