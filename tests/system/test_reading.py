"""The read side over real HTTP: what went in comes out, and nobody who reads holds up anybody else."""

from __future__ import annotations

import gzip
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.mariadb import MariaDB, numbers
from tests.support.service import SESSIONS, TASKS, Answer, Service, session, task, wait_until

READ = "/api/v1/persistence/sessions"
NDJSON = {"Accept": "application/x-ndjson"}
IDS = [
    "a/b",
    "%2F",
    "100%",
    "a?b#c&d=e+f",
    "会话",
    "🀄️",
    "trailing  ",
    ".",
    "..",
    "a\0b",
    "\\'\"",
    "batch",
    "{session_id}",
]


@pytest.fixture
def reading(start_service: Callable[..., Service], mariadb: MariaDB, database: str) -> Service:
    service = start_service(mariadb, database, READ_TIMEOUT=1, SERVICE_ACK_TIMEOUT=30)
    service.start_reader()
    return service


def path_of(session_id: str, task_id: str | None = None) -> str:
    # A segment of dots would be resolved on the way, and GET of /sessions/batch is another path's 405.
    first = f"{READ}/{encoded(session_id)}"
    return first if task_id is None else f"{first}/tasks/{encoded(task_id)}"


def encoded(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode()) if text in (".", "..", "batch") else quote(text, safe="")


def send(service: Service, kind: str, records: list[dict[str, Any]]) -> None:
    path = {"sessions": SESSIONS, "tasks": TASKS}[kind]
    assert service.post(path, {kind: records}).status == 202


def lines(answer: Answer) -> list[Any]:
    return [json.loads(line) for line in answer.body.splitlines()]


def fill(mariadb: MariaDB, database: str, tasks: int) -> None:
    """A session `large` with tasks of 2 KiB, more than sockets between here and there hold."""
    mariadb.execute(
        "INSERT INTO translation_tasks"
        " (session_id, task_id, batch_id, sheet_name, column_name, source_text, status, updated_at)"
        " SELECT 'large', CONCAT('T', LPAD(100 * a.n + b.n, 6, '0')), '', '', '', REPEAT('x', 2000), 'pending', NOW()"
        f" FROM {numbers(tasks // 100)} a, {numbers(100)} b",
        (),
        database,
    )


@pytest.fixture
def streams(reading: Service, mariadb: MariaDB, database: str) -> Iterator[Callable[[], socket.socket]]:
    """streams() -> a connection whose caller has asked for a large stream, and has read its header."""
    fill(mariadb, database, 10_000)
    opened: list[socket.socket] = []

    def begin() -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", reading.port), 20)
        opened.append(connection)
        head = f"GET {READ}/large/tasks HTTP/1.1\r\nHost: h\r\nAccept: application/x-ndjson\r\n\r\n"
        connection.sendall(head.encode())
        assert b"HTTP/1.1 200 OK\r\n" in connection.recv(64)
        return connection

    yield begin
    for connection in opened:
        connection.close()


def to_the_end(connection: socket.socket) -> bytes:
    data = b""
    try:
        while part := connection.recv(1 << 20):
            data += part
    except ConnectionResetError:
        pass
    return data


