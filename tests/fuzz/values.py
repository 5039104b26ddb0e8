"""Values that have found or may find something, from values.json, where bytes stand as Latin-1.

Imports nothing of ours: tests.fuzz.bodies replaces the validator before anything imports it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LISTS: dict[str, list[Any]] = json.loads((Path(__file__).parent / "values.json").read_text())
