"""The wire primitives, against google.protobuf."""

from __future__ import annotations

import contextlib

import pytest
from google.protobuf import struct_pb2, timestamp_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from quayscope.profile import MalformedProfile
from quayscope.profile.protowire import (
    fields,
    numbers,
    packed_varints,
    put_bytes,
    put_double,
    put_fixed64,
    put_packed,
    put_text,
    put_varint,
    signed,
    text,
    varint,
)

INT64 = st.integers(-(2**63), 2**63 - 1)


@settings(deadline=None)
@given(INT64, st.integers(-(2**31), 2**31 - 1))
def test_varints_are_what_protobuf_writes(seconds: int, nanos: int) -> None:
    """A message written here has the bytes that google.protobuf writes, and reads back signed."""
    out = bytearray()
    put_varint(out, 1, seconds)
    put_varint(out, 2, nanos)
    message = timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos)
    assert bytes(out) == message.SerializeToString()
    assert {number: signed(value) for number, value in numbers(bytes(out)).items()} == {
        number: value for number, value in ((1, seconds), (2, nanos)) if value
    }


@settings(deadline=None)
@given(st.floats(allow_nan=False), st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_doubles_and_texts_are_what_protobuf_writes(number: float, shown: str) -> None:
    """Fixed-size and length-delimited fields equal google.protobuf's."""
    out = bytearray()
    put_double(out, 2, number)
    assert bytes(out) == struct_pb2.Value(number_value=number).SerializeToString()
    out = bytearray()
    put_text(out, 3, shown)
    assert bytes(out) == struct_pb2.Value(string_value=shown).SerializeToString()
    ((field, _, value),) = fields(bytes(out))
    assert (field, text(value)) == (3, shown)


@settings(deadline=None)
@given(st.lists(INT64))
def test_packed_numbers_read_back(values: list[int]) -> None:
    """A packed field gives back its numbers; without any it is absent."""
    out = bytearray()
    put_packed(out, 1, values)
    assert [signed(item) for _, _, value in fields(out) for item in packed_varints(value)] == values


def test_every_wire_type_is_walked_over() -> None:
    """Fields of all known wire types come with their numbers, also far ones."""
    out = bytearray()
    put_varint(out, 1, 300)
    put_bytes(out, 200, b"x" * 200)
    put_fixed64(out, 3, 2**64 - 1)
    out += bytes([4 << 3 | 5]) + (7).to_bytes(4, "little")
    found = [
        (number, wire, value if isinstance(value, int) else bytes(value))
        for number, wire, value in fields(out)
    ]
    assert found == [(1, 0, 300), (200, 2, b"x" * 200), (3, 1, 2**64 - 1), (4, 5, 7)]
    assert numbers(bytes(out)) == {1: 300, 3: 2**64 - 1, 4: 7}


@pytest.mark.parametrize(
    "broken",
    [
        b"\x08",  # a key and no value
        b"\x80",  # half a key
        b"\x08" + b"\xff" * 11,  # a varint without an end
        b"\x0a\x05abc",  # longer than the message
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7fabc",  # longer than any memory
        b"\x09abc",  # half a fixed64
        b"\x0dab",  # half a fixed32
        b"\x0b\x0c",  # a group
        b"\x00\x00",  # field number 0
        b"\x80\x80\x80\x80\x10\x00",  # a key beyond 32 bits
        b"\x0a\x80\x80\x80\x80\x80\x00",  # a length of six bytes
        b"\x0f\x00",  # wire type 7
    ],
)
def test_broken_messages_are_malformed(broken: bytes) -> None:
    """Both readers refuse what is no message with `MalformedProfile`."""
    with pytest.raises(MalformedProfile):
        list(fields(broken))
    with pytest.raises(MalformedProfile):
        numbers(broken)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_malformed(data: bytes) -> None:
    """No input raises anything else, and the two readers agree on every one."""
    try:
        expected = {number: value for number, _, value in fields(data) if isinstance(value, int)}
    except MalformedProfile:
        with pytest.raises(MalformedProfile):
            numbers(data)
    else:
        assert numbers(data) == expected
    with contextlib.suppress(MalformedProfile):
        packed_varints(memoryview(data))


def test_negative_numbers_take_ten_bytes() -> None:
    """A bare varint holds the 64-bit two's complement."""
    out = bytearray()
    varint(out, -1)
    assert bytes(out) == b"\xff" * 9 + b"\x01"
