"""Every row of the contract's error table over real HTTP; each leaves the tables and the journal as they were."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.mariadb import MariaDB
from tests.support.service import FLUSH, SESSIONS, STATS, TASKS, Answer, Service, session, task, wait_until

JSON = {"Content-Type": "application/json"}
MAX_BODY_BYTES = 64 * 1024


@pytest.fixture(scope="module")
def node(mariadb: MariaDB) -> Iterator[tuple[Service, str]]:
    """One service for all cases: each shows that it has left nothing behind."""
    directory = Path(tempfile.mkdtemp(prefix="ps-", dir="/tmp"))
    database = mariadb.create_database()
    service = Service(directory, mariadb, database, SERVICE_MAX_BODY_BYTES=MAX_BODY_BYTES, BUFFER_MAX_BATCH_SIZE=50)
    service.start()
    yield service, database
    service.stop()
    mariadb.drop_database(database)
    shutil.rmtree(directory)


def stored(service: Service, mariadb: MariaDB, database: str) -> tuple[Any, ...]:
    """All that a refused request must not change. The journal's bytes are read from the disk."""
    journal = [path.stat().st_size for path in sorted(service.journal.iterdir())]
    rows = [mariadb.execute(f"SELECT * FROM translation_{kind}", (), database) for kind in ("sessions", "tasks")]
    return journal, rows, service.stats()["buffer"]["total_count"]


@pytest.fixture
def refuses(node: tuple[Service, str], mariadb: MariaDB) -> Iterator[Callable[..., Answer]]:
    """refuses(answer, status, code): checks the error document; at the end, that nothing was stored."""
    service, database = node
    before = stored(service, mariadb, database)

    def check(answer: Answer, status: int, code: str) -> Answer:
        assert answer.status == status, answer
        assert answer.headers["content-type"] == "application/json"
        document = answer.json
        assert document["error_code"] == code
        assert document["detail"]
        assert isinstance(document["errors"], list)
        for error in document["errors"]:
            assert set(error) == {"field", "message"}
        return answer

    yield check
    assert service.flush().json["tasks_written"] == 0
    assert stored(service, mariadb, database) == before


