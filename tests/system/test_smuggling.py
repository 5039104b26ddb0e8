"""Requests that two readers could understand differently: refused by the service itself, and behind nginx and HAProxy
never a request that one side counts as two."""

from __future__ import annotations

import json
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.health import LIVENESS
from shared.records import TASKS as TASK
from tests.support.mariadb import MariaDB
from tests.support.proxies import Proxy
from tests.support.service import STATS, TASKS, Service, task

BODY = json.dumps({"tasks": [task("outer")]}).encode()
SIZE = len(BODY)
HOST = b"Host: h\r\nContent-Type: application/json\r\n"
POST = f"POST {TASKS} HTTP/1.1\r\n".encode()
CHUNKED = POST + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNK = b"%x\r\n%b\r\n" % (SIZE, BODY)
END = b"0\r\n\r\n"
SMUGGLED = json.dumps({"tasks": [task("smuggled")]}).encode()
INNER = POST + HOST + b"Content-Length: %d\r\nX: " % len(SMUGGLED) + b"y\r\n\r\n" + SMUGGLED


def with_fields(*fields: bytes, body: bytes = BODY, line: bytes = POST) -> bytes:
    return line + HOST + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


def get(target: bytes, *fields: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    return with_fields(*fields, body=b"", line=b"GET %b %b\r\n" % (target, version))


LENGTH = b"Content-Length: %d" % SIZE
TE = b"Transfer-Encoding: "

REFUSED = {
    # two lengths
    "length and chunked": with_fields(LENGTH, TE + b"chunked", body=CHUNK + END),
    "chunked and length": with_fields(TE + b"chunked", LENGTH, body=CHUNK + END),
    "length of nothing and chunked": with_fields(b"Content-Length: 0", TE + b"chunked", body=CHUNK + END),
    "chunked and length of the end": with_fields(TE + b"chunked", b"Content-Length: 4", body=CHUNK + END),
    "two equal lengths": with_fields(LENGTH, LENGTH),
    "two lengths": with_fields(LENGTH, b"Content-Length: 0"),
    "a list of lengths": with_fields(b"Content-Length: %d, %d" % (SIZE, SIZE)),
    # lengths that are none
    "+": with_fields(b"Content-Length: +%d" % SIZE),
    "-": with_fields(b"Content-Length: -1"),
    "hexadecimal": with_fields(b"Content-Length: 0x%x" % SIZE),
    "underscore": with_fields(b"Content-Length: 1_0"),
    "space inside": with_fields(b"Content-Length: 1 0"),
    "no length": with_fields(b"Content-Length:"),
    "over 64 bits": with_fields(b"Content-Length: %d" % (2**64 + SIZE)),
    "space before the colon": with_fields(b"Content-Length : %d" % SIZE),
    "vertical tab": with_fields(b"Content-Length:\x0b%d" % SIZE),
    # transfer codings
    "chunked twice": with_fields(TE + b"chunked", TE + b"chunked", body=CHUNK + END),
    "identity, then chunked": with_fields(TE + b"identity", TE + b"chunked", body=CHUNK + END),
    "gzip, then chunked": with_fields(TE + b"gzip", TE + b"chunked", body=CHUNK + END),
    "chunked, chunked": with_fields(TE + b"chunked, chunked", body=CHUNK + END),
    "identity": with_fields(TE + b"identity", LENGTH),
    "identity alone": with_fields(TE + b"identity"),
    "gzip, chunked": with_fields(TE + b"gzip, chunked", body=CHUNK + END),
    "chunked, gzip": with_fields(TE + b"chunked, gzip", body=CHUNK + END),
    "xchunked": with_fields(TE + b"xchunked", body=CHUNK + END),
    "xchunked and length": with_fields(TE + b"xchunked", LENGTH),
    "quoted": with_fields(TE + b'"chunked"', body=CHUNK + END),
    "parameter": with_fields(TE + b"chunked;q=1", body=CHUNK + END),
    "vertical tab and chunked": with_fields(TE + b"\x0bchunked", body=CHUNK + END),
    "chunked and vertical tab": with_fields(TE + b"chunked\x0b", body=CHUNK + END),
    "nothing": with_fields(TE, body=CHUNK + END),
    "Transfer-Encoding with a space": with_fields(b"Transfer-Encoding : chunked", body=CHUNK + END),
    "in HTTP/1.0": with_fields(TE + b"chunked", body=CHUNK + END, line=POST.replace(b"1.1", b"1.0")),
    # folded lines, and lines that end otherwise
    "folded length": with_fields(b"Content-Length: 1\r\n 2"),
    "folded chunked": with_fields(b"Transfer-Encoding:\r\n chunked", body=CHUNK + END),
    "folded field": with_fields(b"X: a\r\n b", LENGTH),
    "folded with a tab": with_fields(b"X: a\r\n\tb", LENGTH),
    "folded first": POST + b" X: a\r\n" + HOST + LENGTH + b"\r\n\r\n" + BODY,
    "LF": with_fields(b"X: a\nY: b", LENGTH),
    "LF and length": with_fields(b"X: a\n" + LENGTH),
    "LF and chunked": with_fields(b"X: a\nTransfer-Encoding: chunked", body=CHUNK + END),
    "LF at the end": POST + HOST + LENGTH + b"\n\n" + BODY,
    "LF everywhere": (POST + HOST + LENGTH).replace(b"\r", b"") + b"\n\n" + BODY,
    "CR": with_fields(b"X: a\rb", LENGTH),
    "CR CR LF": with_fields(b"X: a\r", LENGTH),
    "CR and chunked": with_fields(b"X: a\rTransfer-Encoding: chunked", LENGTH),
    # fields that are none
    "NUL in a value": with_fields(b"X: a\0b", LENGTH),
    "NUL in a name": with_fields(b"X\0: a", LENGTH),
    "NUL in the name of a length": with_fields(b"Content-Length\0: 0", LENGTH),
    "control character": with_fields(b"X: a\x01b", LENGTH),
    "no colon": with_fields(b"X", LENGTH),
    "no name": with_fields(b": x", LENGTH),
    "space in a name": with_fields(b"X Y: x", LENGTH),
    "byte over 127 in a name": with_fields(b"X\x80: x", LENGTH),
    # chunks
    "0x": CHUNKED + b"0x" + CHUNK + END,
    "+ chunk": CHUNKED + b"+" + CHUNK + END,
    "- chunk": CHUNKED + b"-" + CHUNK + END,
    "space before a size": CHUNKED + b" " + CHUNK + END,
    "space behind a size": CHUNKED + CHUNK.replace(b"\r\n", b" \r\n", 1) + END,
    "no size": CHUNKED + b"\r\n" + CHUNK + END,
    "size over 64 bits": CHUNKED + b"1%016x\r\n" % SIZE + BODY + b"\r\n" + END,
    "LF behind a size": CHUNKED + CHUNK.replace(b"\r\n", b"\n", 1) + END,
    "LF behind a chunk": CHUNKED + CHUNK[:-2] + b"\n" + END,
    "nothing behind a chunk": CHUNKED + CHUNK[:-2] + END,
    "chunk too long": CHUNKED + b"%x\r\n%b\r\n" % (SIZE - 1, BODY) + END,
    "chunk too short": CHUNKED + b"%x\r\n%b\r\n" % (SIZE + 1, BODY) + END,
    "LF at the end of chunks": CHUNKED + CHUNK + b"0\n\n",
    "LF in an extension": CHUNKED + CHUNK.replace(b"\r\n", b";a\nb\r\n", 1) + END,
    "CR in an extension": CHUNKED + CHUNK.replace(b"\r\n", b";a\rb\r\n", 1) + END,
    "trailer": CHUNKED + CHUNK + b"0\r\nX: y\r\n\r\n",
    "trailer with a length": CHUNKED + CHUNK + b"0\r\nContent-Length: 5\r\n\r\n",
    # targets
    "absolute": get(b"http://h/health"),
    "absolute, other host": get(b"http://evil/health"),
    "absolute without a path": get(b"http://h"),
    "authority": get(b"h:80"),
    "asterisk": get(b"*"),
    "no slash": get(b"health"),
    "fragment": get(b"/health#x"),
    "CONNECT": with_fields(body=b"", line=b"CONNECT h:80 HTTP/1.1\r\n"),
    "NUL in a path": get(b"/health\0"),
    "CR in a path": get(b"/health\rX"),
    "LF in a path": get(b"/health\nX"),
    "tab in a path": get(b"/health\tX"),
    "DEL in a path": get(b"/health\x7f"),
    "space in a path": get(b"/health x"),
    "byte over 127 in a path": get(b"/health\x80"),
    "byte over 127 in a query": get(b"/health?x=\x80"),
    "NUL in a query": get(b"/health?x=\0"),
    "encoded NUL": get(b"/health%00"),
    "encoded CR LF": get(b"/health%0d%0aX:%20y"),
    "encoded letter": get(b"/%68ealth"),
    "encoded slash": get(b"/%2fhealth"),
    # hosts, versions, methods
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": get(b"/health", b"Host: evil"),
    "two tokens": get(b"/health", b"Authorization: a", b"Authorization: b"),
    "RTSP": get(b"/health", version=b"RTSP/1.1"),
    "ICE": with_fields(body=b"", line=b"SOURCE /health ICE/1.1\r\n"),
    "CR before": b"\r" + get(b"/health"),
    "LF before": b"\n" + get(b"/health"),
    "three empty lines before": b"\r\n\r\n\r\n" + get(b"/health"),
    "no name as host": get(b"/health").replace(b"Host: h", b"Host: h/x"),
    "HTTP/0.9": b"GET /health\r\n\r\n",
    "HTTP/1.2": get(b"/health", version=b"HTTP/1.2"),
    "HTTP/2.0": get(b"/health", version=b"HTTP/2.0"),
    "HTTP/01.1": get(b"/health", version=b"HTTP/01.1"),
    "preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "small letters": with_fields(body=b"", line=b"get /health HTTP/1.1\r\n"),
    "NUL in a method": with_fields(body=b"", line=b"G\0ET /health HTTP/1.1\r\n"),
    "space before": b" " + get(b"/health"),
    # a body that the parser would leave for the next request
    "upgrade": with_fields(b"Upgrade: h2c", b"Connection: Upgrade", b"Content-Length: %d" % len(INNER), body=INNER),
    "upgrade, chunked": with_fields(b"Upgrade: x", b"Connection: Upgrade", TE + b"chunked", body=CHUNK + END),
}

ACCEPTED = {
    "length": with_fields(LENGTH),
    "chunked": CHUNKED + CHUNK + END,
    "length with spaces": with_fields(b"Content-Length: \t %d \t" % SIZE),
    "length with zeros": with_fields(b"Content-Length: 000%d" % SIZE),
    "Chunked": with_fields(TE + b"\t Chunked ", body=CHUNK + END),
    "size with zeros": CHUNKED + b"000" + CHUNK + END,
    "size in capitals": CHUNKED + CHUNK.upper()[:2] + CHUNK[2:] + END,
    "extension": CHUNKED + CHUNK.replace(b"\r\n", b';a="b"\r\n', 1) + END,
    "empty lines before": b"\r\n\r\n" + with_fields(LENGTH),
    "hides a request": with_fields(b"Content-Length: %d" % len(INNER), body=INNER),
    "hides a request in a chunk": CHUNKED + b"%x\r\n%b\r\n" % (len(INNER), INNER) + END,
    "byte over 127 in a value": with_fields(b"X: \x80", LENGTH),
    "length with another name": with_fields(b"Content_Length: 0", LENGTH),
    "unknown expectation": with_fields(b"Expect: 200-ok", LENGTH),
    "no body": with_fields(b"Content-Length: 0", body=b""),
    "GET with a body": with_fields(LENGTH, line=b"GET /health HTTP/1.1\r\n"),
    "GET with chunks": with_fields(TE + b"chunked", body=CHUNK + END, line=b"GET /health HTTP/1.1\r\n"),
    "HEAD": with_fields(body=b"", line=b"HEAD /health HTTP/1.1\r\n"),
    "encoded query": get(b"/health?x=%00%0d%0a"),
    "double slash": get(b"//health"),
    "dots": get(b"/../health"),
    "backslash": get(b"/\\health"),
    "upgrade without a body": get(b"/health", b"Upgrade: websocket", b"Connection: Upgrade"),
}


class Side:
    """The service, and what it has counted and stored."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._counted = self.counted()

    def counted(self) -> dict[tuple[str, int], int]:
        """Requests by path and status since the start, without those of this method."""
        found = self.service.requests()
        return {(path, status): count for path in found for status, count in found[path].items() if path != STATS}

    def new(self) -> dict[tuple[str, int], int]:
        before, self._counted = self._counted, self.counted()
        return {key: count - before.get(key, 0) for key, count in self._counted.items() if count > before.get(key, 0)}

    @property
    def smuggled(self) -> bool:
        return "smuggled" in self.service.journaled(TASK)


@pytest.fixture(scope="module")
def side(mariadb: MariaDB) -> Iterator[Side]:
    directory = Path(tempfile.mkdtemp(prefix="ps-", dir="/tmp"))
    database = mariadb.create_database()
    # Nothing is flushed: all that was ever taken is still in the journal.
    service = Service(directory, mariadb, database, BUFFER_FLUSH_INTERVAL=3600, BUFFER_MAX_SIZE=100_000)
    try:
        service.start()
        yield Side(service)
        service.stop()
    finally:
        service.kill()
        mariadb.drop_database(database)
        shutil.rmtree(directory, ignore_errors=True)


def exchange(port: int, data: bytes, *, half_close: bool = False) -> bytes:
    """Everything that comes back until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        parts = []
        try:
            while part := connection.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass  # the other side has closed with something of ours unread
        return b"".join(parts)


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answers)]


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_and_nothing_behind_it_is_looked_at(side: Side, name: str) -> None:
    answers = exchange(side.service.port, REFUSED[name] + INNER)
    assert statuses(answers) == [400]
    header, _, body = answers.partition(b"\r\n\r\n")
    assert b"\r\nconnection: close" in header.lower()
    assert json.loads(body)["error_code"] == "INVALID_HTTP"
    assert not side.smuggled
    assert sum(side.new().values()) == 1


