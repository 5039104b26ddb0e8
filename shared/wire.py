"""Frames between ingest and flusher: bytes in, messages out. Opens no socket.

The stream is a sequence of frames, little-endian:

    frame   := length:u32 version:u8 type:u8 seq:u32 payload:u8[length]

    submit    (1, to flusher)  := kind:u8 flags:u8 size:u8 count:u32 arrival:u64 rules:u8[size] body:u8[]
    ack       (2, to ingest)   := count:u32 arrival:u64
    reject    (3, to ingest)   := reason:u8 retry_after_ms:u32
    flush     (4, to flusher)  := timeout_ms:u32
    flushed   (5, to ingest)   := JSON
    stats     (6, to flusher)  := (empty)
    stats_is  (7, to ingest)   := JSON
    committed (8, to ingest)   := first:u64 last:u64 dead*        dead := arrival:u64 count:u32

`seq` is the asker's number; every answer repeats it. `arrival` counts µs since 1970 UTC; in a submit it is 0
except for a replayed dead letter, which keeps its first arrival. `rules` decide what the body means (records.Rules);
the flusher only keeps them. One ack answers `count` submits: those numbered seq,
seq + 1, …, which arrived at arrival, arrival + 1, …; MAX_ACKED at most. With flag WANT_COMMIT a submit is answered
twice: by ack, and by a committed, with seq 0, whose range holds its arrival: one frame answers all such submits of a
segment on a connection, so that the flusher keeps nothing for each of them. `dead` names those bodies of which `count`
records went to the dead letters instead of the database.

A frame of another version or type, or longer than MAX_FRAME_BYTES, is a ProtocolError: the reader cannot know
where the next frame starts, so the connection ends. Change a payload ⇒ raise VERSION; both sides of a node
are always deployed together, so there is no negotiation.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import TypeAlias

import msgspec

VERSION = 3
SOCKET_NAME = "run/flusher.sock"
"""Under PERSISTENCE_STATE_DIR."""
WANT_COMMIT = 1

_HEADER = struct.Struct("<IBBI")
_SUBMIT = struct.Struct("<IBBIBBBIQ")
_SUBMIT_PAYLOAD = struct.Struct("<BBBIQ")
_ACK = struct.Struct("<IBBIIQ")
_REJECT = struct.Struct("<IBBIBI")
_FLUSH = struct.Struct("<IBBII")
_ACK_PAYLOAD = struct.Struct("<IQ")
_U32 = struct.Struct("<I")
_REJECT_PAYLOAD = struct.Struct("<BI")
_COMMITTED_PAYLOAD = struct.Struct("<QQ")
_DEAD = struct.Struct("<QI")

HEADER_BYTES = _HEADER.size
SUBMIT_BYTES = _SUBMIT.size
MAX_FRAME_BYTES = 65 * 1024 * 1024
"""Over the largest service.max_body_bytes (64 MiB) plus a submit's own fields."""

INBOX_BYTES = 512 * 1024
"""What the Unix socket holds at once."""

MAX_ACKED = 65536

Buffer: TypeAlias = bytes | memoryview


class FrameType(IntEnum):
    SUBMIT = 1
    ACK = 2
    REJECT = 3
    FLUSH = 4
    FLUSHED = 5
    STATS = 6
    STATS_IS = 7
    COMMITTED = 8


_SUBMIT_TYPE = int(FrameType.SUBMIT)


class Reason(IntEnum):
    """Why the flusher does not accept now."""

    JOURNAL_FULL = 1
    JOURNAL_NOT_WRITABLE = 2


class ProtocolError(Exception):
    """The peer does not speak this protocol: close the connection."""


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


class Flush(msgspec.Struct, frozen=True, gc=False):
    seq: int
    timeout_s: float


class Flushed(msgspec.Struct, frozen=True, gc=False):
    seq: int
    result: bytes


class Stats(msgspec.Struct, frozen=True, gc=False):
    seq: int


class StatsIs(msgspec.Struct, frozen=True, gc=False):
    seq: int
    stats: bytes


