"""Client of Persistence Service in one file: hand over records and go on; they are sent in the background.

    from services.persistence.persistence_client import persistence_client

    await persistence_client.persist_tasks(tasks)          # in async code
    persistence_client.sync.persist_tasks(tasks)           # in scripts and threads

Rules: a record is encoded in the call, so that later changes of it do not matter, and waits in a bounded queue where
of two records with the same key the later `updated_at` stays. One daemon thread with an event loop of its own sends
what waits: it depends on no loop of the caller's, and starts with the first record, in every process anew. One lock
guards the queues; nobody holds it while waiting. Calls never log: the thread does. Docs: docs/CLIENT.md.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import json
import logging
import os
import random
import re
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple
from uuid import UUID

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

__all__ = ["Counters", "PersistenceClient", "SyncPersistenceClient", "persistence_client"]

BATCH_RECORDS = 100
BATCH_BYTES = 1024 * 1024
BATCH_AGE_S = 1.0
"""A batch is sent when it has so many records, or bytes, or when its oldest record is so old."""
REQUEST_TIMEOUT_S = 2.0
SLOWEST_BYTES_PER_S = 128 * 1024
"""A request may take so much longer as its body takes at this rate."""
FLUSH_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 5.0
EXIT_TIMEOUT_S = 2.0
CALL_TIMEOUT_S = FLUSH_TIMEOUT_S + 2 * REQUEST_TIMEOUT_S
WARNING_INTERVAL_S = 10.0
MAX_RECORDS = 100_000
MAX_BYTES = 64 * 1024 * 1024
"""Of one kind, that wait; beyond, the oldest are dropped."""
MAX_RECORD_BYTES = 10 * 1024 * 1024
"""What the service takes in one body by default."""
RETRY_FOR_S = 300.0
"""How long a record is tried, from its call on."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
_TICK_S = 0.05
_CLOCK_STEP = timedelta(seconds=60)
_REFUSED = (400, 413, 422)
"""Something in the body is at fault: the records that `errors` names, or else one that halving finds."""
_TRY_AGAIN = (408, 429, 500, 502, 503, 504)
_LOST = (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError)
"""No answer: what aiohttp raises, ValueError for a URL or a token that make no request."""
_NO_THREAD = (asyncio.TimeoutError, concurrent.futures.TimeoutError, OSError, RuntimeError)

logger = logging.getLogger(__name__)


class Counters(NamedTuple):
    """Records since the process started: given = sent + coalesced + dropped + waiting."""

    sent: int
    """Acknowledged by the service."""
    retried: int
    """Sent again, counted each time."""
    dropped: int
    """Refused by the service, not encodable, too old, or too many."""
    coalesced: int
    """Made unnecessary by a later state of the same key."""
    waiting: int


class _Waiting(NamedTuple):
    key: object
    updated_at: datetime
    queued_at: float
    body: bytes
    since: float = 0.0
    """When the first state of its key was queued of which none has been sent: newer ones do not make it wait longer."""


