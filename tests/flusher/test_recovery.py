from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flusher import recovery, segments
from flusher.journal import Journal
from flusher.recovery import count_records, hold, open_journal
from flusher.segments import ENTRY_HEADER_BYTES, SEGMENT_HEADER_BYTES, Entry, entry_header
from flusher.watch import socket_path
from shared.process import lock_or_exit
from tests.support.segments import ENTRIES, FLOOR, closed, filled, opened_journal, recovered

ARRIVAL = 1_700_000_000_000_000


def left_over(directory: Path, floor: int, arrivals: list[int], modified_at_s: float = 0) -> Path:
    """A segment of an earlier run; of 1970 unless the test says when."""
    journal = opened_journal(directory, floor)
    journal.append([Entry(1, 1, arrival, b"{}") for arrival in arrivals])
    path = closed(journal)
    os.utime(path, (modified_at_s, modified_at_s))
    return path


def paths_of(journal: Journal) -> list[Path]:
    return [segment.path for segment in journal]


# Arrivals


def test_arrivals_go_on_after_the_last_entry_of_the_newest_segment(tmp_path: Path) -> None:
    left_over(tmp_path, 0, [ARRIVAL + 100])
    left_over(tmp_path, ARRIVAL + 100, [ARRIVAL + 101, ARRIVAL + 102])
    assert open_journal(tmp_path).last_arrival == ARRIVAL + 102


def test_arrivals_go_on_after_the_floor_of_an_empty_segment(tmp_path: Path) -> None:
    left_over(tmp_path, ARRIVAL + 7, [])
    assert open_journal(tmp_path).last_arrival == ARRIVAL + 7


def test_arrivals_go_on_after_the_segment_before_one_that_has_no_header_yet(tmp_path: Path) -> None:
    left_over(tmp_path, 0, [ARRIVAL + 1])
    newest = left_over(tmp_path, ARRIVAL + 1, [])
    os.truncate(newest, 0)
    os.utime(newest, (0, 0))
    assert open_journal(tmp_path).last_arrival == ARRIVAL + 1


def test_arrivals_go_on_after_the_time_of_the_newest_file_when_its_end_is_lost(tmp_path: Path) -> None:
    path = left_over(tmp_path, ARRIVAL, [ARRIVAL + 1])
    path.write_bytes(path.read_bytes()[:-1])
    os.utime(path, (2_000_000_000, 2_000_000_000))
    assert open_journal(tmp_path).last_arrival == 2_000_000_000_000_000


def test_an_unreadable_newest_file_does_not_stop_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = left_over(tmp_path, ARRIVAL, [ARRIVAL + 1])
    path.unlink()
    path.mkdir()  # EISDIR here, EIO of a broken disk: both are OSErrors of read(2)
    before = time.time_ns() // 1000
    assert open_journal(tmp_path).last_arrival >= before
    assert f"{path} cannot be read" in caplog.text


def test_a_damaged_arrival_does_not_push_the_clock_into_the_future(tmp_path: Path) -> None:
    path = left_over(tmp_path, ARRIVAL, [ARRIVAL + 1, ARRIVAL + 2])
    data = bytearray(path.read_bytes())
    data[SEGMENT_HEADER_BYTES + 15] = 0xFF
    path.write_bytes(data)
    os.utime(path, (0, 0))
    assert open_journal(tmp_path).last_arrival == ARRIVAL + 2


@pytest.mark.parametrize("arrival", [2**64 - 1, 2**63, recovery.MAX_ARRIVAL])
@pytest.mark.parametrize("where", ["entry", "floor"])
def test_an_arrival_at_the_end_of_its_range_is_not_followed(tmp_path: Path, arrival: int, where: str) -> None:
    """Neither the journal nor the database could hold the next ones."""
    left_over(tmp_path, arrival if where == "floor" else FLOOR, [arrival if where == "entry" else FLOOR])
    assert recovered(tmp_path).last_arrival == FLOOR


def test_a_file_time_far_in_the_future_does_not_push_the_clock(tmp_path: Path) -> None:
    path = filled(tmp_path)
    os.utime(path, ns=(0, 2**62))
    assert recovered(tmp_path).last_arrival == 2**62 // 1000
    os.utime(path, (0, 2**40))  # the year 36812, which tmpfs and xfs keep
    if path.stat().st_mtime == 2**40:
        assert recovered(tmp_path).last_arrival == ENTRIES[-1].arrival


# Files


def test_segments_are_taken_in_oldest_first_and_new_ones_come_after_them(tmp_path: Path) -> None:
    paths = [filled(tmp_path) for _ in range(3)]
    journal = recovered(tmp_path)
    assert paths_of(journal) == paths
    assert journal.bytes == sum(path.stat().st_size for path in paths)
    assert (journal.holds(1), journal.last_sequence(), sum(journal.records().values())) == (True, 3, 0)
    journal.open()
    assert closed(journal) > paths[-1]

    asyncio.run(count_records(journal))
    assert journal.records() == {1: 3 * 1001, 2: 3 * 4}
    oldest_at = journal.oldest_at()
    assert oldest_at is not None
    assert oldest_at < time.monotonic() - 3600


