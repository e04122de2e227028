"""Names of Go functions, those inlined too, from the table that every Go program carries, stripped or not.

Layout: Go's `runtime/symtab.go` (pcHeader, moduledata), `runtime/runtime2.go` (_func) and
`runtime/symtabinl.go` (inlinedCall), as Go 1.18 to 1.26 write them. Compared with the symbol tables of
programs built by 1.18, 1.20, 1.21, 1.24 and 1.26.
"""

from __future__ import annotations

import bisect
import struct
from array import array
from collections.abc import Iterator
from typing import NamedTuple

from quayscope.sidecar.errors import MalformedElf
from quayscope.sidecar.native.elf import Elf

__all__ = ["GoFunction", "GoTable"]

_GO_1_18 = 0xFFFFFFF0
_GO_1_20 = 0xFFFFFFF1
_HEADER = struct.Struct("<IHBB8Q")
_SECTIONS = (".gopclntab", ".data.rel.ro.gopclntab")
_RELOCATION = struct.Struct("<QQq")
_RELATIVE = (8, 1027)
"""R_X86_64_RELATIVE, R_AARCH64_RELATIVE: the addend is the value."""
_MODULE_POINTERS = ((1, 3), (4, 4), (7, 5), (10, 6), (13, 7))
"""Words of moduledata that repeat what the header says, and the header's word (0 is nfunc) for each."""
_MODULE_TEXT = 22
_MODULE_GOFUNC = {_GO_1_18: 38, _GO_1_20: 40}
_MODULE_WORDS = 41
_FUNCTION_BYTES = {_GO_1_18: 40, _GO_1_20: 44}
_FUNCTION_BYTES_READ = 128
_INLINED_BYTES = {_GO_1_18: 20, _GO_1_20: 16}
_INLINED_NAME_AND_PARENT = {_GO_1_18: 12, _GO_1_20: 4}
_PCDATA_INLINE_INDEX = 2
_FUNCDATA_INLINE_TREE = 3
_NO_FUNCDATA = 0xFFFFFFFF
_MAX_FUNCTIONS = 1 << 20
_MAX_NAME = 1024
_MAX_INLINED = 32
_MAX_VALUES = 256 << 10
_CHUNK = 1 << 20
_MAX_SCANNED = 512 << 20


class GoFunction(NamedTuple):
    """The functions running at an address, **leaf first**: inlined ones, then the one that holds them all.

    `entry` and `end` are the virtual addresses that the holding one lies between.
    """

    names: tuple[str, ...]
    entry: int
    end: int


