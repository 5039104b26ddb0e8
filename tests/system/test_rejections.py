"""Every record that is refused is seen: in stats, log, metrics, and on the dashboard, within 10 s, by its reason."""

from __future__ import annotations

import gzip
import json
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any

from ingest.__main__ import LOOK_S
from ingest.history import INTERVAL_S
from ingest.worker import TICK_S
from tests.ingest.test_metrics import samples
from tests.support.ctl import ctl
from tests.support.mariadb import MariaDB
from tests.support.service import FLUSH, SESSIONS, STATS, TASKS, Service, session, task, wait_until

WITHIN_S = 10.0
BUSY = 5
"""So many times longer may it take where other tests run beside."""
TOKEN = {"Authorization": "Bearer t0ken"}


def seen(service: Service) -> dict[str, Any]:
    """Refused records by reason, as each place shows them; the dashboard and the log show that there were some."""
    lines = [line.partition("records refused, ")[2].rpartition(": ") for line in service.log.read_text().splitlines()]
    points = service.request("GET", "/dashboard/history", headers=TOKEN).json["points"]
    refused: Counter[str] = sum((Counter(point["refused"]) for point in points), Counter())
    text = service.request("GET", "/metrics", headers=TOKEN).body
    stats = service.request("GET", STATS, headers=TOKEN)
    return {
        "log": {reason for reason, _, _ in lines if reason},
        "dashboard": refused,
        "metrics": {
            dict(labels)["reason"]: count
            for (name, labels), count in samples(text).items()
            if name == "persistence_records_rejected_total"
        },
        "stats": stats.json["rejected"] if stats.status == 200 else None,
    }


def await_seen(service: Service, expected: Counter[str]) -> None:
    whole = {
        "log": set(expected),
        "dashboard": expected,
        "metrics": expected,
        "stats": expected,
    }
    try:
        wait_until(lambda: seen(service) == whole, BUSY * WITHIN_S)
    except AssertionError:
        assert seen(service) == whole


def send(service: Service, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(65536)


def test_a_refusal_passes_through_timers_that_are_short_enough() -> None:
    assert TICK_S + max(LOOK_S, INTERVAL_S) < WITHIN_S / 2


def test_every_refusal_is_seen_in_every_place(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> None:
    service = start_service(
        mariadb,
        database,
        SERVICE_WORKERS=2,
        SERVICE_AUTH_TOKEN="t0ken",
        SERVICE_MAX_BODY_BYTES=2**22,
        JOURNAL_MAX_BYTES=2**22,
    )
    wait_until(lambda: service.request("GET", "/dashboard/history", headers=TOKEN).json["points"])
    expected: Counter[str] = Counter()

    def post(status: int, items: Any, reasons: dict[str, int], path: str = TASKS, **headers: str) -> None:
        body = items if isinstance(items, bytes) else json.dumps({path.split("/")[-2]: items}).encode()
        answer = service.post(path, body, {**TOKEN, **headers})
        assert answer.status == status, answer
        expected.update(reasons)

    beside = "tasks beside an invalid one"
    post(422, [task(), task(status="no such"), task()], {"tasks.status": 1, beside: 2})
    post(
        422,
        [task(row_index=-1), task(updated_at="9999-01-01T00:00:00Z")],
        {
            "tasks.row_index": 1,
            "tasks.updated_at in the future": 1,
        },
    )
    post(422, [session(metadata={"a": "x" * 2_200_000})], {"sessions.metadata too large": 1}, SESSIONS)
    post(422, [task()] * 1001, {"tasks of a wrong number": 1001})
    post(400, b"no JSON", {"INVALID_JSON": 1})
    post(400, b"[]", {"INVALID_SHAPE": 1})
    post(403, [task()], {"TOKEN_WRONG": 1}, Authorization="Bearer wrong")
    post(413, b" " * (2**22 + 1), {"BODY_TOO_LARGE": 1})
    post(413, gzip.compress(bytes(2**20)), {"BODY_TOO_PACKED": 1}, **{"Content-Encoding": "gzip"})
    post(415, [task()], {"UNSUPPORTED_MEDIA_TYPE": 1}, **{"Content-Type": "text/csv"})
    post(404, [task()], {"NOT_FOUND": 1}, "/api/v1/persistance/tasks/batch")
    # As long as a body may be, and so just longer than the journal with its headers.
    post(503, json.dumps({"tasks": [task()] * 20}).encode().ljust(2**22), {"JOURNAL_FULL": 20})
    assert service.post(TASKS, {"tasks": [task()]}).status == 401
    assert send(service, b"POST / HTTP/1.1\r\nHost x\r\n\r\n").startswith(b"HTTP/1.1 400")
    expected.update({"TOKEN_MISSING": 1, "INVALID_HTTP": 1})
    # What holds no record is no refused record.
    assert service.request("GET", "/nowhere", headers=TOKEN).status == 404
    assert service.request("POST", FLUSH).status == 401
    await_seen(service, +expected)

    shown = " ".join(ctl(service, "status").out.split())
    assert "tasks.updated_at in the future 1" in shown

    service.kill_flusher()
    assert service.post(TASKS, {"tasks": [task(), task("t2")]}, TOKEN).status == 503
    expected.update({"FLUSHER_UNAVAILABLE": 2})
    wait_until(
        lambda: seen(service)["metrics"] == +expected, BUSY * WITHIN_S, "in the metrics while the flusher is away"
    )
    service.start_flusher()
    service.wait_ready()
    await_seen(service, +expected)
