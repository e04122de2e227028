"""The parts of an ELF object that names come from: segments, symbol tables, starts of functions.

Layouts: the System V ABI's "Object Files" chapter (64-bit, little-endian), and the Linux Standard Base's
"Exception Frames" for `.eh_frame_hdr`. Files are read by `pread`, never mapped: a mapped file that is
truncated under us would end the process with SIGBUS.
"""

from __future__ import annotations

import bisect
import mmap
import os
import struct
import weakref
from typing import NamedTuple

from quayscope.sidecar.errors import MalformedElf

__all__ = ["Elf", "Segment", "Symbol"]

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_PT_LOAD = 1
_PT_GNU_EH_FRAME = 0x6474E550
_SHT_SYMTAB = 2
_SHT_DYNSYM = 11
_STT_OBJECT = 1
_STT_FUNC = 2
_STT_GNU_IFUNC = 10
_EXECUTABLE = 1
# .eh_frame_hdr as every linker writes it: table of pairs of signed 32-bit offsets from the header's address.
_TABLE_ENCODING = 0x3B
_COUNT_UDATA4 = 0x03
_POINTER_BYTES = {0x1B: 4, 0x03: 4, 0x0B: 4, 0x3B: 4, 0x04: 8, 0x0C: 8, 0x1C: 8}
_MAX_TABLE = 256 << 20
"""No symbol or string table is read past this many bytes."""
_MAX_NAME = 4096
_MAX_HEADERS = 4096


class Segment(NamedTuple):
    """A loadable segment: `size` bytes of the file from `offset` lie at virtual address `address`."""

    offset: int
    address: int
    size: int
    executable: bool


class Symbol(NamedTuple):
    """A named stretch of the object; `address` is virtual, before relocation."""

    name: str
    address: int
    size: int


class Extent(NamedTuple):
    """Where a section lies: its virtual address (0: not loaded), and its bytes in the file."""

    address: int
    offset: int
    size: int


