from __future__ import annotations

import resource

import pytest

from ingest.worker import connection_limit


def limited_to(monkeypatch: pytest.MonkeyPatch, descriptors: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (descriptors, descriptors))


@pytest.mark.parametrize(
    ("descriptors", "expected"), [(6000, 5000), (resource.RLIM_INFINITY, 5000), (1024, 924), (64, 1)]
)
def test_no_more_connections_are_taken_than_descriptors_allow_with_some_left_to_refuse_the_others(
    monkeypatch: pytest.MonkeyPatch, descriptors: int, expected: int
) -> None:
    limited_to(monkeypatch, descriptors)

    assert connection_limit(5000) == expected


def test_a_lower_limit_than_configured_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limited_to(monkeypatch, 1024)
    connection_limit(924)
    assert not caplog.records

    connection_limit(925)
    assert "924 instead of 925" in caplog.text
