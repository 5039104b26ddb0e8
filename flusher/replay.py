"""Submits dead letters again; `ctl deadletters replay` is its command line.

Each letter keeps its first arrival, so the merge rule protects newer rows. Letters are removed from the file after the
flusher has acknowledged them, all at the end in one rewrite; a crash before that replays them again, which is harmless.
A letter that the database refuses again is appended to the file as a new dead letter.

Letters with the same error are sent in growing rounds, each flushed before the next: if the cause persists, the first
letter shows it, and the others stay in the file.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from flusher import dead_letters
from flusher.dead_letters import DeadLetter
from shared.records import KINDS
from shared.wire import Ack, Answer, FlushRequest, Inbox, Message, ProtocolError, Reject, Submit, encode

TIMEOUT_S = 30.0
ROUNDS = (1, 9, 100)
"""Letters in each round; the last number repeats."""
_KIND_OF_NAME = {kind.name: kind for kind in KINDS}
Letters = Sequence[tuple[bytes, DeadLetter]]


class NotReplayed(Exception):
    """The flusher is unreachable, rejects or cannot write. Letters stay or wait in the journal. The operator acts."""


@dataclass(frozen=True, slots=True)
class Round:
    """The outcome of some letters: `refused` became dead letters again, `held_back` were not sent because of them."""

    written: int = 0
    refused: int = 0
    held_back: int = 0


def is_replayable(letter: DeadLetter) -> bool:
    """False for an entry that did not decode: it is kept as text, and a person must look at it."""
    return letter.kind in _KIND_OF_NAME and isinstance(letter.record, dict)


def replay(path: Path, socket_path: Path, letters: Letters) -> Iterator[Round]:
    """Replays letters, grouped by error. Blocks. Yields: the outcome of each round. Raises: NotReplayed, OSError."""
    by_reason: dict[tuple[str, int, str | None], list[tuple[bytes, DeadLetter]]] = {}
    for line, letter in letters:
        by_reason.setdefault((letter.kind, letter.error_code, letter.column), []).append((line, letter))
    done: list[bytes] = []
    try:
        with closing(_Connection(socket_path)) as connection:
            for group in by_reason.values():
                yield from _replay_group(path, connection, group, done)
    finally:
        if done:
            dead_letters.remove(path, done)


def _replay_group(path: Path, connection: _Connection, group: Letters, done: list[bytes]) -> Iterator[Round]:
    """Adds the lines of acknowledged letters to `done`."""
    at = rounds = 0
    while at < len(group):
        part = group[at : at + ROUNDS[min(rounds, len(ROUNDS) - 1)]]
        at += len(part)
        rounds += 1
        before = path.stat()
        accepted, why = connection.submit([letter for _, letter in part])
        done += [line for index, (line, _) in enumerate(part) if index in accepted]
        if why:
            raise NotReplayed(
                f"the flusher refuses ({why}): {len(accepted)} more wait in the journal, the others stay dead letters"
            )
        result = connection.flush(TIMEOUT_S)
        if result["pending"]:
            raise NotReplayed(
                f"the database takes nothing now: {len(part)} more wait in the journal, the others stay dead letters"
            )
        refused = _again(path, part, before) if result["dead_lettered"] else 0
        yield Round(written=len(part) - refused, refused=refused)
        if refused * 2 > len(part):
            if at < len(group):
                yield Round(held_back=len(group) - at)
            return


def _again(path: Path, part: Letters, before: os.stat_result) -> int:
    """How many of the letters were appended to the file again. Arrivals distinguish letters of one key."""
    start = before.st_size if os.path.samestat(before, path.stat()) else 0  # another replay has rewritten it
    old = {line for line, _ in part}
    new = (letter for line, letter in dead_letters.read(path, start) if line not in old)
    back = {(letter.kind, letter.ids, letter.arrival) for letter in new}
    return sum((letter.kind, letter.ids, letter.arrival) in back for _, letter in part)


class _Connection:
    """A blocking connection to the flusher. Raises: NotReplayed."""

    def __init__(self, socket_path: Path) -> None:
        self._inbox = Inbox()
        self._socket = socket.socket(socket.AF_UNIX)
        # A flush is answered at its own deadline; ours lies behind it.
        self._socket.settimeout(TIMEOUT_S + 5)
        try:
            self._socket.connect(str(socket_path))
        except OSError as error:
            self._socket.close()
            raise NotReplayed(f"the flusher is not reachable at {socket_path}: {error.strerror or error}") from error

    def close(self) -> None:
        self._socket.close()

    def submit(self, letters: Sequence[DeadLetter]) -> tuple[set[int], str | None]:
        """Returns: the indexes of acknowledged letters, and the reason of a rejection."""
        answers = self._ask([_submit(seq, letter) for seq, letter in enumerate(letters)])
        refused = [answer.reason.name for answer in answers if isinstance(answer, Reject)]
        acks = [answer for answer in answers if isinstance(answer, Ack)]
        return {ack.seq + at for ack in acks for at in range(ack.count)}, refused[0] if refused else None

    def flush(self, timeout_s: float) -> dict[str, Any]:
        (answer,) = self._ask([encode(FlushRequest(0, timeout_s))])
        if not isinstance(answer, Answer):
            raise NotReplayed(f"the flusher answers a flush with {type(answer).__name__}")
        result: dict[str, Any] = orjson.loads(answer.json)
        return result

    def _ask(self, frames: list[bytes]) -> list[Message]:
        """One ack may answer several submits in a row."""
        answers: list[Message] = []
        answered = 0
        try:
            self._socket.sendall(b"".join(frames))
            while answered < len(frames):
                size = self._socket.recv_into(self._inbox.room())
                if not size:
                    raise NotReplayed(
                        "the flusher closed the connection (it takes only its own user's); the letters stay"
                    )
                new = self._inbox.received(size)
                answers += new
                answered += sum(one.count if isinstance(one, Ack) else 1 for one in new)
        except (OSError, ProtocolError) as error:
            raise NotReplayed(f"the flusher: {error}; letters without its acknowledgement stay; try again") from error
        return answers


def _submit(seq: int, letter: DeadLetter) -> bytes:
    kind = _KIND_OF_NAME[letter.kind]
    body = orjson.dumps({kind.name: [letter.record]})
    arrival = min(max(letter.arrival, 1), 2**64 - 1)  # somebody may have edited the file
    return encode(Submit(seq, kind.code, 1, body, arrival=arrival, rules=letter.rules.encode()))
