"""`journal inspect`: with the flusher and without, whole and damaged; it never changes a byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ctl.journal import view_of
from flusher.journal import Journal
from flusher.segments import Entry, read
from shared.records import TASKS as TASK_KIND
from tests.support.ctl import ctl
from tests.support.mariadb import MariaDB
from tests.support.service import SESSIONS, TASKS, Service, session, task, wait_until

StartService = Callable[..., Service]


@pytest.fixture
def service(start_service: StartService, mariadb: MariaDB, database: str) -> Service:
    """One that writes only when it is told to."""
    return start_service(mariadb, database, BUFFER_FLUSH_INTERVAL=3600, BUFFER_MAX_SIZE=1_000_000)


def state_of(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.iterdir()}


def fill(service: Service) -> None:
    assert service.post(TASKS, {"tasks": [task("t1"), task("t2", target_text="hello")]}).status == 202
    assert service.post(SESSIONS, {"sessions": [session("s1")]}).status == 202


def segment_of(service: Service) -> Path:
    return max(service.journal.iterdir())


def test_while_the_flusher_runs_its_newest_segment_is_the_active_one(service: Service) -> None:
    fill(service)
    before = state_of(service.journal)

    result = ctl(service, "journal", "inspect", "--json")

    assert result.status == 0
    (segment,) = result.json["segments"]
    assert segment["state"] == "active"
    assert segment["entries"] == 2
    assert segment["records"] == {"tasks": 2, "sessions": 1}
    assert segment["damage"] == []
    assert state_of(service.journal) == before
    assert service.flush().status == 200


def test_without_the_flusher_its_segments_wait_and_nothing_is_changed(service: Service) -> None:
    fill(service)
    service.kill()
    before = state_of(service.directory / "journal")

    result = ctl(service, "journal", "inspect")

    assert result.status == 0
    assert "waiting" in result.out
    assert "tasks 2, sessions 1" in result.out
    assert "3 records in 1 segment" in result.out
    assert state_of(service.journal) == before


def test_a_person_can_read_the_records_and_find_one_by_its_key(service: Service) -> None:
    fill(service)
    everything = ctl(service, "journal", "inspect", "--records")
    assert everything.status == 0
    assert '"target_text": "hello"' in everything.out
    assert "你好，世界" in everything.out
    assert "sessions s1, received 2" in everything.out
    one = ctl(service, "journal", "inspect", "--key", "t2", "--json")
    (found,) = one.json_lines
    assert found["kind"] == "tasks"
    assert found["record"] == task("t2", target_text="hello")


def test_what_a_record_holds_cannot_steer_the_terminal(service: Service) -> None:
    hostile = "\x1b[2J\x9b2J\x7f[bold]"
    assert service.post(TASKS, {"tasks": [task(hostile, source_text=hostile)]}).status == 202
    result = ctl(service, "journal", "inspect", "--records")
    assert not {"\x1b", "\x9b", "\x7f"} & set(result.out)
    assert "\\u001b[2J\\u009b2J\\u007f[bold]" in result.out


def test_damage_is_1_and_told_by_offset_and_the_rest_is_still_readable(service: Service) -> None:
    fill(service)
    service.kill()
    segment = segment_of(service)
    data = bytearray(segment.read_bytes())
    data[60] ^= 0xFF  # in the first entry's body
    segment.write_bytes(data)

    result = ctl(service, "journal", "inspect")

    assert result.status == 1
    assert "at offset 20 cannot be read" in result.out
    assert "1 record in 1 segment" in result.out
    assert ctl(service, "journal", "inspect", "--records", "--json").json_lines[0]["kind"] == "sessions"


def test_a_segment_that_the_flusher_set_aside_is_shown_as_such(service: Service) -> None:
    fill(service)
    service.kill()
    segment = segment_of(service)
    data = bytearray(segment.read_bytes())
    data[-10] ^= 0xFF
    segment.write_bytes(data)
    service.start()
    wait_until(lambda: service.stats()["damage"]["segments_set_aside"] == 1)

    result = ctl(service, "journal", "inspect", "--json")

    assert result.status == 1
    assert "set aside" in [found["state"] for found in result.json["segments"]]
    status = ctl(service, "status", "--json")
    assert status.status == 1
    assert "damaged" in status.json["problems"][0]
    next(service.journal.glob("*.broken")).unlink()
    wait_until(lambda: ctl(service, "status").status == 0, what="the problem ends with the file")


def test_an_append_that_had_not_ended_is_no_damage_and_no_problem(service: Service) -> None:
    """kill -9 in the middle of an append: nobody was promised those bytes."""
    fill(service)
    service.kill()
    segment = segment_of(service)
    segment.write_bytes(segment.read_bytes()[:-10])
    stopped = ctl(service, "journal", "inspect")
    assert (stopped.status, "had not ended" in stopped.out) == (0, True)

    service.start()
    wait_until(lambda: service.stats()["performance"]["total_flush_count"])

    wait_until(lambda: ctl(service, "status").status == 0)
    assert ctl(service, "journal", "inspect").status == 0
    assert list(service.journal.glob("*.broken")) == []
    assert "of an append that had not ended are cut off" in service.log.read_text()


def test_named_segments_are_read_wherever_they_lie(service: Service, tmp_path: Path) -> None:
    fill(service)
    copy = tmp_path / "copy.segment"
    copy.write_bytes(segment_of(service).read_bytes())
    for path in (copy, tmp_path):
        result = ctl(service, "journal", "inspect", "--json", str(path))
        assert result.status == 0
        assert [found["path"] for found in result.json["segments"]] == [str(copy)]
    assert ctl(service, "journal", "inspect", str(tmp_path / "none")).status == 2


def test_a_segment_that_goes_while_it_is_listed_is_no_fault(service: Service) -> None:
    fill(service)
    (service.journal / "00000000000000000000.segment").symlink_to("gone")
    result = ctl(service, "journal", "inspect", "--json")
    assert result.status == 0
    assert len(result.json["segments"]) == 1


def test_reading_while_records_arrive_finds_no_damage(service: Service) -> None:
    """Against the real flusher: every look is at another state of the file."""
    body = {"tasks": [task("t1", source_text="字" * 2_000)]}
    for _ in range(30):
        assert service.post(TASKS, body).status == 202
        view = view_of(segment_of(service), read(segment_of(service)), works=True)
        assert (view.damage, view.state) == ([], "active")
    assert view.entries == 30


def test_the_end_of_a_segment_that_is_not_the_newest_is_damage_where_it_is_cut_off(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open()
    journal.append([Entry(TASK_KIND.code, 1, arrival, b'{"tasks":[{}]}') for arrival in (1, 2)])
    segment = journal.active
    assert segment is not None
    segment.close()
    segment.path.write_bytes(segment.path.read_bytes()[:-5])
    as_newest = view_of(segment.path, read(segment.path), works=False)
    assert (as_newest.damage, as_newest.torn > 0, as_newest.entries) == ([], True, 1)
    (tmp_path / "99999999999999999998.segment").touch()
    assert view_of(segment.path, read(segment.path), works=False).damage != []
