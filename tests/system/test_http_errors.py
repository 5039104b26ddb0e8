"""Every row of the contract's error table, over real HTTP: what is refused leaves the tables and the journal as they
were, to the byte."""

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


def assert_problem(answer: Answer, status: int, code: str) -> list[dict[str, str]]:
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


# ---- 400


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"not json", VALID[:-1], VALID + b"}", b"\xff\xfe", b'{"tasks":[NaN]}', b'{"tasks":["\\ud800"]}'],
)
@pytest.mark.parametrize("path", [SESSIONS, TASKS])
def test_what_is_not_json_is_a_400(service: Service, path: str, body: bytes) -> None:
    assert_problem(service.post(path, body), 400, "INVALID_JSON")


@pytest.mark.parametrize(("depth", "code"), [(1025, "INVALID_JSON"), (90_000, "INVALID_SHAPE")])
def test_json_that_is_nested_without_end_is_a_400(service: Service, depth: int, code: str) -> None:
    assert_problem(service.post(TASKS, b"[" * depth + b"]" * depth), 400, code)


@pytest.mark.parametrize(
    "body", [b"null", b"1", b"[]", b"{}", b'{"tasks":null}', b'{"tasks":{}}', b'{"sessions":[]}', b'{"Tasks":[]}']
)
def test_another_top_level_shape_is_a_400(service: Service, body: bytes) -> None:
    assert_problem(service.post(TASKS, body), 400, "INVALID_SHAPE")


def test_records_of_the_other_kind_are_a_400(service: Service) -> None:
    assert_problem(service.post(SESSIONS, VALID), 400, "INVALID_SHAPE")


