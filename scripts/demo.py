"""`./scripts/demo.sh`: a translation run that survives its backend, the service and a locked table.

demo_backend.py translates two workbooks. At 20 % the service is killed, at 40 % the table is locked for some seconds,
at 60 % the backend is killed and started again: it goes on with what the service gives back. In the end every task is
right, and none that the service had as completed was translated again.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from json import loads
from pathlib import Path
from typing import Any

import MySQLdb

from scripts.demo_backend import WORKBOOKS
from scripts.processes import rpc

BACKEND = Path(__file__).with_name("demo_backend.py")
READ = "/api/v1/persistence/sessions"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """`wrong`: tasks that are missing or not as they should be; `known`: completed ones that the service had when the
    backend was started again; `again`: of them, those that were translated once more; `calls`: of the LLM."""

    tasks: int
    wrong: list[str]
    known: int
    again: list[str]
    calls: int


class Service:
    """What run.sh has started, in a state directory of its own."""

    def __init__(self, state: Path, url: str) -> None:
        self.url = url
        self._state = state

    def kill(self) -> None:
        """kill -9 of all but the database; supervisord starts them again."""
        for program in rpc(self._state).supervisor.getAllProcessInfo():
            if program["name"] in ("ingest", "reader", "flusher"):
                os.kill(program["pid"], signal.SIGKILL)

    @contextmanager
    def locked(self) -> Iterator[None]:
        db = MySQLdb.connect(unix_socket=str(self._state / "mysql" / "mysqld.sock"), user="root", db="ai_terminal")
        try:
            db.query("LOCK TABLES translation_tasks WRITE")
            yield
        finally:
            db.close()


def play(
    service: Any, ledger: Path, *, tasks: int, seconds: float, locked_s: float, say: Say, python: str = sys.executable
) -> Outcome:
    """Blocks until all is done. Args: service: with url, kill() and locked(), as Service; tasks: of each workbook;
    seconds: that the LLM takes; locked_s: how long the
    table is locked at most."""
    total = tasks * len(WORKBOOKS)
    arguments = [str(BACKEND), service.url, str(ledger), "--tasks", str(tasks), "--seconds", str(seconds)]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([python, *arguments], env={**os.environ, "TZ": "Asia/Shanghai"})

    def begun() -> set[str]:
        lines = ledger.read_text().splitlines() if ledger.exists() else []
        return {line.partition(" ")[2] for line in lines}

    def wait_for(share: float, backend: subprocess.Popen[bytes], most_s: float = math.inf) -> None:
        give_up_at = time.monotonic() + most_s
        while len(begun()) < share * total and time.monotonic() < give_up_at:
            assert backend.poll() is None, "the backend has ended"
            time.sleep(0.02)

    backend = start()
    try:
        wait_for(0.2, backend)
        say("20 %: kill -9 of ingest, flusher and reader. The backend does not wait for them")
        service.kill()
        wait_for(0.4, backend)
        say("40 %: the table is locked for some seconds. What comes waits in the journal")
        with service.locked():
            wait_for(0.55, backend, locked_s)
        while (
            len(completed(service.url)) < 0.6 * total
        ):  # and not only begun: what a client holds dies with its backend
            assert backend.poll() is None, "the backend has ended"
            time.sleep(0.2)
        say("60 %: kill -9 of the backend. Nothing of the run is in its memory any more")
        assert backend.poll() is None, "the backend has ended"
        backend.kill()
        backend.wait()
        known = {
            f"{one['session_id']} {one['task_id']}" for one in records(service.url) if one["status"] == "completed"
        }
        say(f"the service has {len(known)} of {total} tasks as completed; the backend is started again")
        backend = start()
        assert backend.wait() == 0, "the backend has failed"
    finally:
        backend.kill()
        backend.wait()
    found = {f"{one['session_id']} {one['task_id']}": one for one in records(service.url)}
    wrong = [key for key, one in found.items() if not is_right(one)]
    wrong += [f"{total - len(found)} are missing"] if len(found) != total else []
    calls = [line.split(" ", 1) for line in ledger.read_text().splitlines()]
    again = sorted({key for pid, key in calls if int(pid) == backend.pid} & known)
    return Outcome(total, wrong, len(known), again, len(calls))


def completed(url: str) -> set[str]:
    return {f"{one['session_id']} {one['task_id']}" for one in records(url) if one["status"] == "completed"}


def is_right(task: dict[str, Any]) -> bool:
    return bool(task["status"] == "completed" and task["target_text"] == f"zh>th: {task['source_text']}")


def records(url: str) -> list[dict[str, Any]]:
    """The tasks of all sessions, everything accepted before included."""
    sessions = [one["session_id"] for one in fetched(f"{url}{READ}?limit=200&fresh=flushed&timeout=60")["sessions"]]
    return [
        task for one in sessions for task in fetched(f"{url}{READ}/{one}/tasks?limit=1000")["tasks"]
    ]  # one page: a workbook of the demo has fewer


def fetched(url: str) -> dict[str, Any]:
    """Asked again while the reader is being started."""
    while True:
        try:
            with urllib.request.urlopen(url, timeout=70) as answer:
                document: dict[str, Any] = loads(answer.read())
            return document
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 503:
                raise
            time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(prog="demo.sh", description=__doc__.partition("\n")[2].strip())
    parser.add_argument("--tasks", type=int, default=400, choices=range(20, 1001), metavar="20..1000")
    parser.add_argument("--seconds", type=float, default=1.5, help="that a translation takes")
    options = parser.parse_args()
    state = Path(os.environ["PERSISTENCE_STATE_DIR"])
    url = f"http://127.0.0.1:{os.environ['SERVICE_PORT']}"
    began_at = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began_at:5.0f} s  {text}", flush=True)

    say(f"open {url}/dashboard: Accepted and Backlog now, the two workbooks under Sessions")
    outcome = play(
        Service(state, url), state / "ledger", tasks=options.tasks, seconds=options.seconds, locked_s=5, say=say
    )
    right = outcome.tasks - len(outcome.wrong)
    say(f"{right} of {outcome.tasks} tasks are right, with {outcome.calls} calls of the LLM")
    say(f"{len(outcome.again)} of the {outcome.known} that were completed before the crash were translated again")
    sys.exit(1 if outcome.wrong or outcome.again else 0)


if __name__ == "__main__":
    main()
