"""What a fuzzer calls with arbitrary bytes. A target returns where the answer is a documented one; whatever it raises
is a finding."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import msgspec
import orjson
import yaml

from flusher import segments
from flusher.batch import Batch
from flusher.intake import Intake
from flusher.placement import Placement
from flusher.server import Connections, FlusherProtocol
from flusher.sql import Row
from shared import config, settings
from shared.bodies import MAX_OBJECT_BYTES, MAX_OBJECT_DEPTH, MAX_OBJECT_VALUES, InvalidBody
from shared.exposure import local_url
from shared.records import KIND_OF_CODE, Kind, Record, utc
from shared.validation import MAX_ERRORS, InvalidRecord, Policy
from shared.wire import Ack, Inbox, Message, ProtocolError, Submit, acks, encode
from tests.fuzz.draw import Draw
from tests.fuzz.values import LISTS
from tests.support.bodies import NOW, POLICY, check
from tests.support.bodies import policy as policy_with
from tests.support.wire import read

ARRIVAL = 1_764_000_000_000_000
POLICIES = (
    POLICY,
    policy_with(time_zone="America/Sao_Paulo", unknown_fields="ignore"),
    policy_with(time_zone="+08:00", unknown_fields="reject", max_records=2),
)
SECRET = "s3cret-that-nobody-prints"


def wire(data: bytes) -> None:
    """Any stream is messages or a ProtocolError; where it is cut makes no difference; what was decoded encodes back."""
    draw = Draw(data)
    size = 1 + draw.byte()
    stream = draw.rest()
    whole, refused = _fed([stream])
    pieces, refused_too = _fed([stream[at : at + size] for at in range(0, len(stream), size)])
    assert refused is refused_too
    assert refused or pieces == whole
    for message in pieces:
        assert read(Inbox(), encode(message)) == [message]
    _speak_to_the_flusher(stream, 16 * size, pieces, refused=refused)


def _fed(pieces: Sequence[bytes]) -> tuple[list[Message], bool]:
    inbox = Inbox()
    messages: list[Message] = []
    try:
        for piece in pieces:
            messages += read(inbox, piece)
    except ProtocolError:
        return messages, True
    return messages, False


class _Transport:
    """Collects what the flusher answers."""

    def __init__(self) -> None:
        self.answers = b""
        self.aborted = False
        self._sockets = socket.socketpair()

    def get_extra_info(self, _name: str) -> socket.socket:
        return self._sockets[0]

    def write(self, data: bytes) -> None:
        self.answers += data

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        for one in self._sockets:
            one.close()


class _Intake:
    """Acknowledges everything."""

    def accept(self, submits: Sequence[Submit], reply: Callable[[bytes], None]) -> None:
        assert all(one.kind in KIND_OF_CODE and one.body for one in submits)
        seqs = [one.seq for one in submits]
        reply(b"".join(map(encode, acks(seqs, [ARRIVAL + at for at in range(len(seqs))]))))


class _Flush:
    """Every flush ends at once."""

    def flush(self, _timeout_s: float, done: Callable[[Any], None]) -> None:
        done(_Result())


class _Result:
    rows: dict[str, int] = {}  # noqa: RUF012 -- never changed
    coalesced = dead_lettered = pending = 0
    duration_ms = 0.0


def _speak_to_the_flusher(stream: bytes, piece: int, messages: Sequence[Message], *, refused: bool) -> None:
    """The flusher answers every message of a peer, in order, or ends the connection."""
    transport = _Transport()
    try:
        protocol = FlusherProtocol(Connections(), cast(Intake, _Intake()), cast(Any, _Flush()), dict, Placement())
        protocol.connection_made(cast(asyncio.Transport, transport))
        while stream and not transport.aborted:
            room = protocol.get_buffer(-1)
            size = min(len(room), len(stream), piece)
            room[:size] = stream[:size]
            stream = stream[size:]
            protocol.buffer_updated(size)
        answers = read(Inbox(), transport.answers)
    finally:
        transport.close()
    assert transport.aborted or not refused
    if not transport.aborted:
        answered = [seq for answer in answers for seq in seqs_of(answer)]
        assert answered == [message.seq for message in messages]


def seqs_of(answer: Message) -> list[int]:
    """The questions that it answers; one ack may answer several."""
    return list(range(answer.seq, answer.seq + (answer.count if isinstance(answer, Ack) else 1)))


def segment(data: bytes) -> None:
    """Any file parses: entries and damage cover it without a gap, an entry behind it is found, its records are rows or
    dead letters."""
    draw = Draw(data)
    if draw.byte() % 2:
        content = draw.rest()
    else:
        content = b""
        for _ in range(1 + draw.byte() % 3):
            content += _stretch(draw)
    contents = segments.parse(content)
    header = segments.SEGMENT_HEADER_BYTES if contents.version is not None else 0
    sizes = [segments.ENTRY_HEADER_BYTES + len(entry.rules) + len(entry.body) for entry in contents.entries]
    assert header + sum(sizes) + contents.damaged_bytes == len(content) == contents.size
    for entry in contents.entries:
        assert segments.entry_header(entry) + entry.body in content
    if contents.version in (None, segments.VERSION):
        good = segments.Entry(1, 1, ARRIVAL, b'{"sessions":[]}')
        behind = segments.parse(content + segments.entry_header(good) + cast(bytes, good.body))
        assert behind.entries[-1] == good
        assert len(behind.entries) == len(contents.entries) + 1
    _summarize(content, contents)
    batch = Batch(contents.entries)
    assert len(batch.undecodable) + sum(map(len, batch.by_kind.values())) == len(contents.entries)
    for rows in batch.rows().values():
        for row in rows:
            # Only what ingest refuses, no object for one, has no form in SQL.
            assert row.values or any(map(_is_no_object, (*_objects(row.record),)))


def _objects(record: Record) -> list[bytes]:
    found = [getattr(record, name) for name in (*record.__struct_fields__, "extra")]
    return [bytes(memoryview(value)) for value in found if isinstance(value, msgspec.Raw)]


def _is_no_object(text: bytes) -> bool:
    try:
        return not isinstance(orjson.loads(text), dict)
    except ValueError:
        return True


def _stretch(draw: Draw) -> bytes:
    """A good entry with any fields, one that was hurt, or anything."""
    how = draw.byte() % 4
    if how == 0:
        return draw.bytes(draw.byte())
    if how == 1 and not draw.byte() % 4:
        head = segments._SEGMENT.pack(segments.SEGMENT_MAGIC, draw.choose((2, 2, 3)), 0, 0, draw.integer(8), 0)[:-4]
        return head + segments._CRC.pack(segments.crc32(head))
    kind, body = draw.body()
    # Where the input has ended all is 0, and the entry is a good one.
    code = draw.byte() if draw.byte() % 8 == 7 else kind.code
    arrival = draw.integer(8) if draw.byte() % 4 == 3 else ARRIVAL + draw.byte()
    entry = segments.Entry(code, draw.integer(1), arrival, body or b"0")
    whole = segments.entry_header(entry) + cast(bytes, entry.body)
    if how == 2:
        at = draw.integer(2) % len(whole)
        return whole[:at] + draw.bytes(1 + draw.byte() % 4) + whole[at + draw.byte() % 4 :]
    return whole


def _summarize(content: bytes, contents: segments.Contents) -> None:
    fd = os.memfd_create("segment")
    try:
        os.write(fd, content)
        found = segments.summarize(Path(f"/proc/self/fd/{fd}"))
    finally:
        os.close(fd)
    if contents.version is not None and not contents.damage:
        counted: dict[int, int] = {}
        for entry in contents.entries:
            counted[entry.kind] = counted.get(entry.kind, 0) + entry.count
        assert found.records == counted


def records(data: bytes) -> None:
    """Any body is refused with a documented error, or every record of it keeps the limits and becomes the same row."""
    kind, body = Draw(data).body()
    for policy in POLICIES:
        accepted(kind, body, policy)


_LITERAL = rb"""(?:NULL|null|-?\d+(?:\.\d+)?|"(?:[^"\\]|\\\\|"")*"|'(?:[^'\\]|\\\\|'')*')"""
_VALUES = re.compile(rb"%b(?:,%b)*" % (_LITERAL, _LITERAL), re.DOTALL)
"""A row as SQL: literals, and nothing that lies outside of a literal."""


