"""A request's body: read whole in time or refused, and unpacked within bounds."""

from __future__ import annotations

import zlib
from email.message import Message
from typing import IO

from quayscope.sidecar.gateway.errors import Malformed, TooLarge, Unsupported
from quayscope.sidecar.gateway.limits import MAX_BODY, MAX_UNPACKED

__all__ = ["length_of", "read", "unpack"]

_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_WBITS = 31
_LINE = 4096
_MAX_TRAILERS = 32


def length_of(headers: Message) -> int | None:
    """Return the Content-Length, None for chunks; raises `Malformed` and `TooLarge`.

    Both, or several that differ, are refused: whoever reads them otherwise would see another request.
    """
    lengths = set(headers.get_all("Content-Length", []))
    encodings = headers.get_all("Transfer-Encoding", [])
    if encodings:
        if lengths or [word.strip().lower() for word in encodings] != ["chunked"]:
            raise Malformed("the body's length is given in two ways, or in one that is not known")
        return None
    if len(lengths) > 1:
        raise Malformed("several lengths are given")
    text = lengths.pop() if lengths else "0"
    if not (text.isascii() and text.isdecimal() and len(text) < 12):
        raise Malformed("the body's length is not a number")
    if int(text) > MAX_BODY:
        raise TooLarge(f"the body has {int(text)} bytes, more than {MAX_BODY}")
    return int(text)


def read(stream: IO[bytes], length: int | None) -> bytes:
    """Return the whole body; `length` None: it comes in chunks (RFC 9112, 7.1).

    Raises `Malformed` for one that ends early, `TooLarge`, and what `stream` raises for one that is slow.
    """
    if length is not None:
        data = stream.read(length)
        if len(data) < length:
            raise Malformed(f"the body ends after {len(data)} of {length} bytes")
        return data
    pieces: list[bytes] = []
    size = 0
    while count := _chunk_size(stream):
        size += count
        if size > MAX_BODY:
            raise TooLarge(f"the body has more than {MAX_BODY} bytes")
        piece = stream.read(count)
        if len(piece) < count or stream.read(2) != b"\r\n":
            raise Malformed("the body ends inside a chunk, or a chunk is longer than it says")
        pieces.append(piece)
    for _ in range(_MAX_TRAILERS):
        line = stream.readline(_LINE)
        if line in (b"\r\n", b"\n"):
            return b"".join(pieces)
        if not line.endswith(b"\n"):
            break
    raise Malformed("the body does not end after its last chunk")


def _chunk_size(stream: IO[bytes]) -> int:
    line = stream.readline(_LINE)
    digits = line.partition(b";")[0].strip()
    if not line.endswith(b"\n") or not 0 < len(digits) <= 8 or digits.strip(b"0123456789abcdefABCDEF"):
        raise Malformed("a chunk does not begin with its size")
    return int(digits, 16)


def unpack(data: bytes, encoding: str = "", limit: int = MAX_UNPACKED) -> bytes:
    """Return the body as its client meant it: gunzipped where the encoding or the first bytes say so.

    Raises `Unsupported` for other encodings, `TooLarge` past `limit` bytes, `Malformed` for a broken stream.
    """
    encoding = encoding.strip().lower()
    if encoding not in ("", "identity", "gzip"):
        raise Unsupported(f"content encoding {encoding[:40]!r} is not taken: send gzip or none")
    if not data.startswith(_GZIP_MAGIC):
        if encoding == "gzip" and data:
            raise Malformed("the body is not gzip, though its Content-Encoding says so")
        if len(data) > limit:
            raise TooLarge(f"it has {len(data)} bytes, more than {limit}")
        return data
    parts: list[bytes] = []
    room, rest = limit, data
    while rest:
        # A gzip stream may have several members, one after the other.
        stream = zlib.decompressobj(_GZIP_WBITS)
        try:
            part = stream.decompress(rest, room + 1)
        except zlib.error as error:
            raise Malformed(f"the gzip stream is broken: {error}") from error
        room -= len(part)
        if room < 0:
            raise TooLarge(f"it unpacks to more than {limit} bytes")
        if not stream.eof:
            raise Malformed("the gzip stream ends early")
        parts.append(part)
        rest = stream.unused_data
    return b"".join(parts)
