"""Configuration: a YAML file, overridden by the environment, as frozen values. Reads files, opens nothing else.

The keys stand in settings.py. `python -m shared.config` checks and prints the effective configuration, secrets masked,
with the source of each value; --check prints whether run.sh makes a private database, --reference the reference.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from shared import yaml_file
from shared.addresses import host_and_port
from shared.clock import time_zone
from shared.database import with_identity_check
from shared.settings import (
    DEFAULT_FILE,
    DEFAULT_STATE_DIRECTORY,
    ENVIRONMENT,
    FIELDS,
    MASK,
    MAY_BE_EMPTY,
    NOT_KEYS,
    OTHER_NAMES,
    PREFIXES,
    SECRETS,
    SECTIONS,
    VARIABLES,
    Config,
    Service,
    allowed,
    reference,
)
from shared.yaml_file import shown


class ConfigError(ValueError):
    """Everything that is wrong, a line each, with key, value and what is allowed. The operator must act."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


DEFAULT = "default"


def _check_unique(values: Sequence[str]) -> None:
    if repeated := sorted({value for value in values if values.count(value) > 1}):
        raise ValueError(f"{', '.join(map(shown, repeated))} twice; each once")


def _check_hosts(hosts: Sequence[str] | None) -> None:
    for host in hosts or ():
        host_and_port(host, 3306)


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "database.host": _check_hosts,
    "read.host": _check_hosts,
    "records.time_zone": time_zone,
    "records.session_statuses": _check_unique,
    "records.task_statuses": _check_unique,
}
"""What a type cannot express. Each raises ValueError with what is allowed."""


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
    values, sources = yaml_file.read(Path(named or DEFAULT_FILE), list(FIELDS), wrong, required=named is not None)
    from_environment, variables = _from_environment(environ, wrong)
    if "database.host" in from_environment:
        values.pop("database.socket", None)  # a socket would take precedence over the environment's host
    values |= from_environment
    sources |= variables
    sections: dict[str, Any] = {name: {} for name in SECTIONS}
    for key, value in values.items():
        section, _, name = key.partition(".")
        try:
            sections[section][name] = _converted(key, value)
        except ValueError as error:
            wrong.append(f"{sources[key]}: {key} = {_masked(key, value)}: {error}")
    typed: dict[str, Any] = {name: type_(**sections[name]) for name, type_ in SECTIONS.items()}
    config = Config(
        **typed,
        state_directory=_real_state_directory(environ.get("PERSISTENCE_STATE_DIR") or DEFAULT_STATE_DIRECTORY, wrong),
    )
    service = _with_token_file(config.service, wrong)
    wrong += _contradictions(config)
    if wrong:
        raise ConfigError(*wrong)
    journal = config.journal
    if not journal.directory:
        journal = msgspec.structs.replace(journal, directory=str(Path(config.state_directory, "journal")))
    config = msgspec.structs.replace(
        config, service=service, database=with_identity_check(config.database), journal=journal
    )
    return Loaded(config, {key: sources[key] if key in values else DEFAULT for key in FIELDS})