def test_what_went_in_comes_out_and_may_be_sent_again(reading: Service) -> None:
    sessions = [session(one, updated_at="2026-11-01T00:00:00Z") for one in IDS]
    sessions[0] |= {
        "metadata": {"a": [1, {"b": None}]},
        "game_info": {"名": 1.5},
        "total_tasks": 3,
        "stage": "th",
        "n": 1,
    }
    tasks = [task(one, session_id=IDS[-1 - at], updated_at="2026-11-01T00:00:00Z") for at, one in enumerate(IDS)]
    tasks[0] |= {
        "target_text": "ไทย\n\u2028",
        "context": {"k": [1]},
        "error_message": "",
        "confidence": 0.98765,
        "retry_count": 2,
        "start_time": "2026-11-01T08:00:00+08:00",
        "end_time": "2026-11-01T00:00:01.25Z",
        "duration_ms": 1250,
        "metadata": {"b": {}},
        "cost": 0.25,
        "glossary": ["剑"],
        "extra": {"x": 1},
        "none": None,
    }
    for _ in range(2):
        send(reading, "sessions", sessions)
        send(reading, "tasks", tasks)
        read = [reading.get(f"{path_of(one['session_id'])}?fresh=flushed").json for one in sessions]
        assert [one["progress"]["total"] for one in read] == [1] * len(IDS)
        found = [reading.get(path_of(one["session_id"], one["task_id"])).json for one in tasks]
        assert [one["session_id"] for one in read] == IDS
        assert [(one["session_id"], one["task_id"]) for one in found] == list(zip(IDS[::-1], IDS, strict=True))
        assert {name: read[0][name] for name in sessions[0] if name != "updated_at"}.items() <= sessions[0].items()
        assert (
            found[0].items()
            >= {
                **{name: value for name, value in tasks[0].items() if not name.endswith(("_time", "_at"))},
                "context": '{"k":[1]}',
                "confidence": 0.9877,
                "start_time": "2026-11-01T00:00:00.000000Z",
                "end_time": "2026-11-01T00:00:01.250000Z",
                "updated_at": "2026-11-01T00:00:00.000000Z",
            }.items()
        )
        sessions, before = read, sessions
        tasks, tasks_before = found, tasks
    assert (sessions, tasks) == (before, tasks_before)  # what was sent the second time


def test_a_flush_before_a_read_shows_what_was_accepted_before(reading: Service) -> None:
    send(reading, "tasks", [task("t1", session_id="s"), task("t2", session_id="s", status="failed")])
    stale = reading.get(f"{READ}/s/tasks").json
    assert (stale["tasks"], stale["pending_records"]) == ([], 2)
    fresh = reading.get(f"{READ}/s/tasks?fresh=flushed&status=failed").json
    assert ([one["task_id"] for one in fresh["tasks"]], fresh["pending_records"]) == (["t2"], 0)
    stream = reading.request("GET", f"{READ}/s/tasks?fields=task_id", headers=NDJSON)
    assert lines(stream) == [{"task_id": "t1"}, {"task_id": "t2"}, {"end": True, "count": 2}]
    assert stream.headers["content-type"] == "application/x-ndjson"
    assert "content-length" not in stream.headers


def test_a_stream_is_for_those_who_prefer_it(reading: Service) -> None:
    for accept, expected in {
        "application/x-ndjson;q=0.5, text/html;q=0.2": True,
        "application/json;q=0.5, application/x-ndjson": True,
        "application/json, application/x-ndjson;q=0.5": False,
        "application/x-ndjson;q=0": False,
        "*/*": False,
        "nonsense": False,
    }.items():
        answer = reading.request("GET", f"{READ}/s/tasks", headers={"Accept": accept})
        is_stream = answer.body == b'{"end":true,"count":0}\n'
        assert (answer.headers["content-type"] == "application/x-ndjson") is is_stream is expected, accept


def test_answers_are_packed_for_those_who_take_gzip(reading: Service, mariadb: MariaDB, database: str) -> None:
    fill(mariadb, database, 200)
    path = f"{READ}/large/tasks?limit=200"
    plain = reading.get(path)
    assert plain.headers["vary"] == "accept, accept-encoding"
    for encoding, expected in {
        "gzip": True,
        "br;q=1, X-GZIP;q=0.5": True,
        "gzip;q=0.000": False,
        "identity": False,
        "*": False,
        "deflate": False,
    }.items():
        headers = {"Accept-Encoding": encoding}
        page = reading.request("GET", path, headers=headers)
        stream = reading.request("GET", path.partition("?")[0], headers={**headers, **NDJSON})
        for answer in (page, stream):
            assert (answer.headers.get("content-encoding") == "gzip") is expected
            answer.body = gzip.decompress(answer.body) if expected else answer.body
        assert page.json["tasks"] == plain.json["tasks"] == lines(stream)[:-1]
        head = reading.request("HEAD", path, headers=headers)
        assert (head.status, head.body) == (200, b"")