def raw(service: Service, data: bytes, *, half_close: bool = False) -> Answer:
    """Sends bytes as they are and reads one answer to the end of the connection."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
        connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    if not received:
        return Answer(0, {}, b"")
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return Answer(int(lines[0].split()[1]), headers, body)


def head(path: str, **headers: object) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "INVALID_JSON"),
        (b"{", "INVALID_JSON"),
        (b"\xff\xfe", "INVALID_JSON"),
        (b'{"tasks":[NaN]}', "INVALID_JSON"),
        (b'{"tasks":' + b"[" * 5000, "INVALID_JSON"),
        (b"[]", "INVALID_SHAPE"),
        (b"null", "INVALID_SHAPE"),
        (b'{"sessions":[]}', "INVALID_SHAPE"),
        (b'{"tasks":{}}', "INVALID_SHAPE"),
    ],
)
def test_400_what_is_not_json_or_has_the_wrong_shape(
    node: tuple[Service, str], refuses: Callable[..., Answer], body: bytes, code: str
) -> None:
    refuses(node[0].request("POST", TASKS, body, JSON), 400, code)


def test_400_a_parameter_out_of_range(node: tuple[Service, str], refuses: Callable[..., Answer]) -> None:
    for query in ("ack=never", "ack=committed&timeout=61", "timeout=-1", "timeout=soon", "timeout=nan"):
        refuses(node[0].post(f"{TASKS}?{query}", {"tasks": [task()]}), 400, "INVALID_PARAMETER")
    refuses(node[0].request("POST", f"{FLUSH}?timeout=61"), 400, "INVALID_PARAMETER")


def test_a_body_cut_short_by_its_client_is_not_stored(
    node: tuple[Service, str], refuses: Callable[..., Answer]
) -> None:
    body = json.dumps({"tasks": [task()]}).encode()
    for cut in (0, 1, len(body) - 1):
        answer = raw(node[0], head(TASKS, Content_Length=len(body)) + body[:cut], half_close=True)
        refuses(answer, 400, "BODY_CUT_SHORT")


def test_400_a_gzip_body_cut_short_or_no_gzip_at_all(node: tuple[Service, str], refuses: Callable[..., Answer]) -> None:
    packed = gzip.compress(json.dumps({"tasks": [task()]}).encode())
    headers = {**JSON, "Content-Encoding": "gzip"}
    refuses(node[0].request("POST", TASKS, packed[:-1], headers), 400, "BODY_CUT_SHORT")
    refuses(node[0].request("POST", TASKS, packed + b"x", headers), 400, "BODY_CUT_SHORT")
    refuses(node[0].request("POST", TASKS, b"plain", headers), 400, "INVALID_GZIP")


def test_404_and_405_say_so_before_the_body_is_read(node: tuple[Service, str], refuses: Callable[..., Answer]) -> None:
    service = node[0]
    refuses(service.get("/nothing"), 404, "NOT_FOUND")
    refuses(service.post("/api/v1/persistence/other/batch", {}), 404, "NOT_FOUND")
    answer = refuses(service.get(TASKS), 405, "METHOD_NOT_ALLOWED")
    assert answer.headers["allow"] == "POST"
    answer = refuses(service.request("DELETE", STATS), 405, "METHOD_NOT_ALLOWED")
    assert answer.headers["allow"] == "GET, HEAD"
    # No 100 Continue comes before the refusal, and the connection ends with it.
    for path, status in (("/nothing", 404), ("/health", 405), (TASKS, 413)):
        answer = raw(service, head(path, Content_Length=10**9, Expect="100-continue"))
        assert (answer.status, answer.headers["connection"]) == (status, "close")


def test_413_a_body_over_the_limit_declared_chunked_or_packed(
    node: tuple[Service, str], refuses: Callable[..., Answer]
) -> None:
    service = node[0]
    over = b" " * (MAX_BODY_BYTES + 1)
    refuses(service.request("POST", TASKS, over, JSON), 413, "BODY_TOO_LARGE")
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(over), over) for _ in range(2)) + b"0\r\n\r\n"
    refuses(raw(service, head(TASKS, Transfer_Encoding="chunked") + chunks), 413, "BODY_TOO_LARGE")
    bomb = gzip.compress(b" " * 50_000_000)
    assert len(bomb) < MAX_BODY_BYTES
    headers = {**JSON, "Content-Encoding": "gzip"}
    refuses(service.request("POST", TASKS, bomb, headers), 413, "BODY_TOO_LARGE")


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "application/json", "Content-Encoding": "br"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip, gzip"},
    ],
)
def test_415_another_type_or_encoding(
    node: tuple[Service, str], refuses: Callable[..., Answer], headers: dict[str, str]
) -> None:
    code = "UNSUPPORTED_ENCODING" if "Content-Encoding" in headers else "UNSUPPORTED_MEDIA_TYPE"
    refuses(node[0].request("POST", TASKS, b'{"tasks":[]}', headers), 415, code)


def test_422_names_every_invalid_record_and_stores_none_of_the_request(
    node: tuple[Service, str], refuses: Callable[..., Answer]
) -> None:
    tasks = [task("good"), task("bad", status="done"), {}, 7, task("far", updated_at="2999-01-01T00:00:00Z")]
    answer = refuses(node[0].post(TASKS, {"tasks": tasks}), 422, "INVALID_RECORD")
    fields = [error["field"] for error in answer.json["errors"]]
    assert fields == ["tasks[1].status", "tasks[2].task_id", "tasks[3]", "tasks[4].updated_at"]
    answer = refuses(node[0].post(SESSIONS, {"sessions": [session(metadata=[1])]}), 422, "INVALID_RECORD")
    assert answer.json["errors"][0]["field"] == "sessions[0].metadata"
    for tasks in ([], [task(f"t{number}") for number in range(51)]):
        answer = refuses(node[0].post(TASKS, {"tasks": tasks}), 422, "INVALID_RECORD")
        assert answer.json["errors"][0]["field"] == "tasks"


def test_401_and_403_with_a_token(start_service: Callable[..., Service], mariadb: MariaDB, database: str) -> None:
    service = start_service(mariadb, database, SERVICE_AUTH_TOKEN="right-token")
    body = {"tasks": [task()]}
    missing = service.post(TASKS, body)
    assert (missing.status, missing.json["error_code"]) == (401, "TOKEN_MISSING")
    assert missing.headers["www-authenticate"] == "Bearer"
    for wrong in ("Bearer wrong", "Bearer right-toke", "Bearer right-token2", "Basic right-token", "right-token"):
        refused = service.post(TASKS, body, {"Authorization": wrong})
        assert (refused.status, refused.json["error_code"]) == (403, "TOKEN_WRONG"), wrong
    for path in ("/metrics", "/openapi.json", STATS):
        assert service.get(path).status == 401
    for path in ("/", "/health", "/ready"):
        assert service.get(path).status == 200
    allowed = {"Authorization": "Bearer right-token"}
    assert service.request("POST", FLUSH, headers=allowed).json["tasks_written"] == 0
    assert service.post(TASKS, body, allowed).status == 202
    assert service.request("GET", STATS, headers=allowed).json["accepted"]["tasks"] == 1


def test_503_a_full_journal_says_when_to_come_back_and_takes_records_again_by_itself(
    start_service: Callable[..., Service], own_mariadb: MariaDB
) -> None:
    name = own_mariadb.create_database()
    service = start_service(own_mariadb, name, JOURNAL_MAX_BYTES=1024 * 1024)
    own_mariadb.stop()
    accepted = 0
    while True:
        tasks = [task(f"{accepted}-{number}", source_text="x" * 1000) for number in range(100)]
        answer = service.post(TASKS, {"tasks": tasks})
        if answer.status != 202:
            break
        accepted += 100
    assert (answer.status, answer.json["error_code"]) == (503, "JOURNAL_FULL")
    assert re.fullmatch(r"[1-9]\d*", answer.headers["retry-after"])
    assert service.get("/health").status == 503
    assert service.get("/health").json["status"] == "unhealthy"
    assert service.get("/ready").status == 503
    size = sum(path.stat().st_size for path in service.journal.iterdir())
    assert service.post(TASKS, {"tasks": tasks}).status == 503
    assert sum(path.stat().st_size for path in service.journal.iterdir()) <= size + 20  # a new segment's header

    own_mariadb.start()

    wait_until(lambda: service.post(TASKS, {"tasks": [task("after")]}).status == 202, 60, "202 again")
    assert service.flush().status == 200
    assert service.get("/health").status == 200
    assert own_mariadb.execute("SELECT COUNT(*) FROM translation_tasks", (), name) == [(accepted + 1,)]


def test_503_without_a_flusher(start_service: Callable[..., Service], mariadb: MariaDB, database: str) -> None:
    service = start_service(mariadb, database, SERVICE_ACK_TIMEOUT=0.5)
    assert service.flusher is not None
    service.flusher.kill()
    service.flusher.wait()
    wait_until(lambda: service.get("/health").status == 503)
    answer = service.post(TASKS, {"tasks": [task()]})
    assert (answer.status, answer.json["error_code"]) == (503, "FLUSHER_UNAVAILABLE")
    assert int(answer.headers["retry-after"]) >= 1
    assert service.get("/ready").json["reason"]
    assert service.get("/").status == 200
    assert service.get("/metrics").status == 200
    assert mariadb.execute("SELECT COUNT(*) FROM translation_tasks", (), database) == [(0,)]


def test_gzip_head_and_lax_numbers_pass(node: tuple[Service, str], mariadb: MariaDB) -> None:
    service, database = node
    body = json.dumps({"tasks": [task("gzip", row_index="10", retry_count=2.0)]}).encode()
    headers = {**JSON, "Content-Encoding": "gzip"}
    assert service.request("POST", TASKS, gzip.compress(body), headers).status == 202
    assert service.flush().status == 200
    rows = mariadb.execute("SELECT row_index, retry_count FROM translation_tasks WHERE task_id='gzip'", (), database)
    assert rows == [(10, 2)]
    answer = raw(service, b"HEAD /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert (answer.status, answer.body) == (200, b"")
