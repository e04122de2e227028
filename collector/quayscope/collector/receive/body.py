"""A request's body: read whole or refused, and unpacked within bounds."""

from __future__ import annotations

import zlib
from typing import IO

from cheroot.errors import MaxSizeExceeded

from quayscope.collector.errors import BadRequest, TooLarge, UnsupportedMedia
from quayscope.collector.limits import MAX_BODY, MAX_DECOMPRESSED

__all__ = ["discard", "read", "unpack"]

_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_WBITS = 31
_PIECE = 1 << 20


def read(stream: IO[bytes], length: int | None, limit: int = MAX_BODY) -> bytes:
    """Return the whole body of a request; `length` is its Content-Length, None for chunks.

    Werkzeug's own limit returns the first `limit` bytes of a chunked body as if they were all: half
    a push would be acknowledged. Raises `TooLarge`, and `BadRequest` for a body that ends early.
    """
    too_large = TooLarge(f"the body has more than {limit} bytes", next_step="send smaller batches")
    if length is not None and length > limit:
        raise too_large
    pieces: list[bytes] = []
    size = 0
    try:
        while piece := stream.read(_PIECE):
            size += len(piece)
            if size > limit:
                raise too_large
            pieces.append(piece)
    except MaxSizeExceeded as error:
        raise too_large from error
    except (OSError, ValueError) as error:
        raise BadRequest(f"the body breaks off after {size} bytes") from error
    if length is not None and size != length:
        raise BadRequest(f"the body ends after {size} of {length} bytes")
    return b"".join(pieces)


def discard(stream: IO[bytes], most: int) -> None:
    """Read at most `most` bytes that a refusal left unread.

    A client still sending would see a broken pipe instead of the answer, take it for an outage, and
    send the same again for ever.
    """
    try:
        while most > 0 and (piece := stream.read(min(most, _PIECE))):
            most -= len(piece)
    except (OSError, ValueError, MaxSizeExceeded):
        return  # the client went away, or broke off amid a chunk: nobody reads the answer


def unpack(data: bytes, encoding: str = "", limit: int = MAX_DECOMPRESSED) -> bytes:
    """Return the body as its client meant it: gunzipped where the encoding or the first bytes say so.

    Raises `UnsupportedMedia` for other encodings, `TooLarge` past `limit` bytes, `BadRequest` for
    a broken stream.
    """
    encoding = encoding.strip().lower()
    if encoding not in ("", "identity", "gzip"):
        raise UnsupportedMedia(
            f"content encoding {encoding[:40]!r} is not taken", next_step="send gzip or identity"
        )
    if not data.startswith(_GZIP_MAGIC):
        if encoding == "gzip" and data:
            raise BadRequest("the body is not gzip, though its Content-Encoding says so")
        return data
    parts: list[bytes] = []
    room = limit
    rest = data
    while rest:
        # A gzip stream may have several members, one after the other.
        stream = zlib.decompressobj(_GZIP_WBITS)
        try:
            part = stream.decompress(rest, room + 1)
        except zlib.error as error:
            raise BadRequest(f"the gzip body is broken: {error}") from error
        room -= len(part)
        if room < 0:
            raise TooLarge(f"the body unpacks to more than {limit} bytes", next_step="send smaller batches")
        if not stream.eof:
            raise BadRequest("the gzip body ends early")
        parts.append(part)
        rest = stream.unused_data
    return b"".join(parts)
