"""The work that a caller's text may cause has a bound."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.service import ROOT

LONGEST = 1000
OPERATORS = {"config.py", "yaml_file.py"}
"""They read nothing that a caller sends."""
parser = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")


def patterns() -> Iterator[tuple[str, str | bytes]]:
    """Every regular expression of the packages that see what callers send, with its place."""
    for path in sorted(path for package in ("ingest", "shared") for path in (ROOT / package).glob("*.py")):
        if path.name in OPERATORS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("re."):
                yield place(path, node), ast.literal_eval(node.args[0])


def place(path: Path, node: ast.Call) -> str:
    return f"{path.parent.name}/{path.name}:{node.lineno}"


@pytest.mark.parametrize(("where", "pattern"), list(patterns()))
def test_no_regular_expression_repeats_without_a_bound(where: str, pattern: str | bytes) -> None:
    r"""What matches only so many characters looks at no more: r"\d+\.?\d*x" took 26 s for 20,000 digits."""
    longest = parser.parse(pattern).getwidth()[1]
    assert longest <= LONGEST, f"{where}: bound every repetition of {pattern!r}, as in \\d{{1,20}}"
