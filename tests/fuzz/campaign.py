"""`python -m tests.fuzz.campaign`: every fuzzer for a time, a few at once, each in a process of its own, on a private
MariaDB and a running service. Prints what each did; exit status 0 only if none found anything."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.fuzz.__main__ import CORPUS, HERE, OF_BODIES
from tests.fuzz.rows import DATABASE, SOCKET
from tests.fuzz.targets import TARGETS
from tests.support.mariadb import MariaDB
from tests.support.service import ROOT, Service, wait_until

KEPT, KEPT_BYTES = 60, 512
NAMES = ("api", "rows", *TARGETS, *OF_BODIES)
TOKEN = "fuzz-t0ken"


@dataclass
class Outcome:
    """`inputs` is what was tried; `finding` says what was found, with the way to see it again."""

    name: str
    engine: str
    seconds: float
    inputs: int
    finding: str | None


class Campaign:
    def __init__(self, mariadb: MariaDB, directory: Path, seconds: int, *, engine: str, keep: bool) -> None:
        self._mariadb = mariadb
        self._directory = directory
        self._seconds = seconds
        self._engine = engine
        self._keep = keep

    async def run(self, name: str) -> Outcome:
        started_at = time.monotonic()
        outcome = await (self._api() if name == "api" else self._target(name))
        outcome.seconds = round(time.monotonic() - started_at, 1)
        return outcome

    async def _target(self, name: str) -> Outcome:
        environ = {**os.environ}
        if name == "rows":
            environ |= {SOCKET: self._mariadb.socket, DATABASE: self._mariadb.create_database()}
        command = [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(self._seconds)]
        command += ["--artifacts", str(self._directory)]
        command += ["--engine", self._engine] if self._engine else []
        found = self._directory / f"{name}.found"
        found.mkdir()
        command += ["--found", str(found)]
        status, output = await _run(command, environ, self._directory / f"{name}.log")
        done = re.search(r"stat::number_of_executed_units: (\d+)", output)
        engine = "random" if name in OF_BODIES else "hypothesis"
        engine = "atheris" if "libFuzzer" in output or "INFO: Seed" in output else engine
        finding = None
        if status or done is None:
            written = re.search(r"Test unit written to (\S+)", output)
            again = f"python -m tests.fuzz {name} --input {written[1] if written else self._directory}"
            finding = f"{_why(output)}; again: {again}"
        if self._keep:
            keep(found, CORPUS / name)
        return Outcome(name, engine, 0.0, int(done[1]) if done else 0, finding)

    async def _api(self) -> Outcome:
        directory = self._directory / "service"
        directory.mkdir()
        name = self._mariadb.create_database()
        service = Service(directory, self._mariadb, name, SERVICE_AUTH_TOKEN=TOKEN, BUFFER_FLUSH_INTERVAL=1)
        try:
            await asyncio.to_thread(service.start)
            await asyncio.to_thread(service.start_reader)
            await asyncio.to_thread(wait_until, lambda: _reads(service), 20.0, "the reader answers")
            status, output = await _run(
                [
                    *(
                        str(Path(sys.executable).parent / "schemathesis"),
                        "--config-file",
                        str(HERE / "schemathesis.toml"),
                        "run",
                    ),
                    f"http://127.0.0.1:{service.port}/openapi.json",
                    *("--checks", "all", "--max-time", str(self._seconds), "--continue-on-failure"),
                    *("--header", f"Authorization:Bearer {TOKEN}", "--request-timeout", "120"),
                    *("--generation-database", "none", "--output-truncate", "false", "--output-sanitize", "false"),
                ],
                {**os.environ, "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks", "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
                self._directory / "api.log",
            )
            cases = re.search(r"(\d+) generated", output)
            finding = None if not status else f"schemathesis ends with {status}; see {self._directory / 'api.log'}"
            return Outcome("api", "schemathesis", 0.0, int(cases[1]) if cases else 0, finding or _after(service))
        finally:
            await asyncio.to_thread(service.stop)


def keep(found: Path, corpus: Path) -> None:
    """Adds the smallest inputs that reached new code, as long as the corpus stays small."""
    corpus.mkdir(parents=True, exist_ok=True)
    room = KEPT - sum(1 for _ in corpus.iterdir())
    for path in sorted(found.iterdir(), key=lambda path: (path.stat().st_size, path.name))[: max(0, room)]:
        if path.stat().st_size <= KEPT_BYTES:
            shutil.copy(path, corpus / path.name)


def _reads(service: Service) -> bool:
    answer = service.request("GET", "/api/v1/persistence/sessions", headers={"Authorization": f"Bearer {TOKEN}"})
    return answer.status == 200


def _after(service: Service) -> str | None:
    """What the service says of the records that it took: none may have been refused by the database."""
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    flushed = service.request("POST", "/api/v1/persistence/flush?timeout=30", headers=bearer)
    stats = service.request("GET", "/api/v1/persistence/stats", headers=bearer).json
    accepted, letters = stats["accepted"], stats["dead_letters"]
    errors = [line for line in service.log.read_text().splitlines() if " ERROR " in line]
    if flushed.status != 200 or letters["count"] or stats["failures"] or errors or not any(accepted.values()):
        return f"flush {flushed}, accepted {accepted}, dead letters {letters}, {stats['failures']}, {errors[:3]}"
    return None


def _why(output: str) -> str:
    lines = [line for line in output.splitlines() if re.match(r"[\w.]*(?:Error|Exception|Exit)\b|==\d+== ERROR", line)]
    return lines[-1 if len(lines) < 2 else 0][:300] if lines else output.strip()[-300:]


async def _run(command: Sequence[str], environ: dict[str, str], log: Path) -> tuple[int, str]:
    with log.open("wb") as file:
        child = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environ, stdout=file, stderr=file)
        status = await child.wait()
    return status, log.read_text(errors="replace")


async def campaign(names: Sequence[str], at_once: int, run: Campaign) -> list[Outcome]:
    turn = asyncio.Semaphore(at_once)

    async def one(name: str) -> Outcome:
        async with turn:
            outcome = await run.run(name)
        print(line(outcome), flush=True)
        return outcome

    return list(await asyncio.gather(*[one(name) for name in names]))


def line(outcome: Outcome) -> str:
    found = outcome.finding or "nothing found"
    return f"{outcome.name:14} {outcome.engine:12} {outcome.seconds:7.1f} s {outcome.inputs:>10,} inputs  {found}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz.sh", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="FUZZER", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--seconds", type=int, default=600, help="for each fuzzer")
    parser.add_argument("--at-once", type=int, default=max(1, (os.cpu_count() or 2)))
    parser.add_argument("--engine", choices=["atheris", "hypothesis"], default="")
    parser.add_argument("--keep", action="store_true", help="put what reached new code into tests/fuzz/corpus")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"no fuzzer {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    directory = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/tmp"))
    mariadb = MariaDB(directory / "db")
    mariadb.directory.mkdir()
    mariadb.install()
    mariadb.start()
    try:
        run = Campaign(mariadb, directory, options.seconds, engine=options.engine, keep=options.keep)
        outcomes = asyncio.run(campaign(options.names or NAMES, options.at_once, run))
    finally:
        mariadb.stop()
    if options.json:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    return 1 if any(outcome.finding for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
