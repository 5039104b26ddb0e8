"""Configuration: a YAML file, overridden by the environment, as frozen values. Reads files, opens nothing else.

`python -m shared.config` checks it and prints what is in effect and from where, secrets masked; with --check only
whether run.sh is to make a private database.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from shared import yaml_file
from shared.clock import time_zone
from shared.yaml_file import shown

DEFAULT_FILE = "config/config.yaml"
DEFAULT_STATE_DIRECTORY = "var"
MIB = 1024 * 1024

Seconds = Annotated[float, Meta(gt=0, le=86400)]
Name = Annotated[str, Meta(min_length=1)]
Tokens = Annotated[str, Meta(min_length=1, pattern=r"^[\x21-\x7e]+( [\x21-\x7e]+)*$")]
Port = Annotated[int, Meta(ge=1, le=65535)]
HostName = Annotated[str, Meta(pattern="^[A-Za-z0-9._-]+$")]
Statuses = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=32)], ...], Meta(min_length=1)]


class ConfigError(ValueError):
    """Everything that is wrong, a line each, with key, value and what is allowed. The operator must act."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class Service(msgspec.Struct, frozen=True):
    host: Name = "0.0.0.0"  # noqa: S104 -- CONTRACT 4; protected mode is what keeps strangers out
    port: Port = 8001
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    max_body_bytes: Annotated[int, Meta(ge=1024, le=64 * MIB)] = 10 * MIB
    max_connections: Annotated[int, Meta(ge=1, le=1_000_000)] = 5000
    max_clock_skew: Annotated[float, Meta(ge=0, le=86400)] = 300
    ack_timeout: Annotated[float, Meta(gt=0, le=600)] = 10
    auth_token: Tokens | None = None
    """One token, or several separated by spaces, the file's included."""
    auth_token_file: Name | None = None
    protected_mode: bool = True
    allowed_hosts: tuple[HostName, ...] = ()
    drain_delay: Annotated[float, Meta(ge=0, le=10)] = 0
    tls_cert: Name | None = None
    tls_key: Name | None = None


class Records(msgspec.Struct, frozen=True):
    time_zone: Name = "UTC"
    session_statuses: Statuses = (
        *("created", "analyzed", "split_complete", "pending", "executing", "processing", "running"),
        *("paused", "stopped", "completed", "failed", "cancelled"),
    )
    task_statuses: Statuses = ("pending", "processing", "completed", "failed", "cancelled", "skipped")
    unknown_fields: Literal["keep", "ignore", "reject"] = "keep"


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


class Read(msgspec.Struct, frozen=True):
    """Of the read side; None: as for `database`."""

    enabled: bool = True
    host: Annotated[tuple[Name, ...], Meta(min_length=1)] | None = None
    port: Port | None = None
    user: Name | None = None
    password: str | None = None
    pool_size: Annotated[int, Meta(ge=1, le=64)] = 2
    timeout: Annotated[float, Meta(ge=0.1, le=600)] = 5
    auth_token: Tokens | None = None


class Cluster(msgspec.Struct, frozen=True):
    nodes: tuple[Name, ...] = ()


class Logging(msgspec.Struct, frozen=True):
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["text", "json"] = "text"
    file: str = "logs/persistence_service.log"


class Config(msgspec.Struct, frozen=True):
    service: Service
    records: Records
    buffer: Buffer
    journal: Journal
    dead_letters: DeadLetters
    database: Database
    read: Read
    cluster: Cluster
    logging: Logging
    state_directory: str


