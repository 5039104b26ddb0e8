"""docs/DATA_MODELS.md, "Adding a kind", step by step in a copy of the code: nothing else may be needed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ctl import ctl
from tests.support.mariadb import MariaDB
from tests.support.service import ROOT, Service

TYPE = """
class Note(msgspec.Struct, frozen=True, gc=False, kw_only=True, forbid_unknown_fields=True):
    extra: ClassVar[Object] = None
    note_id: Key36
    level: Literal["info", "warning"]
    weight: float
    written_at: datetime
    details: Object = None
    text: Text | None = None
    updated_at: datetime | None = None


"""
TABLE = """
CREATE TABLE IF NOT EXISTS translation_notes (
    note_id    VARCHAR(36)  NOT NULL,
    level      VARCHAR(20)  NOT NULL,
    weight     DECIMAL(5,4) NOT NULL,
    written_at DATETIME(6)  NOT NULL,
    details    JSON         NULL,
    text       MEDIUMTEXT   NULL,
    extra      JSON         NULL,
    updated_at DATETIME(6)  NOT NULL,
    created_at DATETIME(6)  NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
    PRIMARY KEY (note_id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=/*!80017 utf8mb4_0900_bin *//*M!100200 utf8mb4_nopad_bin */;
"""
EDITS = {
    "Record: TypeAlias = Session | Task\n": TYPE.lstrip() + "Record: TypeAlias = Session | Task | Note\n",
    "KINDS: tuple[Kind, ...] = (SESSIONS, TASKS)": 'NOTES = Kind(3, "notes", Note, ("note_id",), "translation_notes")\n'
    "KINDS: tuple[Kind, ...] = (SESSIONS, TASKS, NOTES)",
}


@pytest.fixture
def code(tmp_path: Path) -> Path:
    copy = tmp_path / "code"
    for name in ("config", "flusher", "ingest", "shared", "sql", "ctl"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    records = copy / "shared" / "records.py"
    text = records.read_text()
    for old, new in EDITS.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    records.write_text(text)
    with (copy / "sql" / "schema.sql").open("a") as schema:
        schema.write(TABLE)
    return copy


@pytest.fixture
def service(code: Path, short_path: Path, mariadb: MariaDB, database: str) -> Iterator[Service]:
    service = Service(short_path, mariadb, database)
    service.code = code
    subprocess.run([sys.executable, "-m", "flusher.schema"], cwd=code, env=service.environ, check=True)
    service.start()
    yield service
    service.kill()


def note(note_id: str, **fields: object) -> dict[str, object]:
    required = {"level": "info", "weight": 0.5, "written_at": "2026-11-24T10:00:00Z", "details": {"a": 1}}
    return {"note_id": note_id, **required, **fields}


def test_a_kind_is_a_type_a_row_in_kinds_and_a_table(service: Service, mariadb: MariaDB, database: str) -> None:
    path = "/api/v1/persistence/notes/batch"
    notes = [
        note("n1", updated_at="2026-11-24T10:00:02Z", level="warning"),
        note("n1", updated_at="2026-11-24T10:00:01Z"),
        note("n2", details={"large": 2**64 - 1}),
        note("n2", colour="red", updated_at="2020-01-01T00:00:00Z"),
        note("n3", weight="1"),
    ]
    refused = service.post(path, {"notes": [note("n4", level="loud")]})
    accepted = service.post(path, {"notes": notes})
    assert refused.status == 422
    assert refused.json["errors"] == [{"field": "notes[0].level", "message": "must be one of info, warning"}]
    assert (accepted.status, accepted.json.get("count")) == (202, 5), accepted
    flushed = service.flush()

    assert flushed.json["notes_written"] == 3
    rows = mariadb.execute("SELECT note_id, level, weight FROM translation_notes ORDER BY 1", (), database)
    assert [(key, level, float(weight)) for key, level, weight in rows] == [
        ("n1", "warning", 0.5),
        ("n2", "info", 0.5),
        ("n3", "info", 1.0),
    ]
    stats = service.stats()
    assert stats["dead_letters"]["count"] == 0
    assert stats["buffer"]["notes_count"] == 0
    assert stats["performance"]["total_notes_written"] == 3
    assert b'persistence_rows_written_total{kind="notes"} 3.0' in service.get("/metrics").body
    assert "Note" in service.get("/openapi.json").json["components"]["schemas"]
    checked = ctl(service, "db", "check")
    assert (checked.status, checked.err) == (0, ""), checked
    assert "writing to translation_notes" in checked.out
    service.kill_flusher()
    assert service.get("/health").json["buffer"]["notes_count"] == 0