WRONG = [
    (f"{READ}/%ff", 400, "INVALID_PATH"),
    (f"{READ}/%", 400, "INVALID_PATH"),
    (f"{READ}/%2", 400, "INVALID_PATH"),
    (f"{READ}/s/tasks/%C3%28", 400, "INVALID_PATH"),
    (f"{READ}/%ED%A0%80", 400, "INVALID_PATH"),  # a surrogate
    (f"{READ}/s?a=1", 400, "INVALID_PARAMETER"),
    (f"{READ}?limit=201", 400, "INVALID_PARAMETER"),
    (f"{READ}?updated_after=2026-11-01T00:00:00+08:00", 400, "INVALID_PARAMETER"),
    (f"{READ}?status=a%2Cpending", 400, "INVALID_PARAMETER"),
    (f"{READ}?fresh=always", 400, "INVALID_PARAMETER"),
    (f"{READ}?timeout=61", 400, "INVALID_PARAMETER"),
    (f"{READ}?cursor=AAAA", 400, "INVALID_CURSOR"),
    (f"{READ}/nobody", 404, "NOT_FOUND"),
    (f"{READ}/a%252Fb", 404, "NOT_FOUND"),  # decoded once: no session is called a%2Fb
    (f"{READ}/s/tasks/nobody", 404, "NOT_FOUND"),
    (f"{READ}/", 404, "NOT_FOUND"),
    (f"{READ}//tasks", 404, "NOT_FOUND"),
    (f"{READ}/s/tasks/", 404, "NOT_FOUND"),
    (f"{READ}/s/tasks/t/x", 404, "NOT_FOUND"),
    (f"{READ}/s%2Ftasks", 404, "NOT_FOUND"),
    (f"{READ}/batch", 405, "METHOD_NOT_ALLOWED"),
    (f"{READ}%2Fs", 400, "INVALID_HTTP"),
    ("/api/v1/persistence/%73essions/s", 400, "INVALID_HTTP"),
]


def test_what_cannot_be_answered_says_why(reading: Service) -> None:
    answers = [reading.get(target) for target, *_ in WRONG]
    found = [
        (target, answer.status, answer.json["error_code"]) for (target, *_), answer in zip(WRONG, answers, strict=True)
    ]
    assert found == WRONG


def test_other_forms_of_request(reading: Service) -> None:
    send(reading, "tasks", [task("t1")])
    assert reading.get(f"{READ}/s1/tasks?fresh=flushed").status == 200
    page = reading.request("HEAD", f"{READ}/s1/tasks")
    assert (page.status, page.body) == (200, b"")
    stream = reading.request("HEAD", f"{READ}/s1/tasks", headers=NDJSON)
    assert (stream.status, stream.body) == (200, b"")
    assert reading.request("POST", f"{READ}/s1").status == 405
    with_body = reading.request("GET", f"{READ}/s1/tasks/t1", b"x" * 65536)
    assert with_body.json["task_id"] == "t1"
    assert reading.request("GET", f"{READ}/s1/tasks/t1", b"x" * 65537).status == 413
    with socket.create_connection(("127.0.0.1", reading.port), 20) as old:
        old.sendall(f"GET {READ}/s1/tasks?fields=task_id HTTP/1.0\r\nAccept: application/x-ndjson\r\n\r\n".encode())
        head, _, body = to_the_end(old).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert body == b'{"task_id":"t1"}\n{"end":true,"count":1}\n'
    with socket.create_connection(("127.0.0.1", reading.port), 20) as kept:
        ask = f"GET {READ}/s1/tasks?fields=task_id HTTP/1.1\r\nHost: h\r\nAccept: application/x-ndjson\r\n"
        kept.sendall(f"{ask}\r\n{ask}\r\n".encode())  # pipelined
        kept.shutdown(socket.SHUT_WR)
        assert to_the_end(kept).count(b'{"end":true,"count":1}\n\r\n0\r\n\r\n') == 2