class Committed(msgspec.Struct, frozen=True):
    """What arrived from `first` to `last` is in the database, but for the dead letters: arrival -> records."""

    first: int
    last: int
    dead: dict[int, int] = {}


Message: TypeAlias = Submit | Ack | Reject | Flush | Flushed | Stats | StatsIs | Committed


def encode_submit_header(
    seq: int,
    kind: int,
    count: int,
    body_bytes: int,
    *,
    arrival: int = 0,
    want_commit: bool = False,
    rules: bytes = b"",
) -> bytes:
    """A submit frame without its body, which follows as it is: no copy of a large body is made."""
    size = len(rules)
    length = body_bytes + size + _SUBMIT_PAYLOAD.size
    head = _SUBMIT.pack(length, VERSION, 1, seq, kind, WANT_COMMIT if want_commit else 0, size, count, arrival)
    return head + rules


def encode(message: Message) -> bytes:  # noqa: PLR0911 -- one a type
    """One message as one frame."""
    if isinstance(message, Ack):
        return _ACK.pack(_ACK_PAYLOAD.size, VERSION, 2, message.seq, message.count, message.arrival)
    if isinstance(message, Submit):
        head = encode_submit_header(
            message.seq,
            message.kind,
            message.count,
            len(message.body),
            arrival=message.arrival,
            want_commit=message.want_commit,
            rules=message.rules,
        )
        return head + message.body
    if isinstance(message, Reject):
        retry_after_ms = min(round(message.retry_after_s * 1000), 0xFFFFFFFF)
        return _REJECT.pack(5, VERSION, 3, message.seq, message.reason, retry_after_ms)
    if isinstance(message, Flush):
        return _FLUSH.pack(4, VERSION, 4, message.seq, min(round(message.timeout_s * 1000), 0xFFFFFFFF))
    if isinstance(message, Flushed):
        return _HEADER.pack(len(message.result), VERSION, 5, message.seq) + message.result
    if isinstance(message, Stats):
        return _HEADER.pack(0, VERSION, 6, message.seq)
    if isinstance(message, StatsIs):
        return _HEADER.pack(len(message.stats), VERSION, 7, message.seq) + message.stats
    payload = _COMMITTED_PAYLOAD.pack(message.first, message.last)
    payload += b"".join([_DEAD.pack(arrival, count) for arrival, count in message.dead.items()])
    return _HEADER.pack(len(payload), VERSION, 8, 0) + payload


def acks(seqs: Sequence[int], arrivals: Sequence[int]) -> list[Ack]:
    """As few acks as answer these submits. Those of one read are numbered and stamped in a row, and need just one."""
    found: list[Ack] = []
    start = 0
    for index in range(1, len(seqs) + 1):
        if (
            index == len(seqs)
            or index - start == MAX_ACKED
            or seqs[index] != seqs[start] + index - start
            or arrivals[index] != arrivals[start] + index - start
        ):
            found.append(Ack(seqs[start], arrivals[start], index - start))
            start = index
    return found


def _decode(kind: int, seq: int, payload: memoryview) -> Message:  # noqa: PLR0911 -- one a type
    """Every frame but a submit. Raises: ProtocolError."""
    try:
        if kind == FrameType.ACK:
            count, arrival = _ACK_PAYLOAD.unpack(payload)
            if not 1 <= count <= MAX_ACKED:
                raise ValueError(f"{count} submits are acknowledged")
            return Ack(seq, arrival, count)
        if kind == FrameType.REJECT:
            reason, retry_after_ms = _REJECT_PAYLOAD.unpack(payload)
            return Reject(seq, Reason(reason), retry_after_ms / 1000)
        if kind == FrameType.FLUSH:
            return Flush(seq, _U32.unpack(payload)[0] / 1000)
        if kind == FrameType.FLUSHED:
            return Flushed(seq, bytes(payload))
        if kind == FrameType.STATS and not payload:
            return Stats(seq)
        if kind == FrameType.STATS_IS:
            return StatsIs(seq, bytes(payload))
        if kind == FrameType.COMMITTED:
            first, last = _COMMITTED_PAYLOAD.unpack_from(payload)
            return Committed(first, last, dict(_DEAD.iter_unpack(payload[_COMMITTED_PAYLOAD.size :])))
    except (struct.error, ValueError) as error:
        raise ProtocolError(f"frame type {kind}: {error}") from error
    raise ProtocolError(f"frame type {kind} with {len(payload)} bytes is not known")


