"""Calls of ingest -> answers. Each call is one connection; what the database waits for, no other call waits for.

Rules: belongs to the loop's thread; statements run in a pool of `pool_size` threads. At most pool_size + MAX_WAITING
calls and MAX_STREAMS streams are under way, so memory is bounded: each holds one fetch and its JSON. Streams count
apart, since their callers may take their time. A caller who takes nothing for STALLED_S loses its connection; one who
leaves ends its call at once, but for a statement that runs already.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any
from zlib import compressobj

import msgspec
import orjson

from reader.database import Database, ReadFailed
from reader.pages import Page, Position, encode_cursor, parse_page
from reader.queries import (
    COLUMNS,
    Encoder,
    Row,
    Select,
    one_session,
    one_task,
    progress,
    sessions_before,
    tasks_after,
    time_text,
    without,
)
from shared.clock import iso
from shared.reading import END, MAX_PIECE_BYTES, NDJSON_TYPE, Call, Head, InvalidRequest, parameters, piece
from shared.records import SESSIONS, TASKS, Kind

log = logging.getLogger(__name__)

MAX_WAITING = 20
MAX_STREAMS = 8
STALLED_S = 30.0
CALL_S = 5.0
STREAM_ROWS = 1000
MIN_PACKED_BYTES = 1024
_GZIP_LEVEL = 1
_GZIP_FORMAT = 31
"""For zlib: a gzip header, and the largest window."""
FOR_INGEST = ("fresh", "timeout")
"""Parameters that ingest has dealt with."""


class _BrokenOff(Exception):
    """A stream that has begun cannot be completed."""


class _Answer:
    """Head and body of an answer, in pieces of which none waits for another to be packed. Raises: OSError,
    asyncio.TimeoutError where the caller takes nothing."""

    def __init__(self, writer: asyncio.StreamWriter, head: Head) -> None:
        self._writer = writer
        self._packer = compressobj(_GZIP_LEVEL, wbits=_GZIP_FORMAT) if head.gzip else None
        writer.write(msgspec.json.encode(head) + b"\n")

    async def write(self, body: bytes) -> None:
        for first in range(0, len(body), MAX_PIECE_BYTES):
            part = body[first : first + MAX_PIECE_BYTES]
            await self._send(self._packer.compress(part) if self._packer else part)

    async def end(self) -> None:
        if self._packer:
            await self._send(self._packer.flush())
        self._writer.write(END)
        await asyncio.wait_for(self._writer.drain(), STALLED_S)

    async def _send(self, data: bytes) -> None:
        for first in range(0, len(data), MAX_PIECE_BYTES):
            self._writer.write(piece(data[first : first + MAX_PIECE_BYTES]))
            await asyncio.wait_for(self._writer.drain(), STALLED_S)
        await asyncio.sleep(0)  # the loop's other calls have their turn


class Reader:
    """Args: connect: makes a Database, not connected yet; wait_s: for one that is free; statuses: those that are
    configured, by kind; to_utc: reads a time, or raises ValueError."""

    def __init__(
        self,
        connect: Callable[[], Database],
        *,
        pool_size: int,
        wait_s: float,
        statuses: Mapping[Kind, Collection[str]],
        to_utc: Callable[[str], datetime],
    ) -> None:
        self._statuses = statuses
        self._to_utc = to_utc
        self._wait_s = wait_s
        self._most = {False: pool_size + MAX_WAITING, True: MAX_STREAMS}
        self._under_way = Counter[bool]()
        self._threads = ThreadPoolExecutor(pool_size, thread_name_prefix="statement")
        self._databases: asyncio.LifoQueue[Database] = asyncio.LifoQueue()
        for _ in range(pool_size):
            self._databases.put_nowait(connect())

    async def serve(self, stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its call to the end of its answer."""
        try:
            call = msgspec.json.decode(await asyncio.wait_for(stream.readline(), CALL_S), type=Call)
            answer = asyncio.ensure_future(self._answer(call, writer))
            gone = asyncio.ensure_future(_end_of(stream))
            try:
                await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            finally:
                gone.cancel()
                answer.cancel()
            await answer
        except (OSError, asyncio.TimeoutError, asyncio.CancelledError, ValueError) as error:
            log.debug("a call was given up: %s", type(error).__name__)
            writer.transport.abort()
        except _BrokenOff as error:
            log.warning("a stream was broken off: %s", error)
            writer.transport.abort()
        except Exception:
            log.exception("a call failed")
            writer.transport.abort()
        finally:
            writer.close()

    async def _answer(self, call: Call, writer: asyncio.StreamWriter) -> None:
        self._under_way[call.stream] += 1
        try:
            if self._under_way[call.stream] > self._most[call.stream]:
                what = "streams" if call.stream else "reads"
                raise ReadFailed("READ_BUSY", f"{self._most[call.stream]} {what} are under way")
            await self._read(call, writer)
        except InvalidRequest as error:
            await self._error(writer, error.status, error.code, str(error))
        except ReadFailed as error:
            log.warning("reading failed: %s", error)
            await self._error(writer, 503, error.code, str(error))
        finally:
            self._under_way[call.stream] -= 1

    async def _read(self, call: Call, writer: asyncio.StreamWriter) -> None:
        if call.task_id is not None and call.session_id is not None:
            parameters(call.query, FOR_INGEST)
            ((rows, _),) = await self._fetch([[one_task(call.session_id, call.task_id)]], 1)
            if not rows:
                raise InvalidRequest("there is no such task in the database", "NOT_FOUND", 404)
            await self._document(call, writer, *Encoder(TASKS).encode(rows))
        elif call.tasks and call.stream:
            await self._stream(call, writer)
        elif call.tasks or call.session_id is None:
            await self._page(call, writer)
        else:
            await self._session(call.session_id, call, writer)

    async def _session(self, session_id: str, call: Call, writer: asyncio.StreamWriter) -> None:
        parameters(call.query, FOR_INGEST)
        selects = (one_session(session_id), *progress(session_id))
        (rows, _), (counts, _), (latest, _) = await self._fetch([[select] for select in selects], 1000)
        if not rows:
            raise InvalidRequest("there is no such session in the database", "NOT_FOUND", 404)
        ((last,),) = latest
        by_status = {status: int(count) for status, count in counts}
        document = {
            "total": sum(by_status.values()),
            "by_status": by_status,
            "last_task_at": None if last is None else time_text(last),
        }
        # A field of the sender's with that name is seen in the page of sessions only.
        (record,) = Encoder(SESSIONS).encode([without(SESSIONS, rows[0], "progress")])
        await self._document(call, writer, record[:-1] + b',"progress":' + orjson.dumps(document) + b"}")

    async def _page(self, call: Call, writer: asyncio.StreamWriter) -> None:
        page = self._page_of(call)
        as_of = iso(time.time_ns() // 1000)
        rows, more = await self._rows(call, page)
        kind = _kind(call)
        records = b",".join(Encoder(kind, page.query.fields).encode(rows))
        rest = {
            "next": encode_cursor(_where(call), page.query, _position(call, rows[-1])) if more and rows else None,
            "as_of": as_of,
            "pending_records": call.pending_records,
        }
        body = b'{"%b":[%b],%b' % (kind.name.encode(), records, orjson.dumps(rest)[1:])
        await self._document(call, writer, body)

    def _page_of(self, call: Call) -> Page:
        return parse_page(
            _kind(call),
            _where(call),
            call.query,
            statuses=self._statuses[_kind(call)],
            to_utc=self._to_utc,
            also=FOR_INGEST,
            limited=not call.stream,
        )

    async def _rows(self, call: Call, page: Page) -> tuple[list[Row], bool]:
        """A page's, and whether more follow."""
        if call.session_id is None:
            groups = sessions_before(page.query, page.position, page.limit + 1)
        else:
            groups = tasks_after(call.session_id, page.query, page.position, page.limit + 1)
        found = await self._fetch(groups, page.limit + 1)
        return merged(found, page.limit, key=partial(_position, call), falling=call.session_id is None)

    async def _stream(self, call: Call, writer: asyncio.StreamWriter) -> None:
        """All tasks, a line each: every fetch is a short transaction of its own, so that no snapshot is held open."""
        page = msgspec.structs.replace(self._page_of(call), limit=STREAM_ROWS)
        encoder = Encoder(TASKS, page.query.fields)
        count = 0
        rows, more = await self._rows(call, page)
        answer = _Answer(writer, Head(200, NDJSON_TYPE, gzip=call.gzip))
        following: asyncio.Future[tuple[list[Row], bool]] | None = None
        try:
            while True:
                count += len(rows)
                if more:
                    # Of large rows a fetch brings fewer than it asked for, and the server sends all.
                    limit = min(STREAM_ROWS, 2 * len(rows))
                    page = msgspec.structs.replace(page, position=_position(call, rows[-1]), limit=limit)
                    following = asyncio.ensure_future(self._rows(call, page))  # while this page goes out
                    following.add_done_callback(lambda done: done.cancelled() or done.exception())
                await answer.write(b"".join([line + b"\n" for line in encoder.encode(rows)]))
                if following is None:
                    break
                rows, more = await following
                following = None
        except ReadFailed as error:
            raise _BrokenOff(str(error)) from error
        finally:
            if following is not None:
                following.cancel()
        await answer.write(orjson.dumps({"end": True, "count": count}) + b"\n")
        await answer.end()

    async def _fetch(self, groups: Sequence[Sequence[Select]], limit: int) -> list[tuple[list[Row], bool]]:
        try:
            database = await asyncio.wait_for(self._databases.get(), self._wait_s)
        except asyncio.TimeoutError:
            detail = f"no statement has ended for {self._wait_s:g} s (read.pool_size)"
            raise ReadFailed("READ_BUSY", detail) from None
        loop = asyncio.get_running_loop()
        found = self._threads.submit(database.fetch, groups, limit)
        # Free when the statement ends, not when its caller leaves.
        found.add_done_callback(lambda _: loop.call_soon_threadsafe(self._databases.put_nowait, database))
        return await asyncio.wrap_future(found)

    async def _error(self, writer: asyncio.StreamWriter, status: int, code: str, detail: str) -> None:
        body = orjson.dumps({"detail": detail, "error_code": code, "errors": []})
        await self._send(writer, Head(status, length=len(body)), body)

    async def _document(self, call: Call, writer: asyncio.StreamWriter, body: bytes) -> None:
        packed = call.gzip and len(body) >= MIN_PACKED_BYTES
        await self._send(writer, Head(200, gzip=True) if packed else Head(200, length=len(body)), body)

    @staticmethod
    async def _send(writer: asyncio.StreamWriter, head: Head, body: bytes) -> None:
        answer = _Answer(writer, head)
        await answer.write(body)
        await answer.end()


def merged(
    found: Sequence[tuple[list[Row], bool]], limit: int, *, key: Callable[[Row], Any], falling: bool = False
) -> tuple[list[Row], bool]:
    """Several ranges in one order -> the first `limit` rows of all, and whether more follow.

    Where a range was cut short, no row behind its end counts: one of its own might belong before it.
    """
    if len(found) == 1:
        ((rows, cut),) = found
        return rows[:limit], cut or len(rows) > limit
    rows = list(heapq.merge(*(rows for rows, _ in found), key=key, reverse=falling))
    more = len(rows) > limit
    ends = [key(part[-1]) for part, cut in found if cut and part]
    if ends:
        end = max(ends) if falling else min(ends)
        before = [row for row in rows if (key(row) >= end if falling else key(row) <= end)]
        more = True
        rows = before
    return rows[:limit], more


async def _end_of(stream: asyncio.StreamReader) -> None:
    """Ingest sends nothing behind its call: it can only leave."""
    with suppress(OSError):
        await stream.read(1)


def _kind(call: Call) -> Kind:
    """Of the records of a page."""
    return SESSIONS if call.session_id is None else TASKS


def _position(call: Call, row: Row) -> Position:
    """By which a page is ordered, and where the next begins."""
    values = (row[at] for at in _POSITIONS[_kind(call)])
    return tuple(value if isinstance(value, str) else value.decode() for value in values)


_POSITIONS = {
    kind: [COLUMNS[kind].index(name) for name in names]
    for kind, names in ((SESSIONS, ("updated_at", "session_id")), (TASKS, ("task_id",)))
}


def _where(call: Call) -> str:
    """What a cursor is good for; the page of sessions is no session, whatever its id."""
    return "sessions" if call.session_id is None else f"tasks {call.session_id}"
