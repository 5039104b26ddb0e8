"""Configuration: a YAML file, overridden by the environment, as frozen values. Reads files, opens nothing else.

`python -m shared.config` checks it and prints what is in effect, secrets masked; with --check it prints only where
the service listens, as shell assignments.
"""

from __future__ import annotations

import ipaddress
import os
import reprlib
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta

DEFAULT_FILE = "config/config.yaml"
DEFAULT_STATE_DIRECTORY = "var"
MIB = 1024 * 1024

Seconds = Annotated[float, Meta(gt=0, le=86400)]
Name = Annotated[str, Meta(min_length=1)]
Port = Annotated[int, Meta(ge=1, le=65535)]


class ConfigError(ValueError):
    """One line that names the key, its value and what is allowed. The operator must act."""


class Service(msgspec.Struct, frozen=True):
    host: Name = "0.0.0.0"  # noqa: S104 -- CONTRACT 4; protected mode is what keeps strangers out
    port: Port = 8001
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    max_body_bytes: Annotated[int, Meta(ge=1024, le=64 * MIB)] = 10 * MIB
    max_connections: Annotated[int, Meta(ge=1, le=1_000_000)] = 5000
    max_clock_skew: Annotated[float, Meta(ge=0, le=86400)] = 300
    ack_timeout: Annotated[float, Meta(gt=0, le=600)] = 10
    auth_token: Annotated[str, Meta(min_length=1, pattern=r"^[\x21-\x7e]+( [\x21-\x7e]+)*$")] | None = None
    """One token, or several separated by spaces, the file's included."""
    auth_token_file: Name | None = None
    protected_mode: bool = True
    drain_delay: Annotated[float, Meta(ge=0, le=10)] = 0
    tls_cert: Name | None = None
    tls_key: Name | None = None


class Buffer(msgspec.Struct, frozen=True):
    max_buffer_size: Annotated[int, Meta(ge=1, le=1_000_000)] = 1000
    flush_interval: Annotated[float, Meta(ge=0.01, le=86400)] = 30
    max_batch_size: Annotated[int, Meta(ge=1, le=100_000)] = 1000


class Journal(msgspec.Struct, frozen=True):
    directory: Name = ""
    max_bytes: Annotated[int, Meta(ge=MIB)] = 1024 * MIB
    fsync: Literal["always", "interval", "never"] = "interval"


class DeadLetters(msgspec.Struct, frozen=True):
    max_bytes: Annotated[int, Meta(ge=1024)] = 64 * MIB


class Database(msgspec.Struct, frozen=True):
    host: Annotated[tuple[Name, ...], Meta(min_length=1)] = ("localhost",)
    port: Port = 3306
    socket: Name | None = None
    user: Name = "root"
    password: str = ""
    database: Annotated[str, Meta(min_length=1, max_length=64)] = "ai_terminal"
    pool_size: Annotated[int, Meta(ge=1, le=64)] = 10
    pool_recycle: Seconds = 3600
    connect_timeout: Annotated[int, Meta(ge=1, le=3600)] = 5
    read_timeout: Annotated[int, Meta(ge=15, le=3600)] = 60
    write_timeout: Annotated[int, Meta(ge=1, le=3600)] = 60
    ssl_mode: Literal["DISABLED", "PREFERRED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY"] | None = None
    ssl_ca: Name | None = None
    ssl_cert: Name | None = None
    ssl_key: Name | None = None


class Cluster(msgspec.Struct, frozen=True):
    nodes: tuple[Name, ...] = ()


class Logging(msgspec.Struct, frozen=True):
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["text", "json"] = "text"
    file: str = "logs/persistence_service.log"


class Config(msgspec.Struct, frozen=True):
    service: Service
    buffer: Buffer
    journal: Journal
    dead_letters: DeadLetters
    database: Database
    cluster: Cluster
    logging: Logging
    state_directory: str