def test_requests_are_counted_by_their_templates(reading: Service) -> None:
    for path in (f"{READ}/s", f"{READ}/s/tasks", f"{READ}/s/tasks/t", f"{READ}/%ff"):
        reading.get(path)
    counted = {path: set(found) for path, found in reading.requests().items() if path.startswith(READ)}
    assert counted == {
        READ: {200, 503},  # before it was there
        f"{READ}/{{session_id}}": {404},
        f"{READ}/{{session_id}}/tasks": {200},
        f"{READ}/{{session_id}}/tasks/{{task_id}}": {404},
    }
    text = reading.get("/metrics").body.decode()
    assert f'persistence_read_requests_total{{route="{READ}/{{session_id}}",status="404"}} 1.0' in text


def test_a_database_that_is_away_lets_writing_go_on(
    start_service: Callable[..., Service], own_mariadb: MariaDB
) -> None:
    database = own_mariadb.create_database()
    service = start_service(own_mariadb, database)
    service.start_reader()
    own_mariadb.stop(signal.SIGKILL)
    began_at = time.monotonic()
    answer = service.get(f"{READ}/s1")
    assert (answer.status, answer.json["error_code"]) == (503, "DATABASE_UNAVAILABLE")
    assert answer.headers["retry-after"] == "1"
    assert "x-request-id" in answer.headers
    send(service, "tasks", [task("t1")])
    fresh = service.get(f"{READ}/s1/tasks?fresh=flushed&timeout=0.1")
    assert (fresh.status, fresh.json["error_code"], fresh.json["pending"]) == (503, "FLUSH_INCOMPLETE", 1)
    assert time.monotonic() - began_at < 10
    own_mariadb.start()
    wait_until(lambda: service.get(f"{READ}/s1/tasks?fresh=flushed").status == 200)
    assert service.get(f"{READ}/s1/tasks/t1").json["task_id"] == "t1"


def test_a_locked_table_is_waited_for_no_longer_than_the_limit(
    reading: Service, mariadb: MariaDB, database: str
) -> None:
    with mariadb.locked(database):
        answer = reading.get(f"{READ}/s1/tasks")
        assert (answer.status, answer.json["error_code"]) == (503, "READ_TOO_SLOW")
        send(reading, "tasks", [task("t1")])
        assert reading.get(READ).status == 200  # the other table's
    assert reading.get(f"{READ}/s1/tasks?fresh=flushed").json["tasks"]


def test_tables_that_are_not_there_are_said(reading: Service, mariadb: MariaDB, database: str) -> None:
    mariadb.execute("DROP TABLE translation_sessions", (), database)
    answer = reading.get(READ)
    assert (answer.status, answer.json["error_code"]) == (503, "READ_NOT_POSSIBLE")
    assert "1146" in answer.json["detail"]


def test_a_reader_that_dies_in_mid_stream_cuts_the_answer_off_and_its_successor_answers(
    reading: Service, streams: Callable[[], socket.socket]
) -> None:
    begun = streams()
    assert reading.reader is not None
    reading.reader.kill()
    reading.reader.wait(10)
    data = to_the_end(begun)
    assert not data.endswith(b"0\r\n\r\n")
    assert b'{"end"' not in data
    assert "persistence_read_answers_cut_off_total 1.0" in reading.get("/metrics").body.decode()
    answer = reading.get(f"{READ}/large")
    assert (answer.status, answer.json["error_code"]) == (503, "READER_UNAVAILABLE")
    assert answer.headers["retry-after"] == "1"
    send(reading, "tasks", [task("t1")])
    reading.start_reader()
    *_, end = lines(reading.request("GET", f"{READ}/large/tasks", headers=NDJSON))
    assert end == {"end": True, "count": 10_000}


