"""X-Request-Id and the log lines about requests."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable
from typing import Any

import falcon.asgi
import pytest

from ingest.app import _bug
from ingest.responses import ErrorResponse
from shared.logs import TextFormatter
from tests.support.guarded import BATCH, LOCAL, OTHER, Exchange, Guarded, part, scope_of
from tests.support.mariadb import MariaDB
from tests.support.service import FLUSH, TASKS, Service, task

MADE = re.compile(r"[0-9a-f]{32}")


def id_of(
    path: str = OTHER, method: str = "GET", body: bytes = b"", guarded: Guarded | None = None, **headers: str
) -> str:
    """The id that a request has after the guard, which is the answer's; "" for none."""
    scope = scope_of(path, method, LOCAL, headers)
    exchange = Exchange([part(body)])
    asyncio.run((guarded or Guarded()).guard(scope, exchange.receive, exchange.send))
    found: str = scope.get("request_id", "")
    return found


@pytest.mark.parametrize("given", ["a", "order-4711", "0af7651916cd43dd/8448.eb~x:+=@_", "x" * 128])
def test_a_clients_id_is_kept(given: str) -> None:
    assert id_of(x_request_id=given) == given
    assert id_of("/nowhere", x_request_id=given) == given
    assert id_of(method="HEAD", x_request_id=given) == given
    assert id_of(BATCH, "POST", b"x" * 101, x_request_id=given) == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\tb", 'a"b', "a;b", "é", "a\n"])
def test_one_that_is_unfit_for_a_log_line_is_replaced(given: str) -> None:
    assert MADE.fullmatch(id_of(x_request_id=given))


def test_without_one_none_is_made_for_a_good_answer_nor_for_a_clients_fault() -> None:
    assert [id_of(), id_of("/nowhere"), id_of(BATCH, "POST", b"x" * 101)] == [""] * 3


@pytest.mark.parametrize("method", ["POST", "HEAD"])
def test_a_5xx_has_one_and_its_log_line_the_same(method: str, caplog: pytest.LogCaptureFixture) -> None:
    async def fails(_scope: Any, _receive: Any, _send: Any) -> None:
        raise ErrorResponse(503, "JOURNAL_FULL", "full")

    guarded = Guarded()
    guarded.guard._app = fails
    path = BATCH if method == "POST" else OTHER
    answered = id_of(path, method, b"{}", guarded)
    (line,) = caplog.records
    assert line.getMessage() == f"{'GET' if method == 'HEAD' else method} {path}: 503 JOURNAL_FULL"
    assert line.request_id == answered  # type: ignore[attr-defined]
    assert MADE.fullmatch(answered)


def test_a_clients_fault_is_a_line_at_debug_only(caplog: pytest.LogCaptureFixture) -> None:
    id_of("/nowhere")
    assert not caplog.records
    with caplog.at_level(logging.DEBUG, "ingest"):
        id_of("/nowhere" * 100, x_request_id="r-1")
    (line,) = caplog.records
    assert line.getMessage() == "GET " + ("/nowhere" * 100)[:100] + ": 404 NOT_FOUND"
    assert line.request_id == "r-1"  # type: ignore[attr-defined]


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_request_that_fails_is_found_in_the_log_by_its_id(
    start_service: Callable[..., Service], mariadb: MariaDB, database: str, form: str
) -> None:
    service = start_service(
        mariadb, database, DB_SOCKET="/tmp/there-is-none", LOGGING_FORMAT=form, BUFFER_FLUSH_INTERVAL=3600
    )
    secret = "记录的内容"
    answer = service.post(TASKS, {"tasks": [task(target_text=secret)]}, {"X-Request-Id": "order-4711"})
    assert (answer.status, answer.headers["x-request-id"]) == (202, "order-4711")
    assert "x-request-id" not in service.post(TASKS, {"tasks": [task(target_text=secret)]}).headers
    failed = service.request("POST", f"{FLUSH}?timeout=0.1")
    assert failed.status == 503
    for _ in range(30):
        assert service.request("POST", f"{FLUSH}?timeout=0", headers={"X-Request-Id": "again"}).status == 503

    text = service.log.read_text()
    (line,) = (line for line in text.splitlines() if failed.headers["x-request-id"] in line)
    if form == "json":
        event = json.loads(line)
        assert event["request_id"] == failed.headers["x-request-id"]
        assert event["message"] == f"POST {FLUSH}: 503 FLUSH_INCOMPLETE"
    else:
        assert line.endswith(f" POST {FLUSH}: 503 FLUSH_INCOMPLETE (request {failed.headers['x-request-id']})")
    assert 1 < text.count("FLUSH_INCOMPLETE") <= 5
    assert secret not in text
    assert "order-4711" not in text


def test_a_fault_of_ours_is_told_with_its_place_and_without_the_record(caplog: pytest.LogCaptureFixture) -> None:
    request = falcon.asgi.Request(
        {"type": "http", "method": "POST", "path": BATCH, "headers": [], "query_string": b""}, None
    )
    response = falcon.asgi.Response()
    try:
        raise KeyError("what a record held")
    except KeyError as error:
        with pytest.raises(ErrorResponse) as raised:
            asyncio.run(_bug(request, response, error, {}))
    assert raised.value.status == 500
    (line,) = caplog.records
    written = TextFormatter("ingest").format(line)
    assert f" POST {BATCH} failed: Traceback (innermost first): KeyError < test_request_ids.py:" in written
    assert written.endswith(f" (request {request.scope['request_id']})")
    assert "what a record held" not in written
