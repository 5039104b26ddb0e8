"""deploy/: nginx and HAProxy, each with the snippet as it stands but for ports and paths, before the real service."""

from __future__ import annotations

import http.client
import json
import os
import re
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingest.metrics import METRICS_DIRECTORY, node_counts
from tests.support.mariadb import MariaDB
from tests.support.service import ROOT, STATS, TASKS, Service, free_port, task, wait_until

TOKEN = "s3cret"
HEADERS = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
LARGE = json.dumps({"tasks": [task(f"t{number}", target_text="x" * 60_000) for number in range(150)]}).encode()
TRUSTING = ssl._create_unverified_context()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with key and certificate, as HAProxy takes them; nginx reads the same file twice."""
    directory = tmp_path_factory.mktemp("tls")
    key, pem = directory / "key", directory / "pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1"),
            *("-keyout", str(key), "-out", str(pem)),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    pem.write_text(pem.read_text() + key.read_text())
    return pem


@pytest.fixture
def node(start_service: Callable[..., Service], mariadb: MariaDB, database: str) -> Service:
    return start_service(mariadb, database, SERVICE_AUTH_TOKEN=TOKEN, JOURNAL_MAX_BYTES=2**24)


def nginx(directory: Path, node: Service, certificate: Path, port: int) -> list[str]:
    """The command; a node that is not there stands beside the one that is."""
    text = (ROOT / "deploy" / "nginx.conf").read_text()
    for old, new in (
        ("listen 443 ssl http2;", f"listen 127.0.0.1:{port} ssl http2;"),
        ("/etc/ssl/certs/persistence.pem", str(certificate)),
        ("/etc/ssl/private/persistence.key", str(certificate)),
        (
            "server 127.0.0.1:8001 ",
            f"server 127.0.0.1:{free_port()} max_fails=0;\n    server 127.0.0.1:{node.port} ",
        ),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    text, lines = re.subn(r"^    # (location|    proxy_pass|\})", r"    \1", text, flags=re.MULTILINE)
    assert lines == 3
    (directory / "snippet.conf").write_text(text)
    user = "user root;" if os.getuid() == 0 else ""
    temporary = "\n".join(
        f"{name}_temp_path {directory};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "nginx.conf").write_text(
        f"{user} daemon off; worker_processes 1; pid {directory}/pid; error_log stderr;\n"
        f"events {{}}\nhttp {{ access_log off; {temporary} include {directory}/snippet.conf; }}\n"
    )
    return ["nginx", "-p", str(directory), "-c", str(directory / "nginx.conf")]


def haproxy(directory: Path, node: Service, certificate: Path, port: int) -> list[str]:
    text = (ROOT / "deploy" / "haproxy.cfg").read_text()
    for old, new in (
        ("bind :443 ", f"bind 127.0.0.1:{port} "),
        ("/etc/haproxy/persistence.pem", str(certificate)),
        (
            "    server node1 127.0.0.1:8001\n",
            f"    server node0 127.0.0.1:{free_port()}\n    server node1 127.0.0.1:{node.port}\n",
        ),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    file = directory / "haproxy.cfg"
    file.write_text(text)
    return ["haproxy", "-db", "-f", str(file)]


@pytest.fixture(params=[(nginx, "-t"), (haproxy, "-c")], ids=["nginx", "haproxy"])
def proxy(request: pytest.FixtureRequest, tmp_path: Path, node: Service, certificate: Path) -> Iterator[int]:
    """The port of one that its own check has found faultless."""
    command_of, check = request.param
    port = free_port()
    command = command_of(tmp_path, node, certificate, port)
    done = subprocess.run([*command, check], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for word in ("warn", "alert", "emerg"):
        assert f"[{word}" not in done.stderr.lower(), done.stderr
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(command, stdout=errors, stderr=errors)

    def answers() -> bool:
        assert process.poll() is None, (tmp_path / "errors").read_text()
        try:
            return ask(port, "GET", "/ready").status == 200
        except OSError:
            return False

    wait_until(answers)
    yield port
    process.terminate()
    process.wait(20)


def ask(
    port: int, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> http.client.HTTPResponse:
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=TRUSTING)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        response.body = response.read()  # type: ignore[attr-defined]
        return response
    finally:
        connection.close()


def test_nginx_maps_another_prefix_onto_ours(proxy: int, node: Service, request: pytest.FixtureRequest) -> None:
    """The commented location of deploy/nginx.conf, its signs removed. HAProxy has none."""
    mapped = request.node.callspec.id == "nginx"
    body = json.dumps({"tasks": [task("t1")]}).encode()
    answer = ask(proxy, "POST", "/my/prefix/tasks/batch?ack=committed", body, HEADERS)
    assert answer.status == (200 if mapped else 404)


def test_batches_pass_though_another_node_is_away(proxy: int, node: Service) -> None:
    for number in range(10):
        body = json.dumps({"tasks": [task(f"t{number}")]}).encode()
        assert ask(proxy, "POST", TASKS, body, HEADERS).status == 202
    assert node.request("POST", "/api/v1/persistence/flush", headers=HEADERS).json["tasks_written"] == 10

    # Without the token the proxy is no way in, though the service sees a caller on its own machine.
    assert ask(proxy, "POST", TASKS, b"{}", {"Content-Type": "application/json"}).status == 401

    # A body near the service's limit passes.
    assert 9_000_000 < len(LARGE) < 10_485_760
    assert ask(proxy, "POST", TASKS, LARGE, HEADERS).status == 202

    # The caller's id comes back, and one is made for a caller without.
    assert ask(proxy, "GET", "/", headers={"X-Request-Id": "my-id"}).headers["X-Request-Id"] == "my-id"
    assert len(ask(proxy, "GET", "/").headers["X-Request-Id"]) >= 32


@pytest.mark.parametrize("proxy", [(haproxy, "-c")], ids=["haproxy"], indirect=True)
def test_a_node_whose_journal_is_full_gets_nothing_until_a_segment_has_gone(
    proxy: int, node: Service, mariadb: MariaDB, database: str
) -> None:
    def posted() -> int:
        node.request("GET", STATS, headers=HEADERS)  # its worker publishes what it has counted
        return sum(node_counts(node.directory / "run" / METRICS_DIRECTORY).requests[TASKS].values())

    with mariadb.locked(database):
        assert [node.request("POST", TASKS, LARGE, HEADERS).status for _ in range(2)] == [202, 503]
        wait_until(lambda: ask(proxy, "GET", "/ready").status == 503 and node.get("/ready").status == 503)
        wait_until(lambda: answered_by_proxy(proxy), what="the proxy has taken the node out")
        before = posted()
        for _ in range(20):
            assert answered_by_proxy(proxy)
        assert posted() == before
    wait_until(lambda: ask(proxy, "POST", TASKS, b'{"tasks":[]}', HEADERS).status == 422, 60, "a segment has gone")


def answered_by_proxy(port: int) -> bool:
    """Its own answer is no JSON."""
    answer = ask(port, "POST", TASKS, b"{}", HEADERS)
    return answer.status == 503 and not answer.body.startswith(b"{")  # type: ignore[attr-defined]