def messages_in(data: Buffer, max_frame_bytes: int = MAX_FRAME_BYTES) -> tuple[list[Message], int, int]:
    """The messages of all frames that are whole, in their order; bodies are views into the data (no copy).

    Returns: them, the bytes that their frames take, and the bytes that the next frame takes, as far as is known.
    Raises: ProtocolError.
    """
    view = memoryview(data)
    end = len(data)
    at = 0
    messages: list[Message] = []
    while end - at >= HEADER_BYTES:
        length, version, kind, seq = _HEADER.unpack_from(data, at)
        if version != VERSION:
            raise ProtocolError(f"version {version}, this side speaks {VERSION}")
        if length > max_frame_bytes:
            raise ProtocolError(f"a frame of {length} bytes, {max_frame_bytes} are allowed")
        need = HEADER_BYTES + length
        if end - at < need:
            return messages, at, need
        if kind == _SUBMIT_TYPE and length >= _SUBMIT_PAYLOAD.size:
            # Nearly all that the flusher reads: unpacked in one step.
            _, _, _, _, record_kind, flags, size, count, arrival = _SUBMIT.unpack_from(data, at)
            if size + _SUBMIT_PAYLOAD.size > length:
                raise ProtocolError(f"a submit of {length} bytes has {size} bytes of rules")
            body_at = at + SUBMIT_BYTES + size
            body = view[body_at : at + need]
            rules = bytes(data[at + SUBMIT_BYTES : body_at]) if size else b""
            want_commit = flags & WANT_COMMIT == WANT_COMMIT
            messages.append(Submit(seq, record_kind, count, body, arrival, want_commit, rules))
        else:
            messages.append(_decode(kind, seq, view[at + HEADER_BYTES : at + need]))
        at += need
    return messages, at, HEADER_BYTES


class Decoder:
    """Feed it what the socket gave, in pieces of any size; it returns the messages that are complete.

    After a ProtocolError the decoder must not be fed again.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._pieces: list[bytes] = []
        self._have = 0
        self._need = HEADER_BYTES

    def feed(self, data: bytes) -> list[Message]:
        """Returns: messages in the order of their frames; bodies are views into the data fed (no copy).

        Raises: ProtocolError.
        """
        if self._pieces:
            self._pieces.append(data)
            self._have += len(data)
            if self._have < self._need:
                return []
            data = b"".join(self._pieces)
            self._pieces = []
        messages, taken, self._need = messages_in(data, self._max_frame_bytes)
        if taken < len(data):
            self._pieces = [data[taken:]]
            self._have = len(data) - taken
        return messages


class Inbox:
    """A decoder that owns the memory which the socket is read into, again and again: a body is not copied between the
    kernel and the journal, and no fresh page is touched for it.

    After a ProtocolError it must not be used again.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._memory = memoryview(bytearray(INBOX_BYTES))
        self._start = 0
        self._end = 0
        self._need = HEADER_BYTES

    def room(self) -> memoryview:
        """Where what comes next must be written to, from its first byte on; never empty. Messages that were returned
        before lose their bodies."""
        size = max(INBOX_BYTES, self._need)
        if self._start or len(self._memory) != size:
            memory = self._memory if len(self._memory) == size else memoryview(bytearray(size))
            left = self._end - self._start
            memory[:left] = self._memory[self._start : self._end]
            self._memory = memory
            self._start, self._end = 0, left
        return self._memory[self._end :]

    def received(self, size: int) -> list[Message]:
        """So many bytes are in the room now.

        Returns: messages in the order of their frames; bodies are views, good until room() is asked for again.
        Raises: ProtocolError.
        """
        self._end += size
        messages, taken, self._need = messages_in(self._memory[self._start : self._end], self._max_frame_bytes)
        self._start += taken
        return messages