SECTIONS: dict[str, type[msgspec.Struct]] = {
    "service": Service,
    "buffer": Buffer,
    "journal": Journal,
    "dead_letters": DeadLetters,
    "database": Database,
    "cluster": Cluster,
    "logging": Logging,
}
SECRETS = {"service.auth_token", "database.password"}
ENVIRONMENT: dict[str, str] = {
    "SERVICE_HOST": "service.host",
    "SERVICE_PORT": "service.port",
    "SERVICE_WORKERS": "service.workers",
    "SERVICE_MAX_BODY_BYTES": "service.max_body_bytes",
    "SERVICE_MAX_CONNECTIONS": "service.max_connections",
    "SERVICE_MAX_CLOCK_SKEW": "service.max_clock_skew",
    "SERVICE_ACK_TIMEOUT": "service.ack_timeout",
    "SERVICE_AUTH_TOKEN": "service.auth_token",
    "SERVICE_AUTH_TOKEN_FILE": "service.auth_token_file",
    "SERVICE_PROTECTED_MODE": "service.protected_mode",
    "SERVICE_DRAIN_DELAY": "service.drain_delay",
    "SERVICE_TLS_CERT": "service.tls_cert",
    "SERVICE_TLS_KEY": "service.tls_key",
    "BUFFER_MAX_SIZE": "buffer.max_buffer_size",
    "BUFFER_FLUSH_INTERVAL": "buffer.flush_interval",
    "BUFFER_MAX_BATCH_SIZE": "buffer.max_batch_size",
    "JOURNAL_DIRECTORY": "journal.directory",
    "JOURNAL_MAX_BYTES": "journal.max_bytes",
    "JOURNAL_FSYNC": "journal.fsync",
    "DEAD_LETTERS_MAX_BYTES": "dead_letters.max_bytes",
    "DB_HOST": "database.host",
    "DB_PORT": "database.port",
    "DB_SOCKET": "database.socket",
    "DB_USER": "database.user",
    "DB_PASSWORD": "database.password",
    "DB_DATABASE": "database.database",
    "DB_POOL_SIZE": "database.pool_size",
    "DB_POOL_RECYCLE": "database.pool_recycle",
    "DB_CONNECT_TIMEOUT": "database.connect_timeout",
    "DB_READ_TIMEOUT": "database.read_timeout",
    "DB_WRITE_TIMEOUT": "database.write_timeout",
    "DB_SSL_MODE": "database.ssl_mode",
    "DB_SSL_CA": "database.ssl_ca",
    "DB_SSL_CERT": "database.ssl_cert",
    "DB_SSL_KEY": "database.ssl_key",
    "CLUSTER_NODES": "cluster.nodes",
    "LOGGING_LEVEL": "logging.level",
    "LOGGING_FORMAT": "logging.format",
    "LOGGING_FILE": "logging.file",
}
MAY_BE_EMPTY = {"DB_PASSWORD", "LOGGING_FILE"}
"""Variables for which empty is a value; any other that is empty counts as unset."""
LISTS = (("database", "host"), ("cluster", "nodes"))
"""Keys whose text is several values, separated by commas."""
_CONSTRUCTORS_RAISE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""PyYAML's constructors let through what Python raises on a value such as 2001-99-99, !!bool x or !!timestamp x."""
_VARIABLE = {key: name for name, key in ENVIRONMENT.items()}


def load(path: str | None, environ: Mapping[str, str]) -> Config:
    """Defaults, overridden by the file, overridden by the environment.

    Args:
        path: the YAML file; None takes PERSISTENCE_CONFIG, or config/config.yaml where that exists.
    Raises: ConfigError.
    """
    named = path or environ.get("PERSISTENCE_CONFIG")
    values, source = _read(Path(named or DEFAULT_FILE), required=named is not None)
    for variable, key in ENVIRONMENT.items():
        text = environ.get(variable)
        if text or (text is not None and variable in MAY_BE_EMPTY):
            section, name = key.split(".")
            values.setdefault(section, {})[name] = text
            source[key] = variable
    for section, name in LISTS:
        text = values.get(section, {}).get(name)
        if isinstance(text, str):
            values[section][name] = [one.strip() for one in text.split(",")]
    service = values.get("service", {})
    service["auth_token"] = _words(service.get("auth_token"))
    sections = {name: _section(name, values.get(name, {}), source) for name in SECTIONS}
    sections["service"] = _with_tokens_of_the_file(sections["service"])
    sections["database"] = _verified(sections["database"])
    state_directory = str(Path(environ.get("PERSISTENCE_STATE_DIR") or DEFAULT_STATE_DIRECTORY).absolute())
    if not sections["journal"].directory:
        directory = str(Path(state_directory, "journal"))
        sections["journal"] = msgspec.structs.replace(sections["journal"], directory=directory)
    return Config(**sections, state_directory=state_directory)


def masked(config: Config) -> dict[str, Any]:
    """The effective values as plain data, every secret replaced."""
    document: dict[str, Any] = msgspec.to_builtins(config)
    for key in SECRETS:
        section, name = key.split(".")
        if document[section][name]:
            document[section][name] = "********"
    return document


