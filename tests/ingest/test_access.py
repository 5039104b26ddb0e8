"""Who is answered: protected mode, names of this service, pages of other sites, tokens."""

from __future__ import annotations

import asyncio
import hmac
from pathlib import Path
from typing import Any

import orjson
import pytest

from ingest.access import OPEN_PATHS
from ingest.app import create_app
from ingest.forwarder import Forwarder
from ingest.history import History
from ingest.metrics import RequestMetrics
from shared.addresses import is_loopback
from shared.settings import Service
from shared.validation import Policy
from tests.support.guarded import BATCH, GONE, LOCAL, OTHER, ROUTES, STRANGER, Exchange, Guarded, part, scope_of

# ---- protected mode


@pytest.mark.parametrize("path", [*ROUTES, "/nowhere", "/health"])
def test_without_a_token_a_stranger_is_refused_everywhere_and_told_which_settings_lift_it(path: str) -> None:
    guarded = Guarded()
    exchange = guarded.ask(path, client=STRANGER)
    assert (exchange.status, exchange.code) == (403, "PROTECTED_MODE")
    detail = orjson.loads(exchange.sent[1]["body"])["detail"]
    assert "service.auth_token" in detail
    assert "service.protected_mode: false" in detail
    assert guarded.app.scopes == []


def test_no_byte_of_a_strangers_body_is_taken() -> None:
    guarded = Guarded()
    exchange = Exchange([])

    async def stop() -> Any:
        assert exchange.sent, "the answer comes before anything is read"
        return GONE

    asyncio.run(guarded.guard(scope_of(BATCH, "POST", STRANGER, {"content-length": "5"}), stop, exchange.send))
    assert exchange.code == "PROTECTED_MODE"


@pytest.mark.parametrize("client", [LOCAL, ("127.9.9.9", 1), ("::1", 1), ("::ffff:127.0.0.1", 1)])
def test_callers_on_this_machine_pass(client: Any) -> None:
    assert Guarded().ask(client=client).status == 200


@pytest.mark.parametrize(
    "host",
    ["10.0.0.1", "0.0.0.0", "128.0.0.1", "::", "::2", "::ffff:10.0.0.1", "fe80::1", "", "localhost", "127.0.0.1 "],
)
def test_no_other_address_is_this_machines_own(host: str) -> None:
    assert not is_loopback(host)
    assert Guarded().ask(client=(host, 1)).code == "PROTECTED_MODE"


def test_a_caller_without_an_address_is_not_taken_for_one_on_this_machine() -> None:
    assert Guarded().ask(client=None).code == "PROTECTED_MODE"


def test_a_header_cannot_make_a_stranger_local() -> None:
    headers = {
        "x_forwarded_for": "127.0.0.1",
        "forwarded": "for=127.0.0.1",
        "x_real_ip": "127.0.0.1",
        "host": "localhost",
    }
    assert Guarded().ask(client=STRANGER, **headers).code == "PROTECTED_MODE"


# ---- names of this service


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8001", "10.0.0.1", "[::1]", "[2001:db8::1]:8001", "localhost", "localhost:8001", "persistence", ""],
)
def test_without_a_token_addresses_and_names_without_a_dot_are_ours(host: str) -> None:
    assert Guarded().ask(host=host).status == 200


@pytest.mark.parametrize("host", ["a.example.org", "A.Example.ORG", "a.example.org:8001", "b.example.org"])
def test_further_names_are_ours_where_they_are_allowed(host: str) -> None:
    guarded = Guarded(allowed_hosts=("A.example.org", "b.example.org"))
    assert guarded.ask(host=host).status == 200
    refused = Guarded(allowed_hosts=("c.example.org",)).ask(host=host)
    assert (refused.status, refused.code) == (403, "HOST_NOT_ALLOWED")
    assert "service.allowed_hosts" in orjson.loads(refused.sent[1]["body"])["detail"]
    assert Guarded(auth_token="t0ken").ask(host=host, authorization="Bearer t0ken").status == 200


@pytest.mark.parametrize("protected_mode", [True, False])
@pytest.mark.parametrize(
    "host",
    [
        "rebound.example",
        "rebound.example:8001",
        "127.0.0.1.rebound.example",
        "localhost.",
        "127.1",
        "127.0.0.1.",
    ],
)
def test_a_name_that_a_stranger_may_own_is_refused_whatever_protected_mode_says(
    host: str, protected_mode: bool
) -> None:
    """DNS rebinding: the stranger's page reads and writes here as if this were its own site."""
    guarded = Guarded(protected_mode=protected_mode)
    for path, method in ((OTHER, "GET"), (BATCH, "POST"), ("/flush", "POST"), ("/nowhere", "GET")):
        assert guarded.ask(path, method, host=host).code == "HOST_NOT_ALLOWED"
    assert guarded.app.scopes == []


def test_load_balancers_ask_under_any_name() -> None:
    guarded = Guarded(routes={path: frozenset(["GET"]) for path in OPEN_PATHS})
    assert {guarded.ask(path, host="lb.example.org").status for path in OPEN_PATHS} == {200}


# ---- pages of other sites

