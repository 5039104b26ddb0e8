"""Configurations as files, and how they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.config import ConfigError, load


def write(directory: Path, document: Any) -> str:
    path = directory / "c.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document), encoding="utf-8")
    return str(path)


def refusals(path: str | None, environ: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load(path, environ)
    return str(raised.value).split("\n")


def refusal(path: str | None, environ: dict[str, str]) -> str:
    (line,) = refusals(path, environ)
    return line
