"""Reads the configuration file: values by key, the line of each, and all faults of the file itself."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

_CONSTRUCTORS_RAISE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""PyYAML's constructors pass these through, for values such as 2001-99-99, !!bool x or !!timestamp x."""
_SECRETIVE = re.compile(r"pas|ps?wd?|tok|secret|key|auth|cred|url|uri|dsn", re.IGNORECASE)
"""An unknown key's value is not shown if its name, or the name it misspells, matches."""
_QUOTED = re.compile(r"'[^'<\\]{2,}'|\"[^\"]{2,}\"")
"""An alias or a tag in the parser's message: YAML takes an unquoted *secret or !secret for one."""


class _Loader(yaml.SafeLoader):
    """Finds repeated keys in a mapping; YAML's own loader silently keeps the last."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.twice: list[tuple[str, int, int]] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], tuple[int, yaml.Node]] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name not in first:
                first[name] = (line, value)
                continue
            earlier, its = first[name]
            self.twice.append((key.value, earlier, line))
            if its is not value and isinstance(its, yaml.MappingNode) and isinstance(value, yaml.MappingNode):
                value.value[:0] = its.value  # so that its keys are looked at too
        return node


def read(path: Path, keys: Sequence[str], wrong: list[str], *, required: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """The file's values by key, and file and line of each. Blocks.

    Args:
        keys: all known keys, as section.key.
        wrong: receives one line for each fault.
        required: whether a missing file is a fault.
    """
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        lines = _lines(root)
        content = {} if root is None else loader.construct_document(root)
    except FileNotFoundError:
        if required:
            wrong.append(f"{path}: there is no such file (PERSISTENCE_CONFIG)")
        return {}, {}
    except (OSError, UnicodeDecodeError) as error:
        wrong.append(f"{path}: cannot be read: {error}")
        return {}, {}
    except (yaml.YAMLError, *_CONSTRUCTORS_RAISE) as error:
        # The parser's own text quotes the line, and with it a secret that stands there.
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else f"{path}"
        wrong.append(f"{where}: is not YAML: {' '.join(_QUOTED.sub('…', str(problem or 'unreadable')).split())}")
        return {}, {}
    for name, first, second in loader.twice:
        wrong.append(f"{path}, line {second}: {shown(name)} stands in line {first} already; keep one of them")
    values = _values(content, keys)
    sources = {key: f"{path}, line {lines[key]}" if key in lines else str(path) for key in values}
    unknown = [key for key in values if key not in keys]
    wrong += [f"{sources[key]}: {_not_allowed(key, values.pop(key), keys)}" for key in unknown]
    return values, sources


def _values(content: Any, keys: Sequence[str]) -> dict[str, Any]:
    """Values by section.key; unknown sections and sections that are no mapping by name; any other document by \"\"."""
    if content is None:
        return {}
    if not isinstance(content, dict):
        return {"": content}
    values: dict[str, Any] = {}
    known = {key.partition(".")[0] for key in keys}
    for section, its in content.items():
        if section in known and isinstance(its, dict):
            values |= {f"{section}.{name}": value for name, value in its.items()}
        elif section not in known or its is not None:
            values[str(section)] = its
    return values


def _lines(root: yaml.Node | None) -> dict[str, int]:
    """The line of each section and of each key."""
    lines = {}
    for section, content in root.value if isinstance(root, yaml.MappingNode) else ():
        lines[str(section.value)] = section.start_mark.line + 1
        for key, _ in content.value if isinstance(content, yaml.MappingNode) else ():
            lines[f"{section.value}.{key.value}"] = key.start_mark.line + 1
    return lines


def _not_allowed(key: str, value: Any, keys: Sequence[str]) -> str:
    sections = list(dict.fromkeys(one.partition(".")[0] for one in keys))
    section, dot, name = key.partition(".")
    if not key or (not dot and section in sections):
        return f"{key or 'it'} must be a mapping of {'keys' if key else 'sections'}, not {type(value).__name__}"
    allowed = [one.partition(".")[2] for one in keys if dot and one.startswith(f"{section}.")] or sections
    near = [one for one in keys if one.partition(".")[2] == (name or section)]
    near = near or [
        f"{section}{dot}{one}" if dot else one for one in difflib.get_close_matches(name or key, allowed, 1)
    ]
    hint = f"did you mean {' or '.join(near[:3])}? " if near else ""
    hidden = isinstance(value, (dict, list)) or any(map(_SECRETIVE.search, (key, *near)))
    what = f"{shown(key)}" if hidden else f"{shown(key)} = {shown(value)}"
    return f"{what}: unknown {'key' if dot else 'section'}; {hint}allowed: {', '.join(allowed)}"


def shown(value: Any) -> str:
    """A value in a message, shortened: aliases can make it arbitrarily large."""
    if isinstance(value, int) and value.bit_length() > 128:
        return "a number of too many digits"
    short = reprlib.Repr()
    short.maxstring = short.maxother = 200
    return short.repr(value)