SECTIONS: dict[str, type[msgspec.Struct]] = {
    "service": Service,
    "records": Records,
    "buffer": Buffer,
    "journal": Journal,
    "dead_letters": DeadLetters,
    "database": Database,
    "read": Read,
    "cluster": Cluster,
    "logging": Logging,
}
MASK = "********"
SECRETS = {"service.auth_token", "database.password", "read.password", "read.auth_token"}
KEYS = [f"{section}.{name}" for section, type_ in SECTIONS.items() for name in type_.__struct_fields__]
ENVIRONMENT = {
    key.upper().replace(".", "_").replace("DATABASE_", "DB_", 1).replace("MAX_BUFFER_SIZE", "MAX_SIZE"): key
    for key in KEYS
}
"""The variable of every key: SECTION_KEY, a little shorter for two of them."""
OTHER_NAMES = {
    "DB_HOST": ("MYSQL_HOST",),
    "DB_PORT": ("MYSQL_PORT",),
    "DB_USER": ("MYSQL_USER",),
    "DB_PASSWORD": ("MYSQL_PASSWORD",),
    "DB_DATABASE": ("DB_NAME", "MYSQL_DATABASE"),
}
"""What a backend's own settings call them. DB_NAME is DB_DATABASE; MYSQL_... is read where the former are unset."""
PREFIXES = (*{f"{section.upper()}_" for section in SECTIONS} - {"DATABASE_"}, "DB_", "PERSISTENCE_")
_NO_KEYS = {"PERSISTENCE_CONFIG", "PERSISTENCE_STATE_DIR", "PERSISTENCE_URL", "PERSISTENCE_TOKEN"}
"""Variables of ours that are no key; the last two are the client's."""
MAY_BE_EMPTY = {"DB_PASSWORD", "MYSQL_PASSWORD", "READ_PASSWORD", "LOGGING_FILE"}
"""Variables for which empty is a value; any other that is empty counts as unset."""
LISTS = {
    *("service.allowed_hosts", "records.session_statuses", "records.task_statuses"),
    *("database.host", "read.host", "cluster.nodes"),
}
"""Keys whose text is several values, separated by commas."""
DEFAULT = "default"


def _unique(values: Sequence[str]) -> None:
    if twice := sorted({one for one in values if values.count(one) > 1}):
        raise ValueError(f"{', '.join(map(shown, twice))} twice; each once")


def _addresses(hosts: Sequence[str]) -> None:
    for host in hosts:
        address(host, 3306)


CHECKS: dict[str, Callable[[Any], Any]] = {
    "database.host": _addresses,
    "read.host": _addresses,
    "records.time_zone": time_zone,
    "records.session_statuses": _unique,
    "records.task_statuses": _unique,
}
"""What a type cannot say. Each raises ValueError with what is allowed."""


class Loaded(NamedTuple):
    config: Config
    sources: dict[str, str]
    """Where each value comes from: a variable, a line of the file, or DEFAULT."""


def load(path: str | None, environ: Mapping[str, str]) -> Config:
    """Defaults, overridden by the file, overridden by the environment.

    Args:
        path: the YAML file; None takes PERSISTENCE_CONFIG, or config/config.yaml where that exists.
    Raises: ConfigError.
    """
    return load_with_sources(path, environ).config


def load_with_sources(path: str | None, environ: Mapping[str, str]) -> Loaded:
    """The same, and where each value comes from. Raises: ConfigError."""
    wrong: list[str] = []
    named = path or environ.get("PERSISTENCE_CONFIG")
    values, sources = yaml_file.read(Path(named or DEFAULT_FILE), KEYS, wrong, required=named is not None)
    given, variables = _of_environment(environ, wrong)
    if "database.host" in given:
        values.pop("database.socket", None)  # the environment's host, not the file's socket, which would go before it
    values |= given
    sources |= variables
    for key in LISTS & values.keys():
        if isinstance(values[key], str):
            values[key] = [one.strip() for one in values[key].split(",")]
    for key in ("service.auth_token", "read.auth_token"):
        if key in values:
            values[key] = _words(values[key])
    sections: dict[str, Any] = {}
    for name, type_ in SECTIONS.items():
        fields = {field.name: field.type for field in msgspec.structs.fields(type_)}
        mine = {key.partition(".")[2]: key for key in values if key.startswith(f"{name}.")}
        converted = {
            field: _converted(key, values[key], fields[field], sources[key], wrong) for field, key in mine.items()
        }
        sections[name] = type_(**{field: value for field, value in converted.items() if value is not _WRONG})
    try:
        sections["service"] = _with_tokens_of_the_file(sections["service"], sections["read"])
    except ConfigError as error:
        wrong += error.lines
    state_directory = _real(environ.get("PERSISTENCE_STATE_DIR") or DEFAULT_STATE_DIRECTORY, wrong)
    if wrong:
        raise ConfigError(*wrong)
    sections["database"] = _verified(sections["database"])
    if not sections["journal"].directory:
        directory = str(Path(state_directory, "journal"))
        sections["journal"] = msgspec.structs.replace(sections["journal"], directory=directory)
    return Loaded(
        Config(**sections, state_directory=state_directory),
        {key: sources[key] if key in values else DEFAULT for key in KEYS},
    )