@pytest.mark.parametrize("name", sorted(ACCEPTED))
def test_accepted_and_what_follows_is_the_next(side: Side, name: str) -> None:
    last = get(b"/", b"Connection: close")
    answers = exchange(side.service.port, ACCEPTED[name] + last)
    assert len(statuses(answers)) == 2
    assert b"INVALID_HTTP" not in answers
    assert answers.endswith(LIVENESS)
    assert not side.smuggled
    new = side.new()
    assert new.pop(("/", 200)) == 1
    assert sum(new.values()) == 1


@pytest.fixture(scope="module", params=["nginx", "nginx unbuffered", "haproxy"])
def proxy(request: pytest.FixtureRequest, side: Side) -> Iterator[Proxy]:
    directory = Path(tempfile.mkdtemp(prefix="proxy-", dir="/tmp"))
    proxy = Proxy(request.param, directory, side.service.port)
    try:
        proxy.start()
        yield proxy
    finally:
        proxy.stop()
        shutil.rmtree(directory, ignore_errors=True)


def post_through(proxy: Proxy, count: int) -> int:
    """Posts that many records. Returns: how many the answer is about."""
    body = json.dumps({"tasks": [task(f"own-{number}") for number in range(count)]}).encode()
    data = with_fields(b"Content-Length: %d" % len(body), b"Connection: close", body=body)
    answer = exchange(proxy.port, data)
    assert statuses(answer) == [202], answer
    found: int = json.loads(answer.partition(b"\r\n\r\n")[2])["count"]
    return found


def test_behind_a_proxy_no_request_is_counted_as_two(side: Side, proxy: Proxy) -> None:
    both = {**{f"refused: {name}": data for name, data in REFUSED.items()}, **ACCEPTED}
    assert post_through(proxy, 3) == 3
    assert proxy.forwarded(at_least=1) == (1, 1)
    side.new()
    served = 0
    for name, data in both.items():
        exchange(proxy.port, data + get(b"/", b"Connection: close"))
        # Others on the same upstream connection get their own answers.
        assert post_through(proxy, 2) == 2, name
        assert post_through(proxy, 3) == 3, name
        new = side.new()
        seen = sum(new.values())
        sent, answered = proxy.forwarded(at_least=seen)
        assert answered <= seen <= sent, (name, new, sent, answered)
        assert not side.smuggled, name
        served += answered
    assert served > 2 * len(both) + len(ACCEPTED)
