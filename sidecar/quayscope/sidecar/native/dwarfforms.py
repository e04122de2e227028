"""How DWARF writes values: abbreviations, forms, strings, addresses and lists of ranges.

Format: the DWARF standard, versions 2 to 5, "Attribute Encodings" and "Range List Table"; 32-bit offsets
only, which is what compilers write.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from quayscope.sidecar.errors import MalformedElf
from quayscope.sidecar.native.elf import Elf

__all__ = ["Abbreviation", "Reader", "Unit", "Value", "abbreviations"]

_MAX_ABBREVIATIONS = 1 << 20
_MAX_NAME = 4096
_MAX_ULEB = 10
_UNIT_TYPES_WITH_ID = {4, 5}
_UNIT_TYPES_WITH_SIGNATURE = {2, 6}

_ADDR, _STRING, _SDATA, _UDATA = 0x01, 0x08, 0x0D, 0x0F
_INDIRECT, _IMPLICIT_CONST = 0x16, 0x21
_FIXED = {
    **dict.fromkeys((0x0B, 0x0C, 0x11, 0x25, 0x29), 1),  # data1 flag ref1 strx1 addrx1
    **dict.fromkeys((0x05, 0x12, 0x26, 0x2A), 2),  # data2 ref2 strx2 addrx2
    **dict.fromkeys((0x27, 0x2B), 3),  # strx3 addrx3
    # data4 strp ref4 ref_addr sec_offset line_strp ref_sup4 strp_sup strx4 addrx4, GNU_ref_alt GNU_strp_alt
    **dict.fromkeys((0x06, 0x0E, 0x13, 0x10, 0x17, 0x1F, 0x1C, 0x1D, 0x28, 0x2C, 0x1F20, 0x1F21), 4),
    **dict.fromkeys((_ADDR, 0x07, 0x14, 0x20, 0x24), 8),  # addr data8 ref8 ref_sig8 ref_sup8
    0x1E: 16,  # data16
    **dict.fromkeys((0x19, _IMPLICIT_CONST), 0),  # flag_present
}
# udata ref_udata strx addrx loclistx rnglistx, GNU_addr_index GNU_str_index
_ULEBS = frozenset((_UDATA, 0x15, 0x1A, 0x1B, 0x22, 0x23, 0x1F01, 0x1F02))
_BLOCKS = {0x0A: 1, 0x03: 2, 0x04: 4}
_ULEB_BLOCKS = frozenset((0x09, 0x18))
_UNIT_REFERENCES = frozenset((0x11, 0x12, 0x13, 0x14, 0x15))
_INDEXED_ADDRESSES = frozenset((0x1B, 0x29, 0x2A, 0x2B, 0x2C, 0x1F01))
_INDEXED_STRINGS = frozenset((0x1A, 0x25, 0x26, 0x27, 0x28, 0x1F02))
_STRP, _LINE_STRP, _RNGLISTX, _REF_ADDR = 0x0E, 0x1F, 0x23, 0x10
_SIBLING = 0x01


class Abbreviation(NamedTuple):
    """The form of some entries: what they are, and (attribute, form, implicit value) of each value.

    `size` is what the values of one take in bytes, -1 where that varies.
    """

    tag: int
    has_children: bool
    has_sibling: bool
    values: tuple[tuple[int, int, int], ...]
    size: int


class Value(NamedTuple):
    """One value as it stands: its form and a number (of a reference: the offset in the whole section).

    `text` is a string that is written within the entry.
    """

    form: int
    number: int
    text: bytes = b""

    @property
    def is_address(self) -> bool:
        """Whether it is an address, not a length."""
        return self.form == _ADDR or self.form in _INDEXED_ADDRESSES


@dataclass
class Unit:
    """One unit: its first byte, the one after its last, and how far into it its first entry is."""

    offset: int
    end: int
    header: int
    version: int
    abbreviations: int
    low: int = 0
    addr_base: int = 0
    str_base: int = 0
    ranges_base: int = 0


class _Bytes:
    """A section: read piece by piece where it is not compressed, unpacked as a whole where it is."""

    def __init__(self, elf: Elf, name: str, most: int, most_packed: int) -> None:
        self._elf = elf
        self._at = 0
        self._data: bytes | None = None
        section = elf.section(name)
        self.size = 0 if section is None else section.size
        if section is None:
            return
        if elf.is_compressed(name):
            self._data = elf.content(name, most_packed) or b""
            self.size = len(self._data)
        self._at = section.offset
        if self.size > most:
            raise MalformedElf(f"{name} is too long: {self.size} bytes")

    def read(self, offset: int, size: int) -> bytes:
        if not (offset >= 0 and size >= 0 and offset + size <= self.size):
            raise MalformedElf("debug information refers to what is outside it")
        if self._data is not None:
            return self._data[offset : offset + size]
        return self._elf.read(self._at + offset, size)

    def upto(self, offset: int, size: int) -> bytes:
        return self.read(offset, min(size, self.size - offset))


class Reader:
    """Reads the values of one object's debug information. Raises `MalformedElf` for what cannot be."""

    def __init__(self, elf: Elf, most: int, most_packed: int) -> None:
        def section(name: str) -> _Bytes:
            return _Bytes(elf, name, most, most_packed)

        self._info = section(".debug_info")
        if not self._info.size:
            raise MalformedElf("there is no debug information")
        self._abbrev = section(".debug_abbrev")
        self._strings = section(".debug_str")
        self._line_strings = section(".debug_line_str")
        self._string_offsets = section(".debug_str_offsets")
        self._addresses = section(".debug_addr")
        self._old_ranges = section(".debug_ranges")
        self._new_ranges = section(".debug_rnglists")

    def info(self, offset: int, size: int) -> bytes:
        """Return bytes of `.debug_info`."""
        return self._info.read(offset, size)

    def abbreviation_bytes(self, offset: int) -> bytes:
        """Return the bytes that a table of abbreviations begins with."""
        return self._abbrev.upto(offset, _MAX_ABBREVIATIONS)

    def unit(self, offset: int) -> Unit | None:
        """Return the unit that begins at an offset, None at the section's end."""
        if offset >= self._info.size:
            return None
        data = self._info.upto(offset, 40)
        if len(data) < 12:
            raise MalformedElf("a unit of the debug information is cut short")
        length, version = struct.unpack_from("<IH", data)
        end = offset + 4 + length
        if length >= 0xFFFFFFF0 or length < 8 or end > self._info.size or not 2 <= version <= 5:
            raise MalformedElf("a unit of the debug information is of an unknown form")
        if version < 5:
            table, width = struct.unpack_from("<IB", data, 6)
            header = 11
        else:
            kind, width, table = struct.unpack_from("<BBI", data, 6)
            header = 12 + (
                8 if kind in _UNIT_TYPES_WITH_ID else 12 if kind in _UNIT_TYPES_WITH_SIGNATURE else 0
            )
        if width != 8:
            raise MalformedElf("a unit of the debug information is not of a 64-bit machine")
        return Unit(offset, end, header, version, table)

    @staticmethod
    def uleb(data: bytes, at: int) -> tuple[int, int]:
        """Return an unsigned number and where the next byte is."""
        try:
            byte = data[at]
            if byte < 128:
                return byte, at + 1
            value, shift = byte & 127, 7
            for place in range(at + 1, at + _MAX_ULEB):
                byte = data[place]
                value |= (byte & 127) << shift
                if byte < 128:
                    return value, place + 1
                shift += 7
        except IndexError:
            pass
        raise MalformedElf("debug information is cut short")

    def skip(self, unit: Unit, abbreviation: Abbreviation, data: bytes, at: int) -> int:
        """Return where the entry ends whose values begin at `at`."""
        if abbreviation.size >= 0:
            return at + abbreviation.size
        for _, form, _ in abbreviation.values:
            size = _FIXED.get(form)
            if size is not None and (form != _REF_ADDR or unit.version > 2):
                at += size
            else:
                _, at = self._value(unit, form, data, at, 0)
        return at

    def values(
        self, unit: Unit, abbreviation: Abbreviation, data: bytes, at: int
    ) -> tuple[dict[int, Value], int]:
        """Return an entry's values by attribute, and where it ends."""
        found = {}
        for attribute, form, implicit in abbreviation.values:
            found[attribute], at = self._value(unit, form, data, at, implicit)
        return found, at

    def _value(self, unit: Unit, form: int, data: bytes, at: int, implicit: int) -> tuple[Value, int]:
        size = _FIXED.get(form)
        if form == _REF_ADDR and unit.version == 2:  # a reference across units was as wide as an address
            size = 8
        if size is not None:
            if at + size > len(data):
                raise MalformedElf("debug information is cut short")
            number = int.from_bytes(data[at : at + size], "little") if size else implicit
            at += size
        elif form in _ULEBS:
            number, at = self.uleb(data, at)
        elif form == _SDATA:
            raw, end = self.uleb(data, at)
            number = raw - (1 << 7 * (end - at)) if data[end - 1] & 64 else raw
            at = end
        elif form == _STRING:
            end = data.find(b"\0", at)
            if end < 0:
                raise MalformedElf("debug information is cut short")
            return Value(form, 0, data[at : min(end, at + _MAX_NAME)]), end + 1
        elif form in _BLOCKS:
            width = _BLOCKS[form]
            number = int.from_bytes(data[at : at + width], "little")
            at += width + number
        elif form in _ULEB_BLOCKS:
            number, at = self.uleb(data, at)
            at += number
        elif form == _INDIRECT:
            form, at = self.uleb(data, at)
            if form in (_INDIRECT, _IMPLICIT_CONST):
                raise MalformedElf("a form of the debug information refers to itself")
            return self._value(unit, form, data, at, 0)
        else:
            raise MalformedElf(f"a form of the debug information is unknown: {form:#x}")
        if form in _UNIT_REFERENCES:
            number += unit.offset
        return Value(form, number), at

    def text(self, unit: Unit, value: Value) -> str:
        """Return a string value; empty where it is in a file that we do not have."""
        if value.form == _STRING:
            return value.text.decode(errors="replace")
        if value.form in _INDEXED_STRINGS:
            place = self._string_offsets.read(unit.str_base + 4 * value.number, 4)
            return self._string(self._strings, int.from_bytes(place, "little"))
        if value.form == _STRP:
            return self._string(self._strings, value.number)
        if value.form == _LINE_STRP:
            return self._string(self._line_strings, value.number)
        return ""

    @staticmethod
    def _string(section: _Bytes, offset: int) -> str:
        data = section.upto(offset, _MAX_NAME)
        end = data.find(b"\0")
        return data[: end if end >= 0 else None].decode(errors="replace")

    def address(self, unit: Unit, value: Value) -> int:
        """Return an address, from the table of addresses where it stands there."""
        if value.form in _INDEXED_ADDRESSES:
            return self._indexed_address(unit, value.number)
        return value.number

    def _indexed_address(self, unit: Unit, index: int) -> int:
        return int.from_bytes(self._addresses.read(unit.addr_base + 8 * index, 8), "little")

    def ranges(self, unit: Unit, value: Value, most: int) -> Iterator[tuple[int, int]]:
        """Yield the [low, high) stretches of a list; raises for one of more than `most`."""
        if unit.version < 5:
            found = self._listed_old(unit, value.number)
        else:
            offset = value.number
            if value.form == _RNGLISTX:
                place = self._new_ranges.read(unit.ranges_base + 4 * offset, 4)
                offset = unit.ranges_base + int.from_bytes(place, "little")
            found = self._listed_new(unit, offset)
        for count, (low, high) in enumerate(found):
            if count >= most:
                raise MalformedElf("a list of ranges has no end")
            if 0 < low < high < 1 << 64:
                yield low, high

    def _listed_old(self, unit: Unit, offset: int) -> Iterator[tuple[int, int]]:
        base = unit.low
        while True:
            low, high = struct.unpack("<QQ", self._old_ranges.read(offset, 16))
            offset += 16
            if low == high == 0:
                return
            if low == (1 << 64) - 1:
                base = high
                yield 0, 0  # counted, so that a list of nothing else ends too
            else:
                yield base + low, base + high

    def _listed_new(self, unit: Unit, offset: int) -> Iterator[tuple[int, int]]:
        base = unit.low
        while True:
            data = self._new_ranges.upto(offset, 1 + 2 * _MAX_ULEB)
            if not data:
                raise MalformedElf("a list of ranges is cut short")
            kind, at = data[0], 1
            if kind == 0:  # end_of_list
                return
            first = second = 0
            if kind in (1, 2, 3, 4):  # base_addressx, startx_endx, startx_length, offset_pair
                first, at = self.uleb(data, at)
                if kind != 1:
                    second, at = self.uleb(data, at)
            elif kind in (5, 6, 7):  # base_address, start_end, start_length
                first, second, at = *self._fixed(data, kind), 1 + (16 if kind == 6 else 8)
                if kind == 7:
                    second, at = self.uleb(data, at)
            else:
                raise MalformedElf(f"an entry of a list of ranges is unknown: {kind}")
            offset += at
            if kind in (1, 5):
                base = self._indexed_address(unit, first) if kind == 1 else first
                yield 0, 0
            elif kind == 4:
                yield base + first, base + second
            else:
                start = self._indexed_address(unit, first) if kind in (2, 3) else first
                if kind == 2:
                    second = self._indexed_address(unit, second)
                yield start, second if kind in (2, 6) else start + second

    @staticmethod
    def _fixed(data: bytes, kind: int) -> tuple[int, int]:
        width = 17 if kind == 6 else 9
        if len(data) < width:
            raise MalformedElf("a list of ranges is cut short")
        second = int.from_bytes(data[9:17], "little") if kind == 6 else 0
        return int.from_bytes(data[1:9], "little"), second


def abbreviations(data: bytes) -> dict[int, Abbreviation]:
    """Return the table of abbreviations that `data` begins with, by code."""
    found: dict[int, Abbreviation] = {}
    at = 0
    while True:
        code, at = Reader.uleb(data, at)
        if not code:
            return found
        tag, at = Reader.uleb(data, at)
        has_children = data[at : at + 1] != b"\0"
        at += 1
        values = []
        while True:
            attribute, at = Reader.uleb(data, at)
            form, at = Reader.uleb(data, at)
            implicit = 0
            if form == _IMPLICIT_CONST:
                # Signed, as line numbers and sizes are: negative ones are none of what is read here.
                implicit, at = Reader.uleb(data, at)
            if not attribute and not form:
                break
            values.append((attribute, form, implicit))
        sizes = [_FIXED.get(form, -1) if form != _REF_ADDR else -1 for _, form, _ in values]
        size = -1 if -1 in sizes else sum(sizes)
        has_sibling = any(attribute == _SIBLING for attribute, _, _ in values)
        found[code] = Abbreviation(tag, has_children, has_sibling, tuple(values), size)
