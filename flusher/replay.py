"""`python -m flusher.replay [--key KEY] [--error NUMBER]`: sends dead letters through acceptance again.

Each keeps its first arrival, so the merge rule protects rows that are newer. A letter leaves the file only after the
flusher has acknowledged it; a crash in between replays it once more, which is harmless. One that the database still
refuses becomes a dead letter again.
"""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson

from flusher import dead_letters
from flusher.dead_letters import DeadLetter
from shared.config import load_or_exit
from shared.records import KINDS
from shared.wire import SOCKET_NAME, Ack, Decoder, Message, Reject, Submit, encode

TIMEOUT_S = 30.0
AT_ONCE = 100
_KIND_OF_NAME = {kind.name: kind for kind in KINDS}


class NotReplayed(Exception):
    """The flusher is away or refuses; the letters stay. The operator must act."""


def is_replayable(letter: DeadLetter) -> bool:
    """An entry that did not decode is kept as text: only a human can tell what it was."""
    return letter.kind in _KIND_OF_NAME and isinstance(letter.record, dict)


def replay(path: Path, socket_path: Path, letters: Sequence[tuple[bytes, DeadLetter]]) -> Iterator[int]:
    """Replays letters in groups. Blocks. Yields: after each group, how many it had. Raises: NotReplayed, OSError."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT_S)
        try:
            connection.connect(str(socket_path))
        except OSError as error:
            raise NotReplayed(f"the flusher is not reachable at {socket_path}: {error.strerror}") from error
        decoder = Decoder()
        for at in range(0, len(letters), AT_ONCE):
            group = letters[at : at + AT_ONCE]
            connection.sendall(b"".join(_submit(seq, letter) for seq, (_, letter) in enumerate(group)))
            answers: list[Message] = []
            while len(answers) < len(group):
                data = connection.recv(65536)
                if not data:
                    raise NotReplayed("the flusher closed the connection; its letters stay, try again")
                answers += decoder.feed(data)
            accepted = [group[answer.seq][0] for answer in answers if isinstance(answer, Ack)]
            dead_letters.remove(path, accepted)
            yield len(accepted)
            refused = [answer for answer in answers if isinstance(answer, Reject)]
            if refused:
                raise NotReplayed(f"the flusher refuses ({refused[0].reason.name}); the letters stay, try later")


def _submit(seq: int, letter: DeadLetter) -> bytes:
    kind = _KIND_OF_NAME[letter.kind]
    body = orjson.dumps({kind.name: [letter.record]})
    return encode(Submit(seq, kind.code, 1, body, arrival=letter.arrival))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flusher.replay", description=__doc__.splitlines()[0])
    parser.add_argument("--key", help="only the records with this session_id or task_id")
    parser.add_argument("--error", type=int, help="only the records refused with this error number")
    wanted = parser.parse_args()
    state_directory = Path(load_or_exit().state_directory)
    path = state_directory / dead_letters.FILE_NAME
    chosen = [
        (line, letter)
        for line, letter in dead_letters.read(path)
        if wanted.key in (None, letter.key) and wanted.error in (None, letter.error_code)
    ]
    able = [(line, letter) for line, letter in chosen if is_replayable(letter)]
    done = 0
    try:
        for count in replay(path, state_directory / SOCKET_NAME, able):
            done += count
    except (NotReplayed, OSError) as error:
        sys.exit(f"{done} of {len(able)} dead letters were replayed: {error}")
    print(f"{done} dead letters were replayed, {len(chosen) - done} of those chosen stay")


if __name__ == "__main__":
    main()
