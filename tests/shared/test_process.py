from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from shared.process import KEPT_BYTES, LARGE_BYTES, lock, lock_or_exit, open_own, own_state_directory
from tests.support.strangers import STRANGER, needs_root

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
        lock_or_exit(tmp_path, "flusher")
    assert tmp_path.stat().st_mode & 0o7777 == mode


def test_one_that_was_closed_before_is_used_again(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    tmp_path.chmod(0o700)
    own_state_directory(tmp_path)


@needs_root
@pytest.mark.parametrize("name", ["file", "link", "link to nothing"])
def test_a_file_or_link_that_another_user_has_put_there_is_refused_and_left_as_it_is(name: str, tmp_path: Path) -> None:
    stranger = pwd.getpwnam(STRANGER).pw_uid
    target = tmp_path / "target"
    if name != "link to nothing":
        target.write_text("ours")
    path = target if name == "file" else tmp_path / "link"
    if path != target:
        path.symlink_to(target)
    os.chown(path, stranger, -1, follow_symlinks=False)
    with pytest.raises(PermissionError, match=f"belongs to user {stranger}, and this is user 0"):
        open_own(path, os.O_WRONLY | os.O_TRUNC)
    if name != "file":
        with pytest.raises(PermissionError):
            lock(path.rename(tmp_path / "link.lock").parent, "link")
    assert target.read_text() == "ours" if name != "link to nothing" else not target.exists()


def test_a_link_of_our_own_is_followed_and_a_new_file_is_ours_alone(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "target")
    before = os.umask(0)
    try:
        os.close(open_own(link, os.O_WRONLY))
    finally:
        os.umask(before)
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o600