def test_foreign_files_in_the_directory_are_left_alone_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = filled(tmp_path)
    foreign = ["notes.txt", "1.segment.bak", f"x{3:020}.segment", "１.segment"]
    ours = [f"{2:020}.segment.broken", "lost+found"]
    for name in foreign + ours:
        (tmp_path / name).write_bytes(b"not ours")
    (tmp_path / f"{9:020}.rewrite").mkdir()

    journal = recovered(tmp_path)

    assert paths_of(journal) == [kept]
    assert (journal.bytes, journal.set_aside) == (kept.stat().st_size, 1)
    assert all((tmp_path / name).read_bytes() == b"not ours" for name in foreign)
    said = sorted(Path(str(record.args[0])).name for record in caplog.records if record.args)
    assert said == sorted([*foreign, f"{9:020}.rewrite"])


@pytest.mark.parametrize("name", ["9" * 20, "1" + "0" * 20, "7", str(10**18), "0" * 21 + "3", "9" * 60])
def test_a_segment_under_any_number_is_taken_in_and_numbers_never_outgrow_their_digits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """An operator restores one under a free name; version 1 then wrote numbers of 21 digits, which no start read."""
    first = filled(tmp_path)
    (tmp_path / f"{name}.segment").write_bytes(first.read_bytes())

    journal = recovered(tmp_path)
    journal.open()

    names = [path.name for path in paths_of(journal)]
    assert names == sorted(names)
    assert [len(name) for name in names] == [len(first.name)] * 3
    assert all(segments.read(path).entries == ENTRIES for path in paths_of(journal)[:2])
    assert f"{name}.segment" in caplog.text
    closed(journal)
    assert paths_of(recovered(tmp_path)) == sorted(tmp_path.glob("*.segment"))


def test_a_torn_tail_of_the_newest_segment_is_cut_off_and_is_no_alarm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older, newest = filled(tmp_path), filled(tmp_path)
    whole = newest.stat().st_size
    for torn in (older, newest):
        with torn.open("ab") as file:
            file.write(entry_header(ENTRIES[0]) + b"{")
    caplog.set_level(logging.INFO)

    assert [segment.size for segment in recovered(tmp_path)] == [older.stat().st_size, whole]
    assert segments.read(newest).damage == []
    assert segments.read(older).damaged_bytes > 0
    said = [(record.levelname, record.args) for record in caplog.records]
    assert said == [("INFO", (ENTRY_HEADER_BYTES + 1, newest.name))]


def test_an_unfinished_copy_is_removed(tmp_path: Path) -> None:
    kept = filled(tmp_path)
    copy = tmp_path / f"{1:020}.rewrite"
    copy.write_bytes(b"half")
    assert paths_of(recovered(tmp_path)) == [kept]
    assert not copy.exists()


def test_a_number_of_a_broken_segment_is_not_given_again(tmp_path: Path) -> None:
    kept = segments.set_aside(filled(tmp_path))
    journal = recovered(tmp_path)
    assert (list(journal), journal.last_arrival) == ([], 0)
    journal.open()
    segments.set_aside(closed(journal))
    assert segments.read(kept).entries == ENTRIES


# Locks and paths


def test_a_journal_directory_that_cannot_be_made_ends_the_start_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"flusher: journal.directory = .*/file/journal: Not a directory"):
        open_journal(tmp_path / "file" / "journal")


@pytest.mark.parametrize("name", ["flusher", "ingest"])
def test_a_second_one_in_the_same_state_directory_is_refused(name: str, tmp_path: Path) -> None:
    held = lock_or_exit(tmp_path, name)
    call = f"lock_or_exit(Path({str(tmp_path)!r}), {name!r})"
    program = f"from pathlib import Path; from shared.process import lock_or_exit; {call}"
    second = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert second.stderr == f"{name}: another {name} is at work in {tmp_path}; ./scripts/stop.sh stops it\n"

    os.close(held)
    third = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert third.returncode == 0


def test_one_journal_belongs_to_one_flusher_whatever_the_state_directory(tmp_path: Path) -> None:
    held = hold(tmp_path)
    path = left_over(tmp_path, 0, [ARRIVAL])
    with path.open("ab") as file:
        file.write(entry_header(Entry(1, 1, ARRIVAL + 1, b"{}")))  # its body is under way
    before = path.read_bytes()
    with pytest.raises(
        SystemExit, match=r"journal.directory = .*: another flusher is at work in it; each needs its own"
    ):
        open_journal(tmp_path)
    assert path.read_bytes() == before
    os.close(held)


def test_the_socket_lies_in_a_directory_closed_to_other_users(short_path: Path) -> None:
    (short_path / "run").mkdir(mode=0o755)
    stale = short_path / "run" / "flusher.sock"
    stale.touch()
    path = socket_path(short_path)
    assert path == stale
    assert not path.exists()
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_path_too_long_for_a_socket_is_named_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="shorten PERSISTENCE_STATE_DIR"):
        socket_path(tmp_path / ("x" * 100))
