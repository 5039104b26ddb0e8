from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import settings, wire
from shared.wire import (
    HEADER_BYTES,
    INBOX_BYTES,
    MAX_ACKED,
    MAX_FRAME_BYTES,
    SUBMIT_BYTES,
    Ack,
    Answer,
    Committed,
    FlushRequest,
    Inbox,
    Message,
    ProtocolError,
    Reason,
    Reject,
    StatsRequest,
    Submit,
    acks,
    encode,
    encode_submit_header,
)
from tests.support.wire import read

U32 = 0xFFFFFFFF
U64 = 0xFFFFFFFFFFFFFFFF

# One of each, and the bytes that the grammar gives it.
FRAMES: list[tuple[Message, str]] = [
    (Submit(1, 2, 3, b"{}"), "11000000 04 01 01000000  02 00 00 03000000 0000000000000000  7b7d"),
    (
        Submit(U32, 255, U32, b"x", arrival=U64, want_commit=True, rules=b"\1+08:00"),
        "17000000 04 01 ffffffff  ff 01 07 ffffffff ffffffffffffffff  012b30383a3030  78",
    ),
    (Submit(1, 1, 0, b""), "0f000000 04 01 01000000  01 00 00 00000000 0000000000000000"),
    (Ack(7, 0x0102030405060708), "0c000000 04 02 07000000  01000000 0807060504030201"),
    (Ack(7, 1, 65536), "0c000000 04 02 07000000  00000100 0100000000000000"),
    (Reject(8, Reason.JOURNAL_FULL, 1.5), "05000000 04 03 08000000  01 dc050000"),
    (Reject(8, Reason.JOURNAL_NOT_WRITABLE, 0.0), "05000000 04 03 08000000  02 00000000"),
    (Reject(8, Reason.JOURNAL_FULL, 60.0), "05000000 04 03 08000000  01 60ea0000"),
    (FlushRequest(9, 10.0), "04000000 04 04 09000000  10270000"),
    (Answer(10, b'{"a":1}'), "07000000 04 06 0a000000  7b2261223a317d"),
    (StatsRequest(11), "00000000 04 05 0b000000"),
    (Answer(12, b"{}"), "02000000 04 06 0c000000  7b7d"),
    (Committed(1, U64), "10000000 04 07 00000000  0100000000000000 ffffffffffffffff"),
    (
        Committed(1, 9, {7: 3}),
        "1c000000 04 07 00000000  0100000000000000 0900000000000000  0700000000000000 03000000",
    ),
]
STREAM = b"".join(encode(message) for message, _ in FRAMES)
MESSAGES = [message for message, _ in FRAMES]

u32 = st.integers(0, U32)
u64 = st.integers(0, U64)
# Times travel in whole milliseconds.
seconds = u32.map(lambda milliseconds: milliseconds / 1000)
messages = st.one_of(
    st.builds(
        Submit,
        u32,
        st.integers(0, 255),
        u32,
        st.binary(max_size=40),
        st.integers(0, U64),
        st.booleans(),
        st.binary(max_size=255),
    ),
    st.builds(Ack, u32, st.integers(0, U64), st.integers(1, MAX_ACKED)),
    st.builds(Reject, u32, st.sampled_from(Reason), seconds),
    st.builds(FlushRequest, u32, seconds),
    st.builds(Answer, u32, st.binary(max_size=40)),
    st.builds(StatsRequest, u32),
    st.builds(Answer, u32, st.binary(max_size=40)),
    st.builds(Committed, u64, u64, st.dictionaries(u64, u32, max_size=3)),
)


def read_all(inbox: Inbox, pieces: Iterable[bytes]) -> list[Message]:
    return [message for piece in pieces for message in read(inbox, piece)]


def header(length: int, version: int = wire.VERSION, kind: int = 5, seq: int = 1) -> bytes:
    return length.to_bytes(4, "little") + bytes([version, kind]) + seq.to_bytes(4, "little")


@pytest.mark.parametrize(("message", "frame"), FRAMES)
def test_a_message_is_these_bytes(message: Message, frame: str) -> None:
    assert encode(message) == bytes.fromhex(frame)
    assert read(Inbox(), bytes.fromhex(frame)) == [message]


