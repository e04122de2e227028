"""The few protocol-buffer wire primitives that pprof, push.v1 and OTLP need.

Source of the format: protobuf.dev, "Encoding". Groups (wire types 3 and 4) are refused: none of
the messages read here has them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Union

from quayscope.profile.errors import MalformedProfile

__all__ = [
    "FIXED32",
    "FIXED64",
    "LENGTH",
    "VARINT",
    "fields",
    "numbers",
    "packed_varints",
    "put_bytes",
    "put_double",
    "put_fixed64",
    "put_packed",
    "put_text",
    "put_varint",
    "signed",
    "text",
    "varint",
]

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
Value = Union[int, memoryview]
_MASK = (1 << 64) - 1
_COUNTED = (VARINT, LENGTH)


def varint(out: bytearray, value: int) -> None:
    """Append `value` as a bare varint; negative numbers as their 64-bit two's complement."""
    value &= _MASK
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)


def put_varint(out: bytearray, number: int, value: int) -> None:
    """Append an integer field unless it is 0, which the format leaves out."""
    if value:
        varint(out, number << 3)
        if 0 < value < 128:
            out.append(value)
        else:
            varint(out, value)


def put_bytes(out: bytearray, number: int, value: bytes | bytearray) -> None:
    """Append a length-delimited field, empty ones too (an empty message is not an absent one)."""
    size = len(value)
    if number < 16 and size < 128:
        out.append(number << 3 | LENGTH)
        out.append(size)
    else:
        varint(out, number << 3 | LENGTH)
        varint(out, size)
    out += value


def put_text(out: bytearray, number: int, value: str) -> None:
    """Append a string field unless it is empty; lone surrogates become question marks."""
    if value:
        put_bytes(out, number, value.encode("utf-8", "replace"))


def put_packed(out: bytearray, number: int, values: Iterable[int]) -> None:
    """Append a packed repeated integer field unless it has no element."""
    body = bytearray()
    for value in values:
        varint(body, value)
    if body:
        put_bytes(out, number, body)


def put_fixed64(out: bytearray, number: int, value: int) -> None:
    """Append a fixed64 field, zeros too."""
    varint(out, number << 3 | FIXED64)
    out += struct.pack("<Q", value & _MASK)


def put_double(out: bytearray, number: int, value: float) -> None:
    """Append a double field, zeros too."""
    varint(out, number << 3 | FIXED64)
    out += struct.pack("<d", value)


def signed(value: int) -> int:
    """Read an unsigned 64-bit varint as the signed number it stands for."""
    return value - (1 << 64) if value >> 63 else value


def text(value: Value) -> str:
    """Read a length-delimited field as UTF-8; broken bytes become replacement characters."""
    return str(value, "utf-8", "replace") if isinstance(value, memoryview) else ""


def _read_varint(data: bytes | memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & _MASK, at
        shift += 7
        if shift > 63:
            raise MalformedProfile(f"a varint longer than 10 bytes ends at byte {at}")
    raise MalformedProfile(f"the message ends inside a varint at byte {at}")


def _read_size(data: bytes | memoryview, at: int, end: int) -> tuple[int, int]:
    """Read a field's key or length: every protobuf reader refuses longer ones than 5 bytes."""
    value, stop = _read_varint(data, at, end)
    if stop - at > 5 or value >> 32:
        raise MalformedProfile(f"a key or a length of {stop - at} bytes ends at byte {stop}")
    return value, stop


def fields(data: bytes | bytearray | memoryview) -> Iterator[tuple[int, int, Value]]:
    """Yield (field number, wire type, value) of one message; nested messages come as memoryviews.

    Raises `MalformedProfile` on truncated, overlong or unknown encodings.
    """
    view = memoryview(data)
    at, end = 0, len(view)
    while at < end:
        key = view[at]
        at += 1
        if key > 127:
            key, at = _read_size(view, at - 1, end)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise MalformedProfile(f"field number 0 before byte {at}")
        if wire in _COUNTED:
            if at < end and view[at] < 128:
                value = view[at]
                at += 1
            else:
                value, at = (_read_varint if wire == VARINT else _read_size)(view, at, end)
            if wire == VARINT:
                yield number, wire, value
                continue
            stop = at + value
            if stop > end:
                raise MalformedProfile(f"a field of {value} bytes runs past the end at byte {at}")
            yield number, wire, view[at:stop]
            at = stop
        else:
            stop = at + _fixed_size(wire, at, end)
            yield number, wire, int.from_bytes(view[at:stop], "little")
            at = stop


def _fixed_size(wire: int, at: int, end: int) -> int:
    size = {FIXED64: 8, FIXED32: 4}.get(wire)
    if size is None:
        raise MalformedProfile(f"wire type {wire} at byte {at} is not used by any known message")
    if size > end - at:
        raise MalformedProfile(f"the message ends inside a fixed number at byte {at}")
    return size


def numbers(data: bytes | memoryview) -> dict[int, int]:
    """Return a small message's integer fields, the last of each; other fields are passed over.

    The same as picking them out of `fields`, in half the time. Raises `MalformedProfile`.
    """
    found: dict[int, int] = {}
    at, end = 0, len(data)
    while at < end:
        key = data[at]
        at += 1
        if key > 127:
            key, at = _read_size(data, at - 1, end)
        wire = key & 7
        if key < 8:
            raise MalformedProfile(f"field number 0 before byte {at}")
        if wire in _COUNTED:
            if at < end and data[at] < 128:
                value = data[at]
                at += 1
            else:
                value, at = (_read_varint if wire == VARINT else _read_size)(data, at, end)
            if wire == VARINT:
                found[key >> 3] = value
                continue
            at += value
            if at > end:
                raise MalformedProfile(f"a field of {value} bytes runs past the end at byte {at}")
        else:
            size = _fixed_size(wire, at, end)
            found[key >> 3] = int.from_bytes(data[at : at + size], "little")
            at += size
    return found


def packed_varints(value: Value) -> list[int]:
    """Read a repeated integer field in either form: one number, or a packed run of them."""
    if isinstance(value, int):
        return [value]
    body = bytes(value)
    if body.isascii():
        return list(body)
    found: list[int] = []
    number = shift = 0
    for byte in body:
        if byte < 128:
            found.append((number | byte << shift) & _MASK if shift else byte)
            number = shift = 0
        else:
            number |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise MalformedProfile("a packed varint is longer than 10 bytes")
    if shift:
        raise MalformedProfile("a packed field ends inside a varint")
    return found
