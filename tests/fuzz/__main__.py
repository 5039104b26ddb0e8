"""`python -m tests.fuzz TARGET --seconds N`: runs one fuzzer, atheris where it is installed, else hypothesis.

Exit status 0 only if nothing was found. A finding leaves its input in --artifacts, and `--input FILE` runs it again.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
MAX_BYTES = 4096
OF_BODIES = ("agreement", "cost")
"""Those that tests/fuzz/bodies.py runs, from random numbers alone."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--engine", choices=["atheris", "hypothesis"], default="")
    parser.add_argument("--artifacts", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--input", type=Path, help="run this one input")
    parser.add_argument("--found", type=Path, help="where atheris puts inputs that reached new code")
    options = parser.parse_args()
    logging.disable()
    if options.target in OF_BODIES:
        from tests.fuzz import bodies  # noqa: PLC0415 -- atheris must see the imports of the others

        bodies.main(["--seconds", str(options.seconds), *(["--cost"] if options.target == "cost" else [])])
        return 0
    engine = options.engine or ("atheris" if _has_atheris() else "hypothesis")
    if options.input:
        _target(options.target)(options.input.read_bytes())
        return 0
    if engine == "atheris":
        found = options.found or Path(tempfile.mkdtemp(prefix=f"fuzz-{options.target}-"))
        limits = [f"-max_total_time={options.seconds}", f"-artifact_prefix={options.artifacts}/{options.target}-"]
        return _atheris(options.target, [*limits, str(found)])
    return _hypothesis(options.target, options.seconds, options.artifacts)


def _has_atheris() -> bool:
    try:
        import atheris  # noqa: F401, PLC0415 -- has no wheel for every platform
    except ImportError:
        return False
    return True


def _target(name: str) -> Callable[[bytes], None]:
    from tests.fuzz import rows, targets  # noqa: PLC0415 -- atheris must see the imports

    if name == "rows":
        return rows.from_environment()
    return {**targets.TARGETS, "canary": targets.canary}[name]


def _atheris(name: str, arguments: list[str]) -> int:
    import atheris  # noqa: PLC0415

    with atheris.instrument_imports(include=["shared", "flusher", "tests.fuzz", "yaml"]):
        target = _target(name)
    arguments += [f"-max_len={MAX_BYTES}", "-timeout=120", "-print_final_stats=1", f"-dict={HERE / 'dictionary'}"]
    if (CORPUS / name).is_dir():
        arguments.append(str(CORPUS / name))
    atheris.Setup([sys.argv[0], *arguments], target)
    atheris.Fuzz()
    return 0


def _hypothesis(name: str, seconds: int, artifacts: Path) -> int:
    from hypothesis import HealthCheck, given, settings  # noqa: PLC0415
    from hypothesis import strategies as st  # noqa: PLC0415

    target = _target(name)
    runs = 0
    give_up_at = time.monotonic() + seconds

    def once(data: bytes) -> None:
        nonlocal runs
        runs += 1
        if time.monotonic() < give_up_at:
            try:
                target(data)
            except Exception:
                (artifacts / f"{name}-crash").write_bytes(data)
                raise

    for path in sorted((CORPUS / name).glob("*")):
        once(path.read_bytes())
    quiet = settings(max_examples=2000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    try:
        while time.monotonic() < give_up_at:
            quiet(given(st.binary(max_size=MAX_BYTES))(once))()
    except Exception:  # noqa: BLE001 -- whatever a target raises is a finding
        traceback.print_exc()
        return 1
    print(f"stat::number_of_executed_units: {runs}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
