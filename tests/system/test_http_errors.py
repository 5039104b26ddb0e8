"""Every row of the contract's error table once through the whole: a refused request leaves tables and journal as they
were, to the byte. The cases of each row: tests/ingest, tests/shared."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPResponse
from pathlib import Path
from random import Random
from typing import Any

import pytest

from shared import VERSION
from tests.support.mariadb import MariaDB
from tests.support.service import (
    FLUSH,
    SESSIONS,
    STATS,
    TASKS,
    Answer,
    Service,
    session,
    task,
    wait_until,
)

MAX_BODY_BYTES = 200_000
MIB = 1024 * 1024
TOKEN = "s3cret-t0ken"
PATHS = {
    "/": "GET",
    "/health": "GET",
    "/ready": "GET",
    "/metrics": "GET",
    "/dashboard": "GET",
    "/docs": "GET",
    "/dashboard/history": "GET",
    "/openapi.json": "GET",
    STATS: "GET",
    FLUSH: "POST",
    SESSIONS: "POST",
    TASKS: "POST",
}
ALLOWED = {"GET": {"GET", "HEAD"}, "POST": {"POST"}}
OPEN = {"/", "/health", "/ready", "/dashboard", "/docs"}
VALID = json.dumps({"tasks": [task("refused")]}).encode()
INVALID = json.dumps({"tasks": [task("refused", status="done")]}).encode()


def blank(size: int) -> bytes:
    """White space that gzip packs 4 to 1: what is packed too tightly is refused for that."""
    return bytes(Random(1).choices(b" \n\t\r", k=size))


class Observed:
    """A running service and what it has stored."""

    def __init__(self, service: Service, mariadb: MariaDB, database: str) -> None:
        self.service = service
        self.mariadb = mariadb
        self.database = database

    def stored(self) -> tuple[dict[str, bytes], list[Any], list[Any], bool]:
        """Every byte of the journal, every row of the tables, and whether there is a dead letter."""
        return (
            {path.name: path.read_bytes() for path in self.service.journal.iterdir()},
            self.mariadb.execute("SELECT * FROM translation_sessions ORDER BY 1", (), self.database),
            self.mariadb.execute("SELECT * FROM translation_tasks ORDER BY 1", (), self.database),
            self.service.dead_letters.exists(),
        )


def observe(mariadb: MariaDB, **settings: object) -> Iterator[Observed]:
    directory = Path(tempfile.mkdtemp(prefix="ps-", dir="/tmp"))
    database = mariadb.create_database()
    # Only what a test asks for may move records.
    service = Service(directory, mariadb, database, BUFFER_FLUSH_INTERVAL=3600, **settings)
    try:
        service.start()
        yield Observed(service, mariadb, database)
        service.stop()
    finally:
        service.kill()
        mariadb.drop_database(database)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def running(mariadb: MariaDB) -> Iterator[Observed]:
    """With rows in both tables and records in the journal, so that a change of either would show."""
    for observed in observe(mariadb, SERVICE_MAX_BODY_BYTES=MAX_BODY_BYTES):
        service = observed.service
        assert service.post(SESSIONS, {"sessions": [session("written")]}).status == 202
        assert service.post(TASKS, {"tasks": [task("written")]}).status == 202
        assert service.flush().status == 200
        assert service.post(TASKS, {"tasks": [task("waiting")]}).status == 202
        yield observed


@pytest.fixture
def service(running: Observed) -> Iterator[Service]:
    """For requests that must change nothing."""
    before = running.stored()
    yield running.service
    assert running.stored() == before
    assert running.service.get("/ready").status == 200


@pytest.fixture(scope="module")
def with_token(mariadb: MariaDB) -> Iterator[Observed]:
    yield from observe(mariadb, SERVICE_AUTH_TOKEN=TOKEN, SERVICE_MAX_BODY_BYTES=MAX_BODY_BYTES)


@pytest.fixture
def guarded(with_token: Observed) -> Iterator[Service]:
    before = with_token.stored()
    yield with_token.service
    assert with_token.stored() == before


class Connection:
    """A bare TCP connection: what http.client is too well-behaved to send."""

    def __init__(self, service: Service) -> None:
        self._socket = socket.create_connection(("127.0.0.1", service.port), timeout=30)

    def close(self) -> None:
        self._socket.close()

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self._socket.sendall(part)

    def send_no_more(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def answer(self, method: str = "POST") -> Answer:
        response = HTTPResponse(self._socket, method=method)
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read())

    def first_line(self) -> bytes:
        """The first line that comes, 100 Continue included, which http.client passes over."""
        line = b""
        while not line.endswith(b"\r\n"):
            byte = self._socket.recv(1)
            assert byte, f"the connection ended after {line!r}"
            line += byte
        return line

    def rest(self) -> bytes:
        parts = []
        while part := self._socket.recv(65536):
            parts.append(part)
        return b"".join(parts)


def head(path: str = TASKS, *fields: str, method: str = "POST") -> bytes:
    json = ["Content-Type: application/json"] if method == "POST" else []
    lines = [f"{method} {path} HTTP/1.1", "Host: test", *json, *fields, "", ""]
    return "\r\n".join(lines).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def assert_error(answer: Answer, status: int, code: str) -> list[dict[str, str]]:
    """That an answer is an error document of the contract. Returns: its errors."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["content-length"]) == len(answer.body)
    document = answer.json
    assert document.keys() >= {"detail", "error_code", "errors"}
    assert document["error_code"] == code, document
    assert re.fullmatch(r"[A-Z][A-Z0-9_]*", code)
    assert document["detail"]
    assert "\n" not in document["detail"]
    errors: list[dict[str, str]] = document["errors"]
    assert all(error.keys() == {"field", "message"} and error["message"] for error in errors)
    assert bool(errors) == (status == 422)
    return errors


