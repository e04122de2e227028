"""The parts of an ELF object that others ask for: segments, sections, notes, symbols.

Layouts: the System V ABI's "Object Files" chapter (64-bit, little-endian), and the Linux Standard Base's
"Exception Frames" for `.eh_frame_hdr`. Files are read by `pread`, never mapped: a mapped file that is
truncated under us would end the process with SIGBUS.
"""

from __future__ import annotations

import mmap
import os
import struct
import weakref
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from quayscope.sidecar.errors import MalformedElf
from quayscope.sidecar.native.symtab import FunctionTable, Starts, Symbol, find_variable

__all__ = ["Elf", "Extent", "Section", "Segment"]

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_COMPRESSION = struct.Struct("<IIQQ")
_NOTE = struct.Struct("<III")
# An entry of .eh_frame up to the length of its function, its pointers relative to where they stand.
_FRAME_ENTRY = struct.Struct("<IIiI")
_PT_LOAD = 1
_PT_NOTE = 4
_PT_GNU_EH_FRAME = 0x6474E550
_SHT_SYMTAB = 2
_SHT_NOTE = 7
_SHT_NOBITS = 8
_SHT_DYNSYM = 11
_SHF_COMPRESSED = 0x800
_SYMBOL_BYTES = 24
_COMPRESSED_ZLIB = 1
_NT_GNU_BUILD_ID = 3
_EXECUTABLE = 1
_MAX_READ = 64 << 20
"""Nothing is read in one piece past this many bytes."""
_MAX_SYMBOLS = 24 << 20
"""A symbol table or its names past this many bytes is passed over, counted as a flaw: a million symbols."""
_MAX_NAME = 4096
_MAX_HEADERS = 4096
_MAX_NOTES = 64 << 10
_MAX_BUILD_ID = 64
_NO_END = 1 << 64


class Segment(NamedTuple):
    """A loadable segment: `size` bytes of the file from `offset` lie at virtual address `address`."""

    offset: int
    address: int
    size: int
    executable: bool


class Section(NamedTuple):
    """A section header; `size` bytes lie in the file from `offset` unless its kind is NOBITS."""

    name: str
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    entry_size: int


class Extent(NamedTuple):
    """Where a section lies: its virtual address (0: not loaded), and its bytes in the file."""

    address: int
    offset: int
    size: int


class _Facts(NamedTuple):
    """What the header says about the tables of segments and sections."""

    segments: tuple[int, int, int]
    sections: tuple[int, int, int]
    names: int


