from __future__ import annotations

import asyncio
import base64
import gzip
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from reader.database import ReadFailed
from reader.pages import Query, encode_cursor
from reader.queries import COLUMNS, Select, one_session, one_task, progress, sessions_before, tasks_after
from reader.server import Reader, merged
from shared.reading import Call
from shared.records import TASKS
from tests.support.mariadb import MariaDB, numbers
from tests.support.reading import STATUSES, Answer, Asking


@pytest.fixture
def ask(mariadb: MariaDB, database: str) -> Asking:
    return Asking(mariadb, database)


@pytest.fixture
def rows(mariadb: MariaDB, database: str) -> None:
    """Three sessions, the first with 250 tasks; some of the tasks have a batch, one has everything."""
    for number, status in enumerate(("completed", "pending", "executing"), 1):
        mariadb.execute(
            "INSERT INTO translation_sessions"
            " (session_id, filename, file_path, status, llm_provider, extra, updated_at)"
            " VALUES (%s, 'g.xlsx', '', %s, '', %s, %s)",
            (f"s{number}", status, '{"stage":"th"}' if number == 1 else None, f"2026-11-0{number} 00:00:00"),
            database,
        )
    mariadb.execute(
        "INSERT INTO translation_tasks (session_id, task_id, batch_id, sheet_name, column_name, source_text, status,"
        " updated_at) SELECT 's1', CONCAT('T', LPAD(n, 4, '0')), IF(n % 5, 'b1', 'b2'), '', '', 'x',"
        " ELT(1 + n % 4, 'pending', 'processing', 'completed', 'failed'), '2026-11-01 10:00:00.5'"
        f" FROM {numbers(250)} a",
        (),
        database,
    )
    mariadb.execute(
        "INSERT INTO translation_tasks VALUES ('s2', '剑/%?', 'b', 'S', 'C', 7, '源 \"x\"', 'completed', 'ไทย', NULL,"
        " '', 0.98, 3, '2026-11-01 09:00:00', '2026-11-01 09:00:01.25', 1250, '{\"a\":[1,{}]}',"
        " '{\"cost\":0.5,\"source_lang\":\"zh\"}', '2026-11-01 10:00:00.123456', '2026-11-01 11:00:00')",
        (),
        database,
    )


@pytest.mark.usefixtures("rows")
def test_a_record_comes_back_with_every_field_as_it_was_sent(ask: Asking, mariadb: MariaDB, database: str) -> None:
    assert ask(session_id="s2", task_id="剑/%?").json == {
        "session_id": "s2",
        "task_id": "剑/%?",
        "batch_id": "b",
        "sheet_name": "S",
        "column_name": "C",
        "row_index": 7,
        "source_text": '源 "x"',
        "status": "completed",
        "target_text": "ไทย",
        "context": None,
        "error_message": "",
        "confidence": 0.98,
        "retry_count": 3,
        "start_time": "2026-11-01T09:00:00.000000Z",
        "end_time": "2026-11-01T09:00:01.250000Z",
        "duration_ms": 1250,
        "metadata": {"a": [1, {}]},
        "cost": 0.5,
        "source_lang": "zh",
        "updated_at": "2026-11-01T10:00:00.123456Z",
        "created_at": "2026-11-01T11:00:00.000000Z",
    }
    session = ask(session_id="s1").json
    assert session["stage"] == "th"
    assert session["progress"] == {
        "total": 250,
        "by_status": {"completed": 62, "failed": 62, "pending": 63, "processing": 63},
        "last_task_at": "2026-11-01T10:00:00.500000Z",
    }
    mariadb.execute('UPDATE translation_sessions SET extra = \'{"progress": 0.5, "stage": 1}\'', (), database)
    alone, (listed, *_) = ask(session_id="s1").body, ask().json["sessions"]
    assert (alone.count(b'"progress"'), b'"stage":' in alone) == (1, True)
    assert listed["progress"] == 0.5
    assert ask(session_id="s9").head["status"] == ask(session_id="s1", task_id="x").head["status"] == 404


