"""The settings of the running service. The flusher writes them to the state directory, so that the command line uses
them too. They may hold the database's password: the file is private."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from shared.process import open_own
from shared.settings import DEFAULT_FILE, ENVIRONMENT, OTHER_NAMES

_NAME = "started_with.json"
_NAMES = {*ENVIRONMENT, *(name for names in OTHER_NAMES.values() for name in names)}


class Settings(msgspec.Struct, frozen=True):
    pid: int
    environment: dict[str, str]
    """Our variables, among them PERSISTENCE_CONFIG and PERSISTENCE_STATE_DIR, both absolute."""


def leave(state_directory: Path, environ: Mapping[str, str]) -> None:
    """Blocks. Raises: OSError."""
    kept = {name: environ[name] for name in sorted(_NAMES & environ.keys())}
    kept["PERSISTENCE_STATE_DIR"] = str(state_directory)
    file = Path(environ.get("PERSISTENCE_CONFIG") or DEFAULT_FILE).absolute()
    kept["PERSISTENCE_CONFIG"] = str(file) if file.exists() else os.devnull
    new = state_directory / f"{_NAME}.new"
    with os.fdopen(open_own(new, os.O_WRONLY | os.O_TRUNC), "wb") as opened:
        opened.write(msgspec.json.encode(Settings(os.getpid(), kept)))
    new.replace(state_directory / _NAME)


def forget(state_directory: Path) -> None:
    (state_directory / _NAME).unlink(missing_ok=True)


def found(state_directory: Path) -> Settings | None:
    """None if no flusher runs. Blocks. Raises: PermissionError if the service belongs to another user."""
    try:
        settings = msgspec.json.decode((state_directory / _NAME).read_bytes(), type=Settings)
        runs = b"flusher" in Path(f"/proc/{settings.pid}/cmdline").read_bytes()
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError, msgspec.MsgspecError):
        return None
    return settings if runs else None


def unlike(settings: Settings, environ: Mapping[str, str]) -> list[str]:
    """Variables that the environment sets to another value."""
    return [
        name
        for name in sorted(_NAMES & environ.keys())
        if environ[name] and environ[name] != settings.environment.get(name)
    ]
