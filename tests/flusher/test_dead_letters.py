from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from flusher import dead_letters
from flusher.dead_letters import Count, DeadLetter, DeadLettersFull
from tests.support.service import ROOT, wait_until

MAX_BYTES = 1 << 20


def letters_in(path: Path) -> list[DeadLetter]:
    return [letter for _, letter in dead_letters.read(path)]


def letter(key: str | tuple[str, str] = "t1", **fields: Any) -> DeadLetter:
    return DeadLetter(
        **{
            "time": "2026-01-01T00:00:00.000000+00:00",
            "kind": "tasks",
            "key": key,
            "error_code": 4025,
            "error": "CONSTRAINT `no_bad` failed",
            "column": None,
            "arrival": 1_700_000_000_000_000,
            "record": {"task_id": key, "source_text": "你好 🙂\x00\n"},
            **fields,
        }
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dead_letters.jsonl"


def test_letters_come_back_in_order_as_they_were_received(path: Path) -> None:
    """Version 1 wrote a key as one text."""
    dead_letters.append(path, [letter("a"), letter("b", column="batch_id")], MAX_BYTES)
    dead_letters.append(path, [letter(("s1", "c"), record="not even json")], MAX_BYTES)

    assert letters_in(path) == [
        letter("a"),
        letter("b", column="batch_id"),
        letter(("s1", "c"), record="not even json"),
    ]
    assert Count(path).look() == 3


def test_the_file_is_json_lines_that_only_its_owner_reads(path: Path) -> None:
    dead_letters.append(path, [letter("a"), letter("b")], MAX_BYTES)

    lines = path.read_bytes().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["a", "b"]
    assert set(json.loads(lines[0])) == {
        "time",
        "kind",
        "key",
        "error_code",
        "error",
        "column",
        "arrival",
        "record",
        "rules",
    }
    assert path.stat().st_mode & 0o777 == 0o600


def test_no_file_means_no_letters(path: Path) -> None:
    assert letters_in(path) == []
    assert Count(path).look() == 0


def test_over_the_cap_nothing_is_added_and_nothing_is_discarded(path: Path) -> None:
    dead_letters.append(path, [letter("a")], MAX_BYTES)
    size = path.stat().st_size

    with pytest.raises(DeadLettersFull):
        dead_letters.append(path, [letter("b"), letter("c")], 3 * size - 1)
    assert letters_in(path) == [letter("a")]

    dead_letters.append(path, [letter("b"), letter("c")], 3 * size)
    assert Count(path).look() == 3


def test_letters_are_synced_before_append_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    fsync = os.fsync

    def watched(fd: int) -> None:
        fsync(fd)
        sizes.append(os.fstat(fd).st_size)

    monkeypatch.setattr(os, "fsync", watched)
    dead_letters.append(path, [letter("a")], MAX_BYTES)

    assert path.stat().st_size in sizes


def test_a_failed_sync_takes_the_letters_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead_letters.append(path, [letter("a")], MAX_BYTES)

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output"):
            dead_letters.append(path, [letter("b")], MAX_BYTES)

    assert letters_in(path) == [letter("a")]


def test_a_full_disk_leaves_no_part_of_a_letter(path: Path) -> None:
    dead_letters.append(path, [letter("a")], MAX_BYTES)
    size = path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
    try:
        with pytest.raises(OSError, match="no space"):
            dead_letters.append(path, [letter("b")], MAX_BYTES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert path.stat().st_size == size
    dead_letters.append(path, [letter("c")], MAX_BYTES)
    assert letters_in(path) == [letter("a"), letter("c")]


@pytest.mark.parametrize("spoilt", [b"\xff", b"\0"])
def test_a_letter_that_the_disk_has_spoilt_hides_no_other(path: Path, spoilt: bytes) -> None:
    dead_letters.append(path, [letter("a"), letter("b"), letter("c")], MAX_BYTES)
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:20] + spoilt + second[21:] + third)

    assert [one.key for one in letters_in(path)] == ["a", "c"]
    assert Count(path).look() == 2


def test_a_letter_cut_off_anywhere_by_a_crash_costs_neither_its_neighbours_nor_those_to_come(path: Path) -> None:
    dead_letters.append(path, [letter("a")], MAX_BYTES)
    first = path.stat().st_size
    dead_letters.append(path, [letter("b")], MAX_BYTES)
    whole = path.read_bytes()

    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        dead_letters.append(path, [letter("c")], MAX_BYTES)
        keys = [one.key for one in letters_in(path)]
        complete = cut == len(whole) - 1  # only the line's end is missing
        assert keys == (["a", "b", "c"] if complete else ["a", "c"])


def test_writers_that_append_at_the_same_time_do_not_mix_their_lines(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from flusher import dead_letters\n"
        "from tests.flusher.test_dead_letters import letter\n"
        f"for n in range(50): dead_letters.append(Path({str(path)!r}), [letter(sys.argv[1] + str(n))] * 3, 1 << 30)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, name], cwd=ROOT) for name in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]

    keys = [one.key for one in letters_in(path)]
    assert len(keys) == len(path.read_bytes().splitlines()) == 300
    for name in "ab":
        assert [key for key in keys if key[0] == name] == [f"{name}{n}" for n in range(50) for _ in range(3)]
    assert all(keys[at] == keys[at + 1] == keys[at + 2] for at in range(0, 300, 3))


def test_a_writer_waits_for_the_lock_so_that_cap_and_torn_end_are_judged_alone(path: Path) -> None:
    dead_letters.append(path, [letter("a")], MAX_BYTES)
    lock = path.with_suffix(".lock")
    inode = lock.stat().st_ino

    def somebody_waits() -> bool:
        lines = Path("/proc/locks").read_text().splitlines()
        return any("-> FLOCK" in line and f":{inode} " in line for line in lines)

    with lock.open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        other = threading.Thread(target=dead_letters.append, args=(path, [letter("b")], MAX_BYTES))
        other.start()
        wait_until(somebody_waits, what="the other writer waits for the lock")
        assert Count(path).look() == 1
    other.join(30)

    assert Count(path).look() == 2
