"""The read side beside the bare statements: `.venv/bin/python -m bench.reading [--json FILE] [--large 10000000]`.

Each answer over HTTP takes turns with its statement in the mariadb client, one process of which stays open. Isolation
is the p99 of POSTs at a fixed rate while others read, beside the same without; a statement that takes long waits for a
locked table of another server. On a quiet machine, about four minutes.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from bench.bench import say
from bench.database import OPTIONS, REDO_LOG
from bench.figures import percentile, ratio
from bench.machine import ALL, peak_rss_mb
from bench.open_loop import Running, job
from bench.tasks import pool
from flusher.store import schema_statements
from flusher.tables import FILE as SCHEMA_FILE
from reader.pages import Query
from reader.queries import Select, one_session, progress, sessions_before, tasks_after
from shared.records import SESSIONS, TASKS
from tests.support.mariadb import MariaDB, numbers
from tests.support.service import Service, free_port, session, wait_until

READ = "/api/v1/persistence/sessions"
NDJSON = {"Accept": "application/x-ndjson"}
EXPORTED = 100_000
BOUNDS = {
    "sessions_p99": ("at most", 3.0),
    "session_p99": ("at most", 3.0),
    "tasks_p99": ("at most", 3.0),
    "export": ("at least", 0.5),
    "page_large": ("at most", 1.5),
    "posts_p99_exports": ("at most", 1.5),
    "posts_p99_stalled": ("at most", 1.5),
    "posts_p99_slow": ("at most", 1.5),
    "reader_mb": ("at most", 60.0),
}


class Client:
    """The mariadb client, asked statement by statement."""

    def __init__(self, mariadb: MariaDB, database: str) -> None:
        self.command = ["mariadb", "--no-defaults", "-uroot", f"--socket={mariadb.socket}", "--quick", "--batch"]
        self.command += ["--skip-column-names", database]
        self._process = subprocess.Popen(
            [*self.command, "--unbuffered"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def __call__(self, statements: str, lines: int) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(statements)
        self._process.stdin.flush()
        for _ in range(lines):
            assert self._process.stdout.readline()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def text(select: Select) -> str:
    return select.statement % tuple("'" + str(value).replace("'", "''") + "'" for value in select.args) + ";\n"


def timed_ms(work: Callable[[], Any]) -> float:
    began_at = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began_at)


def fill(service: Service, mariadb: MariaDB, database: str, sessions: int, tasks: int) -> None:
    """A session `big` of EXPORTED tasks, and others of `tasks` each, all made of the benchmark's own."""
    columns = [name for name in (*TASKS.record.__struct_fields__, "extra") if name not in TASKS.key]
    names, copied = ",".join(columns), ",".join(f"b.{name}" for name in columns)
    base = [{**one, "task_id": f"T{number:06}", "session_id": "base"} for number, one in enumerate(pool()[:1000])]
    assert service.post(f"{TASKS.path}?ack=committed", {"tasks": base}).status == 200
    for session_id, task_id, count, where in (
        ("'big'", "CONCAT('B', LPAD(n + {}, 4, '0'), b.task_id)", EXPORTED // 1000, ""),
        ("CONCAT('s', n + {})", "b.task_id", sessions, f"WHERE b.task_id < 'T{tasks:06}'"),
    ):
        step = 100
        for first in range(0, count, step):
            mariadb.execute(
                f"INSERT INTO translation_tasks (session_id, task_id, {names})"
                f" SELECT {session_id.format(first)}, {task_id.format(first)}, {copied}"
                f" FROM {numbers(min(step, count - first))} a"
                f" JOIN (SELECT * FROM translation_tasks WHERE session_id = 'base') b {where}",
                (),
                database,
            )
    for first in range(0, sessions, 1000):
        many = [session(f"s{number}") for number in range(first, min(first + 1000, sessions))]
        assert service.post(f"{SESSIONS.path}?ack=committed", {"sessions": many}).status == 200
    mariadb.execute("ANALYZE TABLE translation_tasks, translation_sessions", (), database)


def pages(service: Service, client: Client, sessions: int, tasks: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of each answer and of its statement: median and p99."""
    wanted = {
        "sessions": (READ, [sessions_before(Query(), (), 21)[0][0]], min(21, sessions)),
        "session": (
            f"{READ}/s7",
            [one_session("s7"), *progress("s7")],
            2 + len({one["status"] for one in pool()[:tasks]}),
        ),
        "tasks": (f"{READ}/s7/tasks", tasks_after("s7", Query(), (), 201)[0], min(201, tasks)),
    }
    connection = service.connect()
    found: dict[str, Any] = {}
    for name, (path, selects, lines) in wanted.items():
        took: dict[str, list[float]] = {"http": [], "sql": []}
        statements = "".join(map(text, selects))
        for number in range(rounds + 20):
            ours = timed_ms(lambda: service.request("GET", path, connection=connection))  # noqa: B023
            bare = timed_ms(lambda: client(statements, lines))  # noqa: B023
            if number >= 20:  # warm
                took["http"].append(ours)
                took["sql"].append(bare)
        found[name] = {how: {"p50": median(each), "p99": percentile(sorted(each), 99)} for how, each in took.items()}
    connection.close()
    return found


def export(service: Service, client: Client, rounds: int) -> dict[str, list[float]]:
    """Seconds for all tasks of `big`, in turns."""
    statement = text(tasks_after("big", Query(), (), EXPORTED)[0][0])
    took: dict[str, list[float]] = {"http": [], "sql": []}
    for _ in range(rounds):
        took["http"].append(timed_ms(lambda: drain(service)) / 1000)
        command = [*client.command, "-e", statement]
        took["sql"].append(timed_ms(lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True)) / 1000)  # noqa: B023
    return took


def drain(service: Service) -> None:
    connection = service.connect(60)
    connection.request("GET", f"{READ}/big/tasks", headers=NDJSON)
    answer, last = connection.getresponse(), b""
    while part := answer.read1(1 << 20):
        last = (last + part)[-100:]
    connection.close()
    assert last.endswith(b'{"end":true,"count":%d}\n' % EXPORTED)


@contextmanager
def readers(count: int, work: Callable[[], Any]) -> Iterator[None]:
    """So many threads that do it over and over."""
    over = threading.Event()

    def go_on() -> None:
        while not over.is_set():
            try:
                work()
            except (OSError, http.client.HTTPException, AssertionError):
                over.wait(0.1)

    threads = [threading.Thread(target=go_on) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(30)


@contextmanager
def stalled(service: Service) -> Iterator[None]:
    """A caller that reads no further than the header of a stream."""
    with socket.create_connection(("127.0.0.1", service.port), 20) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(f"GET {READ}/big/tasks HTTP/1.1\r\nHost: h\r\nAccept: {NDJSON['Accept']}\r\n\r\n".encode())
        connection.recv(64)
        yield


@contextmanager
def slow(directory: Path, name: str) -> Iterator[tuple[MariaDB, int]]:
    """A server of its own, over TCP, with our tables in the database `name`."""
    port = free_port()
    server = MariaDB(directory, "--skip-networking=0", f"--port={port}", "--bind-address=127.0.0.1")
    directory.mkdir()
    server.install()
    server.start()
    try:
        db = server.connect()
        for statement in schema_statements(SCHEMA_FILE.read_text(encoding="utf-8"), name):
            db.query(statement)
        yield server, port
    finally:
        server.stop(9)


def posts_p99(service: Service, rate: float, seconds: float) -> float:
    wanted = job(("127.0.0.1", service.port), TASKS.path, batch=10, rate=rate, seconds=seconds)
    with Running(wanted, ALL, priority=True) as sender:
        measured = sender.result()
    assert not measured["problems"], measured["problems"]
    return float(measured["latency_us"]["p99"])


def isolation(
    service: Service,
    start: Callable[..., Service],
    directory: Path,
    name: str,
    *,
    rounds: int,
    rate: float,
    seconds: float,
) -> dict[str, list[float]]:
    """p99 of POSTs in µs, in turns."""
    found: dict[str, list[float]] = {"idle": [], "exports": [], "stalled": [], "slow": []}
    with slow(directory / "slow", name) as (server, port):
        other = start("other", READ_HOST="127.0.0.1", READ_PORT=port, READ_USER="root")
        with server.locked(name, "translation_sessions WRITE, translation_tasks"):
            for _ in range(rounds):
                found["idle"].append(posts_p99(service, rate, seconds))
                with readers(4, lambda: drain(service)):
                    found["exports"].append(posts_p99(service, rate, seconds))
                with stalled(service):
                    found["stalled"].append(posts_p99(service, rate, seconds))
                with readers(4, lambda: other.get(f"{READ}/s7")):
                    found["slow"].append(posts_p99(other, rate, seconds))
    return found


def measure(options: argparse.Namespace, directory: Path, stack: ExitStack) -> dict[str, Any]:
    mariadb = MariaDB(directory / "db", REDO_LOG[MariaDB.flavour], *OPTIONS)
    mariadb.directory.mkdir()
    mariadb.install()
    mariadb.start()
    stack.callback(mariadb.stop, 9)
    database = mariadb.create_database()

    def start(name: str, **settings: object) -> Service:
        (directory / name).mkdir()
        service = Service(directory / name, mariadb, database, **settings)
        stack.callback(service.kill)
        service.start()
        service.reader = service._start("reader")
        wait_until(
            lambda: service.get(f"{READ}/none").json["error_code"] != "READER_UNAVAILABLE", what="the reader answers"
        )
        return service

    service = start("ours")
    say(f"{options.sessions} sessions of {options.tasks} tasks")
    fill(service, mariadb, database, options.sessions, options.tasks)
    client = Client(mariadb, database)
    stack.callback(client.close)
    raw: dict[str, Any] = {"sessions": options.sessions, "tasks": options.tasks}
    say("pages")
    raw["pages"] = pages(service, client, options.sessions, options.tasks, options.rounds)
    say("export")
    raw["export"] = export(service, client, 5)
    figures = {f"{name}_p99": ratio(one["http"]["p99"], one["sql"]["p99"]) for name, one in raw["pages"].items()}
    figures["export"] = ratio(median(raw["export"]["sql"]), median(raw["export"]["http"]))
    if not options.no_isolation:
        say("isolation")
        raw["isolation"] = isolation(
            service, start, directory, database, rounds=3, rate=options.rate, seconds=options.seconds
        )
        p99 = {name: median(each) for name, each in raw["isolation"].items()}
        figures |= {f"posts_p99_{name}": ratio(p99[name], p99["idle"]) for name in ("exports", "stalled", "slow")}
    assert service.reader is not None
    figures["reader_mb"] = peak_rss_mb(service.reader.pid)
    if options.large:
        more = options.large // options.tasks
        say(f"{more} further sessions of {options.tasks} tasks")
        small = raw["pages"]["tasks"]["http"]["p50"]
        fill_large(mariadb, database, more, options.tasks)
        raw["pages_large"] = pages(service, client, options.sessions, options.tasks, options.rounds)
        figures["page_large"] = ratio(raw["pages_large"]["tasks"]["http"]["p50"], small)
    return {**raw, "ratios": figures}


def fill_large(mariadb: MariaDB, database: str, sessions: int, tasks: int) -> None:
    names = ",".join(name for name in (*TASKS.record.__struct_fields__, "extra") if name != "session_id")
    for first in range(0, sessions, 100):
        mariadb.execute(
            f"INSERT INTO translation_tasks (session_id, {names}) SELECT CONCAT('x', n + {first}), {names}"
            f" FROM {numbers(min(100, sessions - first))} a JOIN (SELECT * FROM translation_tasks"
            f" WHERE session_id = 'base' AND task_id < 'T{tasks:06}') b",
            (),
            database,
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.reading", description=__doc__.partition("\n")[0])
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=1000, help="of each session")
    parser.add_argument("--large", type=int, default=0, help="then with so many more tasks, as 10000000")
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--rate", type=float, default=500, help="POSTs of 10 tasks a second while others read")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--no-isolation", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="bench-read-", dir="/tmp"))
    try:
        with ExitStack() as stack:
            raw = measure(options, directory, stack)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(raw) + "\n")
    missed = 0
    for name, value in raw["ratios"].items():
        which, bound = BOUNDS[name]
        good = value is not None and (value <= bound if which == "at most" else value >= bound)
        missed += not good
        print(f"{name:20} {value!s:>8}   {which} {bound:g}{'' if good else '   MISSED'}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