class Elf:
    """One 64-bit little-endian object: an open file's, or one that lies in memory.

    A descriptor is duplicated and may be closed by the caller; the copy is closed with the object. Symbols
    are read when they are first asked for. Raises `MalformedElf` when the file is something else or
    contradicts itself, OSError when it cannot be read. `frame_header` is where `.eh_frame_hdr` lies by the
    program headers: it is there when section headers were stripped. `has_full_table`: there is a `.symtab`,
    the names of static functions too.
    """

    def __init__(self, source: int | bytes) -> None:
        self._data: bytes | None = None
        self._descriptor = -1
        if isinstance(source, bytes):
            self._data = source
            self.size = len(source)
        else:
            self._descriptor = os.dup(source)
            weakref.finalize(self, os.close, self._descriptor)
            self.size = os.fstat(source).st_size
        facts = self._read_header()
        self.segments: list[Segment] = []
        self._notes: list[tuple[int, int]] = []
        self.frame_header: Extent | None = None
        self._read_segments(*facts.segments)
        self.sections: list[Section] = []
        self._read_sections(*facts.sections, facts.names)
        self.has_full_table = any(section.kind == _SHT_SYMTAB for section in self.sections)
        self.build_id = ""
        self.is_go = False
        self._read_notes()
        self.flaws = 0
        self._functions: FunctionTable | None = None
        self._starts: Starts | None = None

    def _read_header(self) -> _Facts:
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
            names,
        ) = _HEADER.unpack(self._piece(0, _HEADER.size, "header"))
        if magic[:4] != b"\x7fELF":
            raise MalformedElf("no ELF object: wrong magic")
        if magic[4] != 2 or magic[5] != 1:
            raise MalformedElf("not a 64-bit little-endian ELF object")
        return _Facts(
            (segments_at, segment_size, segment_count), (sections_at, section_size, section_count), names
        )

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the file, also after the descriptor it was opened from is closed.

        Raises `MalformedElf` where the file holds less, or for more than 64 MB at once.
        """
        return self._piece(offset, size, "what was asked for")

    def _piece(self, offset: int, size: int, what: str) -> bytes:
        if not 0 <= size <= _MAX_READ or offset < 0 or offset + size > self.size:
            raise MalformedElf(f"{what} lies outside the file")
        if self._data is not None:
            return self._data[offset : offset + size]
        data = os.pread(self._descriptor, size, offset)
        if len(data) != size:
            raise MalformedElf(f"{what} is cut short")
        return data

    def _read_segments(self, at: int, size: int, count: int) -> None:
        if (count and size != _SEGMENT.size) or count > _MAX_HEADERS:
            raise MalformedElf("program headers of an unknown form")
        table = self._piece(at, size * count, "program header table")
        for kind, flags, offset, address, _, in_file, _, _ in _SEGMENT.iter_unpack(table):
            if kind == _PT_LOAD:
                self.segments.append(Segment(offset, address, in_file, bool(flags & _EXECUTABLE)))
            elif kind == _PT_GNU_EH_FRAME:
                self.frame_header = Extent(address, offset, in_file)
            elif kind == _PT_NOTE:
                self._notes.append((offset, in_file))

    def _read_sections(self, at: int, size: int, count: int, names_index: int) -> None:
        if not at or not count:
            return
        if size != _SECTION.size or count > _MAX_HEADERS:
            raise MalformedElf("section headers of an unknown form")
        raw = list(_SECTION.iter_unpack(self._piece(at, size * count, "section header table")))
        names = b""
        if 0 < names_index < count:
            names = self._piece(raw[names_index][4], raw[names_index][5], "table of section names")
        for name, kind, flags, address, offset, length, link, _, _, entry in raw:
            end = names.find(b"\0", name, name + _MAX_NAME)
            text = names[name:end].decode(errors="replace") if end > name else ""
            self.sections.append(Section(text, kind, flags, address, offset, length, link, entry))
            if kind == _SHT_NOTE:
                self._notes.append((offset, length))

    def _read_notes(self) -> None:
        for offset, size in self._notes:
            # Only what tells two builds apart depends on a note: one that is broken is passed over.
            if size > _MAX_NOTES or offset + size > self.size:
                continue
            for name, kind, data in _parse_notes(self._piece(offset, size, "note")):
                if name == b"GNU\0" and kind == _NT_GNU_BUILD_ID and 0 < len(data) <= _MAX_BUILD_ID:
                    self.build_id = self.build_id or data.hex()
                self.is_go |= name == b"Go\0\0"

    def section(self, name: str) -> Extent | None:
        """Return where a section lies, None where there is none or its bytes are not in this file."""
        found = self._section(name)
        return None if found is None else Extent(found.address, found.offset, found.size)

    def _section(self, name: str) -> Section | None:
        for section in self.sections:
            if section.name == name and section.kind != _SHT_NOBITS:
                return section
        return None

    def is_compressed(self, name: str) -> bool:
        """Return whether a section's bytes are packed: to be read by `content`."""
        found = self._section(name)
        return found is not None and bool(found.flags & _SHF_COMPRESSED)

    def content(self, name: str, most: int = _MAX_READ) -> bytes | None:
        """Return a section's bytes, decompressed, None where there is none; `most` bounds them.

        Raises `MalformedElf` when it is longer or packed in another way than zlib's.
        """
        section = self._section(name)
        return None if section is None else self._content(section, most)

    def _content(self, section: Section, most: int) -> bytes:
        if section.size > most:
            raise MalformedElf(f"{section.name} is too long: {section.size} bytes")
        data = self._piece(section.offset, section.size, section.name)
        if not section.flags & _SHF_COMPRESSED:
            return data
        if len(data) < _COMPRESSION.size:
            raise MalformedElf(f"{section.name} is cut short")
        kind, _, size, _ = _COMPRESSION.unpack_from(data)
        if kind != _COMPRESSED_ZLIB or size > most:
            raise MalformedElf(f"{section.name} is packed in an unknown way, or too long")
        try:
            unpacked = zlib.decompressobj().decompress(data[_COMPRESSION.size :], size + 1)
        except zlib.error as error:
            raise MalformedElf(f"{section.name} does not unpack: {error}") from error
        if len(unpacked) != size:
            raise MalformedElf(f"{section.name} unpacks to another length than it says")
        return unpacked

    def address_of(self, file_offset: int) -> int | None:
        """Return the virtual address at which a byte of the file is loaded, None where it is not."""
        for offset, address, size, _ in self.segments:
            if offset <= file_offset < offset + size:
                return file_offset - offset + address
        return None

    def loaded_around(self, file_offset: int) -> tuple[int, int]:
        """Return the bytes [start, end) of the file that are loaded in one piece with one of them.

        Where segments overlap, a byte belongs to the first that holds it, as `address_of` says. A byte that
        is not loaded is alone.
        """
        low, high = 0, _NO_END
        for offset, _, size, _ in self.segments:
            end = offset + size
            if offset <= file_offset < end:
                return max(low, offset), min(high, end)
            if end <= file_offset:
                low = max(low, end)
            else:
                high = min(high, offset)
        return file_offset, file_offset + 1

    def offset_of(self, address: int) -> int | None:
        """Return where in the file the byte at a virtual address lies, None where it is in none."""
        for offset, start, size, _ in self.segments:
            if start <= address < start + size:
                return address - start + offset
        return None

    def bias(self, start: int, offset: int) -> int | None:
        """Return what to add to virtual addresses where file offset `offset` is mapped at `start`."""
        for segment in self.segments:
            # The kernel maps whole pages: a mapping may begin a little before its segment does.
            if segment.executable and segment.offset - mmap.PAGESIZE < offset < segment.offset + segment.size:
                return start - offset - (segment.address - segment.offset)
        return None

    def data_symbol(self, name: str) -> Symbol | None:
        """Return a global variable by name; a broken symbol table has none (counted in `flaws`)."""
        for table, names in self._symbol_tables():
            found = find_variable(table, names, name)
            if found is not None:
                return found
        return None

    def function_at(self, address: int) -> Symbol | None:
        """Return the function that holds a virtual address.

        One that has no symbol (static, stripped) has an empty name and the start that its unwind entry
        gives; None where not even that is known.
        """
        function = self.functions.at(address, self.starts.before(address))
        if function is not None:
            return Symbol(function.name, function.address, function.size)
        start, is_function = self.stretch_of(address)
        return Symbol("", start, 0) if is_function else None

    def stretch_of(self, address: int) -> tuple[int, bool]:
        """Return where the code that holds a virtual address begins, and whether it is one function.

        By unwind entries: an entry of the usual encoding says how long its function is (of another, the next
        one's start ends it). What lies after it, before the next, is no known function. -1: before all.
        """
        start, end = self.extent_of(address)
        return (end, False) if 0 <= end <= address else (start, start >= 0)

    def extent_of(self, address: int) -> tuple[int, int]:
        """Return where the last function before an address starts, and ends by its unwind entry; -1: none."""
        start = self.starts.before(address)
        entry = self.starts.entry_before(address)
        offset = self.offset_of(entry) if entry else None
        if start < 0 or offset is None or offset + _FRAME_ENTRY.size > self.size:
            return start, -1
        _, _, relative, length = _FRAME_ENTRY.unpack(self._piece(offset, _FRAME_ENTRY.size, ".eh_frame"))
        return start, start + length if entry + 8 + relative == start else -1

    @property
    def functions(self) -> FunctionTable:
        """The functions of `.symtab` and `.dynsym`, read when first asked for."""
        if self._functions is None:
            # The full table first: its names win over the dynamic one's aliases.
            self._functions = FunctionTable(self._symbol_tables())
        return self._functions

    @property
    def starts(self) -> Starts:
        """The starts of functions by `.eh_frame_hdr`, read when first asked for."""
        if self._starts is None:
            try:
                self._starts = self._read_starts()
            except MalformedElf:
                self.flaws += 1
                self._starts = Starts()
        return self._starts

    @property
    def cost(self) -> int:
        """What the tables read so far take in memory, in bytes."""
        functions = 0 if self._functions is None else self._functions.cost
        return functions + (0 if self._starts is None else self._starts.cost)

    def forget(self) -> None:
        """Drop the tables; they are read again when asked for."""
        self._functions = None
        self._starts = None

    def _symbol_tables(self) -> Iterator[tuple[bytes, bytes]]:
        for wanted in (_SHT_SYMTAB, _SHT_DYNSYM):
            for section in self.sections:
                if section.kind != wanted:
                    continue
                try:
                    table = self._symbol_table(section)
                except MalformedElf:
                    self.flaws += 1
                else:
                    yield table

    def _symbol_table(self, section: Section) -> tuple[bytes, bytes]:
        if section.entry_size != _SYMBOL_BYTES or section.link >= len(self.sections):
            raise MalformedElf("symbol table of an unknown form")
        table = self._content(section, _MAX_SYMBOLS)
        names = self._content(self.sections[section.link], _MAX_SYMBOLS)
        return table[: len(table) - len(table) % _SYMBOL_BYTES], names

    def _read_starts(self) -> Starts:
        if self.frame_header is None:
            return Starts()
        address, offset, size = self.frame_header
        return Starts.of_frame_header(self._piece(offset, size, ".eh_frame_hdr"), address)


def _parse_notes(notes: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    at = 0
    while at + _NOTE.size <= len(notes):
        name_size, size, kind = _NOTE.unpack_from(notes, at)
        name_at = at + _NOTE.size
        data_at = name_at + (name_size + 3 & ~3)
        yield notes[name_at : name_at + name_size], kind, notes[data_at : data_at + size]
        at = data_at + (size + 3 & ~3)