def accepted(kind: Kind, body: bytes, policy: Policy = POLICY) -> list[Row]:
    """Returns: the rows that a flusher makes of the body; none where ingest refuses it."""
    try:
        decoded = check(kind, body, policy)
    except InvalidBody as error:
        assert error.code in ("INVALID_JSON", "INVALID_SHAPE")
        orjson.dumps(error.detail)
        return []
    except InvalidRecord as error:
        assert len({one.field.partition(".")[0] for one in error.errors}) <= MAX_ERRORS
        for one in error.errors:
            assert one.field.startswith(kind.name)
            assert one.message
        orjson.dumps([[one.field, one.message] for one in error.errors])
        return []
    assert 1 <= len(decoded) <= policy.max_records
    for record in decoded:
        check_limits(kind, record, policy)
    batch = Batch([segments.Entry(kind.code, len(decoded), ARRIVAL, body, policy.rules.encode())])
    assert not batch.undecodable
    rows: list[Row] = list(batch.rows()[kind])
    by_key = {kind.key_of(record) for record in decoded}
    assert {kind.key_of(row.record) for row in rows} == by_key
    assert all(row.record is batch.by_kind[kind][0][2][row.index] for row in rows)
    assert all(_VALUES.fullmatch(row.values) for row in rows), "values are no literals"
    return rows