def _real(path: str, wrong: list[str]) -> str:
    """The one name of the state directory, however it is spelled. A link on the way that is neither root's nor ours may
    have been put there by somebody else."""
    if not path.isprintable():
        wrong.append(f"PERSISTENCE_STATE_DIR = {path!r}: control characters and broken encodings are not allowed")
    here = Path(path).absolute()
    links = [link for link in (here, *here.parents) if link.is_symlink()]
    wrong += [
        f"PERSISTENCE_STATE_DIR = {path}: {link} is a symbolic link of user {link.lstat().st_uid}; name its target"
        for link in links
        if link.lstat().st_uid not in (0, os.geteuid())
    ]
    return os.path.realpath(here)


def masked(config: Config) -> dict[str, Any]:
    """The effective values as plain data, every secret replaced."""
    document: dict[str, Any] = msgspec.to_builtins(config)
    for key in SECRETS:
        section, name = key.split(".")
        if document[section][name]:
            document[section][name] = MASK
    return document


def _of_environment(environ: Mapping[str, str], wrong: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The environment's values by key, and the variable of each."""
    values: dict[str, Any] = {}
    variables: dict[str, str] = {}
    for variable, key in ENVIRONMENT.items():
        names = (variable, *OTHER_NAMES.get(variable, ()))
        given = [name for name in names if environ.get(name) or (name in environ and name in MAY_BE_EMPTY)]
        if not given:
            continue
        for name in given[1:]:
            if environ[name] != environ[given[0]] and not name.startswith("MYSQL_"):
                both = " and ".join(f"{one} = {shown(environ[one])}" for one in (given[0], name))
                wrong.append(f"{both} mean {key}; set one of them")
        values[key], variables[key] = environ[given[0]], given[0]
    return values, variables


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Variables that begin as ours do and are none: a warning each, since a container may have set them for others."""
    known = {*ENVIRONMENT, *_NO_KEYS, *(other for names in OTHER_NAMES.values() for other in names)}
    found = []
    for name in sorted(environ):
        if name.startswith(PREFIXES) and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            found.append(f"{name} is no variable of this service{f'; did you mean {near[0]}?' if near else ''}")
    return found


def _words(value: Any) -> Any:
    """Tokens as one string: a list of them, or what stands between spaces and line ends."""
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        value = " ".join(value)
    return " ".join(value.split()) if isinstance(value, str) else value


def _with_tokens_of_the_file(service: Service, read: Read) -> Service:
    if read.auth_token and not (service.auth_token or service.auth_token_file):
        raise ConfigError(f"read.auth_token = {MASK}: without service.auth_token everybody may read; set both")
    if service.auth_token_file is None:
        return service
    where = f"service.auth_token_file = {shown(service.auth_token_file)}"
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


def read_database(config: Config) -> Database:
    """How the reader connects: as `database` says, but for what `read` says."""
    read = config.read
    own = {name: getattr(read, name) for name in ("host", "port", "user", "password")}
    changed = {name: value for name, value in own.items() if value is not None}
    if read.host is not None:
        changed["socket"] = None
    return _verified(msgspec.structs.replace(config.database, **changed))


def is_local(database: Database) -> bool:
    """Whether nothing between us and the database leaves this machine."""
    return database.socket is not None or all(is_loopback(address(host, database.port)[0]) for host in database.host)


_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:\s]+))(?::(\d{1,5}))?|([0-9A-Fa-f.]*(?::[0-9A-Fa-f.]*){2,})")


def address(host: str, port: int) -> tuple[str, int]:
    """An entry of database.host: "db:3307" -> ("db", 3307), "[::1]" and "::1" -> ("::1", port). Raises: ValueError."""
    found = _ADDRESS.fullmatch(host)
    number = int(found[3] or port) if found else 0
    if found is None or not 0 < number < 65536:
        raise ValueError(
            "must be a name or an address, with a :PORT of 1 to 65535 or none, as in db, db:3307, [::1]:3307"
        )
    return found[1] or found[2] or found[4], number


def is_loopback(host: str) -> bool:
    """Whether a configured host is this machine itself; a name other than localhost is not asked for."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_WRONG: Any = object()


def _converted(key: str, value: Any, type_: Any, source: str, wrong: list[str]) -> Any:
    """The value as its type has it, or _WRONG."""
    try:
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                text.encode()
        converted = msgspec.convert(value, type_, strict=False)
        if check := CHECKS.get(key):
            check(converted)
        return converted
    except (UnicodeEncodeError, RecursionError):
        allowed = "must be plain text in UTF-8"
    except ValueError as error:
        allowed = str(error).partition(" - at `$")[0]
        if "enum" in allowed:
            allowed = f"allowed are {', '.join(_choices(msgspec.inspect.type_info(type_)))}"
    wrong.append(f"{source}: {key} = {MASK if key in SECRETS else shown(value)}: {allowed}")
    return _WRONG


def _choices(info: Any) -> list[str]:
    if isinstance(info, msgspec.inspect.UnionType):
        return [choice for member in info.types for choice in _choices(member)]
    return [str(value) for value in getattr(info, "values", ())]


def load_or_exit() -> Config:
    """For composition roots: a line on stderr for each thing that is wrong, and exit status 2."""
    return _load_or_exit().config


def _load_or_exit() -> Loaded:
    try:
        return load_with_sources(None, os.environ)
    except ConfigError as error:
        for line in error.lines:
            print(f"configuration: {line}", file=sys.stderr)
        sys.exit(2)


def names_database(loaded: Loaded) -> bool:
    """Whether a file or the environment says where the database is; where none does, run.sh makes a private one."""
    return {loaded.sources["database.host"], loaded.sources["database.socket"]} != {DEFAULT}


def local_url(service: Service) -> str:
    """Where a program on this machine reaches the service."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(service.host, service.host)  # noqa: S104
    scheme = "https" if service.tls_cert else "http"
    return f"{scheme}://[{host}]:{service.port}" if ":" in host else f"{scheme}://{host}:{service.port}"


def in_effect(loaded: Loaded) -> str:
    """The effective values as YAML, every secret masked, with the source of each as a comment."""
    lines = []
    for section, keys in masked(loaded.config).items():
        if not isinstance(keys, dict):
            lines.append(f"{section}: {json.dumps(keys, ensure_ascii=False)}")
            continue
        lines.append(f"{section}:")
        for name, value in keys.items():
            source = loaded.sources[f"{section}.{name}"]
            comment = "" if source == DEFAULT else f"  # {source}"
            lines.append(f"  {name}: {json.dumps(value, ensure_ascii=False)}{comment}")
    return "\n".join(lines) + "\n"


def main() -> None:
    loaded = _load_or_exit()
    if sys.argv[1:] == ["--check"]:
        print(f"private={'no' if names_database(loaded) else 'yes'}")
    else:
        sys.stdout.write(in_effect(loaded))
    for warning in unknown_variables(os.environ):
        print(f"configuration: warning: {warning}", file=sys.stderr)


if __name__ == "__main__":
    main()
