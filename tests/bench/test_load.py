"""wrk's script and the open-loop sender against a server that answers as it is told and keeps what it is sent."""

from __future__ import annotations

import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from bench import tasks, wrk
from bench.latency import late
from bench.machine import ALL
from bench.open_loop import Running, job, judged

PATH = "/api/v1/persistence/tasks/batch"
ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}"


class Server:
    def __init__(self, answer: Callable[[int], bytes], hangs_up_after: int | None = None) -> None:
        self.hangs_up_after = hangs_up_after
        """How many requests have come when the connection of the last of them ends behind its answer."""
        self.answer = answer
        """From how many requests have come, this one included, to what is sent back; may block; b"" hangs up."""
        self.bodies: list[bytes] = []
        self._lock = threading.Lock()
        self.address = ("127.0.0.1", 0)

    def serve(self, connection: socketserver.StreamRequestHandler) -> None:
        while connection.rfile.readline().startswith(b"POST "):
            length = 0
            while (line := connection.rfile.readline()) not in (b"\r\n", b""):
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            body = connection.rfile.read(length)
            with self._lock:
                self.bodies.append(body)
                count = len(self.bodies)
            answer = self.answer(count)
            if not answer:
                return
            connection.wfile.write(answer)
            if count == self.hangs_up_after:
                return