@pytest.mark.parametrize("sent", [0, 1, len(VALID) // 2, len(VALID) - 1])
def test_a_body_cut_short_by_its_client_is_a_400(service: Service, sent: int) -> None:
    with closing(Connection(service)) as connection:
        connection.send(head(TASKS, f"Content-Length: {len(VALID)}"), VALID[:sent])
        connection.send_no_more()
        assert_problem(connection.answer(), 400, "BODY_CUT_SHORT")
        assert connection.rest() == b""


def test_a_whole_document_that_is_shorter_than_announced_is_cut_short_too(service: Service) -> None:
    with closing(Connection(service)) as connection:
        connection.send(head(TASKS, f"Content-Length: {len(VALID) + 1}"), VALID)
        connection.send_no_more()
        assert_problem(connection.answer(), 400, "BODY_CUT_SHORT")


def test_a_chunked_body_without_its_last_chunk_is_cut_short(service: Service) -> None:
    for ending in (chunk(VALID), chunk(VALID)[:-3], b"", b"0\r\n"):
        with closing(Connection(service)) as connection:
            connection.send(head(TASKS, "Transfer-Encoding: chunked"), ending)
            connection.send_no_more()
            assert_problem(connection.answer(), 400, "BODY_CUT_SHORT")


def test_a_client_that_leaves_in_mid_body_leaves_nothing_behind(service: Service) -> None:
    def left() -> int:
        return service.requests().get(TASKS, {}).get(400, 0)

    before = left()
    with closing(Connection(service)) as connection:
        connection.send(head(TASKS, f"Content-Length: {len(VALID) + 1}"), VALID)
    wait_until(lambda: left() == before + 1, what="it is counted as cut short")


def test_a_content_length_below_the_body_is_a_400(service: Service) -> None:
    with closing(Connection(service)) as connection:
        connection.send(head(TASKS, f"Content-Length: {len(VALID) - 1}", "Connection: close"), VALID)
        assert_problem(connection.answer(), 400, "INVALID_JSON")


@pytest.mark.parametrize(
    "fields",
    [
        ["Content-Length: -1"],
        ["Content-Length: +5"],
        ["Content-Length: 0x10"],
        ["Content-Length: many"],
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: gzip"],
    ],
)
def test_a_request_whose_length_nobody_can_tell_is_a_400(service: Service, fields: list[str]) -> None:
    with closing(Connection(service)) as connection:
        # In one piece: closing with unread bytes would reset the connection.
        connection.send(head(TASKS, *fields) + VALID)
        assert_problem(connection.answer(), 400, "INVALID_HTTP")
        assert connection.rest() == b""


@pytest.mark.parametrize(
    "data", [b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/9\r\n\r\n"]
)
def test_what_is_no_http_is_a_400(service: Service, data: bytes) -> None:
    with closing(Connection(service)) as connection:
        connection.send(data)
        assert_problem(connection.answer(), 400, "INVALID_HTTP")


def test_a_broken_chunk_is_a_400(service: Service) -> None:
    with closing(Connection(service)) as connection:
        connection.send(head(TASKS, "Transfer-Encoding: chunked"), b"zz\r\n")
        assert_problem(connection.answer(), 400, "INVALID_HTTP")


@pytest.mark.parametrize("body", [VALID, b"\x1f\x8b", gzip.compress(VALID)[1:], b"\x00" * 50])
def test_gzip_that_is_none_is_a_400(service: Service, body: bytes) -> None:
    code = "BODY_CUT_SHORT" if body == b"\x1f\x8b" else "INVALID_GZIP"
    assert_problem(service.post(TASKS, body, {"Content-Encoding": "gzip"}), 400, code)


@pytest.mark.parametrize(
    "packed", [gzip.compress(VALID)[:-1], gzip.compress(VALID)[:-9], gzip.compress(VALID) * 2 + b"\x1f", b""]
)
def test_a_gzip_stream_that_does_not_end_with_the_body_is_a_400(service: Service, packed: bytes) -> None:
    assert_problem(service.post(TASKS, packed, {"Content-Encoding": "gzip"}), 400, "BODY_CUT_SHORT")


def test_gzip_with_a_wrong_checksum_is_a_400(service: Service) -> None:
    packed = bytearray(gzip.compress(VALID))
    packed[-8] ^= 1
    assert_problem(service.post(TASKS, bytes(packed), {"Content-Encoding": "gzip"}), 400, "INVALID_GZIP")


@pytest.mark.parametrize(
    "query", ["ack=maybe", "ack=committed&timeout=-1", "timeout=60.1", "timeout=soon", "timeout=nan"]
)
def test_a_parameter_out_of_range_is_a_400(service: Service, query: str) -> None:
    assert_problem(service.post(f"{TASKS}?{query}", VALID), 400, "INVALID_PARAMETER")


@pytest.mark.parametrize("timeout", ["-1", "60.1", "soon", "nan", "inf"])
def test_a_flush_timeout_out_of_range_is_a_400_and_flushes_nothing(service: Service, timeout: str) -> None:
    assert_problem(service.request("POST", f"{FLUSH}?timeout={timeout}"), 400, "INVALID_PARAMETER")


# ---- 401, 403


@pytest.mark.parametrize("path", [*sorted(PATHS.keys() - OPEN), "/nowhere"])
def test_without_a_token_everything_but_the_open_paths_is_a_401(guarded: Service, path: str) -> None:
    answer = guarded.request(PATHS.get(path, "GET"), path, VALID if PATHS.get(path) == "POST" else None)
    assert_problem(answer, 401, "TOKEN_MISSING")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", sorted(PATHS.keys() - OPEN))
@pytest.mark.parametrize(
    "value",
    [f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer ", "Bearer", "", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN} x"],
)
def test_with_a_wrong_token_everything_but_the_open_paths_is_a_403(guarded: Service, path: str, value: str) -> None:
    answer = guarded.request(PATHS[path], path, VALID if PATHS[path] == "POST" else None, {"Authorization": value})
    assert_problem(answer, 403, "TOKEN_WRONG")


@pytest.mark.parametrize("path", sorted(OPEN))
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
def test_the_open_paths_are_answered_whatever_the_token(guarded: Service, path: str, headers: dict[str, str]) -> None:
    assert guarded.request("GET", path, headers=headers).status == 200


@pytest.mark.parametrize("path", [path for path, method in PATHS.items() if method == "GET"])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_with_the_token_every_path_is_answered(guarded: Service, path: str, scheme: str) -> None:
    assert guarded.request("GET", path, headers={"Authorization": f"{scheme} {TOKEN}"}).status == 200


def test_with_the_token_records_are_accepted(with_token: Observed) -> None:
    before = with_token.stored()
    answer = with_token.service.post(TASKS, VALID, {"Authorization": f"Bearer {TOKEN}"})
    assert answer.status == 202
    assert with_token.stored() != before


def test_who_has_no_token_learns_neither_what_exists_nor_what_is_wrong(guarded: Service) -> None:
    for method, path, body in (("POST", "/nowhere", b"x"), ("DELETE", TASKS, None), ("POST", TASKS, b"{")):
        assert_problem(guarded.request(method, path, body), 401, "TOKEN_MISSING")


def test_no_byte_of_a_body_is_asked_for_without_a_token(guarded: Service) -> None:
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


@pytest.mark.parametrize(
    "path",
    ["/nowhere", "/health/", "//", "/HEALTH", "/api/v1/persistence", "/api/v1/persistence/words/batch", f"{TASKS}/1"],
)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "DELETE"])
def test_an_unknown_path_is_a_404(service: Service, method: str, path: str) -> None:
    answer = service.request(method, path, VALID if method == "POST" else None)
    if method == "HEAD":
        assert (answer.status, answer.body) == (404, b"")
    else:
        assert_problem(answer, 404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("path", "method"),
    [
        (path, method)
        for path in sorted(PATHS)
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
        if method not in ALLOWED[PATHS[path]]
    ],
)
def test_a_wrong_method_is_a_405_that_names_the_right_ones(service: Service, path: str, method: str) -> None:
    answer = service.request(method, path, VALID if method in ("POST", "PUT", "PATCH") else None)
    assert set(answer.headers["allow"].split(", ")) == ALLOWED[PATHS[path]]
    if method == "HEAD":
        assert (answer.status, answer.body) == (405, b"")
    else:
        assert_problem(answer, 405, "METHOD_NOT_ALLOWED")


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


# ---- 413


def test_a_body_announced_over_the_limit_is_a_413_before_a_byte_of_it_is_read(service: Service) -> None:
    for length in (MAX_BODY_BYTES + 1, 10**12, 2**63):
        with closing(Connection(service)) as connection:
            connection.send(head(TASKS, f"Content-Length: {length}"))
            answer = connection.answer()
            assert_problem(answer, 413, "BODY_TOO_LARGE")
            assert str(MAX_BODY_BYTES) in answer.json["detail"]
            assert answer.headers["connection"] == "close"


def test_a_client_that_sends_its_whole_over_large_body_first_still_reads_the_413(service: Service) -> None:
    # Closing with unread bytes would reset the connection under the answer.
    assert_problem(service.post(TASKS, VALID + b" " * 3_000_000), 413, "BODY_TOO_LARGE")


@pytest.mark.parametrize("path", [TASKS, "/nowhere", "/"])
def test_expect_100_continue_is_answered_by_the_refusal_itself(service: Service, path: str) -> None:
    status = {TASKS: b"413", "/nowhere": b"404", "/": b"405"}[path]
    with closing(Connection(service)) as connection:
        connection.send(head(path, "Expect: 100-continue", f"Content-Length: {MAX_BODY_BYTES + 1}"))
        assert connection.first_line().startswith(b"HTTP/1.1 " + status)


def test_expect_100_continue_is_answered_by_100_where_the_body_is_wanted(service: Service) -> None:
    with closing(Connection(service)) as connection:
        connection.send(head(TASKS, "Expect: 100-continue", f"Content-Length: {len(INVALID)}"))
        assert connection.first_line() == b"HTTP/1.1 100 Continue\r\n"
        assert connection.first_line() == b"\r\n"
        connection.send(INVALID)
        assert_problem(connection.answer(), 422, "INVALID_RECORD")


def test_a_chunked_body_over_the_limit_is_a_413_before_it_ends(service: Service) -> None:
    with closing(Connection(service)) as connection:
        connection.send(head(TASKS, "Transfer-Encoding: chunked"), chunk(VALID))
        connection.send(*[chunk(b" " * 50_000)] * (MAX_BODY_BYTES // 50_000))
        assert_problem(connection.answer(), 413, "BODY_TOO_LARGE")


def test_a_gzip_bomb_is_a_413(service: Service) -> None:
    bomb = gzip.compress(VALID + b" " * 100_000_000)
    assert len(bomb) < MAX_BODY_BYTES
    assert_problem(service.post(TASKS, bomb, {"Content-Encoding": "gzip"}), 413, "BODY_TOO_LARGE")


def test_the_limit_holds_to_the_byte_for_the_unpacked_size(service: Service) -> None:
    packed = gzip.compress(VALID + blank(MAX_BODY_BYTES + 1 - len(VALID)))
    assert_problem(service.post(TASKS, packed, {"Content-Encoding": "gzip"}), 413, "BODY_TOO_LARGE")


# ---- 415


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "application/json; charset=utf-16",
        "application/msgpack",
        "",
    ],
)
def test_another_content_type_is_a_415(service: Service, content_type: str) -> None:
    assert_problem(service.post(TASKS, VALID, {"Content-Type": content_type}), 415, "UNSUPPORTED_MEDIA_TYPE")


def test_no_content_type_is_a_415(service: Service) -> None:
    assert_problem(service.request("POST", TASKS, VALID), 415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip", "gzip, br", "*", ""])
def test_an_unknown_content_encoding_is_a_415_that_names_the_known_one(service: Service, encoding: str) -> None:
    answer = service.post(TASKS, VALID, {"Content-Encoding": encoding})
    assert_problem(answer, 415, "UNSUPPORTED_ENCODING")
    assert answer.headers["accept-encoding"] == "gzip"


# ---- 422


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"task_id": ""}, "task_id"),
        ({"task_id": "x" * 65}, "task_id"),
        ({"source_text": "x" * 65536}, "source_text"),
        ({"source_text": None}, "source_text"),
        ({"status": "done"}, "status"),
        ({"row_index": -1}, "row_index"),
        ({"row_index": 2**31}, "row_index"),
        ({"row_index": "many"}, "row_index"),
        ({"confidence": 1.01}, "confidence"),
        ({"start_time": "yesterday"}, "start_time"),
        ({"start_time": "0999-01-01T00:00:00Z"}, "start_time"),
        ({"updated_at": "2999-01-01T00:00:00Z"}, "updated_at"),
    ],
)
def test_an_invalid_task_is_a_422_and_takes_the_whole_request_with_it(
    service: Service, fields: dict[str, Any], wrong: str
) -> None:
    document = {"tasks": [task("good-1"), {**task("bad"), **fields}, task("good-2")]}
    errors = assert_problem(service.post(TASKS, document), 422, "INVALID_RECORD")
    assert [error["field"] for error in errors] == [f"tasks[1].{wrong}"]


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"session_id": "x" * 37}, "session_id"),
        ({"status": "done"}, "status"),
        ({"total_tasks": 1.5}, "total_tasks"),
        ({"metadata": []}, "metadata"),
        ({"game_info": json.loads('{"a":' * 20 + "{}" + "}" * 20)}, "game_info"),
        ({"metadata": {"x" * 65536: 1}}, "metadata"),
    ],
)
def test_an_invalid_session_is_a_422_and_takes_the_whole_request_with_it(
    service: Service, fields: dict[str, Any], wrong: str
) -> None:
    errors = assert_problem(
        service.post(SESSIONS, {"sessions": [session("good"), {**session("bad"), **fields}]}), 422, "INVALID_RECORD"
    )
    assert [error["field"] for error in errors] == [f"sessions[1].{wrong}"]


