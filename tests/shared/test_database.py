"""How the configuration becomes a connection to the database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shared.addresses import host_and_port
from shared.config import load
from shared.database import TlsFileUnreadable, connect_options, for_reader, host_options, is_local
from shared.settings import Database
from tests.support.configuration import refusal, write


def test_options_name_the_user_and_what_is_set_of_tls(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    ca = str(tmp_path / "ca.pem")
    assert "ssl" not in connect_options(Database())
    options = connect_options(Database(user="u", password="p", database="d", ssl_ca=ca, ssl_mode="VERIFY_CA"))
    assert (options["user"], options["passwd"]) == ("u", "p")
    assert (options["db"], options["ssl"], options["ssl_mode"]) == ("d", {"ca": ca}, "VERIFY_CA")
    assert options["local_infile"] == 0
    assert options["multi_statements"] is False


@pytest.mark.parametrize("name", ["ca", "cert", "key"])
def test_a_file_of_tls_that_cannot_be_read_is_named(name: str) -> None:
    with pytest.raises(TlsFileUnreadable, match=f"^database.ssl_{name} = /nowhere: No such file or directory$"):
        connect_options(Database(**{f"ssl_{name}": "/nowhere"}))  # type: ignore[arg-type]


def test_a_socket_stands_for_all_hosts_and_localhost_means_tcp() -> None:
    assert host_options(Database(host=("a", "b"), socket="/s")) == [{}]
    assert connect_options(Database(socket="/s"))["unix_socket"] == "/s"
    assert host_options(Database(host=("localhost", "b:3307"))) == [
        {"host": "127.0.0.1", "port": 3306},
        {"host": "b", "port": 3307},
    ]


def test_a_host_may_be_a_name_a_list_or_names_with_commas(tmp_path: Path) -> None:
    for host in ("a,b", " a , b ", ["a", "b"]):
        assert load(write(tmp_path, {"database": {"host": host}}), {}).database.host == ("a", "b")


def test_the_reader_connects_as_the_writers_do_but_for_what_it_is_told(tmp_path: Path) -> None:
    environ = {"DB_SOCKET": "/s", "DB_PASSWORD": "p", "DB_SSL_CA": "ca"}
    assert for_reader(load(write(tmp_path, ""), environ)) == load(write(tmp_path, ""), environ).database
    own = {**environ, "READ_HOST": "replica:3307", "READ_USER": "reader", "READ_PASSWORD": ""}
    found = for_reader(load(write(tmp_path, ""), own))
    assert (found.host, found.socket, found.user, found.password) == (("replica:3307",), None, "reader", "")
    assert found.ssl_mode == "VERIFY_IDENTITY"  # it is on another machine


@pytest.mark.parametrize(
    ("database", "mode"),
    [
        ({"host": "db.example.org", "ssl_ca": "ca"}, "VERIFY_IDENTITY"),
        ({"host": ["localhost", "192.0.2.1"], "ssl_ca": "ca"}, "VERIFY_IDENTITY"),
        ({"host": "db.example.org", "ssl_ca": "ca", "ssl_mode": "VERIFY_CA"}, "VERIFY_CA"),
        ({"host": "db.example.org"}, None),
        ({"host": "localhost", "ssl_ca": "ca"}, None),
        ({"host": "127.0.0.2", "ssl_ca": "ca"}, None),
        ({"host": "db.example.org", "socket": "/s", "ssl_ca": "ca"}, None),
    ],
)
def test_a_ca_for_another_machine_means_that_its_name_is_checked_too(
    database: dict[str, Any], mode: str | None, tmp_path: Path
) -> None:
    assert load(write(tmp_path, {"database": database}), {}).database.ssl_mode == mode


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("db", ("db", 3306)),
        ("db:3307", ("db", 3307)),
        ("192.0.2.1:65535", ("192.0.2.1", 65535)),
        ("::1", ("::1", 3306)),
        ("[::1]", ("::1", 3306)),
        ("[2001:db8::2]:3307", ("2001:db8::2", 3307)),
    ],
)
def test_a_host_of_the_database_may_have_a_port_of_its_own(host: str, found: tuple[str, int]) -> None:
    database = load("/dev/null", {"DB_HOST": f"{host}, other"}).database
    assert [host_and_port(one, database.port) for one in database.host] == [found, ("other", 3306)]
    assert is_local(load("/dev/null", {"DB_HOST": host}).database) is (found[0] == "::1")


def test_a_user_in_a_databases_host_is_refused_without_being_shown(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, {"database": {"host": ["db", "app:hunter2@db"]}}), {})
    assert "database.host = ********: must be a host without user and password" in message
    assert "hunter2" not in message
    assert "hunter2" not in refusal("/dev/null", {"READ_HOST": "app:hunter2@db"})
