"""Which functions were inlined at an address, from an object's DWARF.

Format: the DWARF standard, versions 2 to 5 ("Debugging Information Entry", "Attribute Encodings"). A unit is
read in one pass that keeps its inlined calls and nothing else: a tree of objects would take some hundred
times the memory.
"""

from __future__ import annotations

import bisect
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from quayscope.sidecar.errors import MalformedElf
from quayscope.sidecar.native.dwarfforms import Abbreviation, Reader, Unit, Value, abbreviations
from quayscope.sidecar.native.elf import Elf

__all__ = ["InlinedCalls"]

MAX_INFO = 64 << 20
"""Objects with more bytes of debug information have no inlined calls here."""
_MAX_PACKED = 16 << 20
"""Compressed sections are unpacked as a whole, so less of them is taken."""
_MAX_UNIT = 4 << 20
_MAX_UNITS = 20_000
_MAX_CALLS = 50_000
_MAX_HELD = 4
_MAX_RANGES = 10_000
_MAX_DEPTH = 512
_MAX_HOPS = 8

_TAG_LEXICAL_BLOCK = 0x0B
_TAG_COMPILE_UNIT = 0x11
_TAG_INLINED = 0x1D
_TAG_MODULE = 0x1E
_TAG_SUBPROGRAM = 0x2E
_TAG_NAMESPACE = 0x39
_TAG_PARTIAL_UNIT = 0x3C
_TAG_SKELETON_UNIT = 0x4A
_UNITS = frozenset({_TAG_COMPILE_UNIT, _TAG_PARTIAL_UNIT, _TAG_SKELETON_UNIT})
_ENTERED = _UNITS | {_TAG_LEXICAL_BLOCK, _TAG_INLINED, _TAG_MODULE, _TAG_SUBPROGRAM, _TAG_NAMESPACE}
_AT_SIBLING = 0x01
_AT_NAME = 0x03
_AT_LOW_PC = 0x11
_AT_HIGH_PC = 0x12
_AT_ABSTRACT_ORIGIN = 0x31
_AT_SPECIFICATION = 0x47
_AT_RANGES = 0x55
_AT_LINKAGE_NAME = 0x6E
_AT_MIPS_LINKAGE_NAME = 0x2007
_AT_STR_OFFSETS_BASE = 0x72
_AT_ADDR_BASE = 0x73
_AT_RNGLISTS_BASE = 0x74
_ALL = (1 << 64) - 1


class _Calls(NamedTuple):
    """The inlined calls of a unit: [low, high), how deep in others, and the entry of what was inlined."""

    lows: array[int]
    highs: array[int]
    depths: array[int]
    origins: array[int]


