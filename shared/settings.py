"""Sections and keys of the configuration: the one table of types, defaults, limits and environment variables.

config.py checks by it, and `python -m shared.config --reference` prints it for docs/CONFIGURATION.md. What each key
does and trades stands in config/config.yaml.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

DEFAULT_FILE = "config/config.yaml"
DEFAULT_STATE_DIRECTORY = "var"
MIB = 1024 * 1024

Seconds = Annotated[float, Meta(gt=0, le=86400)]
Name = Annotated[str, Meta(min_length=1)]
Tokens = Annotated[str, Meta(min_length=1, pattern=r"^[\x21-\x7e]+( [\x21-\x7e]+)*$")]
Port = Annotated[int, Meta(ge=1, le=65535)]
HostName = Annotated[str, Meta(pattern="^[A-Za-z0-9._-]+$")]
Statuses = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=32)], ...], Meta(min_length=1)]


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
    field.name: field.type for field in msgspec.structs.fields(Config) if field.name != "state_directory"
}
FIELDS = {
    f"{section}.{field.name}": field for section, type_ in SECTIONS.items() for field in msgspec.structs.fields(type_)
}
ENVIRONMENT = {
    key.upper().replace(".", "_").replace("DATABASE_", "DB_", 1).replace("MAX_BUFFER_SIZE", "MAX_SIZE"): key
    for key in FIELDS
}
"""The variable of every key: SECTION_KEY, a little shorter for two of them."""
OTHER_NAMES = {
    "DB_HOST": ("MYSQL_HOST",),
    "DB_PORT": ("MYSQL_PORT",),
    "DB_USER": ("MYSQL_USER",),
    "DB_PASSWORD": ("MYSQL_PASSWORD",),
    "DB_DATABASE": ("DB_NAME", "MYSQL_DATABASE"),
}
"""DB_NAME is a synonym of DB_DATABASE; a MYSQL_ variable is read where the DB_ ones are unset."""
VARIABLES = {*ENVIRONMENT, *(name for names in OTHER_NAMES.values() for name in names)}
PREFIXES = (*{f"{section.upper()}_" for section in SECTIONS} - {"DATABASE_"}, "DB_", "PERSISTENCE_")
NOT_KEYS = {"PERSISTENCE_CONFIG", "PERSISTENCE_STATE_DIR", "PERSISTENCE_URL", "PERSISTENCE_TOKEN"}
"""The last two are the client's."""
MAY_BE_EMPTY = {"DB_PASSWORD", "MYSQL_PASSWORD", "READ_PASSWORD", "LOGGING_FILE"}
"""Any other empty variable counts as unset."""
SECRETS = {"service.auth_token", "database.password", "read.password", "read.auth_token"}
MASK = "********"


def allowed(key: str) -> str:
    """The values that a key may have, in words."""
    info = msgspec.inspect.type_info(FIELDS[key].type)
    types = info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)
    return " or ".join(filter(None, map(_in_words, types)))


def _in_words(info: Any) -> str:
    if isinstance(info, msgspec.inspect.LiteralType):
        return ", ".join(map(str, info.values))
    if isinstance(info, msgspec.inspect.VarTupleType):
        return f"list of {_in_words(info.item_type)}"
    if isinstance(info, msgspec.inspect.BoolType):
        return "true, false"
    name = {"StrType": "text", "IntType": "integer", "FloatType": "number"}.get(type(info).__name__, "")
    limits = ((">=", "ge"), (">", "gt"), ("<=", "le"))
    numbers = [
        f"{sign} {limit:g}" if limit < 1e5 else f"{sign} {limit}"
        for sign, attribute in limits
        if (limit := getattr(info, attribute, None)) is not None
    ]
    least, most = getattr(info, "min_length", None), getattr(info, "max_length", None)
    if most is not None:
        numbers.append(f"{least or 0} to {most} characters")
    return " ".join([name, ", ".join(numbers)]).strip()


def reference() -> str:
    """The reference of every key for docs/CONFIGURATION.md."""
    lines = ["```text"]
    for variable, key in ENVIRONMENT.items():
        default = msgspec.to_builtins(FIELDS[key].default)
        if isinstance(default, (list, tuple)):
            default = ",".join(default)
        text = "none" if default in (None, "") else str(default).lower() if isinstance(default, bool) else default
        names = " ".join((variable, *OTHER_NAMES.get(variable, ())))
        lines.append(f"{key:<25}  {names:<27}  {text:<11}  {allowed(key)}")
    lines.append("```")
    return "\n".join(lines) + "\n"
