"""Frames between ingest and flusher: bytes in, messages out. Opens no socket.

The stream is a sequence of frames, little-endian:

    frame   := length:u32 version:u8 type:u8 seq:u32 payload:u8[length]

    submit    (1, to flusher)  := kind:u8 flags:u8 size:u8 count:u32 arrival:u64 rules:u8[size] body:u8[]
    ack       (2, to ingest)   := count:u32 arrival:u64
    reject    (3, to ingest)   := reason:u8 retry_after_ms:u32
    flush     (4, to flusher)  := timeout_ms:u32
    stats     (5, to flusher)  := (empty)
    answer    (6, to ingest)   := JSON                 -- to a flush or to stats
    committed (7, to ingest)   := first:u64 last:u64 dead*        dead := arrival:u64 count:u32

`seq` numbers the requests of a connection; every answer repeats it. `arrival` counts µs since 1970 UTC. In a submit it
is 0, except for a replayed dead letter, which keeps its first arrival. `rules` decide what the body means
(records.Rules); the flusher stores them unread.

One ack answers `count` submits, at most MAX_ACKED: those numbered seq, seq + 1, … arrived at arrival, arrival + 1, …
With flag WANT_COMMIT a submit is answered twice: by an ack, and by a committed, with seq 0, whose range includes its
arrival. One committed answers all such submits of a segment on a connection, so the flusher keeps no state for each.
`dead` lists the bodies of which `count` records became dead letters.

A frame of another version or type, or longer than MAX_FRAME_BYTES, is a ProtocolError. The next frame cannot be found
then, so the connection ends. Change a payload ⇒ raise VERSION; the two sides of a node are deployed together, so there
is no negotiation.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import TypeAlias

import msgspec

VERSION = 4
SOCKET_NAME = "run/flusher.sock"
"""Under PERSISTENCE_STATE_DIR."""
WANT_COMMIT = 1

_HEADER = struct.Struct("<IBBI")
_SUBMIT = struct.Struct("<IBBI BBBIQ")
_ACK = struct.Struct("<IBBI IQ")
_REJECT = struct.Struct("<IBBI BI")
_FLUSH = struct.Struct("<IBBI I")
_COMMITTED = struct.Struct("<IBBI QQ")
_DEAD = struct.Struct("<QI")

HEADER_BYTES = _HEADER.size
SUBMIT_BYTES = _SUBMIT.size
MAX_FRAME_BYTES = 65 * 1024 * 1024
"""Over the largest service.max_body_bytes (64 MiB) plus a submit's own fields."""
INBOX_BYTES = 512 * 1024
"""What a Unix socket holds at once."""
MAX_ACKED = 65536
_MAX_U32 = 0xFFFFFFFF

Buffer: TypeAlias = bytes | memoryview


class FrameType(IntEnum):
    SUBMIT = 1
    ACK = 2
    REJECT = 3
    FLUSH = 4
    STATS = 5
    ANSWER = 6
    COMMITTED = 7


_SUBMIT_TYPE, _ACK_TYPE = int(FrameType.SUBMIT), int(FrameType.ACK)
"""Of nearly all frames; plain integers compare and pack faster."""
_ACK_LENGTH = _ACK.size - HEADER_BYTES


class Reason(IntEnum):
    """Why the flusher does not accept records."""

    JOURNAL_FULL = 1
    JOURNAL_NOT_WRITABLE = 2


class ProtocolError(Exception):
    """The peer does not speak this protocol. The connection must be closed."""


class Submit(msgspec.Struct, frozen=True, gc=False):
    seq: int
    kind: int
    count: int
    body: Buffer
    arrival: int = 0
    want_commit: bool = False
    rules: bytes = b""


class Ack(msgspec.Struct, frozen=True, gc=False):
    seq: int
    arrival: int
    count: int = 1


class Reject(msgspec.Struct, frozen=True, gc=False):
    seq: int
    reason: Reason
    retry_after_s: float


class FlushRequest(msgspec.Struct, frozen=True, gc=False):
    seq: int
    timeout_s: float


class StatsRequest(msgspec.Struct, frozen=True, gc=False):
    seq: int


class Answer(msgspec.Struct, frozen=True, gc=False):
    seq: int
    json: bytes


class Committed(msgspec.Struct, frozen=True):
    """Submits that arrived from `first` to `last` are in the database, except dead letters: arrival -> records."""

    first: int
    last: int
    dead: dict[int, int] = {}


Message: TypeAlias = Submit | Ack | Reject | FlushRequest | StatsRequest | Answer | Committed


def encode_submit_header(
    seq: int, kind: int, count: int, size: int, *, arrival: int = 0, want_commit: bool = False, rules: bytes = b""
) -> bytes:
    """A submit frame without its body of `size` bytes, so that a large body is sent without a copy."""
    length = SUBMIT_BYTES - HEADER_BYTES + len(rules) + size
    flags = WANT_COMMIT if want_commit else 0
    return _SUBMIT.pack(length, VERSION, _SUBMIT_TYPE, seq, kind, flags, len(rules), count, arrival) + rules