LENGTHS = {
    "session_id": (1, 36),
    "filename": (0, 255),
    "file_path": (0, 512),
    "llm_provider": (0, 50),
    "task_id": (1, 64),
    "batch_id": (0, 64),
    "sheet_name": (0, 255),
    "column_name": (0, 255),
    "source_text": (0, 65535),
    "target_text": (0, 65535),
    "context": (0, 65535),
    "error_message": (0, 65535),
}
NULLS = {
    *("game_info", "metadata", "extra", "target_text", "context", "error_message", "confidence", "duration_ms"),
    *("start_time", "end_time", "updated_at"),
}


def check_limits(kind: Kind, record: Record, policy: Policy) -> None:
    """The record table of the contract once more, written down apart from the types."""
    for name in (*kind.record.__struct_fields__, "extra"):
        value = getattr(record, name)
        if isinstance(value, msgspec.Raw):
            value = orjson.loads(memoryview(value))
        if value is None:
            assert name in NULLS
        elif name == "status":
            assert value in policy.statuses[kind.name]
        elif name == "confidence":
            assert 0 <= round(value, 4) <= 1
        elif name in LENGTHS:
            shortest, longest = LENGTHS[name]
            assert shortest <= len(value) <= longest
            value.encode()
        elif isinstance(value, datetime):
            assert 1000 <= utc(value).year <= 9999
            assert name != "updated_at" or utc(value) <= utc(NOW + timedelta(seconds=policy.max_clock_skew_s))
        elif isinstance(value, dict):
            assert name != "extra" or policy.unknown_fields == "keep"
            assert depth(value) <= MAX_OBJECT_DEPTH + (name == "extra")
            assert nodes(value) <= MAX_OBJECT_VALUES
            assert len(orjson.dumps(value)) <= MAX_OBJECT_BYTES
        else:
            assert type(value) is int
            assert 0 <= value <= 2147483647


def nodes(value: Any) -> int:
    """Values in an object or list, at every depth."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(1 + nodes(child) for child in children)


def depth(value: Any) -> int:
    """Levels of objects and arrays; a plain value is 0."""
    deepest, todo = 0, [(value, 1)]
    while todo:
        node, level = todo.pop()
        if isinstance(node, (dict, list)):
            deepest = max(deepest, level)
            children = node.values() if isinstance(node, dict) else node
            todo += [(child, level + 1) for child in children]
    return deepest


def configuration(data: bytes) -> None:
    """Any file and environment are a Config, or one line that names the key and shows no secret."""
    draw = Draw(data)
    how = draw.byte()
    environ = {}
    for _ in range(how % 4):
        name = draw.choose(sorted(settings.ENVIRONMENT))
        # No environment holds a NUL.
        environ[name] = os.fsdecode(draw.bytes(draw.byte() % 32)).replace("\0", "")
        if settings.ENVIRONMENT[name] in settings.SECRETS and draw.byte() % 2:
            environ[name] += SECRET
    made = bool(how & 4)
    file = _file(draw) if made else draw.rest()
    with tempfile.NamedTemporaryFile(dir="/dev/shm", suffix=".yaml") as named:
        named.write(file)
        named.flush()
        try:
            found = config.load(named.name, environ)
        except config.ConfigError as error:
            assert all(len(line.splitlines()) == 1 and len(line) < 2000 for line in error.lines)
            assert not made or SECRET not in str(error)
            return
    shown = yaml.safe_dump(config.masked(found), allow_unicode=True)
    assert not made or SECRET not in shown
    assert yaml.safe_load(shown)["service"]["port"] == found.service.port
    assert local_url(found.service).startswith("http")


SECRET_VALUES = (
    SECRET,
    f"[{SECRET}]",
    f"[[{SECRET}]]",
    f"{{x: {SECRET}}}",
    f"{SECRET} x",
    f"'{SECRET}",
    f"&a [*a, {SECRET}]",
)
YAML_VALUES = [*LISTS["yaml"], "9" * 5000, "[" * 2000]


def _file(draw: Draw) -> bytes:
    """Sections and keys that exist, most of them, with values that may fit."""
    lines = []
    for _ in range(1 + draw.byte() % 4):
        section = draw.choose([*settings.SECTIONS, "service", "database", "extra", "1"])
        if not draw.byte() % 8:
            lines.append(f"{section}: {draw.choose((*YAML_VALUES, *SECRET_VALUES))}")
            continue
        lines.append(f"{section}:")
        fields = settings.SECTIONS[section].__struct_fields__ if section in settings.SECTIONS else ("x",)
        for _ in range(1 + draw.byte() % 3):
            key = draw.choose([*fields, *fields, "unknown"])
            value = draw.choose(YAML_VALUES) if draw.byte() % 4 else draw.bytes(draw.byte() % 16).decode("latin-1")
            if f"{section}.{key}" in settings.SECRETS or key == "unknown":
                value = draw.choose(SECRET_VALUES)
            lines.append(f"  {key}: {value}")
    return "\n".join(lines).encode()


def canary(data: bytes) -> None:
    """Broken on purpose: shows that a finding is reported."""
    if len(data) > 3:
        raise RuntimeError("the canary was found")


TARGETS: dict[str, Callable[[bytes], None]] = {
    "wire": wire,
    "segment": segment,
    "records": records,
    "configuration": configuration,
}