def _from_environment(environ: Mapping[str, str], wrong: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The environment's values by key, and the variable of each."""
    values: dict[str, Any] = {}
    variables: dict[str, str] = {}
    for variable, key in ENVIRONMENT.items():
        names = (variable, *OTHER_NAMES.get(variable, ()))
        given = [name for name in names if environ.get(name) or (name in environ and name in MAY_BE_EMPTY)]
        for name in given[1:]:
            if environ[name] != environ[given[0]] and not name.startswith("MYSQL_"):
                both = " and ".join(f"{one} = {_masked(key, environ[one])}" for one in (given[0], name))
                wrong.append(f"{both} mean {key}; set one of them")
        if given:
            values[key], variables[key] = environ[given[0]], given[0]
    return values, variables


def _converted(key: str, value: Any) -> Any:
    """The value as its type has it. Raises: ValueError with what is allowed."""
    field = FIELDS[key]
    if isinstance(value, str) and "tuple" in str(field.type):
        value = [part.strip() for part in value.split(",")]
    if key in ("service.auth_token", "read.auth_token"):
        value = _tokens(value)
    try:
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                text.encode()
        converted = msgspec.convert(value, field.type, strict=False)
    except (UnicodeEncodeError, RecursionError):
        raise ValueError("must be plain text in UTF-8") from None
    except msgspec.ValidationError as error:
        message = str(error).partition(" - at `$")[0]
        raise ValueError(f"allowed are {allowed(key)}" if "enum" in message else message) from None
    if check := _CHECKS.get(key):
        check(converted)
    return converted


def _masked(key: str, value: Any) -> str:
    """A value in a message. A host with an @ holds a user's password."""
    return MASK if key in SECRETS or (key.endswith(".host") and "@" in str(value)) else shown(value)


def _tokens(value: Any) -> Any:
    """A list of tokens, or tokens between blanks and line ends, as one string with single blanks."""
    if isinstance(value, list) and value and all(isinstance(token, str) for token in value):
        value = " ".join(value)
    return " ".join(value.split()) if isinstance(value, str) else value


def _with_token_file(service: Service, wrong: list[str]) -> Service:
    if service.auth_token_file is None:
        return service
    where = f"service.auth_token_file = {shown(service.auth_token_file)}"
    text = None
    try:
        text = _tokens(Path(service.auth_token_file).read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        wrong.append(f"{where}: cannot be read: {getattr(error, 'strerror', None) or 'is not ASCII'}")
    else:
        if not text or not text.isprintable():
            wrong.append(f"{where}: must hold at least one token of printable ASCII")
    return msgspec.structs.replace(service, auth_token=" ".join(filter(None, (service.auth_token, text))) or None)


def _contradictions(config: Config) -> Iterator[str]:
    """Values that are allowed alone and not together."""
    service, journal = config.service, config.journal
    if config.read.auth_token and not (service.auth_token or service.auth_token_file):
        yield f"read.auth_token = {MASK}: without service.auth_token everybody may read; set both"
    if journal.max_bytes < service.max_body_bytes:
        yield (
            f"journal.max_bytes = {journal.max_bytes}: a body of service.max_body_bytes = {service.max_body_bytes}"
            " would never fit; raise the former or lower the latter"
        )


def _real_state_directory(path: str, wrong: list[str]) -> str:
    """The one name of the state directory, however it is spelled. A link of another user but root may be a trap."""
    if not path.isprintable():
        wrong.append(f"PERSISTENCE_STATE_DIR = {path!r}: control characters and broken encodings are not allowed")
    here = Path(path).absolute()
    wrong += [
        f"PERSISTENCE_STATE_DIR = {path}: {link} is a symbolic link of user {owner}; name its target"
        for link in (here, *here.parents)
        if link.is_symlink() and (owner := link.lstat().st_uid) not in (0, os.geteuid())
    ]
    return os.path.realpath(here)


def names_database(loaded: Loaded) -> bool:
    """Whether the file or the environment names a host or socket; if not, run.sh makes a private database."""
    return {loaded.sources["database.host"], loaded.sources["database.socket"]} != {DEFAULT}


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """A warning for each variable that we do not know and that has a prefix of ours, or nearly one of our names. A
    container may have set it for others."""
    known = VARIABLES | NOT_KEYS
    warnings = []
    for name in sorted(environ.keys() - known):
        ours = name.startswith(PREFIXES)
        near = difflib.get_close_matches(name, known, 1, 0.6 if ours else 0.9)
        if ours or near:
            warnings.append(f"{name} is no variable of this service{f'; did you mean {near[0]}?' if near else ''}")
    return warnings


def load_or_exit() -> Config:
    """For composition roots: one line on stderr for each fault, and exit status 2. Raises: SystemExit."""
    return _load_or_exit().config


def _load_or_exit() -> Loaded:
    try:
        return load_with_sources(None, os.environ)
    except ConfigError as error:
        for line in error.lines:
            print(f"configuration: {line}", file=sys.stderr)
        sys.exit(2)


def masked(config: Config) -> dict[str, Any]:
    """The effective values as plain data, secrets masked."""
    document: dict[str, Any] = msgspec.to_builtins(config)
    for key in SECRETS:
        section, name = key.split(".")
        if document[section][name]:
            document[section][name] = MASK
    return document


def in_effect(loaded: Loaded) -> str:
    """The effective values as YAML, secrets masked, with the source of each as a comment."""
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
    if sys.argv[1:] == ["--reference"]:
        sys.stdout.write(reference())
        return
    loaded = _load_or_exit()
    if sys.argv[1:] == ["--check"]:
        print(f"private={'no' if names_database(loaded) else 'yes'}")
    else:
        sys.stdout.write(in_effect(loaded))
    for warning in unknown_variables(os.environ):
        print(f"configuration: warning: {warning}", file=sys.stderr)


if __name__ == "__main__":
    main()