def encode(message: Message) -> bytes:  # noqa: PLR0911 -- one a type
    """One message as one frame. Times are cut to the longest that fits."""
    if isinstance(message, Ack):
        return _ACK.pack(_ACK_LENGTH, VERSION, _ACK_TYPE, message.seq, message.count, message.arrival)
    if isinstance(message, Submit):
        head = encode_submit_header(
            *(message.seq, message.kind, message.count, len(message.body)),
            arrival=message.arrival,
            want_commit=message.want_commit,
            rules=message.rules,
        )
        return head + message.body
    if isinstance(message, Reject):
        retry_after_ms = min(round(message.retry_after_s * 1000), _MAX_U32)
        return _frame(_REJECT, FrameType.REJECT, message.seq, message.reason, retry_after_ms)
    if isinstance(message, FlushRequest):
        return _frame(_FLUSH, FrameType.FLUSH, message.seq, min(round(message.timeout_s * 1000), _MAX_U32))
    if isinstance(message, StatsRequest):
        return _frame(_HEADER, FrameType.STATS, message.seq)
    if isinstance(message, Answer):
        return _frame(_HEADER, FrameType.ANSWER, message.seq, tail=message.json)
    dead = b"".join([_DEAD.pack(arrival, count) for arrival, count in message.dead.items()])
    return _frame(_COMMITTED, FrameType.COMMITTED, 0, message.first, message.last, tail=dead)


def _frame(layout: struct.Struct, type_: FrameType, seq: int, *fields: int, tail: bytes = b"") -> bytes:
    return layout.pack(layout.size - HEADER_BYTES + len(tail), VERSION, type_, seq, *fields) + tail


def acks(seqs: Sequence[int], arrivals: Sequence[int]) -> list[Ack]:
    """The fewest acks that answer these submits: those of one read mostly need just one."""
    result: list[Ack] = []
    start = 0
    for at in range(1, len(seqs) + 1):
        run = at - start
        if (
            at == len(seqs)
            or run == MAX_ACKED
            or seqs[at] != seqs[start] + run
            or arrivals[at] != arrivals[start] + run
        ):
            result.append(Ack(seqs[start], arrivals[start], run))
            start = at
    return result


def _decode_submit(data: memoryview, at: int, end: int) -> Submit:
    length, _, _, seq, kind, flags, size, count, arrival = _SUBMIT.unpack_from(data, at)
    body_at = at + SUBMIT_BYTES + size
    if body_at > end:
        raise ProtocolError(f"a submit of {length} bytes has {size} bytes of rules")
    rules = bytes(data[at + SUBMIT_BYTES : body_at]) if size else b""
    return Submit(seq, kind, count, data[body_at:end], arrival, flags & WANT_COMMIT == WANT_COMMIT, rules)


def _decode(type_: int, seq: int, frame: memoryview) -> Message:
    """Every frame but a submit. Raises: struct.error where its length is wrong, ValueError."""
    if type_ == FrameType.ACK:
        *_, count, arrival = _ACK.unpack(frame)
        if not 1 <= count <= MAX_ACKED:
            raise ValueError(f"{count} submits are acknowledged")
        return Ack(seq, arrival, count)
    if type_ == FrameType.REJECT:
        *_, reason, retry_after_ms = _REJECT.unpack(frame)
        return Reject(seq, Reason(reason), retry_after_ms / 1000)
    if type_ == FrameType.FLUSH:
        return FlushRequest(seq, _FLUSH.unpack(frame)[-1] / 1000)
    if type_ == FrameType.STATS:
        _HEADER.unpack(frame)
        return StatsRequest(seq)
    if type_ == FrameType.ANSWER:
        return Answer(seq, bytes(frame[HEADER_BYTES:]))
    if type_ == FrameType.COMMITTED:
        *_, first, last = _COMMITTED.unpack_from(frame)
        return Committed(first, last, dict(_DEAD.iter_unpack(frame[_COMMITTED.size :])))
    raise ValueError("is not known")


class Inbox:
    """The reader of a connection. It owns the memory that the socket is read into, and reuses it: a body is not copied
    between kernel and journal, and no fresh page is touched for it.

    After a ProtocolError it must not be used again.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._memory = memoryview(bytearray(INBOX_BYTES))
        self._start = 0
        self._end = 0
        self._need = HEADER_BYTES
        """Bytes of the next frame, as far as known."""

    def room(self) -> memoryview:
        """Where to read the next bytes to; never empty. The bodies of earlier messages become invalid."""
        size = max(INBOX_BYTES, self._need)
        if self._start or len(self._memory) != size:
            memory = self._memory if len(self._memory) == size else memoryview(bytearray(size))
            left = self._end - self._start
            memory[:left] = self._memory[self._start : self._end]
            self._memory = memory
            self._start, self._end = 0, left
        return self._memory[self._end :]

    def received(self, size: int) -> list[Message]:
        """The first `size` bytes of the room have been read.

        Returns: complete messages in the order of their frames; bodies are views, valid until the next room().
        Raises: ProtocolError.
        """
        self._end += size
        messages: list[Message] = []
        memory, start, filled = self._memory, self._start, self._end
        while filled - start >= HEADER_BYTES:
            length, version, type_, seq = _HEADER.unpack_from(memory, start)
            if version != VERSION:
                raise ProtocolError(f"version {version}, this side speaks {VERSION}")
            if length > self._max_frame_bytes:
                raise ProtocolError(f"a frame of {length} bytes, {self._max_frame_bytes} are allowed")
            end = start + HEADER_BYTES + length
            if end > filled:
                self._need = end - start
                break
            try:
                if type_ == _SUBMIT_TYPE:
                    messages.append(_decode_submit(memory, start, end))
                else:
                    messages.append(_decode(type_, seq, memory[start:end]))
            except (struct.error, ValueError) as error:
                raise ProtocolError(f"frame type {type_} of {length} bytes: {error}") from error
            start = end
        else:
            self._need = HEADER_BYTES
        self._start = start
        return messages
