"""Requests that cost the service much, by four connections each, and a good client beside them."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from contextlib import closing

from tests.support.service import FLUSH, SESSIONS, STATS, TASKS, Service, session, task
from tests.system.hostile.beside import GoodClient, Series, cpu_seconds, worker_of

CONNECTIONS = 4
PACE_S = 0.01
MOST_BYTES = 10 * 1024 * 1024
"""service.max_body_bytes."""


def post(path: str, body: bytes, *fields: str) -> bytes:
    fields = ("Host: h", "Content-Type: application/json", f"Content-Length: {len(body)}", *fields)
    return "\r\n".join([f"POST {path} HTTP/1.1", *fields, "", ""]).encode() + body


def chunked(chunks: bytes) -> bytes:
    fields = ("Host: h", "Content-Type: application/json", "Transfer-Encoding: chunked")
    return "\r\n".join([f"POST {TASKS} HTTP/1.1", *fields, "", ""]).encode() + chunks + b"0\r\n\r\n"


def tasks(items: list[object]) -> bytes:
    return post(TASKS, json.dumps({"tasks": items}).encode())


def packed(body: bytes) -> bytes:
    return post(TASKS, body, "Content-Encoding: gzip")


def lists(size: int) -> bytes:
    """A session whose metadata has as many empty lists as fit."""
    head, tail = json.dumps({"sessions": [session(metadata={"a": ["here"]})]}).encode().split(b'"here"')
    return head + b",".join([b"[]"] * ((size - len(head) - len(tail)) // 3)) + tail


def just_below_the_ratio(body: bytes) -> bytes:
    """Gzip of `body` whose packed size is a hundredth of it: empty members fill it up."""
    found = gzip.compress(body)
    return found + gzip.compress(b"") * max(0, (len(body) // 95 - len(found)) // 20)


ATTACKS = {
    "digits": tasks([task(confidence="1" * 50_000 + "x")]),
    "digits in every number": tasks([task(row_index="1" * 9000, duration_ms="1." + "0" * 9000)] * 20),
    "timeout": post(f"{FLUSH}?timeout={'1' * 8000}x", b""),
    "after": f"GET /dashboard/history?after={'1' * 8000}x HTTP/1.1\r\nHost: h\r\n\r\n".encode(),
    "bomb": packed(gzip.compress(lists(MOST_BYTES))),
    "members": packed(gzip.compress(b"") * 50_000),
    "packed lists": post(SESSIONS, just_below_the_ratio(lists(MOST_BYTES)), "Content-Encoding: gzip"),
    "lists": post(SESSIONS, lists(2 * 1024 * 1024)),
    "many lists": post(SESSIONS, lists(MOST_BYTES)),
    "one-byte chunks": chunked(b"1\r\n \r\n" * 150_000),
    "one-byte chunks to no path": chunked(b"1\r\n \r\n" * 150_000).replace(TASKS.encode(), b"/nowhere"),
    "chunk extensions": chunked(b"1;%b\r\n \r\n" % (b"x" * 1_000_000)),
    "metrics": b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n",
    "stats": f"GET {STATS} HTTP/1.1\r\nHost: h\r\n\r\n".encode(),
    "invalid": tasks([task(f"t{number}", status="no such") for number in range(1000)]),
}


def attack(port: int, request: bytes, until: float, most: int, answers: list[bytes]) -> None:
    """Sends the same request again and again on one connection, until it is time or `most` are answered."""
    connection = None
    for _ in range(most):
        if time.monotonic() > until:
            break
        connection = connection or socket.create_connection(("127.0.0.1", port), timeout=60)
        try:
            connection.sendall(request)
        except OSError:
            pass  # it has been refused before it was whole
        try:
            answer = connection.recv(65536)
        except OSError:
            answer = b""
        if answer:
            answers.append(answer.split(b"\r\n", 1)[0][9:12])
        if not answer or b"connection: close" in answer:
            connection.close()
            connection = None
    if connection is not None:
        connection.close()


class Beside:
    """A good client beside CONNECTIONS attackers, until all of these have ended: `answers` of the attack, what the
    `good` client saw, and the CPU seconds of the worker."""

    def __init__(self, service: Service, request: bytes, *, seconds: float, most: int) -> None:
        self.answers: list[bytes] = []
        self.good = Series()
        worker = worker_of(service)
        until = time.monotonic() + seconds
        arguments = (service.port, request, until, most, self.answers)
        threads = [threading.Thread(target=attack, args=arguments) for _ in range(CONNECTIONS)]
        cpu_s = cpu_seconds(worker)
        with closing(GoodClient(service.port)) as good:
            for thread in threads:
                thread.start()
            good.pace(PACE_S, lambda: any(thread.is_alive() for thread in threads), lambda _: True, self.good)
        self.cpu_s = cpu_seconds(worker) - cpu_s