LINK = {"sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
FROM_ELSEWHERE = [
    {"sec_fetch_site": "cross-site"},
    {"sec_fetch_site": "same-site"},
    {"sec_fetch_site": "cross-site", "origin": "http://h"},
    {"sec_fetch_site": "same-origin", "origin": "http://elsewhere.example"},
    {"origin": "http://elsewhere.example"},
    {"origin": "null"},
    {"origin": "http://h:8001"},
    {"origin": "https://h"},
    {"origin": "h"},
]


@pytest.mark.parametrize("protected_mode", [True, False])
@pytest.mark.parametrize("headers", FROM_ELSEWHERE)
def test_without_a_token_pages_of_other_sites_are_refused_whatever_protected_mode_says(
    headers: dict[str, str], protected_mode: bool
) -> None:
    guarded = Guarded(protected_mode=protected_mode)
    for path, method in ((OTHER, "GET"), (OTHER, "HEAD"), (BATCH, "POST"), ("/flush", "POST"), ("/health", "GET")):
        assert guarded.ask(path, method, **headers).status == 403
    assert guarded.post(**headers, **LINK).code == "CROSS_SITE"
    assert guarded.app.scopes == []
    assert Guarded(auth_token="t0ken").post(authorization="Bearer t0ken", **headers).status == 200


@pytest.mark.parametrize("mode", [{}, {"sec_fetch_mode": "navigate", "sec_fetch_dest": "iframe"}])
def test_a_person_may_follow_a_link_and_a_page_may_not_frame_us(mode: dict[str, str]) -> None:
    assert Guarded().ask(OTHER, sec_fetch_site="cross-site", **LINK).status == 200
    assert Guarded().ask(OTHER, sec_fetch_site="cross-site", **mode).code == "CROSS_SITE"


@pytest.mark.parametrize(
    "headers",
    [
        {"sec_fetch_site": "none"},
        {"sec_fetch_site": "same-origin", "origin": "http://h"},
        {"sec_fetch_site": "same-origin", "origin": "https://h"},  # a proxy has taken the TLS off
        {"origin": "http://h"},
    ],
)
def test_our_own_page_and_a_person_may_post(headers: dict[str, str]) -> None:
    assert Guarded().post(**headers).status == 200


@pytest.mark.parametrize("name", [b"host", b"origin", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest"])
def test_what_decides_who_asks_stands_in_a_header_once(name: bytes) -> None:
    guarded = Guarded()
    scope = scope_of(BATCH, "POST", LOCAL, {})
    scope["headers"] += [(name, b"h"), (name, b"h")]
    exchange = Exchange([part(b"")])
    asyncio.run(guarded.guard(scope, exchange.receive, exchange.send))
    assert (exchange.status, exchange.code) == (400, "INVALID_HTTP")


def test_protected_mode_off_lets_everybody_in() -> None:
    assert Guarded(protected_mode=False).ask(client=STRANGER).status == 200


def test_with_a_token_strangers_pass_who_have_it() -> None:
    guarded = Guarded(auth_token="t0ken")
    assert guarded.ask(client=STRANGER, authorization="Bearer t0ken").status == 200
    assert guarded.ask(client=STRANGER).status == 401


def test_the_whole_application_keeps_strangers_out(tmp_path: Path) -> None:
    forwarder = Forwarder(str(tmp_path / "none"), ack_timeout_s=1)
    for service, client, status in (
        (Service(), STRANGER, 403),
        (Service(), LOCAL, 200),
        (Service(protected_mode=False), STRANGER, 200),
        (Service(auth_token="x"), STRANGER, 200),
    ):
        app, _ = create_app(
            forwarder, RequestMetrics(tmp_path), History(tmp_path), service, asyncio.Event(), policy=Policy()
        )
        exchange = Exchange([part(b"")])
        asyncio.run(app(scope_of("/", "GET", client, {}), exchange.receive, exchange.send))
        assert exchange.status == status


# ---- token


def test_these_paths_and_no_others_are_open() -> None:
    assert frozenset(["/", "/health", "/ready", "/dashboard", "/docs"]) == OPEN_PATHS
    guarded = Guarded(auth_token="t0ken", routes={path: frozenset(["GET"]) for path in (*OPEN_PATHS, OTHER)})
    for path in OPEN_PATHS:
        assert guarded.ask(path).status == 200
    for path in (OTHER, "/health/", "/ready/x", "/dashboard/history", "//", ""):
        assert guarded.ask(path).status == 401


def test_every_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    class Watched:
        @staticmethod
        def compare_digest(given: bytes, expected: bytes) -> bool:
            compared.append((given, expected))
            return hmac.compare_digest(given, expected)

    monkeypatch.setattr("ingest.access.hmac", Watched)
    guarded = Guarded(auth_token="t0ken 0ther")
    for given in (b"wrong", b"t0ken", b"0ther"):
        expected = 403 if given == b"wrong" else 200
        assert guarded.ask(authorization=f"Bearer {given.decode()}").status == expected
        # All of them, also after the one that fits.
        assert compared == [(given, b"t0ken"), (given, b"0ther")]
        compared.clear()


@pytest.mark.parametrize(
    ("value", "good"),
    [
        *((value, True) for value in ("Bearer t0ken", "bearer 0ther", "BEARER  t0ken ")),
        *((f"Bearer {value}", False) for value in ("t0ken 0ther", "t0ken0ther", "", " ", "t0ke", "0therr", "T0KEN")),
        *((value, False) for value in ("t0ken", "Bearer", "Basic t0ken", "é")),
    ],
)
def test_a_token_is_one_of_ours_to_the_byte(value: str, good: bool) -> None:
    exchange = Guarded(auth_token="t0ken 0ther").ask(authorization=value)
    assert exchange.status == 200 if good else exchange.code == "TOKEN_WRONG"
