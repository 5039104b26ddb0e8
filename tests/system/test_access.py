"""Who is let in: tokens and their rotation, TLS on our own port, other users of the machine. All over real sockets."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import ssl
import stat
import struct
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from shared.wire import StatsRequest, encode
from tests.support.certificates import Authority
from tests.support.ctl import ctl
from tests.support.mariadb import MariaDB
from tests.support.service import STATS, TASKS, Service, task, wait_until
from tests.support.strangers import STRANGER, as_stranger, needs_root
from tests.support.supervised import Supervised


def status(service: Service, token: str) -> int:
    return service.request("GET", STATS, headers={"Authorization": f"Bearer {token}"}).status


def test_a_new_token_comes_in_and_the_old_one_goes_without_a_refused_request(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str, short_path: Path
) -> None:
    tokens = short_path / "tokens"
    tokens.write_text("old\n")
    service = start_service(mariadb, database, SERVICE_AUTH_TOKEN_FILE=tokens)
    assert (status(service, "old"), status(service, "new")) == (200, 403)
    assert service.get(STATS).status == 401

    tokens.write_text("new\nold\n")
    renew(service)
    assert (status(service, "old"), status(service, "new")) == (200, 200)
    assert ctl(service, "flush", "--json").json["status"] == "flushed"  # with the first of them

    tokens.write_text("new\n")
    renew(service)
    assert (status(service, "old"), status(service, "new")) == (403, 200)

    tokens.write_text("\n")  # a mistake leaves the workers that work
    workers = service.workers()
    assert service.ingest is not None
    service.ingest.send_signal(signal.SIGHUP)
    wait_until(lambda: "the workers stay as they are" in service.log.read_text())
    assert service.workers() == workers
    assert status(service, "new") == 200


def test_a_caller_who_has_reset_its_connection_before_anybody_knows_who_it_is_has_nothing_stored(
    service: Service,
) -> None:
    # From here its address would do; after the reset nobody can tell, and from elsewhere it looks the same.
    body = orjson.dumps({"tasks": [task("reset")]})
    request = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (
        TASKS.encode(),
        len(body),
    )
    (worker,) = service.workers()
    os.kill(worker, signal.SIGSTOP)
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        client.sendall(request + body)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.kill(worker, signal.SIGCONT)
    assert service.post(TASKS, {"tasks": [task("stays")]}).status == 202  # accepted after it
    assert service.stats()["accepted"]["tasks"] == 1


def renew(service: Service) -> None:
    """SIGHUP, and until the old workers have left."""
    assert service.ingest is not None
    old = set(service.workers())
    service.ingest.send_signal(signal.SIGHUP)
    wait_until(lambda: service.workers() and not old & set(service.workers()), what="new workers have taken over")
    service.wait_ready()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


class Encrypted(Supervised):
    """A service that speaks TLS, asked by a client that knows the authority."""

    trusted: ssl.SSLContext

    def open(self, path: str, body: bytes | None = None, host: str = "localhost") -> int:
        request = urllib.request.Request(f"https://{host}:{self.port}{path}", body)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=20, context=self.trusted) as answer:
            return int(answer.status)

    def _is_ready(self) -> bool:
        try:
            return self.open("/ready") == 200
        except OSError:
            return False


def test_our_own_port_speaks_tls_to_who_checks_it_and_ctl_reaches_it(
    short_path: Path, mariadb: MariaDB, database: str, authority: Authority
) -> None:
    certificate, key = authority.issue("ours", "DNS:localhost")
    service = Encrypted(short_path, mariadb, database, SERVICE_TLS_CERT=certificate, SERVICE_TLS_KEY=key)
    service.trusted = ssl.create_default_context(cafile=str(authority.certificate))
    try:
        service.start()
        assert service.open(TASKS, b'{"tasks":[%b]}' % document(task())) == 202
        large = b'{"tasks":[%b]}' % b",".join(document(task(f"t{n}", target_text="x" * 9000)) for n in range(500))
        assert service.open(TASKS, large) == 202
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            service.open("/", host="127.0.0.1")  # the certificate has no such name
        # A client that speaks plain HTTP to it gets no HTTP answer, and the service goes on.
        with socket.create_connection(("127.0.0.1", service.port), 10) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            plain.settimeout(10)
            assert not received(plain).startswith(b"HTTP/")
        assert ctl(service, "flush", "--json").json["status"] == "flushed"
        assert mariadb.execute("SELECT COUNT(*) FROM translation_tasks", (), database) == [(500,)]
        assert ctl(service, "status").status == 0
        # Another server in its place is not talked to: the token would go to it.
        stranger, _ = authority.issue("stranger", "DNS:localhost")
        refused = ctl(service, "status", SERVICE_TLS_CERT=str(stranger))
        assert (refused.status, "CERTIFICATE_VERIFY_FAILED" in refused.err) == (2, True)
    finally:
        service.stop()


def document(record: dict[str, Any]) -> bytes:
    return orjson.dumps(record)


def received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize("given", ["key only", "no such file", "another's key"])
def test_tls_that_cannot_work_stops_the_start_with_one_line(
    given: str, short_path: Path, mariadb: MariaDB, authority: Authority
) -> None:
    certificate, key = authority.issue("one", "DNS:localhost")
    files = {
        "key only": {"SERVICE_TLS_KEY": key},
        "no such file": {"SERVICE_TLS_CERT": short_path / "none", "SERVICE_TLS_KEY": key},
        "another's key": {"SERVICE_TLS_CERT": certificate, "SERVICE_TLS_KEY": authority.issue("two", "DNS:x")[1]},
    }[given]
    service = Service(short_path, mariadb, "none", **files)
    service.start_ingest()
    assert service.ingest is not None
    assert service.ingest.wait(20) == 1
    (line,) = (short_path / "ingest.stderr").read_text().splitlines()
    assert line.startswith("ingest: service.tls_")


@needs_root
def test_no_other_user_reaches_the_flusher_or_its_files(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database)
    service.post(TASKS, {"tasks": [task()]})
    path = service.directory / "run" / "flusher.sock"
    connect = "socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    assert "PermissionError" in as_stranger(connect, str(path)).stderr

    # Even with every directory and the socket itself opened by mistake the flusher looks at who asks (SO_PEERCRED).
    closed = {name: stat.S_IMODE(name.stat().st_mode) for name in (service.directory, path.parent)}
    assert closed == dict.fromkeys(closed, 0o700)
    for name in (service.directory.parent, service.directory, path.parent, path):
        name.chmod(0o777)
    ask = (
        "peer = socket.socket(socket.AF_UNIX); peer.connect(sys.argv[1]); peer.settimeout(20)\n"
        "try:\n"
        f"    peer.sendall({stats_frame()!r})\n"
        "    print(len(peer.recv(9)))\n"
        "except ConnectionError: print(0)\n"
    )
    refused = as_stranger(ask, str(path))
    assert refused.stdout == "0\n", refused.stderr
    assert f"a peer of user {pwd.getpwnam(STRANGER).pw_uid} was refused" in service.log.read_text()
    with socket.socket(socket.AF_UNIX) as own:
        own.connect(str(path))
        own.settimeout(20)
        own.sendall(stats_frame())
        assert own.recv(9)

    read = "print([path.read_bytes() for path in pathlib.Path(sys.argv[1]).iterdir()])"
    assert "PermissionError" in as_stranger(read, str(service.journal)).stderr
    (segment,) = service.segments()
    assert "PermissionError" in as_stranger("open(sys.argv[1])", str(segment)).stderr
    assert "PermissionError" in as_stranger("open(sys.argv[1])", str(service.log)).stderr


def stats_frame() -> bytes:
    return encode(StatsRequest(1))
