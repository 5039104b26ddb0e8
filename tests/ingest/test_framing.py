"""Where headers and bodies end, in bytes that are cut at every position."""

from __future__ import annotations

from contextlib import suppress

import pytest

from ingest.framing import (
    MAX_CHUNKS,
    MAX_EXTENSION_BYTES,
    MAX_HEADER_BYTES,
    MAX_URL_BYTES,
    Chunks,
    end_of_header,
)
from ingest.responses import ErrorResponse

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


def error_of_header(data: bytes) -> str:
    with pytest.raises(ErrorResponse) as raised:
        end_of_header(data, 0)
    return raised.value.code


@pytest.mark.parametrize("before", [b"", b"\r\n", b"\r\n\r\n"])
def test_a_header_ends_with_its_empty_line_whatever_follows(before: bytes) -> None:
    """Two empty lines may stand before it (RFC 9112, 2.2)."""
    whole = before + GET
    for at in range(len(whole)):
        assert end_of_header(whole[:at], 0) == 0
    for behind in (b"", b"body\r\n\r\n", GET, b"\r"):
        assert end_of_header(b"{}" + whole + behind, 2) == 2 + len(whole)


@pytest.mark.parametrize(
    "data",
    [
        *(b"\r" + GET, b"\n" + GET, b"\r\r\n" + GET, b"\n\r\n" + GET, b"\r\n" * 3 + GET, b" " + GET, b"\0\r\n\r\n"),
        *(GET.replace(b"HTTP", b"RTSP"), b"SOURCE / ICE/1.1\r\nHost: h\r\n\r\n", GET.lower(), b"HELLO\r\n"),
        *(b"\x16\x03\x01\x02", GET.replace(b"\r", b""), b"GET / HTTP/1.1\r\nHost: h\nX: y", b"GET / HTTP/1.1\nHost:"),
    ],
)
def test_bytes_that_no_request_begins_with_are_refused_wherever_a_read_ends(data: bytes) -> None:
    """llhttp itself takes most of them. A part of them may wait for more; the whole is refused at once."""
    assert error_of_header(data) == "INVALID_HTTP"
    for at in range(len(data)):
        with suppress(ErrorResponse):
            assert end_of_header(data[:at], 0) == 0


def test_a_header_has_a_limit_to_the_byte_and_its_end_is_not_waited_for() -> None:
    def header(size: int) -> bytes:
        return GET[:-2] + b"x: " + b"a" * (size - len(GET) - 5) + b"\r\n\r\n"

    assert end_of_header(header(MAX_HEADER_BYTES) + b"body" * 10_000, 0) == MAX_HEADER_BYTES
    assert error_of_header(header(MAX_HEADER_BYTES + 1)) == "HEADER_TOO_LARGE"
    assert error_of_header(header(2 * MAX_HEADER_BYTES)[: MAX_HEADER_BYTES + 1]) == "HEADER_TOO_LARGE"
    assert error_of_header(b"GET /?" + b"a" * MAX_HEADER_BYTES) == "URL_TOO_LONG"
    assert error_of_header(b"GET /?" + b"a" * (MAX_URL_BYTES - 1) + GET[5:-2] + b"x" * 10_000) == "URL_TOO_LONG"
    assert error_of_header(b"G" * (MAX_HEADER_BYTES + 1)) == "INVALID_HTTP"


# ---- chunks

ONE_BYTE = b"1\r\nx\r\n"
END = b"0\r\n\r\n"


def end_of(data: bytes, *, cut: int | None = None) -> int:
    """Of the body that `data` begins with, fed in one or two reads."""
    chunks = Chunks()
    done = chunks.end_of_piece(data[:cut], 0)
    return done if cut is None else chunks.end_of_piece(data, done)


def error_of(data: bytes) -> str:
    with pytest.raises(ErrorResponse) as raised:
        end_of(data)
    return raised.value.code


@pytest.mark.parametrize(
    "body", [END, ONE_BYTE + END, b"00A;x=y\r\n0\r\n\r\n\r\nabc\r\n000;z\r\n\r\n", b"4\r\n\r\n\r\n\r\n" * 3 + END]
)
def test_a_chunked_body_ends_with_its_last_chunk_wherever_a_read_ends(body: bytes) -> None:
    for behind in (b"", GET, END):
        for cut in (None, *range(len(body))):
            assert end_of(body + behind, cut=cut) == len(body)


@pytest.mark.parametrize(
    "data",
    [
        *(b"zz\r\n", b"\r\n", b"+1\r\nx", b"0x1\r\nx", b" 1\r\n", b"1 \r\n", b"1\n", b"1;a\nb\r\n", b"1;a\rb\r\n"),
        *(b"1" * 17 + b"\r\n", b"0\r\nX: y\r\n\r\n", b"0\r\nAuthorization: x\r\n", b"0\r\n\n", b"0\r\nX"),
    ],
)
def test_lines_that_are_no_chunks_and_fields_behind_the_last_one_are_refused(data: bytes) -> None:
    assert error_of(ONE_BYTE + data) == "INVALID_HTTP"


def test_a_body_may_come_in_so_many_chunks_and_one_more_for_each_kib() -> None:
    large = b"400\r\n%b\r\n" % (b"x" * 1024) * 900
    for before in (b"", large):
        most = ONE_BYTE * (MAX_CHUNKS + 3)  # they are 4 KiB
        assert end_of(before + most + END) == len(before + most + END)
        assert error_of(before + most + ONE_BYTE * 2) == "TOO_MANY_CHUNKS"


def test_extensions_have_a_limit_for_the_whole_body() -> None:
    half = b"1;" + b"a" * (MAX_EXTENSION_BYTES // 2 - 1) + b"\r\nx\r\n"
    assert end_of(half + half + END) == len(half + half + END)
    assert error_of(half + half + b"1;a\r\n") == "TOO_MANY_CHUNKS"
    assert error_of(b"1;" + b"a" * MAX_EXTENSION_BYTES) == "TOO_MANY_CHUNKS"
