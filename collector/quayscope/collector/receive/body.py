"""A request's body, unpacked within bounds."""

from __future__ import annotations

import zlib

from quayscope.collector.errors import BadRequest, TooLarge, UnsupportedMedia
from quayscope.collector.limits import MAX_DECOMPRESSED

__all__ = ["unpack"]

_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_WBITS = 31


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