def pages(ask: Asking, name: str, query: str, **call: Any) -> tuple[list[Any], int]:
    """All records of all pages, and how many pages there were."""
    found: list[Any] = []
    cursor, count = "", 0
    while True:
        answer = ask(query=f"{query}{cursor}", **call).json
        found += answer[name]
        count += 1
        if answer["next"] is None:
            return found, count
        cursor = f"&cursor={answer['next']}"


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("limit", [1, 2, 83, 250, 1000])
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", range(250)),
        ("status=failed", range(3, 250, 4)),
        ("status=failed,pending", sorted([*range(3, 250, 4), *range(0, 250, 4)])),
        ("batch_id=b2", range(0, 250, 5)),
        ("batch_id=b2&status=pending", range(0, 250, 20)),
        ("batch_id=none", ()),
    ],
)
def test_pages_of_tasks_hold_each_once_in_the_order_of_their_ids(
    ask: Asking, limit: int, query: str, expected: Any
) -> None:
    if limit < 83 and len(expected) > 70:
        return
    found, count = pages(ask, "tasks", f"{query}&limit={limit}".lstrip("&"), session_id="s1", tasks=True)
    assert [record["task_id"] for record in found] == [f"T{number:04}" for number in expected]
    assert count == max(1, -(-len(expected) // limit))


@pytest.mark.usefixtures("rows")
def test_pages_of_sessions_are_newest_first_and_ties_lose_none(ask: Asking, mariadb: MariaDB, database: str) -> None:
    mariadb.execute(
        "INSERT INTO translation_sessions (session_id, filename, file_path, status, llm_provider, updated_at)"
        " SELECT CONCAT('t', LPAD(n, 2, '0')), '', '', IF(n % 2, 'pending', 'executing'), '', '2026-11-02 00:00:00'"
        f" FROM {numbers(20)} a",
        (),
        database,
    )
    ties = [f"t{number:02}" for number in range(19, -1, -1)]
    for limit in (1, 3, 20, 200):
        found, _ = pages(ask, "sessions", f"limit={limit}")
        assert [record["session_id"] for record in found] == ["s3", *ties, "s2", "s1"]
        found, _ = pages(ask, "sessions", f"limit={limit}&status=pending,completed")
        assert [record["session_id"] for record in found] == [*ties[::2], "s2", "s1"]
        between = "updated_after=2026-11-01T00:00:00Z&updated_before=2026-11-03T00:00:00Z"
        found, _ = pages(ask, "sessions", f"limit={limit}&{between}")
        assert [record["session_id"] for record in found] == [*ties, "s2"]
    # Of a time without an offset the zone is the configured one: this is 2026-11-02T00:00:00Z.
    found, _ = pages(ask, "sessions", "updated_after=2026-11-02T08:00:00")
    assert [record["session_id"] for record in found] == ["s3"]


@pytest.mark.usefixtures("rows")
def test_a_stream_ends_with_its_count(ask: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reader.server.STREAM_ROWS", 100)
    answer = ask(session_id="s1", tasks=True, stream=True, query="fields=task_id,status&status=failed,completed")
    assert answer.head == {"status": 200, "content_type": "application/x-ndjson", "length": None, "gzip": False}
    *records, end = answer.lines
    assert end == {"end": True, "count": 124}
    assert [record["task_id"] for record in records] == [f"T{n:04}" for n in range(250) if n % 4 in (2, 3)]
    assert {frozenset(record) for record in records} == {frozenset(("task_id", "status"))}


@pytest.mark.usefixtures("rows")
def test_an_answer_is_packed_piece_by_piece_with_turns_for_others_in_between(
    ask: Asking, mariadb: MariaDB, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mariadb.execute("UPDATE translation_tasks SET target_text = REPEAT(SHA2(task_id, 256), 300)", (), database)
    for call in ({"tasks": True, "stream": True}, {"tasks": True, "query": "limit=100"}, {}):
        plain = ask(session_id="s1", **call)
        packed = ask(session_id="s1", gzip=True, **call)
        assert plain.whole
        assert packed.whole
        assert packed.head["gzip"] is bool(call)  # a small one is not worth it
        body = gzip.decompress(packed.body) if call else packed.body
        assert body.partition(b'"as_of"')[0] == plain.body.partition(b'"as_of"')[0]
        assert len(packed.body) < len(plain.body) / 2 or not call

    turns = []

    class Packer:
        def compress(self, data: bytes) -> bytes:
            assert len(data) <= 65536
            turns.append(asyncio.get_running_loop().time())
            asyncio.get_running_loop().call_soon(turns.append, "another's")
            return b""

        def flush(self) -> bytes:
            return b"the end"

    monkeypatch.setattr("reader.server.compressobj", lambda *_args, **_options: Packer())
    assert ask(session_id="s1", tasks=True, stream=True, gzip=True).body == b"the end"
    assert len(turns) > 80
    assert turns[1::2] == ["another's"] * (len(turns) // 2)


@pytest.mark.usefixtures("rows")
def test_large_rows_make_shorter_pages(
    ask: Asking, mariadb: MariaDB, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mariadb.execute("UPDATE translation_tasks SET target_text = REPEAT('x', 60000)", (), database)
    monkeypatch.setattr("reader.database.MAX_BYTES", 400_000)
    page = ask(session_id="s1", tasks=True, query="limit=1000").json
    assert 5 <= len(page["tasks"]) <= 20
    assert page["next"]
    found, _ = pages(ask, "tasks", "status=failed,pending&limit=1000", session_id="s1", tasks=True)
    assert [record["task_id"] for record in found] == [f"T{n:04}" for n in range(250) if n % 4 in (0, 3)]
    *_, end = ask(session_id="s1", tasks=True, stream=True).lines
    assert end["count"] == 250


def test_behind_the_end_of_a_range_that_was_cut_short_no_row_counts() -> None:
    cut, whole = ([(1,), (4,)], True), ([(2,), (9,)], False)
    assert merged([cut, whole], 10, key=lambda row: row) == ([(1,), (2,), (4,)], True)
    assert merged([cut, whole], 2, key=lambda row: row) == ([(1,), (2,)], True)
    cut, whole = ([(9,), (4,)], True), ([(7,), (2,)], False)
    assert merged([cut, whole], 10, key=lambda row: row, falling=True) == ([(9,), (7,), (4,)], True)
    assert merged([whole], 10, key=lambda row: row) == ([(7,), (2,)], False)


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "limit=١",
        "status=unheard",
        "status=",
        "offset=3",
        "limit=1&limit=2",
        "batch_id=%ff",
        "updated_after=2026-11-01",
        "cursor=AAAA",
        "cursor=" + quote("ä"),
        "cursor=" + encode_cursor("tasks s2", Query(), ("T1",)),
        "cursor=" + encode_cursor("tasks s1", Query(), ("T1",))[:-1],
        "cursor=" + encode_cursor("tasks s1", Query(), ("T1", "T2")),
        "cursor=" + encode_cursor("tasks s1", Query(("unheard",)), ("T1",)),
        "batch_id=" + 2100 * "x",
        "batch_id=" + 5000 * "x",
        "status=failed&cursor=" + encode_cursor("tasks s1", Query(), ("T1",)),
        "a&b",
    ],
)
def test_an_unknown_parameter_or_a_wrong_value_is_a_400(ask: Asking, query: str) -> None:
    answer = ask(session_id="s1", tasks=True, query=query)
    assert answer.head["status"] == 400
    assert answer.json["detail"]


def test_an_altered_cursor_is_refused_wherever_it_was_altered(ask: Asking) -> None:
    raw = base64.urlsafe_b64decode(encode_cursor("tasks s1", Query(), ("T1",)) + "==")
    for at in range(len(raw)):
        altered = base64.urlsafe_b64encode(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]).decode().rstrip("=")
        assert ask(session_id="s1", tasks=True, query=f"cursor={altered}").head["status"] == 400


def selects() -> Iterator[Select]:
    yield one_session("s1")
    yield one_task("s1", "T0001")
    yield from progress("s1")
    time = datetime(2026, 10, 1)
    for query in (
        Query(),
        Query(statuses=("failed", "pending")),
        Query(updated_after=time),
        Query(statuses=("failed",), updated_after=time, updated_before=datetime(2026, 12, 1)),
    ):
        for position in ((), ("2026-11-01 00:00:00.000000", "s2")):
            for ranges in sessions_before(query, position, 21):
                yield from ranges
    for query in (Query(), Query(statuses=("failed", "pending")), Query(batch_id="b1"), Query(("failed",), "b1")):
        for position in ((), ("T0100",)):
            for ranges in tasks_after("s1", query, position, 201):
                yield from ranges


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("select", list(selects()), ids=lambda select: select.statement[-90:])
def test_each_statement_is_a_range_of_an_index_without_a_sort(mariadb: MariaDB, database: str, select: Select) -> None:
    (plan,) = mariadb.execute(f"EXPLAIN FORMAT=TRADITIONAL {select.statement}", select.args, database)
    *_, kind, _possible, key, _length, _ref, _rows, extra = [cell for at, cell in enumerate(plan) if at != 10]
    assert key is not None
    assert kind in ("const", "ref", "range", "index") if "translation_sessions" in select.statement else kind != "ALL"
    assert kind != "index" or "LIMIT" in select.statement
    assert "filesort" not in (extra or "")
    assert "temporary" not in (extra or "")


def test_a_database_that_is_away_or_too_slow_is_a_503(mariadb: MariaDB, database: str) -> None:
    away = Asking(mariadb, database, socket="/nonexistent")
    assert away(session_id="s1").head["status"] == 503
    assert away(session_id="s1").json["error_code"] == "DATABASE_UNAVAILABLE"
    without_ca = Asking(mariadb, database, ssl_ca="/nonexistent/ca.pem")(session_id="s1")
    assert without_ca.head["status"] == 503
    assert "database.ssl_ca = /nonexistent/ca.pem: No such file" in without_ca.json["detail"]
    wrong = Asking(mariadb, database, database="no_such_database")
    assert wrong(session_id="s1").json["error_code"] == "READ_NOT_POSSIBLE"


def test_columns_are_those_of_the_tables(mariadb: MariaDB, database: str) -> None:
    for kind, names in COLUMNS.items():
        found = mariadb.execute(f"SHOW COLUMNS FROM {kind.table}", (), database)
        assert {row[0] for row in found} == set(names)


class Held:
    """A Database that answers when it is told to."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.begun = 0

    def fetch(self, groups: Sequence[object], _limit: int) -> list[tuple[list[Any], bool]]:
        self.begun += 1
        self.go_on.wait(20)
        return [([], False)] * len(groups)


async def called(reader: Reader, call: Call) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, asyncio.Task[None]]:
    near, far = socket.socketpair()
    served = asyncio.create_task(reader.serve(*await asyncio.open_connection(sock=far)))
    stream, writer = await asyncio.open_connection(sock=near)
    writer.write(msgspec.json.encode(call) + b"\n")
    return stream, writer, served


def test_a_caller_who_leaves_ends_its_call_at_once_and_its_connection_is_free_when_the_statement_ends() -> None:
    async def scenario() -> None:
        held = Held()
        reader = Reader(lambda: held, pool_size=1, wait_s=20, statuses=STATUSES, to_utc=datetime.fromisoformat)
        _, running, served = await called(reader, Call(session_id="s"))
        while not held.begun:
            await asyncio.sleep(0)
        _, waiting, served_later = await called(reader, Call(session_id="s"))
        for writer, task in ((waiting, served_later), (running, served)):
            writer.close()
            await asyncio.wait_for(task, 5)
        stream, writer, served = await called(reader, Call(session_id="s"))
        held.go_on.set()
        assert Answer(await stream.read()).json["error_code"] == "NOT_FOUND"
        await served
        writer.close()
        assert held.begun == 2

    asyncio.run(scenario())


def test_a_call_that_waits_too_long_and_one_too_many_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> list[Any]:
        held = Held()
        reader = Reader(lambda: held, pool_size=1, wait_s=0.2, statuses=STATUSES, to_utc=datetime.fromisoformat)
        calls = [await called(reader, Call(session_id="s")) for _ in range(3)]
        late = [Answer(await stream.read()).json["detail"] for stream, *_ in calls[1:]]
        held.go_on.set()
        await asyncio.gather(*(served for *_, served in calls))
        for _, writer, _ in calls:
            writer.close()
        return late

    monkeypatch.setattr("reader.server.MAX_WAITING", 1)
    assert sorted(asyncio.run(scenario())) == [
        "2 reads are under way",
        "no statement has ended for 0.2 s (read.pool_size)",
    ]


def test_a_fault_of_ours_is_logged_and_breaks_the_connection_off(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> bytes:
        reader = Reader(object, pool_size=1, wait_s=1, statuses=STATUSES, to_utc=datetime.fromisoformat)
        stream, writer, served = await called(reader, Call(session_id="s"))
        await served
        try:
            return await stream.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()

    assert asyncio.run(scenario()) == b""
    assert "a call failed" in caplog.text


class Breaking:
    """A Database that gives a row, says that there are more, and fails."""

    begun = False

    def fetch(self, _groups: object, _limit: int) -> list[tuple[list[Any], bool]]:
        if self.begun:
            raise ReadFailed("READ_TOO_SLOW", "the database took longer than 5 s (read.timeout)")
        self.begun = True
        return [([tuple(name if name == "task_id" else None for name in COLUMNS[TASKS])], True)]


def test_a_stream_whose_database_fails_in_the_middle_does_not_look_whole() -> None:
    async def scenario() -> Answer:
        reader = Reader(Breaking, pool_size=1, wait_s=1, statuses=STATUSES, to_utc=datetime.fromisoformat)
        stream, writer, served = await called(reader, Call(session_id="s", tasks=True, stream=True))
        await served
        data = b""
        with suppress(ConnectionResetError):
            while part := await stream.read(65536):
                data += part
        writer.close()
        return Answer(data)

    answer = asyncio.run(scenario())
    assert not answer.whole
    assert b"task_id" in answer.body
