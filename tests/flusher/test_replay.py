"""A replay of dead letters against a flusher in this process that takes, refuses or dead-letters them again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from flusher import dead_letters, replay
from flusher.dead_letters import DeadLetter
from flusher.replay import NotReplayed, Round, is_replayable
from shared.wire import Inbox, Submit
from tests.flusher.test_dead_letters import MAX_BYTES, letter
from tests.support.wire import read


class Flusher:
    """In place of the connection: `refuses` from that letter on, `bad` become letters again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.refuses = 10**9
        self.bad: set[str] = set()
        self.took: list[str] = []
        self._flushed = 0

    def close(self) -> None:
        pass

    def submit(self, letters: Sequence[DeadLetter]) -> tuple[set[int], str | None]:
        room = self.refuses - len(self.took)
        taken = letters[:room]
        self.took += [one.ids[-1] for one in taken]
        return set(range(len(taken))), "JOURNAL_FULL" if len(taken) < len(letters) else None

    def flush(self, timeout_s: float) -> dict[str, int]:
        new, self._flushed = self.took[self._flushed :], len(self.took)
        again = [letter(key, time="2027-01-01T00:00:00.000000+00:00") for key in new if key in self.bad]
        if again:
            dead_letters.append(self.path, again, MAX_BYTES)
        return {"pending": 0, "dead_lettered": len(again)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / dead_letters.FILE_NAME


@pytest.fixture
def flusher(path: Path, monkeypatch: pytest.MonkeyPatch) -> Flusher:
    made = Flusher(path)
    monkeypatch.setattr(replay, "_Connection", lambda _: made)
    return made


@pytest.fixture
def rewritings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many letters each rewriting of the file took out."""
    seen: list[int] = []
    original = dead_letters.remove

    def remove(path: Path, lines: list[bytes]) -> None:
        seen.append(len(lines))
        original(path, lines)

    monkeypatch.setattr(dead_letters, "remove", remove)
    return seen


def fill(path: Path, count: int) -> list[tuple[bytes, DeadLetter]]:
    dead_letters.append(path, [letter(f"{number:04}") for number in range(count)], MAX_BYTES)
    return list(dead_letters.read(path))


def keys(path: Path) -> list[str]:
    return [one.ids[-1] for _, one in dead_letters.read(path)]


def test_the_file_is_rewritten_once_however_many_letters_there_are(
    path: Path, flusher: Flusher, rewritings: list[int]
) -> None:
    letters = fill(path, 1000)
    rounds = [*replay.replay(path, path, letters)]
    assert sum(one.written for one in rounds) == 1000
    assert rewritings == [1000]
    assert keys(path) == []


def test_a_letter_that_was_not_acknowledged_stays(path: Path, flusher: Flusher) -> None:
    letters = fill(path, 30)
    flusher.refuses = 17
    with pytest.raises(NotReplayed, match="JOURNAL_FULL"):
        list(replay.replay(path, path, letters))
    assert keys(path) == [f"{number:04}" for number in range(17, 30)]


def test_no_letter_is_removed_before_it_is_acknowledged(
    path: Path, flusher: Flusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = fill(path, 30)

    def crash(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(flusher, "submit", crash)
    with pytest.raises(KeyboardInterrupt):
        list(replay.replay(path, path, letters))
    assert len(keys(path)) == 30


def test_a_replay_that_is_broken_off_takes_out_what_was_acknowledged(path: Path, flusher: Flusher) -> None:
    letters = fill(path, 30)
    rounds = replay.replay(path, path, letters)
    assert next(rounds) == Round(written=1)
    assert len(keys(path)) == 30  # a crash here replays it once more
    rounds.close()
    assert len(keys(path)) == 29


@pytest.mark.parametrize("elsewhere", [False, True])
def test_letters_that_are_refused_again_are_found_behind_those_that_were_there(
    path: Path, flusher: Flusher, elsewhere: bool
) -> None:
    letters = fill(path, 30)
    flusher.bad = {"0003", "0005"}
    rounds = []
    for one in replay.replay(path, path, letters):
        rounds.append(one)
        if elsewhere:  # another replay, of other letters, rewrites the file meanwhile
            dead_letters.remove(path, [])
    assert (sum(one.written for one in rounds), sum(one.refused for one in rounds)) == (28, 2)
    assert keys(path) == ["0003", "0005"]


@pytest.mark.parametrize("arrival", [0, -1, 2**64 - 1, 2**64, 10**30])
def test_an_arrival_that_somebody_has_edited_still_fits_its_frame(arrival: int) -> None:
    edited = letter("a", arrival=arrival)
    assert is_replayable(edited)
    (frame,) = read(Inbox(), replay._submit(1, edited))
    assert isinstance(frame, Submit)
    assert frame.arrival == min(max(arrival, 1), 2**64 - 1)
    assert msgspec.json.decode(frame.body) == {"tasks": [edited.record]}
