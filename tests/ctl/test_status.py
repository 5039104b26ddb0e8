"""`status`, `flush`, and reaching a node: with a token and without, this one and another, away and half away."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from rich.console import Console

from ctl.output import table
from ctl.status import problems
from tests.support.ctl import ctl
from tests.support.mariadb import MariaDB
from tests.support.service import TASKS, Service, free_port, task, wait_until

StartService = Callable[..., Service]


def test_a_fresh_node_is_all_right_and_has_none_yet(service: Service) -> None:
    wait_until(lambda: service.get("/health").json["status"] == "healthy")
    result = ctl(service, "status")
    assert (result.status, result.err) == (0, "")
    said = {name: value.strip() for name, value in (line.split("  ", 1) for line in result.out.splitlines())}
    assert said["service"].startswith("healthy at http://127.0.0.1")
    assert {said[name] for name in ("accepted", "written", "flushes")} == {"none yet"}
    assert {said[name] for name in ("dead letters", "last error")} == {"none"}
    assert service.post(TASKS, {"tasks": [task("t1"), task("t2")]}).status == 202
    assert "2 records" in ctl(service, "status").out
    document = ctl(service, "status", "--json").json
    assert (document["problems"], document["health"]["status"]) == ([], "healthy")
    assert document["stats"]["buffer"]["total_count"] == 2


HEALTHY = {"status": "healthy", "reason": None, "since": None}
EARLY, LATE = "2026-11-23T10:15:30.000000Z", "2026-11-23T10:15:31.000000Z"


@pytest.mark.parametrize(
    ("waiting", "oldest_s", "error", "error_at", "flush_at", "problem"),
    [
        (0, 0.0, None, None, None, None),
        (5, 59.0, "lock", EARLY, LATE, None),
        (5, 59.0, "lock", LATE, EARLY, "the last write failed, 2026-11-23T10:15:31Z: lock"),
        (5, 59.0, "lock", LATE, None, "the last write failed"),
        (0, 0.0, "lock", LATE, EARLY, None),
        (5, 59.0, "refused", LATE, EARLY, None),
        (5, 61.0, None, None, EARLY, "the oldest record waits for 1 min 1 s, longer than twice 30 s"),
    ],
)
def test_what_is_wrong_though_the_node_is_healthy(  # noqa: PLR0917
    waiting: int, oldest_s: float, error: str | None, error_at: str | None, flush_at: str | None, problem: str | None
) -> None:
    stats = {
        "buffer": {"total_count": waiting},
        "at_risk": {"oldest_uncommitted_seconds": oldest_s},
        "flush_info": {"flush_interval_seconds": 30.0, "last_flush_time": flush_at},
        "state": {"last_error": error, "last_error_at": error_at},
        "dead_letters": {"count": 0, "last_error": "refused"},
        "damage": {"segments_set_aside": 0},
    }
    found = problems(HEALTHY, stats)
    assert len(found) == (problem is not None)
    assert problem is None or problem in found[0]


def test_status_of_a_node_without_its_database_and_then_without_its_flusher_is_1_and_says_why(
    start_service: StartService, mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, DB_SOCKET="/tmp/there-is-none", SERVICE_ACK_TIMEOUT=1)
    wait_until(lambda: service.stats()["state"]["last_error"])
    result = ctl(service, "status")
    assert (result.status, "degraded" in result.out, "error 2002" in result.out) == (1, True, True)
    service.kill_flusher()
    result = ctl(service, "status")
    assert (result.status, "unhealthy" in result.out, "flusher" in result.out) == (1, True, True)


def test_status_where_nobody_answers_is_2_with_one_line(service: Service) -> None:
    result = ctl(service, "status", "--url", f"127.0.0.1:{free_port()}")
    assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
    assert result.err.endswith("does not answer: Connection refused\n")
    service.stop()
    assert ctl(service, "status").err.endswith("Connection refused; is it running? ./scripts/run.sh\n")


def test_the_configured_token_opens_this_node_and_another_and_without_it_the_setting_is_named(
    start_service: StartService, mariadb: MariaDB, database: str
) -> None:
    guarded = start_service(mariadb, database, SERVICE_AUTH_TOKEN="s3cret")
    wait_until(lambda: guarded.get("/health").json["status"] == "healthy")
    url = f"http://127.0.0.1:{guarded.port}/"
    for command in (("status",), ("flush",), ("top", "--once", "--interval", "0.1")):
        assert ctl(guarded, *command).status == 0
        assert ctl(guarded, *command, "--url", url, SERVICE_AUTH_TOKEN="s3cret").status == 0
        for token in ("", "wrong"):
            result = ctl(guarded, *command, SERVICE_AUTH_TOKEN=token)
            assert (result.status, result.out, "service.auth_token" in result.err) == (2, "", True)


def test_a_wrong_configuration_is_one_line_that_names_the_key(service: Service) -> None:
    result = ctl(service, "status", SERVICE_PORT="many")
    assert (result.status, "service.port" in result.err, result.err.count("\n")) == (2, True, 1)


def test_flush_writes_what_waits(service: Service, mariadb: MariaDB, database: str) -> None:
    assert service.post(TASKS, {"tasks": [task("t1"), task("t1", status="completed")]}).status == 202
    result = ctl(service, "flush")
    assert (result.status, "tasks 1; coalesced 1" in result.out) == (0, True)
    assert mariadb.execute("SELECT status FROM translation_tasks", (), database) == [("completed",)]
    assert ctl(service, "flush", "--timeout", "61").status == 2


def test_a_flush_that_cannot_write_all_is_1_and_tells_how_many_wait(
    start_service: StartService, mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, DB_SOCKET="/tmp/there-is-none")
    assert service.post(TASKS, {"tasks": [task("t1"), task("t2")]}).status == 202
    result = ctl(service, "flush", "--timeout", "0.5", "--json")
    assert (result.status, result.json["pending"]) == (1, 2)


@pytest.fixture
def stranger() -> Iterator[tuple[str, list[str | None]]]:
    """A server that sends everybody to itself, at another path, and keeps the tokens that it was shown."""
    tokens: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tokens.append(self.headers["Authorization"])
            body = json.dumps({"status": "healthy"}).encode()
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", tokens
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_redirect_is_not_followed_with_the_token(service: Service, stranger: tuple[str, list[str | None]]) -> None:
    url, tokens = stranger
    result = ctl(service, "status", "--url", url, SERVICE_AUTH_TOKEN="s3cret")
    assert result.status == 2
    assert tokens == ["Bearer s3cret"]


def test_a_proxy_of_the_environment_is_not_asked(service: Service) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    wait_until(lambda: service.get("/health").json["status"] == "healthy")
    assert ctl(service, "status", http_proxy=nowhere, no_proxy="").status == 0


def test_all_nodes_are_flushed_and_the_worst_of_them_is_the_status(
    start_service: StartService, mariadb: MariaDB, database: str
) -> None:
    nodes = [start_service(mariadb, database) for _ in range(2)]
    urls = [f"http://127.0.0.1:{node.port}" for node in nodes]
    for number, node in enumerate(nodes):
        assert node.post(TASKS, {"tasks": [task(f"t{number}")]}).status == 202

    result = ctl(nodes[0], "flush", "--all-nodes", "--json", CLUSTER_NODES=",".join(urls))
    assert result.status == 0
    assert [(one["url"], one["tasks_written"]) for one in result.json["nodes"]] == [(url, 1) for url in urls]
    assert len(mariadb.execute("SELECT 1 FROM translation_tasks", database=database)) == 2

    away = f"http://127.0.0.1:{free_port()}"
    result = ctl(nodes[0], "flush", "--all-nodes", CLUSTER_NODES=f"{away}, {urls[1]}")
    assert result.status == 2
    assert "does not answer" in result.out.splitlines()[0]
    assert "written: sessions 0, tasks 0" in result.out.splitlines()[1]

    assert ctl(nodes[0], "flush", "--all-nodes").status == 2
    assert "cluster.nodes" in ctl(nodes[0], "flush", "--all-nodes").err
    for malformed in ("http://[bad", "http://127.0.0.1:x"):
        result = ctl(nodes[0], "status", "--url", malformed)
        assert (result.status, result.err.count("\n")) == (2, 1), result
        assert malformed in result.err
    assert ctl(nodes[0], "flush", "--all-nodes", "--url", urls[0], CLUSTER_NODES=urls[0]).status == 2


def test_names_are_never_cut_or_folded_however_narrow_the_terminal() -> None:
    long = "x" * 300
    terminal = Console(width=20, soft_wrap=True, file=io.StringIO())
    terminal.print(table("name", "值", "n", rows=[(long, "会话", "1"), ("a", "b", "22")], right=("n",)))
    assert terminal.file.getvalue().splitlines() == [
        f"name{' ' * 296}  值     n",
        f"{long}  会话   1",
        f"a{' ' * 299}  b     22",
    ]