@contextmanager
def serving(answer: Callable[[int], bytes], hangs_up_after: int | None = None) -> Iterator[Server]:
    server = Server(answer, hangs_up_after)

    class Handler(socketserver.StreamRequestHandler):
        disable_nagle_algorithm = True

        def handle(self) -> None:
            try:
                server.serve(self)
            except OSError:
                pass  # wrk leaves in the middle of a request when its time is over

    class Threads(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 64

    with Threads(("127.0.0.1", 0), Handler) as listener:
        server.address = ("127.0.0.1", listener.server_address[1])
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        listener.shutdown()
        thread.join()


@pytest.fixture
def pool_file(tmp_path: Path) -> Path:
    path = tmp_path / "pool"
    tasks.write(path, tasks.pool())
    return path


def run_wrk(server: Server, pool_file: Path, *, latencies: bool, batch: int = 3) -> dict[str, object]:
    return wrk.run(
        server.address, PATH, pool_file, batch=batch, connections=4, seconds=1, latencies=latencies, cores=ALL
    )


@pytest.mark.parametrize("latencies", [False, True])
def test_wrk_sends_valid_bodies_and_no_id_twice(pool_file: Path, latencies: bool) -> None:
    with serving(lambda _: ACCEPTED) as server:
        measured = run_wrk(server, pool_file, latencies=latencies)

    assert measured["problems"] == []
    assert 0 < measured["requests"] <= len(server.bodies)  # type: ignore[operator]
    bodies = [orjson.loads(body)["tasks"] for body in server.bodies if body.endswith(b"]}")]
    assert len(bodies) >= len(server.bodies) - 4
    ids = [task["task_id"] for body in bodies for task in body]
    assert len(set(ids)) == len(ids) == 3 * len(bodies)
    texts = {tuple(task["source_text"] for task in body) for body in bodies}
    assert len(texts) >= min(200, len(bodies) // 4)
    expected = {
        tuple(t["source_text"] for t in orjson.loads(tasks.number("00001", 1).join(p))["tasks"]) for p in made(3)
    }
    assert texts <= expected


def made(batch: int) -> list[list[bytes]]:
    return tasks.bodies(tasks.pool(), batch)


def test_raw_latencies_hold_a_stall_once_and_not_what_wrk_makes_up_for_it(pool_file: Path) -> None:
    stalled = threading.Event()

    def stall_once(count: int) -> bytes:
        if count == 40 and not stalled.is_set():
            stalled.set()
            time.sleep(0.3)
        return ACCEPTED

    with serving(stall_once) as server:
        measured = run_wrk(server, pool_file, latencies=True)

    found = measured["latency_us"]
    assert isinstance(found, dict)
    assert found["max"] >= 300_000
    # wrk's correction would have added hundreds of values between the usual latency and the stall.
    assert found["count"] == measured["requests"]


@pytest.mark.parametrize(
    ("status", "latencies", "problem"),
    [
        (b"503 Service Unavailable", False, "1 errors: status"),
        (b"404 Not Found", True, "1 errors: status"),
        (b"302 Found", True, "1 errors: not_2xx"),
    ],
)
def test_an_answer_that_is_no_success_is_a_problem(
    pool_file: Path, status: bytes, latencies: bool, problem: str
) -> None:
    refusal = ACCEPTED.replace(b"202 Accepted", status)
    with serving(lambda count: refusal if count == 5 else ACCEPTED) as server:
        measured = run_wrk(server, pool_file, latencies=latencies)

    assert problem in measured["problems"]  # type: ignore[operator]


def test_figures_of_wrk_are_read() -> None:
    text = (
        '{"duration_us":2000000,"requests":1000,"bytes":5,"errors":{"connect":0,"read":0,"write":0,"timeout":0,'
        '"status":0,"not_2xx":0},"latencies_us":[300.0,100.0,200.0]}'
    )

    measured = wrk.parse(text, batch=10)

    assert measured["requests_per_s"] == 500
    assert measured["records_per_s"] == 5000
    assert measured["latency_us"]["p50"] == 200
    assert measured["problems"] == []
    for name in ("connect", "read", "write", "timeout", "status", "not_2xx"):
        assert wrk.parse(text.replace(f'"{name}":0', f'"{name}":3'), 10)["problems"] == [f"3 errors: {name}"]
    assert wrk.parse(text.replace('"requests":1000', '"requests":0'), 10)["problems"]


@pytest.mark.parametrize("prompt", [True, False])
def test_the_open_loop_goes_on_sending_while_earlier_requests_wait(prompt: bool) -> None:
    all_came = threading.Event()

    def when_all_came(count: int) -> bytes:
        if count == 60:
            all_came.set()
        assert all_came.wait(20), "a request waited for an answer to an earlier one"
        return ACCEPTED

    with serving(when_all_came) as server:
        wanted = job(server.address, PATH, batch=2, rate=120, seconds=0.5, prompt=prompt)
        measured = Running(wanted, ALL, priority=False).result()

    assert measured["problems"] == []
    assert measured["unsent"] == 0
    assert measured["answered"] == measured["statuses"]["202"] == 60
    assert measured["connections"] >= 60
    # Counted from when it was due, the first waited until the last was sent.
    _, waited_us = min(measured["latencies"])
    assert waited_us >= 59 / 120 * 1e6
    ids = [task["task_id"] for body in server.bodies for task in orjson.loads(body)["tasks"]]
    assert len(set(ids)) == 120


@pytest.mark.parametrize("send_late", [False, True])
def test_the_wait_for_a_free_connection_counts_as_latency(send_late: bool) -> None:
    def slow(_: int) -> bytes:
        time.sleep(0.05)
        return ACCEPTED

    with serving(slow) as server:
        wanted = job(server.address, PATH, batch=1, rate=2000, seconds=0.5, most_connections=32, send_late=send_late)
        measured = Running(wanted, ALL, priority=False).result()

    # 32 connections carry at most 640 requests a second.
    assert measured["answered"] + measured["unsent"] == 1000
    assert measured["unsent"] == 0 if send_late else measured["unsent"] > 300
    assert measured["latency_us"]["max"] > 1_000_000 if send_late else measured["latency_us"]["max"] > 200_000


@pytest.mark.parametrize("prompt", [True, False])
def test_the_open_loop_reports_refusals_and_requests_without_an_answer(prompt: bool) -> None:
    def answer(count: int) -> bytes:
        if count == 3:
            return b""
        return ACCEPTED.replace(b"202 Accepted", b"503 Service Unavailable") if count == 5 else ACCEPTED

    with serving(answer) as server:
        wanted = job(server.address, PATH, batch=1, rate=100, seconds=0.2, prompt=prompt)
        measured = Running(wanted, ALL, priority=False).result()

    assert measured["problems"] == ["1 answers with status 503", "1 requests without an answer"]
    assert measured["statuses"] == {"202": 18, "503": 1}


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 202 Accepted\r\n\r\n{}",
        b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ACCEPTED.replace(b": 2", b": -1"),
        ACCEPTED.replace(b": 2", b": 18446744073709551615"),
        ACCEPTED.replace(b": 2", b": 3"),
        ACCEPTED.replace(b"202", b'2"2'),
        ACCEPTED.replace(b"HTTP/1.1", b"RTSP/1.0"),
    ],
)
def test_the_open_loop_takes_only_a_whole_answer_for_one(answer: bytes) -> None:
    with serving(lambda count: answer if count == 3 else ACCEPTED, hangs_up_after=3) as server:
        wanted = job(server.address, PATH, batch=1, rate=100, seconds=0.2)
        measured = Running(wanted, ALL, priority=False).result()

    assert measured["problems"] == ["1 requests without an answer"]
    assert measured["statuses"] == {"202": 19}


def test_a_sender_that_got_no_answer_at_all_is_invalid() -> None:
    report = {"answered": 0, "unsent": 0, "unanswered": 0, "statuses": {}, "latencies": []}

    assert judged(report, job(("127.0.0.1", 1), PATH, batch=1, rate=1, seconds=1))["problems"]


@pytest.mark.parametrize(
    ("p99_us", "connections", "valid"),
    [
        (50_000.0, 32, True),
        (50_001.0, 32, False),
        (90_000.0, 900, True),  # it waited for a free connection, which is the service's doing
    ],
)
def test_a_sender_that_was_late_itself_is_invalid(p99_us: float, connections: int, valid: bool) -> None:
    measured = {"sent_late_us": {"p99": p99_us}, "connections": connections}

    assert (late(measured, job(("127.0.0.1", 1), PATH, batch=1, rate=1, seconds=1)) == []) is valid