def assert_retry_after(answer: Answer) -> None:
    assert re.fullmatch(r"[1-9]\d*", answer.headers["retry-after"])
    assert int(answer.headers["retry-after"]) <= 60


# ---- the control: what is accepted does change the journal, or the tests below would show nothing


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (VALID, {}),
        (gzip.compress(VALID), {"Content-Encoding": "gzip"}),
        (gzip.compress(VALID), {"Content-Encoding": " X-GZIP "}),
        (VALID, {"Content-Encoding": "identity"}),
        (VALID, {"Content-Type": 'Application/JSON; charset="UTF-8"'}),
        (VALID + b" " * (MAX_BODY_BYTES - len(VALID)), {}),
        (gzip.compress(VALID + blank(MAX_BODY_BYTES - len(VALID))), {"Content-Encoding": "gzip"}),
        (gzip.compress(VALID[:20]) + gzip.compress(VALID[20:]), {"Content-Encoding": "gzip"}),
    ],
)
def test_what_is_accepted_is_in_the_journal(running: Observed, body: bytes, headers: dict[str, str]) -> None:
    before = running.stored()
    assert running.service.post(TASKS, body, headers).status == 202
    after = running.stored()
    assert after[1:] == before[1:]
    ((name, content),) = [(name, data) for name, data in after[0].items() if data != before[0][name]]
    assert content.startswith(before[0][name])
    assert VALID in content[len(before[0][name]) :]


@pytest.mark.parametrize("pieces", [[VALID], [VALID[:1], VALID[1:50], VALID[50:]]])
def test_a_chunked_body_is_accepted_within_the_limit(running: Observed, pieces: list[bytes]) -> None:
    before = running.stored()
    with closing(Connection(running.service)) as connection:
        connection.send(head(TASKS, "Transfer-Encoding: chunked"), *map(chunk, pieces), b"0\r\n\r\n")
        assert connection.answer().status == 202
    assert running.stored() != before


# ---- requests that are refused