def _read(path: Path, *, required: bool) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The file's values by section, and for every key where it came from."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if required:
            raise ConfigError(f"{path}: there is no such file (PERSISTENCE_CONFIG)") from None
        return {}, {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except (yaml.YAMLError, *_CONSTRUCTORS_RAISE) as error:
        # The parser's own text quotes the line, and with it a secret that stands there.
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else f"{path}"
        raise ConfigError(f"{where}: is not YAML: {' '.join(str(problem or 'unreadable').split())}") from None
    if document is None:
        return {}, {}
    _check_keys(document, SECTIONS, f"{path}", "section")
    values: dict[str, dict[str, Any]] = {}
    source: dict[str, str] = {}
    for section, content in document.items():
        if content is None:
            continue
        _check_keys(content, SECTIONS[section].__struct_fields__, f"{path}: {section}", "key")
        values[section] = dict(content)
        source.update({f"{section}.{key}": str(path) for key in content})
    return values, source


def _check_keys(content: Any, allowed: Any, where: str, what: str) -> None:
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: must be a mapping of {what}s, not {type(content).__name__}")
    for key in content:
        if key not in allowed:
            raise ConfigError(f"{where}: unknown {what} {_shown(key)}; allowed: {', '.join(allowed)}")


def _words(value: Any) -> Any:
    """Tokens as one string: a list of them, or what stands between spaces and line ends."""
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        value = " ".join(value)
    return " ".join(value.split()) if isinstance(value, str) else value


def _with_tokens_of_the_file(service: Service) -> Service:
    if service.auth_token_file is None:
        return service
    where = f"service.auth_token_file = {_shown(service.auth_token_file)}"
    try:
        text = _words(Path(service.auth_token_file).read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: cannot be read: {getattr(error, 'strerror', None) or 'is not ASCII'}") from None
    if not text or not text.isprintable():
        raise ConfigError(f"{where}: must hold at least one token of printable ASCII")
    return msgspec.structs.replace(service, auth_token=" ".join(filter(None, (service.auth_token, text))))


def _verified(database: Database) -> Database:
    """Who names a CA for a database on another machine wants to know who answers, not only that somebody signed it."""
    if database.ssl_mode is None and database.ssl_ca and not is_local(database):
        return msgspec.structs.replace(database, ssl_mode="VERIFY_IDENTITY")
    return database


def is_local(database: Database) -> bool:
    """Whether nothing between us and the database leaves this machine."""
    return database.socket is not None or all(map(is_loopback, database.host))


def is_loopback(host: str) -> bool:
    """Whether a configured host is this machine itself; a name other than localhost is not asked for."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _section(section: str, values: dict[str, Any], source: dict[str, str]) -> Any:
    converted: dict[str, Any] = {}
    for field in msgspec.structs.fields(SECTIONS[section]):
        name = field.name
        if name not in values:
            continue
        key = f"{section}.{name}"
        value = values[name]
        try:
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str):
                    text.encode()
            converted[name] = msgspec.convert(value, field.type, strict=False)
            continue
        except msgspec.ValidationError as error:
            allowed = str(error).partition(" - at `$")[0]
            if "enum" in allowed:
                allowed = f"allowed are {', '.join(_choices(msgspec.inspect.type_info(field.type)))}"
        except (UnicodeEncodeError, RecursionError):
            allowed = "must be plain text in UTF-8"
        shown = "********" if key in SECRETS else _shown(value)
        raise ConfigError(f"{source.get(key, _VARIABLE.get(key, ''))}: {key} = {shown}: {allowed}") from None
    return SECTIONS[section](**converted)


def _shown(value: Any) -> str:
    """A value in a message: what a human would have written, and not what aliases can blow up to."""
    if isinstance(value, int) and value.bit_length() > 128:
        return "a number of too many digits"
    short = reprlib.Repr()
    short.maxstring = short.maxother = 200
    return short.repr(value)


def _choices(info: Any) -> list[str]:
    if isinstance(info, msgspec.inspect.UnionType):
        return [choice for member in info.types for choice in _choices(member)]
    return [str(value) for value in getattr(info, "values", ())]


def load_or_exit() -> Config:
    """For composition roots: one line on stderr and exit status 2 where the configuration is wrong."""
    try:
        return load(None, os.environ)
    except ConfigError as error:
        sys.exit(f"configuration: {error}")


def local_url(service: Service) -> str:
    """Where a program on this machine reaches the service."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(service.host, service.host)  # noqa: S104
    scheme = "https" if service.tls_cert else "http"
    return f"{scheme}://[{host}]:{service.port}" if ":" in host else f"{scheme}://{host}:{service.port}"


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        service = load_or_exit().service
        values = {"url": local_url(service), "host": service.host, "port": str(service.port)}
        print(" ".join(f"{name}={shlex.quote(value)}" for name, value in values.items()))
        return
    sys.stdout.write(yaml.safe_dump(masked(load_or_exit()), sort_keys=False, allow_unicode=True))


if __name__ == "__main__":
    main()