def test_callers_who_stop_reading_hold_up_nobody_and_leave_nothing_behind(
    reading: Service, streams: Callable[[], socket.socket]
) -> None:
    stalled = [streams() for _ in range(8)]
    busy = reading.request("GET", f"{READ}/large/tasks", headers=NDJSON)
    assert (busy.status, busy.json["error_code"]) == (503, "READ_BUSY")
    for _ in range(20):
        began_at = time.monotonic()
        send(reading, "tasks", [task("t1")])
        assert len(reading.get(f"{READ}/large/tasks?limit=10").json["tasks"]) == 10
        assert time.monotonic() - began_at < 2
    for connection in stalled:
        connection.close()
    wait_until(lambda: reading.request("HEAD", f"{READ}/large/tasks", headers=NDJSON).status == 200, 5)
    *_, end = lines(reading.request("GET", f"{READ}/large/tasks", headers=NDJSON))
    assert end["count"] == 10_000


def test_a_reader_that_hangs_is_a_503_in_time(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, READ_TIMEOUT=0.1)
    service.start_reader()
    assert service.reader is not None
    service.reader.send_signal(signal.SIGSTOP)
    answer = service.get(READ)
    assert (answer.status, answer.json["error_code"]) == (503, "READER_UNAVAILABLE")
    send(service, "tasks", [task("t1")])
    service.reader.send_signal(signal.SIGCONT)
    assert service.get(READ).status == 200


def test_more_reads_than_may_wait_are_told_so(reading: Service, mariadb: MariaDB, database: str) -> None:
    connections = [reading.connect() for _ in range(30)]
    with mariadb.locked(database):
        for connection in connections:
            connection.request("GET", f"{READ}/s1/tasks")
        codes = [json.loads(connection.getresponse().read())["error_code"] for connection in connections]
    for connection in connections:
        connection.close()
    assert codes.count("READ_BUSY") >= 8
    assert set(codes) == {"READ_BUSY", "READ_TOO_SLOW"}
    assert reading.get(f"{READ}/s1/tasks").status == 200


def test_a_second_token_may_only_get(start_service: Callable[..., Service], mariadb: MariaDB, database: str) -> None:
    service = start_service(mariadb, database, SERVICE_AUTH_TOKEN="writes", READ_AUTH_TOKEN="reads old")

    def status(method: str, path: str, token: str) -> int:
        body = json.dumps({"tasks": [task("t1")]}).encode() if method == "POST" else None
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        return service.request(method, path, body, headers).status

    for token in ("reads", "old"):
        assert status("GET", "/api/v1/persistence/stats", token) == 200
        assert status("GET", READ, token) == 503  # no reader here
        assert status("POST", TASKS, token) == 403
    assert status("POST", TASKS, "writes") == 202
    assert status("GET", READ, "neither") == 403


def test_reading_that_is_switched_off_is_a_404_and_its_process_ends(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(mariadb, database, READ_ENABLED="false")
    answer = service.get(f"{READ}/s1")
    assert (answer.status, answer.json["error_code"]) == (404, "READ_DISABLED")
    reader = service.reader = service._start("reader")
    began_at = time.monotonic()
    assert reader.wait(20) == 78
    assert time.monotonic() - began_at > 1  # supervisord's startsecs: else it would be started again


def test_the_reader_needs_select_alone_and_may_do_no_more(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    user = f"r{database[-20:]}"
    mariadb.execute(f"CREATE USER '{user}'@'localhost' IDENTIFIED BY 'p'")
    for table in ("translation_sessions", "translation_tasks"):
        mariadb.execute(f"GRANT SELECT ON {database}.{table} TO '{user}'@'localhost'")
    service = start_service(mariadb, database, READ_USER=user, READ_PASSWORD="p")
    service.start_reader()
    send(service, "tasks", [task("t1")])
    assert service.get(f"{READ}/s1/tasks?fresh=flushed").json["tasks"]
    mariadb.execute(f"DROP USER '{user}'@'localhost'")