@pytest.mark.parametrize("want_commit", [False, True])
def test_a_submits_header_and_its_body_are_the_whole_frame(want_commit: bool) -> None:
    head = encode_submit_header(5, 2, 7, 3, arrival=9, want_commit=want_commit, rules=b"r")
    assert head + b"abc" == encode(Submit(5, 2, 7, b"abc", 9, want_commit, b"r"))


def test_a_stream_is_read_cut_at_every_position() -> None:
    for at in range(len(STREAM) + 1):
        assert read_all(Inbox(), [STREAM[:at], STREAM[at:]]) == MESSAGES


def test_a_message_comes_out_with_its_last_byte_and_not_before() -> None:
    for message, _ in FRAMES:
        frame = encode(message)
        for at in range(len(frame)):
            inbox = Inbox()
            assert read(inbox, frame[:at]) == []
            assert read(inbox, frame[at:-1]) == []
            assert read(inbox, frame[-1:]) == [message]


@given(st.lists(messages, max_size=6), st.data())
def test_messages_come_out_as_they_went_in_however_the_stream_is_cut(sent: list[Message], data: st.DataObject) -> None:
    stream = b"".join(map(encode, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    inbox = Inbox()
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert read_all(inbox, pieces) == sent


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_an_inbox_takes_streams_that_are_longer_than_its_memory(over: int) -> None:
    sizes = [INBOX_BYTES // 3 - SUBMIT_BYTES + over] * 7 + [INBOX_BYTES - SUBMIT_BYTES + over, 1, INBOX_BYTES * 3, 5]
    sent = [Submit(seq, 1, 1, bytes([seq]) * size) for seq, size in enumerate(sizes)]
    stream = b"".join(map(encode, sent))
    for piece in (len(stream), 100_003, HEADER_BYTES * 4096):
        inbox = Inbox()
        assert read_all(inbox, [stream[at : at + piece] for at in range(0, len(stream), piece)]) == sent


def test_an_inbox_grows_for_a_large_frame_and_gives_the_memory_back() -> None:
    inbox = Inbox()
    frame = encode(Submit(1, 1, 1, b"x" * (4 * INBOX_BYTES)))
    assert read(inbox, frame[:100]) == []
    assert len(inbox.room()) == len(frame) - 100  # to be filled without another copy
    assert len(read(inbox, frame[100:])) == 1
    assert len(inbox.room()) == INBOX_BYTES


def test_bodies_in_an_inbox_are_views_that_are_good_until_there_is_room_again() -> None:
    inbox = Inbox()
    data = encode(Submit(1, 1, 1, b"first")) + encode(Submit(2, 1, 1, b"second"))[:-1]
    room = inbox.room()
    room[: len(data)] = data
    (message,) = inbox.received(len(data))
    assert isinstance(message, Submit)
    assert isinstance(message.body, memoryview)
    assert message.body == b"first"
    assert message.body.obj is room.obj
    inbox.room()[:1] = b"d"
    (message,) = inbox.received(1)
    assert isinstance(message, Submit)
    assert message.body == b"second"


def test_times_over_what_a_frame_holds_become_the_longest() -> None:
    assert read(Inbox(), encode(FlushRequest(1, 1e9))) == [FlushRequest(1, U32 / 1000)]
    assert read(Inbox(), encode(Reject(1, Reason.JOURNAL_FULL, 1e9))) == [Reject(1, Reason.JOURNAL_FULL, U32 / 1000)]


@pytest.mark.parametrize("version", [0, 1, 255])
def test_another_version_is_a_protocol_error(version: int) -> None:
    with pytest.raises(ProtocolError, match=f"version {version}, this side speaks {wire.VERSION}"):
        read(Inbox(), header(0, version))


def test_rules_that_reach_beyond_their_frame_are_a_protocol_error() -> None:
    frame = bytearray(encode(Submit(1, 1, 1, b"body", rules=b"rules")))
    assert frame[HEADER_BYTES + 2] == len(b"rules")
    frame[HEADER_BYTES + 2] = len(b"rulesbody") + 1
    with pytest.raises(ProtocolError, match="10 bytes of rules"):
        read(Inbox(), bytes(frame))


@pytest.mark.parametrize("kind", [0, 8, 255])
def test_another_type_is_a_protocol_error(kind: int) -> None:
    with pytest.raises(ProtocolError, match=f"type {kind} "):
        read(Inbox(), header(0, kind=kind))


def test_a_frame_at_the_cap_passes_and_one_over_it_is_refused_at_its_header() -> None:
    assert read(Inbox(100), header(100, kind=6) + b"x" * 100) == [Answer(1, b"x" * 100)]
    with pytest.raises(ProtocolError, match="a frame of 101 bytes, 100 are allowed"):
        read(Inbox(100), header(101, kind=6))
    with pytest.raises(ProtocolError, match="4294967295"):
        read(Inbox(), header(U32, kind=6))


def test_the_largest_body_that_may_be_configured_fits_in_a_frame_with_its_rules() -> None:
    largest = int(settings.allowed("service.max_body_bytes").rpartition("<= ")[2])
    assert SUBMIT_BYTES + 255 + largest <= MAX_FRAME_BYTES


def test_an_over_long_frame_is_refused_when_its_header_came_in_pieces() -> None:
    frame = header(101, kind=6)
    for at in range(1, len(frame)):
        inbox = Inbox(100)
        assert read(inbox, frame[:at]) == []
        with pytest.raises(ProtocolError):
            read(inbox, frame[at:])


@pytest.mark.parametrize(
    ("kind", "lengths"),
    [
        (1, [0, 1, 13]),  # submit without its own fields
        (2, [0, 7, 9]),
        (3, [0, 4, 6]),
        (4, [0, 3, 5]),
        (5, [1]),
        (7, [0, 2]),
    ],
)
def test_a_payload_of_the_wrong_length_is_a_protocol_error(kind: int, lengths: list[int]) -> None:
    for length in lengths:
        with pytest.raises(ProtocolError):
            read(Inbox(), header(length, kind=kind) + b"\x01" * length)


def test_an_unknown_reason_is_a_protocol_error() -> None:
    for reason in (0, 3, 255):
        with pytest.raises(ProtocolError):
            read(Inbox(), header(5, kind=3) + bytes([reason, 0, 0, 0, 0]))


def test_frames_before_a_broken_one_in_earlier_pieces_have_been_told() -> None:
    inbox = Inbox()
    assert read(inbox, encode(Ack(1, 5))) == [Ack(1, 5)]
    with pytest.raises(ProtocolError):
        read(inbox, b"GET / HTTP/1.1\r\n\r\n")


@given(st.binary(max_size=200))
def test_garbage_never_raises_anything_but_a_protocol_error(data: bytes) -> None:
    try:
        read(Inbox(), data)
    except ProtocolError:
        pass


@given(st.lists(messages, min_size=1, max_size=3), st.data())
def test_a_flipped_byte_never_raises_anything_but_a_protocol_error(sent: list[Message], data: st.DataObject) -> None:
    stream = bytearray(b"".join(map(encode, sent)))
    stream[data.draw(st.integers(0, len(stream) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        read(Inbox(), bytes(stream))
    except ProtocolError:
        pass


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=30, unique_by=lambda pair: pair[0]))
def test_acks_answer_every_submit_with_its_own_arrival_however_they_run(submits: list[tuple[int, int]]) -> None:
    found = acks([seq for seq, _ in submits], [arrival for _, arrival in submits])
    assert [(ack.seq + at, ack.arrival + at) for ack in found for at in range(ack.count)] == submits


def test_submits_numbered_and_stamped_in_a_row_need_one_ack_up_to_the_limit() -> None:
    seqs = list(range(7, 7 + MAX_ACKED + 2))
    assert acks(seqs, [seq + 100 for seq in seqs]) == [Ack(7, 107, MAX_ACKED), Ack(7 + MAX_ACKED, 107 + MAX_ACKED, 2)]
    assert acks([1, 2, 4], [5, 6, 8]) == [Ack(1, 5, 2), Ack(4, 8, 1)]
    assert acks([1, 2, 3], [5, 5, 6]) == [Ack(1, 5, 1), Ack(2, 5, 2)]
    assert acks([], []) == []


@pytest.mark.parametrize("count", [0, MAX_ACKED + 1, 0xFFFFFFFF])
def test_an_ack_of_none_or_of_too_many_is_a_protocol_error(count: int) -> None:
    with pytest.raises(ProtocolError):
        read(Inbox(), encode(Ack(1, 1, count)))