class InlinedCalls:
    """The inlined calls of one object. Holds those of 4 units, at most 50,000 calls of 26 bytes each.

    `skipped` counts units of more than 4 MB or with more calls: they have none here. Raises `MalformedElf`
    when there is no debug information, more than 64 MB of it, or it contradicts itself; so does `at` for the
    part at hand.
    """

    def __init__(self, elf: Elf) -> None:
        self._reader = Reader(elf, MAX_INFO, _MAX_PACKED)
        self._held: OrderedDict[int, _Calls] = OrderedDict()
        self._abbreviations: OrderedDict[int, dict[int, Abbreviation]] = OrderedDict()
        self.skipped = 0
        self._units: list[Unit] = []
        self._lows, self._highs, self._owners = array("Q"), array("Q"), array("I")
        self._list_units()
        self._offsets = [unit.offset for unit in self._units]

    def at(self, address: int) -> tuple[str, ...]:
        """Return the names of the functions inlined at a virtual address, mangled, **leaf first**."""
        index = bisect.bisect_right(self._lows, address) - 1
        if index < 0 or address >= self._highs[index]:
            return ()
        unit = self._units[self._owners[index]]
        calls = self._calls(unit)
        found = [
            (-depth, origin) for low, high, depth, origin in zip(*calls, strict=True) if low <= address < high
        ]
        names = [self._name(origin) for _, origin in sorted(found)]
        return tuple(name for name in names if name)

    def _list_units(self) -> None:
        ranges = []
        at = 0
        while (unit := self._reader.unit(at)) is not None:
            if len(self._units) >= _MAX_UNITS:
                raise MalformedElf("debug information has too many units")
            at = unit.end
            found = self._complete(unit)
            for low, high in found:
                ranges.append((low, high, len(self._units)))
            self._units.append(unit)
        ranges.sort()
        for low, high, owner in ranges:
            self._lows.append(low)
            self._highs.append(high)
            self._owners.append(owner)

    def _complete(self, unit: Unit) -> list[tuple[int, int]]:
        """Read a unit's own entry: its bases, and the stretches of code it is about."""
        tag, values = self._entry(unit, unit.offset + unit.header)
        if tag not in _UNITS:
            return []
        unit.addr_base = _number(values.get(_AT_ADDR_BASE))
        unit.str_base = _number(values.get(_AT_STR_OFFSETS_BASE))
        unit.ranges_base = _number(values.get(_AT_RNGLISTS_BASE))
        low = values.get(_AT_LOW_PC)
        unit.low = 0 if low is None else self._reader.address(unit, low)
        return list(self._ranges(unit, values))

    def _entry(self, unit: Unit, offset: int) -> tuple[int, dict[int, Value]]:
        """Return the tag and the values of the entry at an offset; the tag 0 where there is none."""
        for most in (512, 64 << 10):
            data = self._reader.info(offset, min(unit.end - offset, most))
            code, at = self._reader.uleb(data, 0)
            abbreviation = self._abbreviation(unit, code)
            if abbreviation is None:
                break
            try:
                return abbreviation.tag, self._reader.values(unit, abbreviation, data, at)[0]
            except MalformedElf:
                if len(data) < most:
                    raise
        return 0, {}

    def _abbreviation(self, unit: Unit, code: int) -> Abbreviation | None:
        table = self._abbreviations.get(unit.abbreviations)
        if table is None:
            table = abbreviations(self._reader.abbreviation_bytes(unit.abbreviations))
            self._abbreviations[unit.abbreviations] = table
            if len(self._abbreviations) > _MAX_HELD:
                self._abbreviations.popitem(last=False)
        return table.get(code)

    def _ranges(self, unit: Unit, values: dict[int, Value]) -> Iterator[tuple[int, int]]:
        listed = values.get(_AT_RANGES)
        if listed is not None:
            yield from self._reader.ranges(unit, listed, _MAX_RANGES)
            return
        low, high = values.get(_AT_LOW_PC), values.get(_AT_HIGH_PC)
        if low is None or high is None:
            return
        start = self._reader.address(unit, low)
        end = self._reader.address(unit, high) if high.is_address else start + high.number
        if 0 < start < end <= _ALL:
            yield start, end

    def _calls(self, unit: Unit) -> _Calls:
        calls = self._held.get(unit.offset)
        if calls is None:
            calls = _Calls(array("Q"), array("Q"), array("H"), array("Q"))
            if unit.end - unit.offset > _MAX_UNIT:
                self.skipped += 1
            elif not self._read_calls(unit, calls):
                self.skipped += 1
                calls = _Calls(array("Q"), array("Q"), array("H"), array("Q"))
            self._held[unit.offset] = calls
            if len(self._held) > _MAX_HELD:
                self._held.popitem(last=False)
        else:
            self._held.move_to_end(unit.offset)
        return calls

    def _read_calls(self, unit: Unit, calls: _Calls) -> bool:
        """Gather a unit's calls; returns whether there was room for all."""
        reader = self._reader
        data = reader.info(unit.offset, unit.end - unit.offset)
        at = unit.header
        # For each level that is open, how many inlined calls it lies in.
        levels = [0]
        while at < len(data):
            code, at = reader.uleb(data, at)
            if not code:
                if len(levels) > 1:
                    levels.pop()
                continue
            abbreviation = self._abbreviation(unit, code)
            if abbreviation is None:
                raise MalformedElf("an entry of the debug information is of no known form")
            tag = abbreviation.tag
            inside = levels[-1]
            if tag == _TAG_INLINED:
                values, at = reader.values(unit, abbreviation, data, at)
                if not self._add(unit, values, inside, calls):
                    return False
                inside += 1
            elif tag in _ENTERED or not abbreviation.has_sibling:
                at = reader.skip(unit, abbreviation, data, at)
            else:
                values, at = reader.values(unit, abbreviation, data, at)
                sibling = values.get(_AT_SIBLING)
                if sibling is not None and abbreviation.has_children:
                    target = sibling.number - unit.offset
                    if not at <= target <= len(data):
                        raise MalformedElf("an entry of the debug information lies outside its unit")
                    at = target
                    continue
            if abbreviation.has_children:
                if len(levels) > _MAX_DEPTH:
                    raise MalformedElf("the debug information is nested too deep")
                levels.append(inside)
        return True

    def _add(self, unit: Unit, values: dict[int, Value], depth: int, calls: _Calls) -> bool:
        origin = values.get(_AT_ABSTRACT_ORIGIN)
        if origin is None:
            return True
        if not 0 <= origin.number <= _ALL:
            raise MalformedElf("an inlined call refers to no place that a file can have")
        for low, high in self._ranges(unit, values):
            if len(calls.lows) >= _MAX_CALLS:
                return False
            calls.lows.append(low)
            calls.highs.append(high)
            calls.depths.append(depth)
            calls.origins.append(origin.number)
        return True

    def _name(self, offset: int) -> str:
        """Return the name of the entry at an offset, or of the one that it says it completes."""
        name = ""
        for _ in range(_MAX_HOPS):
            index = bisect.bisect_right(self._offsets, offset) - 1
            if index < 0 or offset >= self._units[index].end:
                break
            unit = self._units[index]
            _, values = self._entry(unit, offset)
            linkage = values.get(_AT_LINKAGE_NAME) or values.get(_AT_MIPS_LINKAGE_NAME)
            if linkage is not None:
                return self._reader.text(unit, linkage)
            plain = values.get(_AT_NAME)
            if plain is not None and not name:
                name = self._reader.text(unit, plain)
            further = values.get(_AT_SPECIFICATION) or values.get(_AT_ABSTRACT_ORIGIN)
            if further is None:
                break
            offset = further.number
        return name


def _number(value: Value | None) -> int:
    return 0 if value is None else value.number