class Elf:
    """One 64-bit little-endian object, read from an open descriptor (which may be closed afterwards).

    Raises `MalformedElf` when the file is something else or contradicts itself, OSError when it cannot be
    read.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = os.dup(descriptor)
        weakref.finalize(self, os.close, self._descriptor)
        self._size = os.fstat(descriptor).st_size
        self.build_id = ""
        self._sections: dict[str, Extent] = {}
        header = self._read(descriptor, 0, _HEADER.size, "header")
        (
            magic,
            self.type,
            self.machine,
            _version,
            self.entry,
            segments_at,
            sections_at,
            _flags,
            _size,
            segment_size,
            segment_count,
            section_size,
            section_count,
            self._names_index,
        ) = _HEADER.unpack(header)
        if magic[:4] != b"\x7fELF":
            raise MalformedElf("no ELF object: wrong magic")
        if magic[4] != 2 or magic[5] != 1:
            raise MalformedElf("not a 64-bit little-endian ELF object")
        self.segments: list[Segment] = []
        self._frame_header: tuple[int, int, int] | None = None
        self._read_segments(descriptor, segments_at, segment_size, segment_count)
        self._addresses: list[int] = []
        self._functions: list[tuple[int, int, int]] = []  # (size, table of names, offset in it)
        self._names: list[bytes] = []
        self._objects: dict[str, Symbol] = {}
        self._read_symbols(descriptor, sections_at, section_size, section_count)
        self._starts = self._read_frame_header(descriptor)

    def _read(self, descriptor: int, offset: int, size: int, what: str) -> bytes:
        if size > _MAX_TABLE or offset + size > self._size:
            raise MalformedElf(f"{what} lies outside the file")
        data = os.pread(descriptor, size, offset)
        if len(data) != size:
            raise MalformedElf(f"{what} is cut short")
        return data

    def _read_segments(self, descriptor: int, at: int, size: int, count: int) -> None:
        if (count and size != _SEGMENT.size) or count > _MAX_HEADERS:
            raise MalformedElf("program headers of an unknown form")
        table = self._read(descriptor, at, size * count, "program header table")
        for kind, flags, offset, address, _, in_file, _, _ in _SEGMENT.iter_unpack(table):
            if kind == _PT_LOAD:
                self.segments.append(Segment(offset, address, in_file, bool(flags & _EXECUTABLE)))
            elif kind == _PT_GNU_EH_FRAME:
                self._frame_header = (offset, address, in_file)
            elif kind == 4:
                notes = self._read(descriptor, offset, in_file, "note")
                at = notes.find(b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0")
                if at >= 0:
                    self.build_id = notes[at + 16 : at + 36].hex()

    def _read_symbols(self, descriptor: int, at: int, size: int, count: int) -> None:
        if not at or not count:
            return
        if size != _SECTION.size or count > _MAX_HEADERS:
            raise MalformedElf("section headers of an unknown form")
        sections = list(
            _SECTION.iter_unpack(self._read(descriptor, at, size * count, "section header table"))
        )
        names_at = sections[self._names_index]
        texts = self._read(descriptor, names_at[4], names_at[5], "names")
        for section in sections:
            text = texts[section[0] : texts.find(b"\0", section[0])].decode()
            if section[1] != 8:
                self._sections[text] = Extent(section[3], section[4], section[5])
        functions: dict[int, tuple[int, int, int]] = {}
        # The full table first: its names win over the dynamic one's aliases.
        for wanted in (_SHT_SYMTAB, _SHT_DYNSYM):
            for _, kind, _, _, offset, length, link, _, _, entry in sections:
                if kind != wanted:
                    continue
                if entry != _SYMBOL.size or link >= len(sections):
                    raise MalformedElf("symbol table of an unknown form")
                names = self._read(descriptor, sections[link][4], sections[link][5], "string table")
                table = self._read(descriptor, offset, length - length % _SYMBOL.size, "symbol table")
                self._names.append(names)
                self._collect(table, functions)
        self._addresses = sorted(functions)
        self._functions = [functions[address] for address in self._addresses]

    def _collect(self, table: bytes, functions: dict[int, tuple[int, int, int]]) -> None:
        which = len(self._names) - 1
        for name, info, _, section, address, size in _SYMBOL.iter_unpack(table):
            if not section or not address:
                continue
            kind = info & 15
            if kind in (_STT_FUNC, _STT_GNU_IFUNC):
                functions.setdefault(address, (size, which, name))
            elif kind == _STT_OBJECT and info >> 4:  # global or weak: findable by name
                text = self._name(which, name)
                if text:
                    self._objects.setdefault(text, Symbol(text, address, size))

    def _name(self, which: int, offset: int) -> str:
        names = self._names[which]
        end = names.find(b"\0", offset, offset + _MAX_NAME)
        return names[offset:end].decode(errors="replace") if end > offset else ""

    def _read_frame_header(self, descriptor: int) -> list[int]:
        if self._frame_header is None:
            return []
        offset, address, size = self._frame_header
        data = self._read(descriptor, offset, size, ".eh_frame_hdr")
        if len(data) < 4 or data[0] != 1 or data[2] != _COUNT_UDATA4 or data[3] != _TABLE_ENCODING:
            return []
        pointer = _POINTER_BYTES.get(data[1])
        if pointer is None or len(data) < 8 + pointer:
            return []
        count = int.from_bytes(data[4 + pointer : 8 + pointer], "little")
        table = data[8 + pointer :]
        count = min(count, len(table) // 8)
        offsets = memoryview(table)[: count * 8].cast("i")[::2]
        return sorted(address + start for start in offsets)

    def section(self, name: str) -> Extent | None:
        """Return where a section lies, None where there is none or its bytes are not in this file."""
        return self._sections.get(name)

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the file."""
        return self._read(self._descriptor, offset, size, "what was asked for")

    @property
    def frame_header(self) -> Extent | None:
        """Where `.eh_frame_hdr` lies by the program headers."""
        if self._frame_header is None:
            return None
        offset, address, size = self._frame_header
        return Extent(address, offset, size)

    def offset_of(self, address: int) -> int | None:
        """Return where in the file the byte at a virtual address lies, None where it is in none."""
        for offset, start, size, _ in self.segments:
            if start <= address < start + size:
                return address - start + offset
        return None

    def address_of(self, file_offset: int) -> int | None:
        """Return the virtual address at which a byte of the file is loaded, None where it is not."""
        for offset, address, size, _ in self.segments:
            if offset <= file_offset < offset + size:
                return file_offset - offset + address
        return None

    def bias(self, start: int, offset: int) -> int | None:
        """Return what to add to virtual addresses where file offset `offset` is mapped at `start`."""
        for segment in self.segments:
            # The kernel maps whole pages: a mapping may begin a little before its segment does.
            if segment.executable and segment.offset - mmap.PAGESIZE < offset < segment.offset + segment.size:
                return start - offset - (segment.address - segment.offset)
        return None

    def data_symbol(self, name: str) -> Symbol | None:
        """Return a global variable by name."""
        return self._objects.get(name)

    def function_at(self, address: int) -> Symbol | None:
        """Return the function that holds a virtual address.

        One that has no symbol (static, stripped) has an empty name and the start that its unwind entry
        gives; None where not even that is known.
        """
        index = bisect.bisect_right(self._addresses, address) - 1
        if index >= 0:
            start = self._addresses[index]
            size, which, offset = self._functions[index]
            # Assembly routines have symbols without a size: those reach to the next start that is known.
            if address < start + size or (size == 0 and self._start_before(address) <= start):
                return Symbol(self._name(which, offset), start, size)
        start = self._start_before(address)
        return Symbol("", start, 0) if start >= 0 else None

    def _start_before(self, address: int) -> int:
        index = bisect.bisect_right(self._starts, address) - 1
        return self._starts[index] if index >= 0 else -1