class _Queue:
    """The records of one kind, those that waited longest first. Pure data: the caller holds the lock."""

    def __init__(self, name: str, key: str) -> None:
        self.name = name
        self.key = key
        self.size = BATCH_RECORDS
        self.sent = self.retried = self.dropped = self.coalesced = 0
        self.trouble: dict[str, tuple[int, str]] = {}
        self._bytes = 0
        self._items: OrderedDict[object, _Waiting] = OrderedDict()
        self._under_way: list[_Waiting] = []

    def __len__(self) -> int:
        return len(self._items) + len(self._under_way)

    def put(self, one: _Waiting) -> None:
        """Keeps the later state of its key; the oldest records go where there is no room."""
        old = self._items.get(one.key)
        size = len(one.body)
        if old is not None:
            self.coalesced += 1
            if old.updated_at > one.updated_at:
                return
            size -= len(old.body)
        self._items[one.key] = one._replace(since=one.queued_at if old is None else old.since)
        self._bytes += size
        while len(self._items) > MAX_RECORDS or self._bytes > MAX_BYTES:
            self._drop_oldest("the queue is full")

    def oldest_at(self) -> float:
        """Since when the oldest that is not settled waits; inf where there is none."""
        return next(iter(self._under_way or self._items.values()), _NOTHING).since

    def due(self, now: float) -> bool:
        full = len(self._items) >= BATCH_RECORDS or self._bytes >= BATCH_BYTES
        return full or self.oldest_at() <= now - BATCH_AGE_S

    def take(self, oldest_at: float, reason: str = "the service did not take them in time") -> list[_Waiting]:
        """The next batch; it counts as waiting until settle(). Records queued before `oldest_at` are dropped."""
        size = 0
        while self._items and len(self._under_way) < self.size and size < BATCH_BYTES:
            if next(iter(self._items.values())).queued_at < oldest_at:
                self._drop_oldest(reason)
                continue
            one = self._items.popitem(last=False)[1]
            self._under_way.append(one)
            self._bytes -= len(one.body)
            size += len(one.body)
        return self._under_way

    def settle(self, left: Sequence[_Waiting]) -> None:
        """Ends what take() began; `left` waits again, in front, each in the latest state of its key."""
        self._under_way = []
        for one in reversed(left):
            newer = self._items.get(one.key)
            if newer is not None:
                self.coalesced += 1
                self._bytes -= len(newer.body)
            stays = one if newer is None or newer.updated_at < one.updated_at else newer._replace(since=one.since)
            self._items[one.key] = stays
            self._items.move_to_end(one.key, last=False)
            self._bytes += len(stays.body)

    def drop(self, count: int, reason: str, example: str = "") -> None:
        self.dropped += count
        self.note(count, f"dropped: {reason}", example)

    def _drop_oldest(self, reason: str) -> None:
        self._bytes -= len(self._items.popitem(last=False)[1].body)
        self.drop(1, reason)

    def note(self, count: int, what: str, example: str = "") -> None:
        """For the next warnings."""
        self.trouble[what] = (self.trouble.get(what, (0, ""))[0] + count, example)


_NOTHING = _Waiting(None, datetime.max, 0.0, b"", float("inf"))