def test_a_missing_field_is_named(service: Service) -> None:
    bad = task()
    del bad["source_text"]
    errors = assert_problem(service.post(TASKS, {"tasks": [bad]}), 422, "INVALID_RECORD")
    assert errors == [{"field": "tasks[0].source_text", "message": "is required"}]


@pytest.mark.parametrize("count", [0, 1001])
def test_none_or_too_many_records_are_a_422(service: Service, count: int) -> None:
    document = {"tasks": [{"task_id": "x"}] * count}
    (error,) = assert_problem(service.post(TASKS, document), 422, "INVALID_RECORD")
    assert error["field"] == "tasks"
    assert "1 to 1000" in error["message"]


def test_every_invalid_record_is_listed(service: Service) -> None:
    document = {
        "tasks": [task("a", status="x"), task("b"), task("c", updated_at="2999-01-01"), None, task("e", row_index=-1)]
    }
    errors = assert_problem(service.post(TASKS, document), 422, "INVALID_RECORD")
    assert [error["field"] for error in errors] == [
        "tasks[0].status",
        "tasks[2].updated_at",
        "tasks[3]",
        "tasks[4].row_index",
    ]


def test_at_most_100_invalid_records_are_listed(service: Service) -> None:
    errors = assert_problem(service.post(TASKS, {"tasks": [task(status="x")] * 150}), 422, "INVALID_RECORD")
    assert [error["field"] for error in errors] == [f"tasks[{index}].status" for index in range(100)]


