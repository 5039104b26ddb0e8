"""Unpacks gzip in pieces of bounded work, up to a limit of size and of compression ratio."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from ingest.responses import ErrorResponse

SMALL_BODY_BYTES = 64 * 1024
"""Bodies up to this size bypass the limits of memory and of compression ratio."""
MAX_PACKED = 100
"""Unpacked bytes for each packed one, of a body that is not small; repetitive tasks reach 60."""
PIECE_BYTES = 256 * 1024
MEMBER_WORK = 512
"""An empty member takes as long as unpacking so many bytes."""
_PACKED_PIECE_BYTES = 4 * 1024
"""zlib copies the bytes behind a member; a piece holds 200 members at most."""


def too_large(max_bytes: int) -> ErrorResponse:
    return ErrorResponse(
        413, "BODY_TOO_LARGE", f"a body may have {max_bytes} bytes, sent and unpacked (service.max_body_bytes)"
    )


def gunzip(body: bytes, max_bytes: int) -> Iterator[bytes]:
    """Unpacks gzip of any number of members (RFC 1952, 2.2) in pieces, each in under 1 ms.

    Args: max_bytes: of all pieces together. Raises: ErrorResponse, at the first byte over a limit.
    """
    most = min(max_bytes, max(SMALL_BODY_BYTES, MAX_PACKED * len(body)))
    unpacker = zlib.decompressobj(wbits=31)
    size = 0
    try:
        for start in range(0, len(body), _PACKED_PIECE_BYTES):
            packed = body[start : start + _PACKED_PIECE_BYTES]
            while packed:
                if unpacker.eof:
                    unpacker = zlib.decompressobj(wbits=31)
                piece = unpacker.decompress(packed, PIECE_BYTES)
                packed = unpacker.unused_data or unpacker.unconsumed_tail
                size += len(piece)
                if size > max_bytes:
                    raise too_large(max_bytes)
                if size > most:
                    detail = f"unpacked, the body has over {MAX_PACKED} times its {len(body)} bytes: send it unpacked"
                    raise ErrorResponse(413, "BODY_TOO_PACKED", detail)
                yield piece
    except zlib.error:
        raise ErrorResponse(400, "INVALID_GZIP", "the body is not gzip") from None
    if not unpacker.eof:
        raise ErrorResponse(400, "BODY_CUT_SHORT", "the gzip stream does not end where the body ends")