class _Resolver(AbstractResolver):
    """In the sender's own thread, which has nothing else to do: asyncio's is gone when an interpreter exits."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        return [
            ResolveResult(hostname=host, host=str(address[0]), port=port, family=kind, proto=protocol, flags=0)
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        pass


class _Sender:
    """One thread, one loop, one task that sends. All of it runs there but the constructor and what says otherwise."""

    def __init__(self, queues: Sequence[_Queue], lock: threading.RLock, url: str, token: str) -> None:
        self.idle = False
        self.ended = False
        """Both only under the lock."""
        self.done: concurrent.futures.Future[None] = concurrent.futures.Future()
        self.done.set_running_or_notify_cancel()
        # Not the policy's: uvloop's does not survive a fork.
        self.loop = asyncio.SelectorEventLoop()
        self._queues = queues
        self._lock = lock
        self._url = url.rstrip("/") + "/api/v1/persistence/"
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._hurry_at = float("-inf")
        self._close_at = float("inf")
        self._not_before = 0.0
        self._failures = 0
        self._report_at = 0.0
        self._task = self.loop.create_task(self._main())
        threading.Thread(target=self._run, name="persistence-client", daemon=True).start()

    def wake(self) -> None:
        """From any thread, under the lock."""
        self.idle = False
        self.loop.call_soon_threadsafe(self._wake.set)

    def close(self, within_s: float) -> None:
        """From any thread, under the lock: sends what waits, drops what cannot be sent in time, ends."""
        self._close_at = min(self._close_at, time.monotonic() + within_s)
        self.wake()

    async def flush(self) -> dict[str, Any]:
        """Sends what was queued before, then has the service write it. Returns: the service's answer."""
        called_at = self._hurry_at = time.monotonic()
        self._wake.set()
        try:
            await asyncio.wait_for(self._sent_until(called_at), FLUSH_TIMEOUT_S)
        except asyncio.TimeoutError:
            with self._lock:
                pending = sum(map(len, self._queues))
            return _not_flushed(f"{pending} records could not be sent within {FLUSH_TIMEOUT_S:g} s", pending)
        left_s = max(called_at + FLUSH_TIMEOUT_S - time.monotonic(), 0)
        try:
            status, answer, _ = await self._post(f"flush?timeout={left_s:.3f}", b"", left_s + REQUEST_TIMEOUT_S)
        except _LOST as error:
            return _not_flushed(f"the service gave no answer ({type(error).__name__})", 0)
        return answer if status == 200 else {**_not_flushed(f"HTTP {status}", 0), **answer}

    def _run(self) -> None:
        time.sleep(_TICK_S)  # the call that started this thread returns before we compete with it for the interpreter
        try:
            self.loop.run_until_complete(self._task)
        finally:
            with self._lock:
                self.ended = True
            self.loop.close()
            self.done.set_result(None)

    async def _main(self) -> None:
        connector = aiohttp.TCPConnector(resolver=_Resolver(), keepalive_timeout=60.0)
        async with aiohttp.ClientSession(connector=connector, headers=self._headers) as self._session:
            while not self._finished():
                due = self._due()
                for queue in due:
                    await self._send(queue)
                    self._settled.set()
                    self._settled.clear()
                self._report()
                if not due:
                    await self._rest()
            self._settled.set()
            await asyncio.sleep(0)  # a flush that was called before the end begins
            flushes = asyncio.all_tasks() - {asyncio.current_task()}
            if flushes:
                await asyncio.wait(flushes)

    def _finished(self) -> bool:
        """After close(): whether nothing waits, or what waits cannot be sent in time."""
        now = time.monotonic()
        if self._close_at == float("inf"):
            return False
        with self._lock:
            if any(map(len, self._queues)) and max(now, self._not_before) < self._close_at:
                return False
            for queue in self._queues:
                queue.take(float("inf"), "the client was closed")
            self.ended = True
        self._report_at = 0.0
        self._report()
        return True

    def _due(self) -> list[_Queue]:
        now = time.monotonic()
        if now < self._not_before:
            return []
        closing = self._close_at < float("inf")
        with self._lock:
            return [
                queue
                for queue in self._queues
                if queue.due(now) or queue.oldest_at() <= self._hurry_at or (closing and len(queue))
            ]

    async def _rest(self) -> None:
        """Until there may be something to do: a tick while records wait, else until wake()."""
        timeout_s: float | None = _TICK_S
        with self._lock:
            if not any(map(len, self._queues)):
                self.idle = True
                troubled = any(queue.trouble for queue in self._queues)
                timeout_s = max(self._report_at - time.monotonic(), 0) if troubled else None
        try:
            await asyncio.wait_for(self._wake.wait(), timeout_s)
        except asyncio.TimeoutError:
            pass
        self._wake.clear()

    async def _sent_until(self, since: float) -> None:
        while True:
            with self._lock:
                if all(queue.oldest_at() > since for queue in self._queues):
                    return
            await self._settled.wait()

    async def _send(self, queue: _Queue) -> None:
        """Sends one batch, and settles what becomes of it."""
        with self._lock:
            batch = queue.take(time.monotonic() - RETRY_FOR_S)
        if not batch:
            return
        left: Sequence[_Waiting] = batch
        body = b'{"%b":[%b]}' % (queue.name.encode(), b",".join([one.body for one in batch]))
        try:
            timeout_s = REQUEST_TIMEOUT_S + len(body) / SLOWEST_BYTES_PER_S
            status, answer, retry_after_s = await self._post(f"{queue.name}/batch", body, timeout_s)
            with self._lock:
                left = self._judge(queue, batch, status, answer)
            self._pause(status in _TRY_AGAIN, retry_after_s)
        except _LOST as error:
            with self._lock:
                queue.retried += len(batch)
                queue.note(len(batch), f"not sent yet: {type(error).__name__}")
                if isinstance(error, asyncio.TimeoutError):
                    queue.size = max(1, len(batch) // 2)
            self._pause(True, None)
        finally:
            with self._lock:
                queue.settle(left)

    @staticmethod
    def _judge(queue: _Queue, batch: Sequence[_Waiting], status: int, answer: Mapping[str, Any]) -> Sequence[_Waiting]:
        """Returns: what must be sent again."""
        code = f"HTTP {status} {answer.get('error_code', '')}".strip()
        if status in (200, 202):
            queue.sent += len(batch)
            queue.size = min(BATCH_RECORDS, 2 * queue.size)
            return ()
        if status in _TRY_AGAIN:
            queue.retried += len(batch)
            queue.note(len(batch), f"not sent yet: {code}")
            return batch
        if status not in _REFUSED:
            queue.drop(len(batch), code)
            return ()
        faults = _faults(answer, len(batch))
        if not faults and len(batch) > 1:
            queue.size = len(batch) // 2
            return batch
        queue.size = BATCH_RECORDS
        for field, message in faults.values() or [("", "")]:
            queue.drop(1, f"{code} {field}".strip(), message)
        return [one for index, one in enumerate(batch) if faults and index not in faults]

    def _pause(self, failed: bool, retry_after_s: float | None) -> None:
        """Growing, jittered pauses; never shorter than the service asks for."""
        if not failed:
            self._failures = 0
            return
        pause_s = min(_FIRST_PAUSE_S * 2**self._failures, _LONGEST_PAUSE_S) * random.uniform(0.5, 1)  # noqa: S311
        self._failures = min(self._failures + 1, 10)
        self._not_before = time.monotonic() + (retry_after_s or 0) + pause_s

    async def _post(self, path: str, body: bytes, timeout_s: float) -> tuple[int, dict[str, Any], float | None]:
        """Returns: status, the answer's document, seconds of Retry-After. Raises: one of _LOST."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        request = self._session.post(self._url + path, data=body, timeout=timeout, allow_redirects=False)
        async with request as response:
            raw = await response.read()
        try:
            answer = json.loads(raw)
        except ValueError:
            answer = None
        after = response.headers.get("Retry-After", "")
        return response.status, answer if isinstance(answer, dict) else {}, float(after) if after.isdecimal() else None

    def _report(self) -> None:
        now = time.monotonic()
        if now < self._report_at:
            return
        lines = []
        with self._lock:
            for queue in self._queues:
                lines += [(count, queue.name, what, example) for what, (count, example) in queue.trouble.items()]
                queue.trouble.clear()
        for count, name, what, example in lines:
            logger.warning("%d %s %s%s", count, name, what, example and f" (for example: {example})")
        if lines:
            self._report_at = now + WARNING_INTERVAL_S


class SyncPersistenceClient:
    """Without await, for scripts and threads: `with SyncPersistenceClient() as client`, or `persistence_client.sync`.

    Any thread may call it, and every process after a fork. close() ends it, the next call starts it again.
    Args: url, token: else PERSISTENCE_URL and PERSISTENCE_TOKEN as they are at the first call, else the service on
    this machine, without a token.
    """

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        self._url = url
        self._token = token
        self._last_stamp = datetime.min.replace(tzinfo=timezone.utc)
        self._inherited: list[_Sender] = []
        self._sender: _Sender | None = None
        self._hooked = False
        self._begin()

    def persist_session(self, session: Mapping[str, Any]) -> None:
        """Queues the state of a session. Returns at once; never raises."""
        self._put(self._sessions, (session,))

    def persist_tasks(self, tasks: Iterable[Mapping[str, Any]]) -> None:
        """Queues the states of tasks. Returns at once; never raises."""
        self._put(self._tasks, tasks)

    def flush_all(self) -> dict[str, Any]:
        """Sends what waits and has the service write it. Returns: its answer, or one with `"status": "error"`. Blocks
        for at most some 14 s."""
        try:
            return self.start_flush().result(CALL_TIMEOUT_S)
        except _NO_THREAD as error:
            return _not_flushed(f"the client's thread gave no answer ({type(error).__name__})", self.counters.waiting)

    def close(self) -> None:
        """Sends what waits, for at most some 5 s, and ends the thread; what is left is dropped with a warning."""
        concurrent.futures.wait((self.start_close(CLOSE_TIMEOUT_S),), CALL_TIMEOUT_S)

    @property
    def counters(self) -> Counters:
        self._hook()
        with self._lock:
            figures = [(one.sent, one.retried, one.dropped, one.coalesced, len(one)) for one in self._queues]
            return Counters(*map(sum, zip(*figures, strict=True)))

    def start_flush(self) -> concurrent.futures.Future[dict[str, Any]]:
        """flush_all() to be waited for. Raises: OSError, RuntimeError."""
        self._hook()
        with self._lock:
            sender = self._running()
            return asyncio.run_coroutine_threadsafe(sender.flush(), sender.loop)

    def start_close(self, within_s: float) -> concurrent.futures.Future[None]:
        """close() to be waited for."""
        self._hook()
        with self._lock:
            if self._sender is not None and not self._sender.ended:
                self._sender.close(within_s)
                return self._sender.done
        done: concurrent.futures.Future[None] = concurrent.futures.Future()
        done.set_result(None)
        return done

    def __enter__(self) -> SyncPersistenceClient:  # noqa: PYI034 -- Self came with Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hook(self) -> None:
        """Not at import, and before the lock is taken for the first time: a child would find it taken for ever."""
        if not self._hooked:
            atexit.register(self._at_exit)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=self._begin)
            self._hooked = True

    def _begin(self) -> None:
        """As new. After a fork: what waited is the parent's to send, and nobody may be left to release the lock."""
        # Reentrant, for a handler of a signal that persists a record in the middle of a call.
        self._lock = threading.RLock()
        self._start_lock = threading.Lock()
        self._sessions = _Queue("sessions", "session_id")
        self._tasks = _Queue("tasks", "task_id")
        self._queues = (self._sessions, self._tasks)
        if self._sender is not None:
            # Kept: its loop, closed when collected, would unregister from the epoll set that parent and child share.
            self._inherited.append(self._sender)
            self._sender = None

    def _put(self, queue: _Queue, records: Iterable[Mapping[str, Any]]) -> None:
        self._hook()
        try:
            for record in records:
                try:
                    self._put_one(queue, record)
                except Exception as error:  # noqa: BLE001 -- the caller's objects may raise anything
                    self._drop(queue, error)
        except Exception as error:  # noqa: BLE001 -- iterating over them too
            self._drop(queue, error)
        try:
            with self._lock:
                sender = self._running()
                if sender.idle:
                    sender.wake()
        except (OSError, RuntimeError):
            pass  # no thread is to be had, or a start was interrupted: the records wait, and the next call tries again

    def _running(self) -> _Sender:
        """The sender, under the lock. Raises: OSError, RuntimeError."""
        if self._sender is None or self._sender.ended:
            if not self._start_lock.acquire(blocking=False):
                raise RuntimeError("a signal's handler came in the middle of the start")
            try:
                url = self._url or os.environ.get("PERSISTENCE_URL") or "http://127.0.0.1:8001"
                token = self._token or os.environ.get("PERSISTENCE_TOKEN") or ""
                self._sender = _Sender(self._queues, self._lock, url, token.strip())
            finally:
                self._start_lock.release()
        return self._sender

    def _at_exit(self) -> None:
        concurrent.futures.wait((self.start_close(EXIT_TIMEOUT_S),), EXIT_TIMEOUT_S + REQUEST_TIMEOUT_S)

    def _put_one(self, queue: _Queue, record: Mapping[str, Any]) -> None:
        fields = dict(record)
        key = fields.get(queue.key)
        if key is None:
            raise _Unusable(f"no {queue.key}")
        updated_at = fields.get("updated_at")
        if updated_at is None:
            moment = self._stamp()
            fields["updated_at"] = moment.isoformat()
        else:
            known = _moment(updated_at)
            moment = known or _NOTHING.updated_at
            if known is None:  # the service may understand it: both of two states are sent
                key = (key, updated_at)
        body = _encode(fields).encode()
        if len(body) > MAX_RECORD_BYTES:
            raise _Unusable(f"over {MAX_RECORD_BYTES} bytes")
        with self._lock:
            queue.put(_Waiting(key, moment, time.monotonic(), body))

    def _stamp(self) -> datetime:
        """Now, and later than the stamp before, also when the clock is set back a little."""
        with self._lock:
            now = datetime.now(timezone.utc)
            if now <= self._last_stamp < now + _CLOCK_STEP:
                now = self._last_stamp + datetime.resolution
            self._last_stamp = now
            return now

    def _drop(self, queue: _Queue, error: Exception) -> None:
        reason = str(error) if isinstance(error, _Unusable) else f"not usable as a record: {type(error).__name__}"
        with self._lock:
            queue.drop(1, reason)


class PersistenceClient:
    """The client for asynchronous code: `async with PersistenceClient() as client`, or `persistence_client`.

    `sync` is the same client, with the same queue, for code that is not; arguments and life are described there.
    """

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        self.sync = SyncPersistenceClient(url, token)

    async def persist_session(self, session: Mapping[str, Any]) -> None:
        """Queues the state of a session. Returns at once; never raises."""
        self.sync.persist_session(session)

    async def persist_tasks(self, tasks: Iterable[Mapping[str, Any]]) -> None:
        """Queues the states of tasks. Returns at once; never raises."""
        self.sync.persist_tasks(tasks)

    async def flush_all(self) -> dict[str, Any]:
        """Sends what waits and has the service write it. Returns: its answer, or one with `"status": "error"`."""
        try:
            return await asyncio.wait_for(asyncio.wrap_future(self.sync.start_flush()), CALL_TIMEOUT_S)
        except _NO_THREAD as error:
            return _not_flushed(f"the client's thread gave no answer ({type(error).__name__})", self.counters.waiting)

    async def aclose(self) -> None:
        """Sends what waits, for at most some 5 s, and ends the thread; what is left is dropped with a warning."""
        await asyncio.wait((asyncio.wrap_future(self.sync.start_close(CLOSE_TIMEOUT_S)),), timeout=CALL_TIMEOUT_S)

    @property
    def counters(self) -> Counters:
        return self.sync.counters

    async def __aenter__(self) -> PersistenceClient:  # noqa: PYI034 -- Self came with Python 3.11
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class _Unusable(ValueError):
    """A record that cannot be queued; its text has nothing of the record."""


def _moment(value: object) -> datetime | None:
    """`updated_at` as the service reads it, None where only the service can tell."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(f"{value[:-1]}+00:00" if value.endswith(("Z", "z")) else value)
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo else value.replace(tzinfo=timezone.utc)


def _plain(value: object) -> object:
    """What JSON does not know."""
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, (Decimal, UUID)):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    raise TypeError


# NaN and lone surrogates, which the service would refuse with the whole batch, are refused here.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode


def _faults(answer: Mapping[str, Any], count: int) -> dict[int, tuple[str, str]]:
    """The records that a refusal names, at most 100 by the service: position in the batch -> field, message."""
    faults: dict[int, tuple[str, str]] = {}
    errors = answer.get("errors")
    for error in errors if isinstance(errors, list) else ():
        found = re.fullmatch(r"\w+\[(\d+)\]\.?([\w.]*).*", str(error.get("field")) if isinstance(error, dict) else "")
        if found and int(found[1]) < count:
            faults.setdefault(int(found[1]), (found[2], str(error.get("message"))))
    return faults


def _not_flushed(detail: str, pending: int) -> dict[str, Any]:
    return {"status": "error", "detail": detail, "pending": pending}


persistence_client = PersistenceClient()