class GoTable:
    """The pclntab of one object; use `find`. Takes 8 bytes a function in memory, names are read on demand.

    `flaws` counts look-ups that met something that cannot be; such an address has no name, or, where only
    the table of inlined calls is broken, no inlined ones.
    """

    def __init__(self, elf: Elf, offset: int) -> None:
        self._elf = elf
        self._at = offset
        magic, pad, quantum, pointer, *words = _HEADER.unpack(elf.read(offset, _HEADER.size))
        if magic not in (_GO_1_18, _GO_1_20) or pad or quantum not in (1, 4) or pointer != 8:
            raise MalformedElf("Go's function table is of an unknown form")
        self._magic = magic
        self._quantum = quantum
        self._words = words
        count, _, self.text, self._names, _, _, self._values, self._functions = words
        if not 0 < count <= _MAX_FUNCTIONS:
            raise MalformedElf("Go's function table has an impossible count of functions")
        table = array("I", elf.read(offset + self._functions, (2 * count + 1) * 4))
        self._entries, self._records = table[0::2], table[1::2]
        self.flaws = 0
        self._inlined_at = 0
        self._find_module()
        if not self.text:
            raise MalformedElf("Go's function table does not say where the code is")

    @classmethod
    def find(cls, elf: Elf) -> GoTable | None:
        """Return the table of a Go program, None for what is none.

        Found by its section, else, in what says it is Go or has no sections, by its first bytes. Raises
        `MalformedElf` where there is one and it contradicts itself.
        """
        for name in _SECTIONS:
            extent = elf.section(name)
            if extent is not None:
                return cls(elf, extent.offset)
        if elf.is_go or not elf.sections:
            for offset in _scan(elf):
                try:
                    return cls(elf, offset)
                except MalformedElf:
                    continue
        if elf.is_go:
            raise MalformedElf("a Go program without its function table")
        return None

    def __len__(self) -> int:
        return len(self._records)

    @property
    def cost(self) -> int:
        """What the table takes in memory, in bytes."""
        return 8 * len(self._records)

    def functions(self) -> Iterator[int]:
        """Return the entry of every function, ascending."""
        for entry in self._entries[:-1]:
            yield self.text + entry

    def at(self, address: int) -> GoFunction | None:
        """Return the functions at a virtual address, None where it holds no Go code."""
        position = address - self.text
        index = bisect.bisect_right(self._entries, position) - 1
        if not 0 <= index < len(self._records):
            return None
        try:
            return self._function(index, position)
        except (MalformedElf, struct.error):
            self.flaws += 1
            return None

    def _function(self, index: int, position: int) -> GoFunction:
        at = self._at + self._functions + self._records[index]
        record = self._read(at, _FUNCTION_BYTES_READ)
        entry, name = struct.unpack_from("<Ii", record)
        if entry != self._entries[index]:
            raise MalformedElf("a function of Go's table begins elsewhere than its index says")
        names = []
        if self._inlined_at:
            try:
                names = self._inlined(record, position - entry)
            except (MalformedElf, struct.error):
                self.flaws += 1
        names.append(self._name(name))
        return GoFunction(tuple(names), self.text + entry, self.text + self._entries[index + 1])

    def _inlined(self, record: bytes, position: int) -> list[str]:
        (tables,) = struct.unpack_from("<I", record, 28)
        fixed = _FUNCTION_BYTES[self._magic]
        trees = record[fixed - 1]
        if tables <= _PCDATA_INLINE_INDEX or trees <= _FUNCDATA_INLINE_TREE:
            return []
        (values,) = struct.unpack_from("<I", record, fixed + 4 * _PCDATA_INLINE_INDEX)
        (tree,) = struct.unpack_from("<I", record, fixed + 4 * (tables + _FUNCDATA_INLINE_TREE))
        if not values or tree == _NO_FUNCDATA:
            return []
        names: list[str] = []
        while (call := self._value(self._at + self._values + values, position)) >= 0:
            if len(names) >= _MAX_INLINED:
                raise MalformedElf("calls of Go's table are inlined in each other")
            at = self._inlined_at + tree + call * _INLINED_BYTES[self._magic]
            raw = self._elf.read(at, _INLINED_BYTES[self._magic])
            name, position = struct.unpack_from("<ii", raw, _INLINED_NAME_AND_PARENT[self._magic])
            names.append(self._name(name))
        return names

    def _value(self, at: int, target: int) -> int:
        """Return what a table of (difference of value, length of code) pairs gives for a position."""
        data, used = self._read(at, 256), 0
        position, value, first = 0, -1, True
        while True:
            if used + 20 > len(data) and len(data) >= 256:
                if len(data) > _MAX_VALUES:
                    raise MalformedElf("a table of Go's values has no end")
                longer = self._read(at, 2 * len(data))
                if len(longer) == len(data):
                    raise MalformedElf("a table of Go's values is cut short")
                data = longer
            change, used = _varint(data, used)
            if not change and not first:
                return -1
            length, used = _varint(data, used)
            first = False
            value += -(change + 1 >> 1) if change & 1 else change >> 1
            position += length * self._quantum
            if target < position:
                return value

    def _read(self, offset: int, most: int) -> bytes:
        return self._elf.read(offset, max(0, min(most, self._elf.size - offset)))

    def _name(self, offset: int) -> str:
        if offset < 0:
            raise MalformedElf("a name lies before Go's table of names")
        data = self._read(self._at + self._names + offset, _MAX_NAME)
        end = data.find(b"\0")
        if end == 0 or not data:
            raise MalformedElf("a function of Go's table has no name")
        name = data[: end if end > 0 else None].decode(errors="replace")
        # Type arguments as Go's own traces show them: of some functions the table does not have more.
        first, last = name.find("["), name.rfind("]")
        return f"{name[:first]}[...]{name[last + 1 :]}" if 0 <= first < last else name

    def _find_module(self) -> None:
        """Find the runtime's moduledata: where the code begins (1.26 says it nowhere else), and funcdata."""
        table = next(
            (
                s.address + self._at - s.offset
                for s in self._elf.segments
                if 0 <= self._at - s.offset < s.size
            ),
            None,
        )
        if table is None:
            return
        for address in _pointers_to(self._elf, table):
            module = _words(self._elf, address, _MODULE_WORDS)
            if module and all(module[word] == table + self._words[of] for word, of in _MODULE_POINTERS):
                self.text = module[_MODULE_TEXT]
                self._inlined_at = self._elf.offset_of(module[_MODULE_GOFUNC[self._magic]]) or 0
                return
        # Without it the section of the code is the next best, right where Go's own linker made the file.
        text = self._elf.section(".text")
        if not self.text and text is not None:
            self.text = text.address


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift <= 28:
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise MalformedElf("a table of Go's values is cut short")


