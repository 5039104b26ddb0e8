"""The parts of uvicorn that ingest/connection.py and ingest/cycle.py build on."""

from __future__ import annotations

import hashlib
import inspect

from uvicorn.protocols.http import flow_control, httptools_impl

SOURCES = {
    httptools_impl.HttpToolsProtocol: "18fdf324b11bf160",
    httptools_impl.RequestResponseCycle: "e67d470d435dcc1c",
    flow_control.FlowControl: "126debcdaa894c83",
}


def test_uvicorns_classes_are_those_that_ours_were_written_for() -> None:
    """After an upgrade: read the difference, adapt ours, then write the new digests here."""
    found = {cls: hashlib.sha256(inspect.getsource(cls).encode()).hexdigest()[:16] for cls in SOURCES}
    assert found == SOURCES
