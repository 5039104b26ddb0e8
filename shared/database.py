"""How to reach the database: what the configuration says, as mysqlclient takes it. Opens no connection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from shared.addresses import host_and_port, is_this_machine
from shared.settings import Config, Database


class TlsFileUnreadable(Exception):
    """A certificate or key cannot be read: the message names setting and file. The operator must act."""


def connect_options(database: Database) -> dict[str, Any]:
    """Arguments of MySQLdb.connect() but for host, port and timeouts. Blocks: looks at the files of TLS.

    Raises: TlsFileUnreadable; the client library's own message does not name the file.
    """
    options: dict[str, Any] = {
        "user": database.user,
        "passwd": database.password,
        "db": database.database,
        "charset": "utf8mb4",
        "autocommit": False,
        "local_infile": 0,
        "multi_statements": False,
    }
    if database.socket:
        options["unix_socket"] = database.socket
    if database.ssl_mode:
        options["ssl_mode"] = database.ssl_mode
    files = {"ca": database.ssl_ca, "cert": database.ssl_cert, "key": database.ssl_key}
    for name, path in files.items():
        if path:
            options.setdefault("ssl", {})[name] = _readable(f"database.ssl_{name}", path)
    return options


def _readable(setting: str, path: str) -> str:
    try:
        with Path(path).open("rb"):
            return path
    except OSError as error:
        raise TlsFileUnreadable(f"{setting} = {path}: {error.strerror}") from error


def host_options(database: Database) -> list[dict[str, Any]]:
    """Host and port of each host for MySQLdb.connect(), in the order of preference; one without any for a socket."""
    if database.socket:
        return [{}]
    hosts = [host_and_port(host, database.port) for host in database.host]
    # The client library would take "localhost" for a socket of its own choice.
    return [{"host": "127.0.0.1" if host == "localhost" else host, "port": port} for host, port in hosts]


def for_reader(config: Config) -> Database:
    """The reader's connection: `database`, overridden by the keys of `read`."""
    names = ("host", "port", "user", "password")
    own = {name: value for name in names if (value := getattr(config.read, name)) is not None}
    if "host" in own:
        own |= {"socket": None}
    return with_identity_check(msgspec.structs.replace(config.database, **own))


def with_identity_check(database: Database) -> Database:
    """With ssl_ca and a remote host, ssl_mode defaults to VERIFY_IDENTITY: certificate chain and host name."""
    if database.ssl_mode is None and database.ssl_ca and not is_local(database):
        return msgspec.structs.replace(database, ssl_mode="VERIFY_IDENTITY")
    return database


def is_local(database: Database) -> bool:
    """Whether the connection to the database never leaves this machine."""
    hosts = [host_and_port(host, database.port)[0] for host in database.host]
    return database.socket is not None or all(map(is_this_machine, hosts))