GZIP = {"Content-Encoding": "gzip"}
PACKED = gzip.compress(VALID)
REFUSED: dict[str, tuple[int, str, str, Any, dict[str, str]]] = {
    "no JSON": (400, "INVALID_JSON", TASKS, b"{", {}),
    "not a number": (400, "INVALID_JSON", TASKS, b'{"tasks":[NaN]}', {}),
    "nested without end": (400, "INVALID_SHAPE", TASKS, b"[" * 90_000 + b"]" * 90_000, {}),
    "another shape": (400, "INVALID_SHAPE", TASKS, b"[]", {}),
    "the other kind": (400, "INVALID_SHAPE", SESSIONS, VALID, {}),
    "no gzip": (400, "INVALID_GZIP", TASKS, VALID, GZIP),
    "a wrong checksum": (400, "INVALID_GZIP", TASKS, PACKED[:-8] + b"\0" * 8, GZIP),
    "half of gzip": (400, "BODY_CUT_SHORT", TASKS, PACKED[:-1], GZIP),
    "ack": (400, "INVALID_PARAMETER", f"{TASKS}?ack=maybe", VALID, {}),
    "timeout": (400, "INVALID_PARAMETER", f"{TASKS}?ack=committed&timeout=60.1", VALID, {}),
    "negative timeout": (400, "INVALID_PARAMETER", f"{TASKS}?timeout=-1", VALID, {}),
    "flush timeout": (400, "INVALID_PARAMETER", f"{FLUSH}?timeout=nan", b"", {}),
    "too large": (413, "BODY_TOO_LARGE", TASKS, VALID + b" " * 3_000_000, {}),
    "too large unpacked": (
        *(413, "BODY_TOO_LARGE", TASKS, gzip.compress(VALID + blank(MAX_BODY_BYTES + 1 - len(VALID))), GZIP),
    ),
    "a bomb": (413, "BODY_TOO_LARGE", TASKS, gzip.compress(VALID + b" " * 100_000_000), GZIP),
    "another type": (415, "UNSUPPORTED_MEDIA_TYPE", TASKS, VALID, {"Content-Type": "text/plain"}),
    "another encoding": (415, "UNSUPPORTED_ENCODING", TASKS, VALID, {"Content-Encoding": "br"}),
    "no records": (422, "INVALID_RECORD", TASKS, {"tasks": []}, {}),
    "too many records": (422, "INVALID_RECORD", TASKS, {"tasks": [task()] * 1001}, {}),
    "an invalid task": (422, "INVALID_RECORD", TASKS, {"tasks": [task("good"), task("bad", row_index=-1)]}, {}),
    "an invalid session": (422, "INVALID_RECORD", SESSIONS, {"sessions": [session("bad", status="done")]}, {}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_request_stores_nothing(service: Service, name: str) -> None:
    status, code, path, body, headers = REFUSED[name]
    answer = service.post(path, body, headers)
    assert_error(answer, status, code)
    if code == "UNSUPPORTED_ENCODING":
        assert answer.headers["accept-encoding"] == "gzip"


def test_every_invalid_record_is_named_up_to_100(service: Service) -> None:
    document = {"tasks": [task("a", status="x"), task("b"), task("c", updated_at="2999-01-01"), None]}
    errors = assert_error(service.post(TASKS, document), 422, "INVALID_RECORD")
    assert [error["field"] for error in errors] == ["tasks[0].status", "tasks[2].updated_at", "tasks[3]"]
    errors = assert_error(service.post(TASKS, {"tasks": [task(status="x")] * 150}), 422, "INVALID_RECORD")
    assert [error["field"] for error in errors] == [f"tasks[{index}].status" for index in range(100)]


LENGTH = f"Content-Length: {len(VALID)}"
CHUNKED = "Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    ("code", "sent"),
    [
        ("BODY_CUT_SHORT", head(TASKS, LENGTH) + VALID[:-1]),
        ("BODY_CUT_SHORT", head(TASKS, f"Content-Length: {len(VALID) + 1}") + VALID),
        ("BODY_CUT_SHORT", head(TASKS, CHUNKED) + chunk(VALID)),
        ("BODY_CUT_SHORT", head(TASKS, CHUNKED) + chunk(VALID) + b"0\r\n"),
        ("INVALID_HTTP", head(TASKS, CHUNKED) + b"zz\r\n"),
        ("INVALID_HTTP", head(TASKS, "Content-Length: 5", CHUNKED) + VALID),
        ("INVALID_HTTP", b"hello\r\n\r\n"),
        ("INVALID_HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    ],
)
def test_a_request_that_is_cut_short_or_no_http_is_a_400_and_the_last_of_its_connection(
    service: Service, code: str, sent: bytes
) -> None:
    with closing(Connection(service)) as connection:
        connection.send(sent)
        if code == "BODY_CUT_SHORT":
            connection.send_no_more()
        answer = connection.answer()
        assert_error(answer, 400, code)
        assert answer.headers["connection"] == "close"
        assert connection.rest() == b""


def test_a_body_over_the_limit_is_a_413_before_it_is_read(service: Service) -> None:
    chunks = [chunk(b" " * 50_000)] * (1 + MAX_BODY_BYTES // 50_000)
    for fields, sent in (
        ([f"Content-Length: {MAX_BODY_BYTES + 1}"], []),
        ([f"Content-Length: {2**63}"], []),
        ([CHUNKED], chunks),
    ):
        with closing(Connection(service)) as connection:
            connection.send(head(TASKS, *fields), *sent)
            answer = connection.answer()
            assert_error(answer, 413, "BODY_TOO_LARGE")
            assert str(MAX_BODY_BYTES) in answer.json["detail"]
            assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(("path", "status"), [(TASKS, b"413"), ("/nowhere", b"404"), ("/", b"405")])
def test_expect_100_continue_is_answered_by_the_refusal_itself(service: Service, path: str, status: bytes) -> None:
    with closing(Connection(service)) as connection:
        connection.send(head(path, "Expect: 100-continue", f"Content-Length: {MAX_BODY_BYTES + 1}"))
        assert connection.first_line().startswith(b"HTTP/1.1 " + status)


def test_expect_100_continue_is_answered_by_100_where_the_body_is_wanted(service: Service) -> None:
    with closing(Connection(service)) as connection:
        connection.send(head(TASKS, "Expect: 100-continue", f"Content-Length: {len(INVALID)}"))
        assert connection.first_line() == b"HTTP/1.1 100 Continue\r\n"
        assert connection.first_line() == b"\r\n"
        connection.send(INVALID)
        assert_error(connection.answer(), 422, "INVALID_RECORD")


def test_the_connection_goes_on_after_a_refusal(service: Service) -> None:
    with closing(Connection(service)) as connection:
        for _ in range(3):
            connection.send(head(TASKS, f"Content-Length: {len(INVALID)}"), INVALID)
            assert_error(connection.answer(), 422, "INVALID_RECORD")
        connection.send(head("/", method="GET"))
        assert connection.answer("GET").status == 200


# ---- 401, 403


@pytest.mark.parametrize("path", [*sorted(PATHS), "/nowhere"])
def test_a_token_is_wanted_everywhere_but_on_the_open_paths(guarded: Service, path: str) -> None:
    method = PATHS.get(path, "GET")
    body = VALID if method == "POST" else None
    missing = guarded.request(method, path, body)
    wrong = guarded.request(method, path, body, {"Authorization": f"Bearer {TOKEN}x"})
    if path in OPEN:
        assert (missing.status, wrong.status) == (200, 200)
    else:
        assert_error(missing, 401, "TOKEN_MISSING")
        assert missing.headers["www-authenticate"] == "Bearer"
        assert_error(wrong, 403, "TOKEN_WRONG")
    if method == "GET" and path in PATHS:
        assert guarded.request("GET", path, headers={"Authorization": f"bearer {TOKEN}"}).status == 200


def test_with_the_token_records_are_accepted(with_token: Observed) -> None:
    before = with_token.stored()
    answer = with_token.service.post(TASKS, VALID, {"Authorization": f"Bearer {TOKEN}"})
    assert answer.status == 202
    assert with_token.stored() != before


def test_without_a_token_a_client_learns_neither_what_exists_nor_what_is_wrong(guarded: Service) -> None:
    for method, path, body in (("POST", "/nowhere", b"x"), ("DELETE", TASKS, None), ("POST", TASKS, b"{")):
        assert_error(guarded.request(method, path, body), 401, "TOKEN_MISSING")
    with closing(Connection(guarded)) as connection:
        connection.send(head(TASKS, "Expect: 100-continue", "Content-Length: 5000"))
        assert connection.first_line().startswith(b"HTTP/1.1 401 ")


def test_the_token_stands_in_no_log(guarded: Service) -> None:
    guarded.request("GET", STATS, headers={"Authorization": "Bearer guess"})
    guarded.request("GET", STATS, headers={"Authorization": f"Bearer {TOKEN}"})
    settings = guarded.directory / "started_with.json"  # of the running service, for ctl
    assert settings.stat().st_mode & 0o777 == 0o600
    written = [path.read_bytes() for path in guarded.directory.glob("*") if path.is_file() and path != settings]
    assert guarded.log.stat().st_size > 0
    assert not any(TOKEN.encode() in content or b"guess" in content for content in written)


# ---- 404, 405


@pytest.mark.parametrize("path", ["/nowhere", "/health/", "//", "/HEALTH", f"{TASKS}/1"])
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "DELETE"])
def test_an_unknown_path_is_a_404(service: Service, method: str, path: str) -> None:
    answer = service.request(method, path, VALID if method == "POST" else None)
    if method == "HEAD":
        assert (answer.status, answer.body) == (404, b"")
    else:
        assert_error(answer, 404, "NOT_FOUND")


@pytest.mark.parametrize("path", sorted(PATHS))
def test_a_wrong_method_is_a_405_that_names_the_right_ones(service: Service, path: str) -> None:
    allowed = ALLOWED[PATHS[path]]
    for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} - allowed:
        answer = service.request(method, path, VALID if method in ("POST", "PUT", "PATCH") else None)
        assert set(answer.headers["allow"].split(", ")) == allowed
        if method == "HEAD":
            assert (answer.status, answer.body) == (405, b"")
        else:
            assert_error(answer, 405, "METHOD_NOT_ALLOWED")


@pytest.mark.parametrize("path", [path for path, method in PATHS.items() if method == "GET"])
def test_head_is_get_without_its_body(service: Service, path: str) -> None:
    with closing(Connection(service)) as connection:
        connection.send(head(path, method="HEAD"), head("/", "Connection: close", method="GET"))
        # Two answers, one body: a body of the first would stand between them.
        first, second, body = connection.rest().split(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200 OK\r\n")
    assert second.startswith(b"HTTP/1.1 200 OK\r\n")
    assert json.loads(body)["status"] == "running"
    fields = dict(line.split(": ") for line in first.decode().splitlines()[1:])
    assert int(fields["content-length"]) > 0
    assert fields["content-type"] == service.get(path).headers["content-type"]


@pytest.mark.parametrize("path", [*PATHS, "/nowhere"])
def test_no_answer_is_for_other_sites_and_no_header_says_who_asks(service: Service, path: str) -> None:
    answer = service.request("GET", path, headers={"X-Forwarded-For": "203.0.113.7"})
    assert answer.status != 403
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


# ---- 503, and health and readiness along the way


def large(task_id: str) -> bytes:
    """Some 100 kB."""
    return json.dumps({"tasks": [task(task_id, source_text="x" * 50_000, target_text="y" * 50_000)]}).encode()


def fill(service: Service, most: int = 30) -> tuple[int, Answer]:
    """Posts until the journal is full. Returns: how many were accepted, and the refusal."""
    for number in range(most):
        answer = service.post(TASKS, large(f"fill-{number}"))
        if answer.status != 202:
            return number, answer
    raise AssertionError("the journal never filled")


def journal_bytes(service: Service) -> dict[str, bytes]:
    """Of segments that hold records; the next one may be opened at any moment."""
    return {path.name: path.read_bytes() for path in service.segments()}


def test_healthy_means_ready(running: Observed) -> None:
    health = running.service.get("/health")
    assert (health.status, health.json["status"], health.json["database"]) == (200, "healthy", "healthy")
    assert health.json["version"] == VERSION
    assert health.json["uptime_seconds"] > 0
    counts = {"sessions_count", "tasks_count", "total_count", "capacity", "usage_percent", "last_flush"}
    assert health.json["buffer"].keys() >= counts
    assert health.json["buffer"]["total_count"] >= 1
    ready = running.service.get("/ready")
    assert (ready.status, ready.json["ready"]) == (200, True)


def test_a_full_journal_is_a_503_while_the_database_cannot_be_reached(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str, short_path: Path
) -> None:
    service = start_service(
        mariadb,
        database,
        JOURNAL_MAX_BYTES=MIB,
        SERVICE_MAX_BODY_BYTES=MIB,
        BUFFER_FLUSH_INTERVAL=3600,
        DB_SOCKET=short_path / "none",
    )
    # Degraded: the database is away, and records are accepted.
    health = service.get("/health")
    assert health.status == 200
    assert health.json["status"] == "degraded"
    assert health.json["database"] == "unhealthy"
    assert health.json["reason"]
    assert service.get("/ready").status == 200

    accepted, refused = fill(service)

    assert accepted >= 9  # of 100 kB in 1 MiB
    assert_error(refused, 503, "JOURNAL_FULL")
    assert_retry_after(refused)
    before = journal_bytes(service)
    again = service.post(TASKS, large("again"))
    assert_error(again, 503, "JOURNAL_FULL")
    assert_retry_after(again)
    assert journal_bytes(service) == before
    assert service.stats()["buffer"]["total_count"] == accepted

    def unhealthy() -> bool:
        # The refusal is shown for some seconds only: another may fit.
        assert service.post(TASKS, large("again")).status == 503
        answer = service.get("/health")
        return answer.status == 503 and answer.json["status"] == "unhealthy"

    wait_until(unhealthy)
    assert "journal" in service.get("/health").json["reason"]
    assert service.post(TASKS, large("again")).status == 503
    ready = service.get("/ready")
    assert ready.status == 503
    assert ready.json["ready"] is False
    assert "journal" in ready.json["reason"]
    assert service.get("/").status == 200  # alive all the same


def test_a_backlog_over_half_degrades_a_full_one_refuses_and_an_empty_one_accepts_again(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(
        mariadb, database, JOURNAL_MAX_BYTES=MIB, SERVICE_MAX_BODY_BYTES=MIB, BUFFER_FLUSH_INTERVAL=3600
    )
    assert service.post(TASKS, {"tasks": [task("first")]}).status == 202
    assert service.flush().status == 200
    assert service.get("/health").json["status"] == "healthy"
    blocker = mariadb.connect(database)
    try:
        blocker.query("LOCK TABLES translation_tasks WRITE")
        for number in range(6):
            assert service.post(TASKS, large(f"fill-{number}")).status == 202
        health = service.get("/health")
        assert health.status == 200
        assert health.json["status"] == "degraded"
        assert health.json["database"] == "healthy"
        assert health.json["buffer"]["usage_percent"] > 50
        assert service.get("/ready").status == 200

        incomplete = service.request("POST", f"{FLUSH}?timeout=0.2")
        assert_error(incomplete, 503, "FLUSH_INCOMPLETE")
        assert incomplete.json["status"] == "error"
        assert incomplete.json["pending"] == 6
        assert_retry_after(incomplete)

        accepted, refused = fill(service)
        assert_error(refused, 503, "JOURNAL_FULL")
        assert_retry_after(refused)
    finally:
        blocker.close()

    assert service.flush().status == 200
    assert service.post(TASKS, large("again")).status == 202
    wait_until(lambda: service.get("/health").json["status"] == "healthy")
    rows = mariadb.execute("SELECT COUNT(*) FROM translation_tasks", (), database)
    assert rows == [(1 + max(6, accepted),)]  # fill() used the keys of the first six again


def test_a_flusher_that_is_away_is_a_503_within_the_deadline(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, SERVICE_ACK_TIMEOUT=0.3, BUFFER_FLUSH_INTERVAL=3600)
    assert service.post(TASKS, {"tasks": [task("accepted")]}).status == 202
    service.kill_flusher()
    before = journal_bytes(service)

    for path, document in ((TASKS, {"tasks": [task("refused")]}), (SESSIONS, {"sessions": [session("refused")]})):
        answer = service.post(path, document)
        assert_error(answer, 503, "FLUSHER_UNAVAILABLE")
        assert_retry_after(answer)
    for method, path in (("GET", STATS), ("POST", f"{FLUSH}?timeout=0")):
        answer = service.request(method, path)
        assert_error(answer, 503, "FLUSHER_UNAVAILABLE")
        assert_retry_after(answer)
    health = service.get("/health")
    assert health.status == 503
    assert health.json["status"] == "unhealthy"
    assert health.json.keys() >= {"database", "buffer", "uptime_seconds", "version"}
    ready = service.get("/ready")
    assert ready.status == 503
    assert "flusher" in ready.json["reason"]
    assert service.get("/").status == 200
    metrics = service.get("/metrics")
    assert metrics.status == 200
    assert b"persistence_flusher_up 0.0" in metrics.body
    assert journal_bytes(service) == before

    service.start_flusher()
    service.wait_ready()
    assert service.flush().status == 200
    assert mariadb.execute("SELECT task_id FROM translation_tasks", (), database) == [("accepted",)]
    assert mariadb.execute("SELECT * FROM translation_sessions", (), database) == []