def _scan(elf: Elf) -> Iterator[int]:
    """Yield the places that look like the header of a table."""
    left = _MAX_SCANNED
    for segment in elf.segments:
        at, end = segment.offset, min(segment.offset + segment.size, elf.size, segment.offset + left)
        left -= max(0, end - at)
        while at < end:
            data = elf.read(at, min(_CHUNK + 7, end - at))
            for magic in (_GO_1_20, _GO_1_18):
                for quantum in (b"\1\x08", b"\4\x08"):
                    pattern = struct.pack("<IH", magic, 0) + quantum
                    found = data.find(pattern)
                    while found >= 0:
                        yield at + found
                        found = data.find(pattern, found + 1)
            at += _CHUNK


def _pointers_to(elf: Elf, value: int) -> Iterator[int]:
    """Yield addresses of words of the data that hold a value, written there or by relocation."""
    pattern = value.to_bytes(8, "little")
    places = [elf.section(name) for name in (".go.module", ".noptrdata", ".data")]
    known = [(place.address, place.offset, place.size) for place in places if place is not None]
    for address, offset, size in known or [(s.address, s.offset, s.size) for s in elf.segments]:
        at, end = offset, min(offset + size, elf.size)
        while at < end:
            data = elf.read(at, min(_CHUNK + 7, end - at))
            found = data.find(pattern)
            while found >= 0:
                yield address + at - offset + found
                found = data.find(pattern, found + 1)
            at += _CHUNK
    for place, _, addend in _relocations(elf):
        if addend == value:
            yield place


def _words(elf: Elf, address: int, count: int) -> list[int]:
    offset = elf.offset_of(address)
    if offset is None or offset + 8 * count > elf.size:
        return []
    words = list(array("Q", elf.read(offset, 8 * count)))
    for place, _, addend in _relocations(elf):
        index, odd = divmod(place - address, 8)
        if 0 <= index < count and not odd:
            words[index] = addend
    return words


def _relocations(elf: Elf) -> Iterator[tuple[int, int, int]]:
    for name in (".rela", ".rela.dyn"):
        extent = elf.section(name)
        if extent is None:
            continue
        at, end = extent.offset, min(extent.offset + extent.size, elf.size)
        step = _CHUNK // _RELOCATION.size * _RELOCATION.size
        while at < end:
            size = min(step, end - at) // _RELOCATION.size * _RELOCATION.size
            if not size:
                return
            for relocation in _RELOCATION.iter_unpack(elf.read(at, size)):
                if relocation[1] in _RELATIVE:
                    yield relocation
            at += size