def test_the_connection_goes_on_after_a_refusal(service: Service) -> None:
    with closing(Connection(service)) as connection:
        for _ in range(3):
            connection.send(head(TASKS, f"Content-Length: {len(INVALID)}"), INVALID)
            assert_problem(connection.answer(), 422, "INVALID_RECORD")
        connection.send(head("/", method="GET"))
        assert connection.answer("GET").status == 200


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
    service = running.service
    answer = service.get("/health")
    assert answer.status == 200
    document = answer.json
    assert document["status"] == "healthy"
    assert document["database"] == "healthy"
    assert document["version"] == VERSION
    assert document["uptime_seconds"] > 0
    assert document["buffer"].keys() >= {
        "sessions_count",
        "tasks_count",
        "total_count",
        "capacity",
        "usage_percent",
        "last_flush",
    }
    assert document["buffer"]["total_count"] >= 1
    ready = service.get("/ready")
    assert ready.status == 200
    assert ready.json["ready"] is True


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
    assert_problem(refused, 503, "JOURNAL_FULL")
    assert_retry_after(refused)
    before = journal_bytes(service)
    again = service.post(TASKS, large("again"))
    assert_problem(again, 503, "JOURNAL_FULL")
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
        assert_problem(incomplete, 503, "FLUSH_INCOMPLETE")
        assert incomplete.json["status"] == "error"
        assert incomplete.json["pending"] == 6
        assert_retry_after(incomplete)

        accepted, refused = fill(service)
        assert_problem(refused, 503, "JOURNAL_FULL")
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
        assert_problem(answer, 503, "FLUSHER_UNAVAILABLE")
        assert_retry_after(answer)
    for method, path in (("GET", STATS), ("POST", f"{FLUSH}?timeout=0")):
        answer = service.request(method, path)
        assert_problem(answer, 503, "FLUSHER_UNAVAILABLE")
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
