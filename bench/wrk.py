"""Runs wrk and reads what its script has written."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import tasks
from bench.figures import summary
from bench.machine import on_cores, realtime

SCRIPT = Path(__file__).with_name("wrk.lua")
GRACE_S = 20
"""wrk ends by itself; after this much longer it hangs."""


def run(
    address: tuple[str, int],
    path: str,
    pool_file: Path,
    *,
    batch: int,
    connections: int,
    seconds: int,
    latencies: bool,
    cores: Sequence[int],
) -> dict[str, Any]:
    """A closed loop: every connection sends its next request when it has its answer. Blocks.

    Args:
        latencies: measure them, with a thread for each connection and at real-time priority; for rates the one
            thread that costs least.
        cores: where wrk may run.
    Returns: a round: requests, rates, latencies in µs, errors, `problems` that make it invalid.
    """
    host = f"{address[0]}:{address[1]}"
    with tempfile.TemporaryDirectory(dir=pool_file.parent) as directory, on_cores(cores):
        result = Path(directory, "result.json")
        command = [
            *(realtime() if latencies else ()),
            "wrk",
            f"-t{connections if latencies else 1}",
            f"-c{connections}",
            f"-d{seconds}s",
            "--timeout=30s",
            f"--script={SCRIPT}",
            f"http://{host}{path}",
            "--",
            *(str(pool_file), str(batch), str(tasks.BODIES), str(tasks.STRIDE), tasks.new_run()),
            *("time" if latencies else "count", str(result), host, path),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + GRACE_S, stdin=subprocess.DEVNULL
        )
        if done.returncode or not result.exists():
            return {"problems": [f"wrk failed: {(done.stdout + done.stderr).strip()[-500:]}"]}
        return parse(result.read_text(), batch)


def parse(text: str, batch: int) -> dict[str, Any]:
    """The script's JSON as a round."""
    raw = json.loads(text)
    seconds = raw["duration_us"] / 1e6
    errors = {name: count for name, count in raw["errors"].items() if count}
    problems = [f"{count} errors: {name}" for name, count in errors.items()]
    if not raw["requests"]:
        problems.append("no request was answered")
    return {
        "requests": raw["requests"],
        "seconds": round(seconds, 6),
        "requests_per_s": round(raw["requests"] / seconds, 1) if seconds else 0.0,
        "records_per_s": round(raw["requests"] * batch / seconds, 1) if seconds else 0.0,
        "errors": errors,
        "latency_us": summary(raw["latencies_us"]),
        "problems": problems,
    }
