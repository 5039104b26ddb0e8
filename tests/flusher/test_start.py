from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flusher.__main__ import hold, open_journal
from flusher.journal import Journal
from flusher.segments import SEGMENT_HEADER_BYTES, Entry, entry_header
from flusher.watch import socket_path
from shared.process import lock_or_exit

ARRIVAL = 1_700_000_000_000_000


def left_over(directory: Path, floor: int, arrivals: list[int], modified_at_s: float = 0) -> Path:
    """What an earlier run left; written in 1970 unless the test says when."""
    journal = Journal(directory)
    journal.recover()
    journal.open(floor)
    journal.append([Entry(1, 1, arrival, b"{}") for arrival in arrivals])
    segment = journal.seal()
    segment.close()
    os.utime(segment.path, (modified_at_s, modified_at_s))
    return segment.path


def test_a_first_start_makes_the_directory_and_knows_no_arrival(tmp_path: Path) -> None:
    journal, leftovers, floor = open_journal(tmp_path / "a" / "journal")

    assert (leftovers, floor, journal.bytes) == ([], 0, 0)


def test_arrivals_go_on_after_the_last_entry_of_the_newest_segment(tmp_path: Path) -> None:
    left_over(tmp_path, 0, [ARRIVAL + 100])
    left_over(tmp_path, ARRIVAL + 100, [ARRIVAL + 101, ARRIVAL + 102])

    assert open_journal(tmp_path)[2] == ARRIVAL + 102


def test_arrivals_go_on_after_the_floor_of_an_empty_segment(tmp_path: Path) -> None:
    left_over(tmp_path, ARRIVAL + 7, [])

    assert open_journal(tmp_path)[2] == ARRIVAL + 7


def test_arrivals_go_on_after_the_segment_before_one_that_has_no_header_yet(tmp_path: Path) -> None:
    left_over(tmp_path, 0, [ARRIVAL + 1])
    newest = left_over(tmp_path, ARRIVAL + 1, [])
    os.truncate(newest, 0)
    os.utime(newest, (0, 0))

    assert open_journal(tmp_path)[2] == ARRIVAL + 1


def test_arrivals_go_on_after_the_time_of_the_newest_file_when_its_end_is_lost(tmp_path: Path) -> None:
    path = left_over(tmp_path, ARRIVAL, [ARRIVAL + 1], modified_at_s=2_000_000_000)
    path.write_bytes(path.read_bytes()[:-1])
    os.utime(path, (2_000_000_000, 2_000_000_000))

    assert open_journal(tmp_path)[2] == 2_000_000_000_000_000


def test_a_newest_file_that_cannot_be_read_does_not_stop_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = left_over(tmp_path, ARRIVAL, [ARRIVAL + 1])
    path.unlink()
    path.mkdir()  # the kernel says EISDIR here and EIO of a broken disk; both are OSErrors of read(2)
    before = time.time_ns() // 1000

    assert open_journal(tmp_path)[2] >= before
    assert f"{path} cannot be read" in caplog.text


def test_a_damaged_arrival_does_not_push_the_clock_into_the_future(tmp_path: Path) -> None:
    path = left_over(tmp_path, ARRIVAL, [ARRIVAL + 1, ARRIVAL + 2])
    data = bytearray(path.read_bytes())
    data[SEGMENT_HEADER_BYTES + 15] = 0xFF
    path.write_bytes(data)
    os.utime(path, (0, 0))

    assert open_journal(tmp_path)[2] == ARRIVAL + 2


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


def test_one_journal_is_one_flushers_whatever_the_state_directory(tmp_path: Path) -> None:
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
