"""Client of Persistence Service in one file: hand over records and go on; a background thread sends them.

    from services.persistence.persistence_client import persistence_client

    await persistence_client.persist_tasks(tasks)          # in async code
    persistence_client.sync.persist_tasks(tasks)           # in scripts and threads
    unfinished = [task async for task in persistence_client.tasks("s-1", status=("pending", "processing"))]

Rules: a call encodes its records, so later changes do not matter, and queues them; of two states of a key the queue
keeps the later `updated_at`. One daemon thread sends and logs; each process starts its own with its first record. One
lock guards the queues and is never held while waiting. A record counts as sent only if this service says so. A read
runs in its caller's thread, over its own connection, and raises.
Standard library only, Python 3.8 or later. Docs: docs/CLIENT.md.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import encodings.idna  # noqa: F401 -- else getaddrinfo() imports it, and a child forked meanwhile hangs
import functools
import http.client
import itertools
import json
import logging
import os
import random
import re
import socket
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit
from uuid import UUID

BATCH_RECORDS = 100
BATCH_BYTES = 1024 * 1024
BATCH_AGE_S = 1.0
"""A batch is sent when it has this many records or bytes, or when its oldest record is this old."""
REQUEST_TIMEOUT_S = 2.0
SLOWEST_BYTES_PER_S = 128 * 1024
"""A request gets REQUEST_TIMEOUT_S plus the time that its body takes at this rate."""
READ_TIMEOUT_S = 30.0
"""For a page. The service itself gives up after 5 s for `fresh` and three times its `read.timeout`."""
FLUSH_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 5.0
EXIT_TIMEOUT_S = 2.0
MAX_PAUSE_S = 60.0
WARNING_INTERVAL_S = 60.0
MAX_RECORDS = 100_000
MAX_BYTES = 64 * 1024 * 1024
"""Limits of each queue; beyond them the oldest records are dropped."""
MAX_RECORD_BYTES = 10 * 1024 * 1024
"""The default limit of a request body in the service."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
_TICK_S = 0.05
_RECORDS_A_STEP = 200
_CLOCK_STEP = timedelta(seconds=60)
_MAX_DEPTH = 50
_MAX_WARNINGS = 20
_MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""A page holds some 1 MiB of text, which escapes make longer."""
_LINGER_S = 10.0
"""The thread ends after this time without work."""
_NEVER = float("inf")

logger = logging.getLogger(__name__)


class Counters(NamedTuple):
    """Records since the process started. Each is acknowledged (`sent`), refused, unsendable or beyond the limits
    (`dropped`), replaced by a later state of its key (`coalesced`), or `waiting`; `retried` counts repetitions."""

    sent: int
    retried: int
    dropped: int
    coalesced: int
    waiting: int


class ReadFailed(Exception):
    """A read failed. `status`: of HTTP, 0 without an answer; `code`: the service's `error_code`, or empty."""

    def __init__(self, message: str, status: int = 0, code: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


class NotFound(ReadFailed):
    """The database has no such record."""


class InvalidRequest(ReadFailed):
    """The service knows no such filter or value: mend the call."""


class AccessDenied(ReadFailed):
    """The service refuses this client: mend the token."""


class Unavailable(ReadFailed):
    """The service, its reader or its database is away or busy: try again, after `retry_after_s` where it is given."""


class _Unusable(ValueError):
    """A record, URL or token cannot be used. The message names fields and types, never content."""


class _Waiting(NamedTuple):
    key: object
    updated_at: datetime
    body: bytes
    since: float
    """When the oldest unsent state of this key was queued: newer states do not make the key wait longer."""


class _Queue:
    """The records of record kind, the longest waiting first. Pure data: the caller holds the lock."""

    def __init__(self, name: str, key: tuple[str, ...]) -> None:
        self.name = name
        self.key = key
        self.size = BATCH_RECORDS
        self.sent = self.retried = self.dropped = self.coalesced = 0
        self.trouble: dict[str, tuple[int, str]] = {}
        self._bytes = 0
        self._items: OrderedDict[object, _Waiting] = OrderedDict()
        self._in_flight: list[_Waiting] = []
        self._set_back_at = _NEVER
        """At most the `since` of every record that settle() has moved to the end."""

    def __len__(self) -> int:
        return len(self._items) + len(self._in_flight)

    def put(self, new: _Waiting) -> None:
        """Keeps the later state of a key, on a tie the new record. Drops the oldest records beyond the limits."""
        old = self._items.get(new.key)
        if old is not None:
            self.coalesced += 1
            if old.updated_at > new.updated_at:
                return
            self._bytes -= len(old.body)
            new = new._replace(since=old.since)
        self._items[new.key] = new
        self._bytes += len(new.body)
        while len(self._items) > MAX_RECORDS or self._bytes > MAX_BYTES:
            self._bytes -= len(self._items.popitem(last=False)[1].body)
            self.drop(1, "the queue is full")

    def oldest_at(self) -> float:
        """When the oldest unsettled record was queued, or an earlier time."""
        first = next((record.since for record in self._items.values()), _NEVER)
        return min(first, self._set_back_at, *[record.since for record in self._in_flight])

    def due(self, now: float) -> bool:
        full = len(self._items) >= BATCH_RECORDS or self._bytes >= BATCH_BYTES
        return full or self.oldest_at() <= now - BATCH_AGE_S

    def take(self) -> list[_Waiting]:
        """Returns: the next batch. It counts as waiting until settle()."""
        size = 0
        while self._items and len(self._in_flight) < self.size and size < BATCH_BYTES:
            record = self._items.popitem(last=False)[1]
            self._in_flight.append(record)
            self._bytes -= len(record.body)
            size += len(record.body)
        return self._in_flight

    def settle(self, left: Sequence[_Waiting], *, at_end: bool = False) -> None:
        """Ends a take(). The records of `left` wait again, in front or at the end, in the latest state of each key."""
        self._in_flight = []
        for record in left if at_end else reversed(left):
            newer = self._items.get(record.key)
            if newer is not None:
                self.coalesced += 1
                self._bytes -= len(newer.body)
            stays = (
                record if newer is None or newer.updated_at < record.updated_at else newer._replace(since=record.since)
            )
            self._items[record.key] = stays
            self._items.move_to_end(record.key, last=at_end)
            self._bytes += len(stays.body)
            if at_end:
                self._set_back_at = min(self._set_back_at, record.since)
        if not self._items:
            self._set_back_at = _NEVER

    def drop(self, count: int, reason: str) -> None:
        self.dropped += count
        self.note(count, f"dropped: {reason}")

    def drop_all(self, reason: str) -> None:
        if self._items:
            self.drop(len(self._items), reason)
            self._items.clear()
            self._bytes, self._set_back_at = 0, _NEVER

    def note(self, count: int, what: str, *, add: bool = True) -> None:
        """Counts for the next warnings. Texts that differ only in an index share record warning."""
        kind = re.sub(r"\[\d+\]", "", what)
        if kind not in self.trouble and len(self.trouble) >= _MAX_WARNINGS:
            kind = what = "dropped or delayed for further reasons"
        before, what = self.trouble.get(kind, (0, what))
        self.trouble[kind] = (before + count if add else count, what)


def _address(url: str, token: str) -> tuple[str, str, int | None, str, dict[str, str]]:
    """Returns: scheme, host, port, path, headers. Raises: _Unusable, which says what is expected."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")
    except ValueError as error:
        raise _Unusable(f"the URL {_shown(url)!r} cannot be used: {error}") from None
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise _Unusable(f"the URL {_shown(url)!r} cannot be used: write http://HOST:PORT or https://HOST:PORT/PREFIX")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise _Unusable(f"the URL {_shown(url)!r} cannot be used: it may have no user, query or fragment")
    if not (token.isascii() and token.isprintable()):
        raise _Unusable("the token cannot be used: it has a character that no HTTP header may have")
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    return parts.scheme, host, port, quote(parts.path.rstrip("/"), safe="/%"), headers


def _shown(url: str) -> str:
    """Without a password or a query."""
    return re.sub(r"(//).*@|[?#].*", r"\1", url.rstrip("/"))


class _Answer(NamedTuple):
    status: int
    document: dict[str, Any]
    """Empty where the answer is no JSON object."""
    code: str
    """The service's `error_code`; empty where the answer is no refusal of its own."""
    retry_after_s: float
    words: str
    """For a warning."""


_ACCEPTED = ("accepted", "committed", "dead_lettered")
_REFUSED = ("INVALID_JSON", "INVALID_SHAPE", "INVALID_RECORD")
"""The body is at fault: the records that `errors` names, else one that halving finds. Any other 400 comes from the
network path, and ends when somebody repairs that."""
_TRY_AGAIN = (401, 403, 408, 429, 503)
"""These say nothing about the body."""
_READ_ERRORS = {400: InvalidRequest, 401: AccessDenied, 403: AccessDenied, 404: NotFound, 503: Unavailable}
_NAMED_HEADERS = (("", "Content-Type"), (" from", "Server"), (" to", "Location"))
_LOST = (http.client.HTTPException, OSError, ValueError)
"""No answer: what request() raises."""


def _answer(response: http.client.HTTPResponse, body: bytes) -> _Answer:
    try:
        document: Any = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    document = document if isinstance(document, dict) else {}
    code, detail = document.get("error_code"), document.get("detail")
    if response.status >= 400 and isinstance(code, str) and isinstance(detail, str):
        words = f" {code}: {detail[:300]}"
    else:
        named = ((word, response.getheader(name)) for word, name in _NAMED_HEADERS)
        said = "".join(f"{word} {value.partition('?')[0][:80]}" for word, value in named if value)
        code, words = "", f"{said}, no answer of Persistence Service"
    after = response.getheader("Retry-After", "")
    after_s = min(float(after), MAX_PAUSE_S) if after.isdecimal() else 0.0
    return _Answer(response.status, document, code, after_s, f"HTTP {response.status}{words}")


def _words(error: BaseException) -> str:
    """Of _LOST, for a warning."""
    if isinstance(error, (_Unusable, socket.timeout)):
        return str(error) if isinstance(error, _Unusable) else "no answer in time"
    return f"{type(error).__name__} {getattr(error, 'strerror', None) or ''}".rstrip()


class _Response(http.client.HTTPResponse):
    """Its socket's timeout is for the whole answer, not for each read."""

    def __init__(self, sock: Any, *arguments: Any, **named: Any) -> None:
        super().__init__(sock, *arguments, **named)
        raw: Any = self.fp.raw
        receive, deadline = raw.readinto, time.monotonic() + sock.gettimeout()

        def readinto(buffer: Any) -> Any:
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
            return receive(buffer)

        raw.readinto = readinto


class _Connection:
    """Requests to one service, one at a time, over one kept connection. Ignores proxy settings."""

    def __init__(self, url: str, token: str) -> None:
        self.url = _shown(url)
        self._given = url, token
        self._http: Any = None

    def request(self, method: str, path: str, timeout_s: float, body: bytes | None = None) -> _Answer:
        """Blocks for at most some `timeout_s`. Raises: one of _LOST."""
        scheme, host, port, prefix, headers = _address(*self._given)
        if self._http is None:  # kept after close(): it holds the loaded certificates
            self._http = (http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection)(host, port)
            self._http.response_class = _Response
        deadline = time.monotonic() + timeout_s
        while True:
            kept = self._http.sock is not None
            try:
                self._http.timeout = max(deadline - time.monotonic(), 0.001)
                if not kept:
                    self._http.connect()
                self._http.sock.settimeout(max(deadline - time.monotonic(), 0.001))
                self._http.request(method, f"{prefix}/api/v1/persistence/{path}", body, headers)
                self._http.sock.settimeout(max(deadline - time.monotonic(), 0.001))
                response = self._http.getresponse()
                answer = _answer(response, response.read(_MAX_ANSWER_BYTES))
                break
            except (http.client.HTTPException, OSError) as error:
                self.close()
                if not kept or isinstance(error, socket.timeout):
                    raise
                # The service may close an idle connection: try once more over a new one.
        if not response.isclosed():  # there is more
            self.close()
        return answer

    def close(self) -> None:
        if self._http is not None:
            self._http.close()

    def close_inherited(self) -> None:
        """After a fork: closes the descriptor only; the parent's thread may hold a lock of the layers above it."""
        if self._http is not None and self._http.sock is not None:
            os.close(self._http.sock.detach())


def _read(connection: _Connection, path: str, query: Mapping[str, str], kind: str = "") -> dict[str, Any]:
    """Returns: an answer with a list of `kind`, or a session. Raises: ReadFailed, ValueError."""
    try:
        answer = connection.request("GET", f"{path}?{urlencode(query)}".rstrip("?"), READ_TIMEOUT_S)
    except (http.client.HTTPException, OSError) as error:
        raise Unavailable(f"{connection.url}: {_words(error)}") from error
    ours = answer.document.get(kind or "session_id")
    if answer.status == 200 and isinstance(ours, list if kind else str):
        return answer.document
    kind_of_error = _READ_ERRORS.get(answer.status, ReadFailed) if answer.code else Unavailable
    if kind_of_error is NotFound and answer.code != "NOT_FOUND":  # reading is switched off, or the service is older
        kind_of_error = ReadFailed
    raise kind_of_error(f"{connection.url}: {answer.words}", answer.status, answer.code, answer.retry_after_s)


def _segment(session_id: object) -> str:
    """Percent-encoded. The ids `batch`, `.` and `..` in full: as they are, they are other paths."""
    text = _parameter(session_id, "session_id")
    return "".join(f"%{ord(one):02X}" for one in text) if text in ("batch", ".", "..") else quote(text, safe="")


def _parameter(value: object, name: str) -> str:
    """Joins several values with commas. Raises: ValueError."""
    sent = _plain(value, name)
    return ",".join(map(str, sent)) if isinstance(sent, list) else str(sent)


class SyncPersistenceClient:
    """Without await, for scripts and threads: `with SyncPersistenceClient() as client`, or `persistence_client.sync`.

    Any thread may call it, also after a fork. close() ends it; the next call starts it again.
    Args: url, token: by default PERSISTENCE_URL and PERSISTENCE_TOKEN, read when the thread starts, else the service on
    this machine without a token. Raises: ValueError, for a URL or token that can never work.
    """

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        self._given = url, token
        if url or token:
            _address(*self._service())
        self._last_stamp = datetime.min.replace(tzinfo=timezone.utc)
        self._connection: _Connection | None = None
        self._begin()
        _clients.add(self)

    def persist_session(self, session: object) -> None:
        """Queues the state of a session. Returns at once; never raises."""
        self._put(self._sessions, session)

    def persist_tasks(self, tasks: object) -> None:
        """Queues the states of tasks: an iterable, one task, or a DataFrame. Returns at once; never raises."""
        self._put(self._tasks, tasks)

    def flush_all(self) -> dict[str, Any]:
        """Sends all waiting records and has the service write them. Returns: its answer, or one with
        `"status": "error"`. Blocks for up to 12 s."""
        called_at = self._hurry_at = time.monotonic()
        connection = _Connection(*self._service())
        while True:
            self._go()
            with self._lock:
                pending = sum(map(len, self._queues))
                if all(queue.oldest_at() > called_at for queue in self._queues):
                    break
            if time.monotonic() > called_at + FLUSH_TIMEOUT_S:
                detail = f"{pending} records not sent to {connection.url} within {FLUSH_TIMEOUT_S:g} s: {self._delay}"
                return {"status": "error", "detail": detail, "pending": pending}
            time.sleep(_TICK_S / 10)
        left_s = max(called_at + FLUSH_TIMEOUT_S - time.monotonic(), 0)
        try:
            answer = connection.request("POST", f"flush?timeout={left_s:.3f}", left_s + REQUEST_TIMEOUT_S, b"")
        except _LOST as error:
            return {"status": "error", "detail": f"{connection.url}: {_words(error)}", "pending": pending}
        finally:
            connection.close()
        if answer.status == 200 and answer.document.get("status") == "flushed":
            return answer.document
        ours = answer.document if answer.code or "pending" in answer.document else {}
        return {"detail": f"{connection.url}: {answer.words}", "pending": pending, **ours, "status": "error"}

    def sessions(
        self,
        *,
        status: str | Iterable[str] | None = None,
        updated_after: object = None,
        updated_before: object = None,
        fresh: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Yields the sessions of the database, the newest `updated_at` first, page by page.

        Args: status: one or several; updated_after, updated_before: times as in a record; fresh: whether the service
        first writes all that it has accepted. Raises: ReadFailed, ValueError. Blocks: at most some 30 s for each page.
        """
        query = {"status": status, "updated_after": updated_after, "updated_before": updated_before, "limit": 200}
        return self._records("sessions", "sessions", query, fresh=fresh)

    def session(self, session_id: object, *, fresh: bool = False) -> dict[str, Any]:
        """Returns: one session, with its `progress`. Raises: NotFound and as sessions(). Blocks: as sessions()."""
        connection = _Connection(*self._service())
        try:
            return _read(connection, f"sessions/{_segment(session_id)}", {"fresh": "flushed"} if fresh else {})
        finally:
            connection.close()

    def tasks(
        self,
        session_id: object,
        *,
        status: str | Iterable[str] | None = None,
        batch_id: object = None,
        fields: Iterable[str] | None = None,
        fresh: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Yields the tasks of a session in the order of task_id, page by page. A task that changes meanwhile comes
        once, in its old or its new state.

        Args: status, fresh: as of sessions(); batch_id: one batch; fields: only these. Raises, Blocks: as sessions().
        """
        query = {"status": status, "batch_id": batch_id, "fields": fields, "limit": 1000}
        return self._records(f"sessions/{_segment(session_id)}/tasks", "tasks", query, fresh=fresh)

    def _records(self, path: str, kind: str, given: dict[str, Any], *, fresh: bool) -> Iterator[dict[str, Any]]:
        query = {name: _parameter(value, name) for name, value in given.items() if value is not None}
        connection = _Connection(*self._service())
        try:
            page = _read(connection, path, {**query, "fresh": "flushed"} if fresh else query, kind)
            while True:
                yield from page[kind]
                if page.get("next") is None:
                    return
                page = _read(connection, path, {**query, "cursor": str(page["next"])}, kind)
        finally:
            connection.close()

    def close(self) -> None:
        """Sends waiting records for up to 5 s, drops the rest with a warning, and ends the thread."""
        self._wait(self._end(CLOSE_TIMEOUT_S), CLOSE_TIMEOUT_S)

    def __enter__(self) -> SyncPersistenceClient:  # noqa: PYI034 -- Self came with Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def counters(self) -> Counters:
        _hook()  # before the lock is taken: a child could find it taken for ever
        with self._lock:
            figures = [(one.sent, one.retried, one.dropped, one.coalesced, len(one)) for one in self._queues]
            return Counters(*map(sum, zip(*figures)))

    def _service(self) -> tuple[str, str]:
        url = self._given[0] or os.environ.get("PERSISTENCE_URL") or "http://127.0.0.1:8001"
        token = self._given[1] or os.environ.get("PERSISTENCE_TOKEN") or ""
        return str(url).strip(), token.strip()

    def _begin(self) -> None:
        """Resets. After a fork the queued records are the parent's to send, and its threads no longer release locks."""
        # Reentrant: a signal handler may persist a record in the middle of a call.
        self._lock = threading.RLock()
        self._sessions = _Queue("sessions", ("session_id",))
        self._tasks = _Queue("tasks", ("session_id", "task_id"))
        self._queues = (self._sessions, self._tasks)
        if self._connection is not None:
            self._connection.close_inherited()
        self._sending = (
            threading.Lock()
        )  # held while a sender runs; taken atomically, since a signal handler may interrupt
        self._done = threading.Event()
        self._done.set()
        self._close_at, self._hurry_at = _NEVER, -_NEVER
        self._not_before = self._busy_at = 0.0
        self._quiet: dict[tuple[str, str], float] = {}
        self._delay = ""
        self._failures = 0
        self._exit_left_s = EXIT_TIMEOUT_S

    def _put(self, queue: _Queue, records: object) -> None:
        _hook()
        where = queue.name
        try:
            for index, record in enumerate(_records(records)):
                where = f"{queue.name}[{index}]"
                try:
                    self._put_one(queue, record, where)
                except Exception as error:  # noqa: BLE001 -- the caller's objects may raise anything
                    self._drop(queue, where, error)
        except Exception as error:  # noqa: BLE001 -- iterating over them too
            self._drop(queue, where, error)
        self._go()

    def _put_one(self, queue: _Queue, record: object, where: str) -> None:
        given = _fields(record)
        if given is None:
            raise _Unusable(f"{where}: {type(record).__name__} is no record")
        key = [_plain(given.get(name), f"{where}.{name}") for name in queue.key]
        for name, part in zip(queue.key, key):
            if part is None or isinstance(part, (list, dict)):
                raise _Unusable(f"{where}.{name}: {type(given.get(name)).__name__} is no id")
        updated_at = _plain(given.get("updated_at"), f"{where}.updated_at")
        moment, basis = (self._stamp(), "") if updated_at is None else _moment(updated_at)
        given["updated_at"] = moment.isoformat() if updated_at is None else updated_at
        body = _encode(given, where)
        if len(body) > MAX_RECORD_BYTES:
            raise _Unusable(f"{where}: over {MAX_RECORD_BYTES} bytes")
        with self._lock:
            queue.put(_Waiting((*key, basis), moment, body, time.monotonic()))

    def _drop(self, queue: _Queue, where: str, error: Exception) -> None:
        reason = str(error) if isinstance(error, _Unusable) else f"{where}: reading it raised {type(error).__name__}"
        with self._lock:
            queue.drop(1, reason)

    def _stamp(self) -> datetime:
        """Returns: now, and always later than before, also when the clock steps back a little."""
        with self._lock:
            now = datetime.now(timezone.utc)
            if now <= self._last_stamp < now + _CLOCK_STEP:
                now = self._last_stamp + datetime.resolution
            self._last_stamp = now
            return now

    def _go(self) -> None:
        """Starts the sender if none runs; at the exit of the interpreter, where no thread lives on, sends here."""
        exiting = not threading.main_thread().is_alive()
        with self._lock:
            if not self._sending.acquire(blocking=False):
                return
            self._close_at, self._done = _NEVER, threading.Event()
            if exiting:
                self._end(self._exit_left_s)
            else:
                try:
                    threading.Thread(target=self._run, name="persistence-client", daemon=True).start()
                except RuntimeError:  # no thread can start: the next call tries again
                    self._sending.release()
                    self._done.set()
        if exiting:
            began_at = time.monotonic()
            self._run()
            self._exit_left_s -= time.monotonic() - began_at

    def _end(self, within_s: float) -> threading.Event:
        """Makes the sender try at once, send for `within_s`, drop the rest and end. Returns: set when it has."""
        with self._lock:
            if any(map(len, self._queues)):
                self._go()  # an earlier call may have failed to start it
            self._close_at = min(self._close_at, time.monotonic() + within_s)
            self._not_before = 0.0
            return self._done

    def _wait(self, done: threading.Event, within_s: float) -> None:
        if not done.wait(within_s + REQUEST_TIMEOUT_S):
            logger.warning("%s: %d records not sent: a request takes too long", self._name(), self.counters.waiting)

    def _name(self) -> str:
        return f"persistence client of {_shown(self._service()[0])}"

    def _run(self) -> None:
        """The sender's thread; it alone calls the methods below."""
        done, connection = self._done, _Connection(*self._service())
        self._connection = connection  # the next sender may replace it before we close ours
        due: list[_Queue] | None = []
        try:
            if self._close_at == _NEVER:
                time.sleep(_TICK_S)  # let the call that started us return first
            while due is not None:
                due = self._due(time.monotonic())
                for queue in due or ():
                    self._send(queue, connection)
                self._report(time.monotonic(), all_kinds=due is None)
                if due == []:
                    time.sleep(_TICK_S)  # before Python 3.11 a lock's timeout follows clock steps
        except BaseException:
            if due is not None:
                self._sending.release()
            raise
        finally:
            connection.close()
            done.set()

    def _due(self, now: float) -> list[_Queue] | None:
        """Returns: the queues to send from; None to end: idle, or a close() leaves no time to send more."""
        with self._lock:
            waiting = [queue for queue in self._queues if len(queue)]
            closing = self._close_at < _NEVER
            if waiting or any(queue.trouble for queue in self._queues):
                self._busy_at = now
            in_time = max(now, self._not_before) < self._close_at
            if (closing and not (waiting and in_time)) or self._busy_at < now - _LINGER_S:
                for queue in waiting:
                    queue.drop_all("the client was closed")
                self._sending.release()
                return None
            if now < self._not_before:
                return []
            return [one for one in waiting if closing or one.due(now) or one.oldest_at() <= self._hurry_at]

    def _send(self, queue: _Queue, connection: _Connection) -> None:
        """Sends one batch and settles it."""
        with self._lock:
            left = batch = queue.take()
        at_end = False
        try:
            left, at_end = self._try(queue, batch, connection)
        finally:
            with self._lock:
                queue.settle(left, at_end=at_end)

    def _try(self, queue: _Queue, batch: list[_Waiting], connection: _Connection) -> tuple[list[_Waiting], bool]:
        """Returns: the records to send again, and whether after all others, since their content may be the cause."""
        body = b'{"%b":[%b]}' % (queue.name.encode(), b",".join([one.body for one in batch]))
        timeout_s = REQUEST_TIMEOUT_S + len(body) / SLOWEST_BYTES_PER_S
        timeout_s = min(timeout_s, max(self._close_at - time.monotonic(), EXIT_TIMEOUT_S))
        try:
            answer = connection.request("POST", f"{queue.name}/batch", timeout_s, body)
        except _LOST as error:
            words, after_s, at_end, halve = _words(error), 0.0, False, isinstance(error, socket.timeout)
        else:
            said = answer.document.get("status"), answer.document.get("count")
            if answer.status // 100 == 2 and said[0] in _ACCEPTED and said[1] == len(batch):
                self._failures, self._delay = 0, ""
                with self._lock:
                    queue.sent += len(batch)
                    queue.size = min(BATCH_RECORDS, 2 * queue.size)
                return [], False
            if answer.status == 413 or answer.code in _REFUSED:
                self._failures = 0
                with self._lock:
                    return _without_refused(queue, batch, answer), False
            words, after_s = answer.words, answer.retry_after_s
            at_end = halve = not (answer.code and answer.status in _TRY_AGAIN)
        with self._lock:
            queue.retried += len(batch)
            queue.note(len(queue), f"not sent yet, kept: {words}", add=False)
            self._delay = words
            if halve:
                queue.size = max(1, len(batch) // 2)
            pause_s = min(_FIRST_PAUSE_S * 2**self._failures, _LONGEST_PAUSE_S) * random.uniform(0.5, 1)  # noqa: S311
            self._failures = min(self._failures + 1, 10)
            closing = self._close_at < _NEVER
            self._not_before = time.monotonic() + (pause_s if closing else min(after_s + pause_s, MAX_PAUSE_S))
        return batch, at_end

    def _report(self, now: float, *, all_kinds: bool) -> None:
        """Logs each kind of warning at once, then at most once an interval."""
        lines = []
        with self._lock:
            self._quiet = {kind: until for kind, until in self._quiet.items() if until > now and not all_kinds}
            for queue in self._queues:
                for kind in [one for one in queue.trouble if (queue.name, one) not in self._quiet]:
                    if len(self._quiet) < _MAX_WARNINGS or all_kinds:
                        self._quiet[queue.name, kind] = now + WARNING_INTERVAL_S
                        count, what = queue.trouble.pop(kind)
                        lines.append((count, queue.name, what))
        for line in lines:
            logger.warning("%s: %d %s %s", self._name(), *line)


def _without_refused(queue: _Queue, batch: list[_Waiting], answer: _Answer) -> list[_Waiting]:
    """Drops the records that a refusal names. If it names none, halves the batch until one record is left to drop."""
    faults: dict[int, list[str]] = {}
    errors = answer.document.get("errors") if answer.code else None
    for error in errors if isinstance(errors, list) else ():
        named = str(error.get("field")) if isinstance(error, dict) else ""
        found = re.fullmatch(r"\w+\[(\d{1,6})\]\.?([\w.]*).*", named, re.DOTALL)
        if found and int(found[1]) < len(batch):
            value = json.loads(batch[int(found[1])].body).get(found[2].partition(".")[0], Ellipsis)
            kind = "" if value is Ellipsis else f" ({type(value).__name__})"
            text = f"{found[2]}{kind}: {str(error.get('message'))[:200]}"
            faults.setdefault(int(found[1]), []).append(text)
    if not faults and len(batch) > 1:
        queue.size = len(batch) // 2
        return batch
    queue.size = BATCH_RECORDS
    for texts in faults.values():
        queue.drop(1, f"HTTP {answer.status} {answer.code}: {'; '.join(texts[:3])}")
    if not faults:
        queue.drop(1, answer.words)
    return [one for index, one in enumerate(batch) if faults and index not in faults]


class PersistenceClient:
    """The client for asynchronous code: `async with PersistenceClient() as client`, or `persistence_client`.

    `sync` is the same client, with the same queue, for code that is not; arguments and life are described there.
    """

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        self.sync = SyncPersistenceClient(url, token)

    async def persist_session(self, session: object) -> None:
        """Queues the state of a session. Returns at once; never raises."""
        self.sync.persist_session(session)

    async def persist_tasks(self, tasks: object) -> None:
        """Queues the states of tasks: an iterable, one task, or a DataFrame. Returns at once; never raises."""
        self.sync.persist_tasks(tasks)

    async def flush_all(self) -> dict[str, Any]:
        """Sends all waiting records and has the service write them. Returns: as `sync.flush_all`."""
        return dict(await _in_thread(self.sync.flush_all))

    def sessions(self, **filters: Any) -> AsyncIterator[dict[str, Any]]:
        """For `async for`; arguments and errors are those of `sync.sessions`."""
        return _each(self.sync.sessions(**filters))

    async def session(self, session_id: object, *, fresh: bool = False) -> dict[str, Any]:
        """Returns: one session. Raises: as `sync.session`."""
        return dict(await _in_thread(lambda: self.sync.session(session_id, fresh=fresh)))

    def tasks(self, session_id: object, **filters: Any) -> AsyncIterator[dict[str, Any]]:
        """For `async for`; arguments and errors are those of `sync.tasks`."""
        return _each(self.sync.tasks(session_id, **filters))

    async def aclose(self) -> None:
        """Sends waiting records for up to 5 s, drops the rest with a warning, and ends the thread."""
        await _in_thread(self.sync.close)

    @property
    def counters(self) -> Counters:
        return self.sync.counters

    async def __aenter__(self) -> PersistenceClient:  # noqa: PYI034 -- Self came with Python 3.11
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def _in_thread(function: Callable[[], Any]) -> Any:
    """Runs it in a thread of its own: those of the loop's pool may all be busy."""
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 -- else the caller waits for ever
            future.set_exception(error)

    thread = threading.Thread(target=call, name="persistence-client-call", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no thread can start at the exit of the interpreter
        return function()
    return await asyncio.wrap_future(future)


async def _each(records: Iterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    while some := await _in_thread(lambda: list(itertools.islice(records, _RECORDS_A_STEP))):
        for record in some:
            yield record


_clients: weakref.WeakSet[SyncPersistenceClient] = weakref.WeakSet()


@functools.lru_cache(maxsize=None)
def _hook() -> None:
    """Once a process, at the first call: an import has no side effect. Holds no client."""
    atexit.register(_at_exit)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)


def _at_exit() -> None:
    busy = [client for client in list(_clients) if any(len(one) or one.trouble for one in client._queues)]  # noqa: SLF001
    for client, done in [(client, client._end(EXIT_TIMEOUT_S)) for client in busy]:  # noqa: SLF001
        client._wait(done, EXIT_TIMEOUT_S)  # noqa: SLF001


def _after_fork() -> None:
    for client in list(_clients):
        client._begin()  # noqa: SLF001


def _records(given: Any) -> Any:
    """Returns: an iterable of records: the rows of a DataFrame, a list of one for a single record."""
    if hasattr(given, "to_dict") and hasattr(given, "columns"):
        return given.to_dict("records")
    several = hasattr(given, "__iter__") and not isinstance(given, str) and _fields(given) is None
    return given if several else (given,)


def _fields(record: Any) -> dict[Any, Any] | None:
    """Returns: a shallow copy of a record's fields; None if it is no record."""
    if isinstance(record, Mapping):
        return dict(record)
    if is_dataclass(record) and not isinstance(record, type):
        return {field.name: getattr(record, field.name) for field in fields(record)}
    if isinstance(record, tuple) and hasattr(record, "_asdict"):
        row = dict(record._asdict())
        if type(record).__name__ == "Pandas":
            row.pop("Index", None)  # DataFrame.itertuples() adds it
        return row
    for method in ("to_dict", "model_dump"):  # a Series; a pydantic model
        if hasattr(type(record), method) and not hasattr(record, "columns"):
            return dict(getattr(record, method)())
    return None


def _encode(record: Mapping[Any, Any], where: str) -> bytes:
    """Returns: JSON. Raises: _Unusable, which names the field and its type."""
    try:
        return _json(record).encode()
    except Exception:  # noqa: BLE001 -- NaN, a key that is no text, or an unknown type
        return _json(_plain(record, where)).encode()


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """Converts a value to JSON types. Raises: _Unusable, which names the field and the type."""
    try:
        return _converted(value, where, depth)
    except _Unusable:
        raise
    except _Unsendable as error:
        name = str(error)
    except Exception:  # noqa: BLE001 -- foreign types may raise anything
        name = type(value).__name__
    raise _Unusable(f"{where}: {name} cannot be sent")


class _Unsendable(Exception):
    """The message describes a value whose type alone does not explain the refusal."""


def _converted(value: Any, where: str, depth: int) -> Any:  # noqa: C901, PLR0911, PLR0912 -- a line or two a type
    """Recognizes pandas and numpy by their attributes. Raises: anything, for a value that cannot be sent."""
    if value is None or isinstance(value, bool) or type(value).__name__ in ("NAType", "NaTType"):
        return value if isinstance(value, bool) else None
    if isinstance(value, Enum):
        return _plain(value.value, where, depth)
    if isinstance(value, str):
        if not value.isascii() and re.search("[\ud800-\udfff]", value):
            raise _Unsendable("text with a lone surrogate")
        return value
    if isinstance(value, int):
        if value.bit_length() > 64:
            raise _Unsendable("an integer over 64 bits")
        return value
    if isinstance(value, (float, Decimal)):
        if value in (float("inf"), float("-inf")):
            raise _Unsendable("infinity")
        number = value if isinstance(value, float) else str(value)
        return number if value == value else None  # noqa: PLR0124 -- NaN
    if isinstance(value, UUID):
        return str(value)
    if depth >= _MAX_DEPTH:
        raise _Unsendable(f"{type(value).__name__} nested over {_MAX_DEPTH} deep")
    depth += 1
    if isinstance(value, datetime):  # also a pandas Timestamp, whose methods differ
        day, clock = (value.year, value.month, value.day), (value.hour, value.minute, value.second, value.microsecond)
        moment = datetime(*day, *clock, tzinfo=value.tzinfo, fold=value.fold)
        if moment.utcoffset() is None:
            moment = moment.replace(tzinfo=None).astimezone()
        return moment.isoformat()
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(one, f"{where}[{index}]", depth) for index, one in enumerate(value)]
    given = _fields(value)
    if given is not None:
        names = [name if isinstance(name, str) else _plain(name, where, depth) for name in given]
        if any(isinstance(name, (list, dict)) for name in names):
            raise TypeError
        return {name: _plain(one, f"{where}.{name}", depth) for name, one in zip(names, given.values())}
    if isinstance(value, os.PathLike):
        return _plain(os.fspath(value), where, depth)
    if hasattr(value, "isoformat") and not isinstance(value, timedelta):
        return value.isoformat()
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind == "m" or hasattr(value, "columns") or isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError
    if kind == "M":
        value = value.astype("datetime64[us]")  # tolist() of nanoseconds returns integers
    if getattr(value, "ndim", 0):
        return _plain(list(value), where, depth)
    result = value.tolist()
    if isinstance(result, type(value)) or (kind == "M" and isinstance(result, int)):
        raise TypeError
    return _plain(result, where, depth)


_json = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=lambda value: _plain(value, "")
).encode


def _moment(updated_at: object) -> tuple[datetime, str]:
    """Returns: the time, and a name for the times that it compares with: only the service knows the zone of a time
    without an offset, and whether it can read one that we cannot."""
    text = str(updated_at)
    try:
        moment = datetime.fromisoformat(f"{text[:-1]}+00:00" if text.endswith(("Z", "z")) else text)
    except ValueError:
        return datetime.max.replace(tzinfo=timezone.utc), text
    if moment.utcoffset() is None:
        return moment.replace(tzinfo=timezone.utc), "without offset"
    return moment, ""


persistence_client = PersistenceClient()
