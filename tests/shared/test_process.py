from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shared.process import KEPT_BYTES, LARGE_BYTES, own_state_directory

BODIES = """
import resource, sys
from shared.process import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
rounds, at_once, size = map(int, sys.argv[2:])
for number in range(rounds + 1):
    if number == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bodies = [bytes(size) for _ in range(at_once)]
    for body in bodies:
        body[::4096]
    del bodies, body
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str, rounds: int, at_once: int, size: int) -> int:
    arguments = [sys.executable, "-c", BODIES, how, *map(str, (rounds, at_once, size))]
    return int(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)


def test_the_memory_of_bodies_that_are_gone_serves_the_next_ones() -> None:
    rounds, at_once, size = 50, 8, 256 * 1024
    assert at_once * size < KEPT_BYTES
    pages = rounds * at_once * size // 4096

    assert page_faults("returned", rounds, at_once, size) > pages // 2  # else there is nothing to keep
    assert page_faults("kept", rounds, at_once, size) < pages // 50


def test_a_large_piece_of_memory_is_returned_at_once() -> None:
    rounds, size = 10, 4 * LARGE_BYTES
    assert page_faults("kept", rounds, 1, size) >= rounds * size // 4096


def test_a_state_directory_is_made_for_us_alone_and_an_empty_one_is_closed_to_others(tmp_path: Path) -> None:
    made, mounted = tmp_path / "a" / "made", tmp_path / "mounted"
    (mounted / "lost+found").mkdir(parents=True)
    mounted.chmod(0o755)
    for directory in (made, mounted):
        own_state_directory(directory)
        assert directory.stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize("mode", [0o755, 0o1777, 0o710, 0o701])
def test_a_directory_that_others_use_is_named_and_left_as_it_is(tmp_path: Path, mode: int) -> None:
    (tmp_path / "somebody's").touch()
    tmp_path.chmod(mode)
    with pytest.raises(SystemExit, match=f"^PERSISTENCE_STATE_DIR = {tmp_path}: is open to others \\(mode {mode:o}\\)"):
        own_state_directory(tmp_path)
    assert tmp_path.stat().st_mode & 0o7777 == mode


def test_one_that_was_closed_before_is_used_again(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    tmp_path.chmod(0o700)
    own_state_directory(tmp_path)
