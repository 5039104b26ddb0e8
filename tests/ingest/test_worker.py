from __future__ import annotations

import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ingest.metrics import RequestMetrics
from ingest.worker import connection_limits, tick


def limited_to(monkeypatch: pytest.MonkeyPatch, descriptors: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (descriptors, descriptors))


@pytest.mark.parametrize(
    ("descriptors", "expected"),
    [(6000, (5000, 64)), (resource.RLIM_INFINITY, (5000, 64)), (1024, (892, 64)), (256, (124, 64)), (64, (10, 10))],
)
def test_no_more_connections_are_taken_than_descriptors_allow_with_some_left_to_refuse_the_others(
    monkeypatch: pytest.MonkeyPatch, descriptors: int, expected: tuple[int, int]
) -> None:
    limited_to(monkeypatch, descriptors)

    assert connection_limits(5000) == expected


def test_a_lower_limit_than_configured_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limited_to(monkeypatch, 1024)
    connection_limits(892)
    assert not caplog.records

    connection_limits(893)
    assert "892 instead of 893" in caplog.text


def test_the_tick_tells_every_connection_and_publishes_though_one_of_them_fails(tmp_path: Path) -> None:
    told = []

    class Connection:
        def __init__(self, *, broken: bool) -> None:
            self.broken = broken

        def shutdown(self) -> None:
            if self.broken:
                raise RuntimeError
            told.append(self)

    connections = [Connection(broken=number == 1) for number in range(3)]
    state = SimpleNamespace(connections=connections)
    tick(cast(Any, SimpleNamespace(should_exit=True, server_state=state)), RequestMetrics(tmp_path))
    assert told == [connections[0], connections[2]]
    assert b'"connections":3' in next(tmp_path.glob("*.json")).read_bytes()
