"""The call frame information sections of an ELF object: finding and reading what one function has there.

Sources: the Linux Standard Base's "Exception Frames" (`.eh_frame` and its binary search table
`.eh_frame_hdr`), and DWARF 5, section 6.4.1 (`.debug_frame`). Entries are read and decoded when they are
asked for, one function at a time; only what many functions share is kept.
"""

from __future__ import annotations

import bisect
import struct
import zlib
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from quayscope.sidecar.errors import MalformedCfi, MalformedElf
from quayscope.sidecar.native.cfi import CfaRule, Program, Row, run
from quayscope.sidecar.native.elf import Elf, Extent
from quayscope.sidecar.native.expressions import sleb, uleb

__all__ = ["FrameTable", "Function"]

_MASK = (1 << 64) - 1
_MAX_ENTRY = 256 << 10
"""No entry is read past this many bytes; the longest seen have some 10 kB."""
_MAX_TABLE = 16 << 20
_MAX_SCANNED = 1 << 18
"""Entries of a section without a search table that are looked through: 2 s of CPU at most, once an object."""
_MAX_SHARED = 4096
_FIRST_READ = 512
_PCREL, _DATAREL, _OMITTED = 0x10, 0x30, 0xFF
_SEARCH_TABLE = 0x3B
"""How every linker writes the table: pairs of signed 32-bit offsets from the header's address."""
_FORMATS = {
    0x00: struct.Struct("<Q"),
    0x02: struct.Struct("<H"),
    0x03: struct.Struct("<I"),
    0x04: struct.Struct("<Q"),
    0x0A: struct.Struct("<h"),
    0x0B: struct.Struct("<i"),
    0x0C: struct.Struct("<q"),
}


class Function(NamedTuple):
    """The rows of [start, end), in order of address; `signal`: its caller was interrupted by it."""

    start: int
    end: int
    rows: Sequence[Row]
    return_column: int
    signal: bool


class _Shared(NamedTuple):
    """A CIE: what its functions have in common."""

    code_factor: int
    data_factor: int
    return_column: int
    encoding: int
    signal: bool
    augmented: bool
    row: Row


class _Entry(NamedTuple):
    """A CIE or FDE with its length field; `body` is where the field after the length lies.

    A `size` of 0 is a terminator.
    """

    data: bytes
    body: int
    size: int


class FrameTable:
    """The call frame information of one object, functions numbered by address.

    `checksum` differs where the starts of functions do; `flaws` counts where a section made no sense. Methods
    raise `MalformedCfi` for what contradicts itself, and `MalformedElf` or OSError when the file can
    no longer be read.
    """

    def __init__(self, elf: Elf, section: Extent, header: Extent | None, *, debug: bool) -> None:
        self._elf = elf
        self._debug = debug
        self._section = section
        self._header_address = header.address if header is not None else 0
        self._shared: dict[int, _Shared] = {}
        self._base: int | None = None
        self.flaws = 0
        self.checksum = 0
        self._starts: Sequence[int] = ()
        self._entries: Sequence[int] = ()
        if header is None or not self._read_header(header):
            self._scan()

    @classmethod
    def of(cls, elf: Elf, *, debug: bool = True) -> FrameTable | None:
        """Return the table of `.eh_frame`, else (where `debug`) of `.debug_frame`, else None."""
        header = elf.frame_header
        section = elf.section(".eh_frame")
        if section is not None or header is not None:
            # Section headers may be stripped: the search table leads to the entries all the same.
            return cls(elf, section or Extent(0, 0, 0), header, debug=False)
        section = elf.section(".debug_frame") if debug else None
        return None if section is None else cls(elf, section, None, debug=True)

    @property
    def size(self) -> int:
        """Bytes of memory that the table takes."""
        return len(self._starts) * (8 if self._base is not None else 16)

    def index_of(self, address: int) -> int:
        """Return the number of the last function that starts at or before an address, -1 for none."""
        return bisect.bisect_right(self._starts, address - (self._base or 0)) - 1

    def start_of(self, index: int) -> int:
        """Return the virtual address at which a function starts, by its number."""
        return self._starts[index] + (self._base or 0) & _MASK

    def end_of(self, index: int) -> int:
        """Return the virtual address up to which a function can be the last one: the next one's start."""
        return self._starts[index + 1] + (self._base or 0) if index + 1 < len(self._starts) else _MASK + 1

    def function(self, index: int) -> Function:
        """Return a function by its number."""
        at = self._entries[index]
        if self._base is not None:
            offset = self._elf.offset_of(self._base + at & _MASK)
            if offset is None:
                raise MalformedCfi("the search table points out of the object")
            at = offset
        try:
            return self._decode(at)
        except (IndexError, struct.error) as error:
            raise MalformedCfi("an entry is cut short") from error

    def _read_header(self, header: Extent) -> bool:
        """Take the search table; False where there is none of a known form."""
        if not 8 <= header.size <= _MAX_TABLE:
            return False
        data = self._elf.read(header.offset, header.size)
        if data[0] != 1 or data[3] != _SEARCH_TABLE:
            return False
        try:
            _, at = self._pointer(data, 4, data[1], header.address + 4)
            count, at = self._pointer(data, at, data[2], header.address + at)
        except (IndexError, struct.error, MalformedCfi):
            return False
        count = min(count, (len(data) - at) // 8)
        if not count:
            return False
        raw = data[at : at + count * 8]
        table = memoryview(raw).cast("i")
        self._starts = table[::2]
        self._entries = table[1::2]
        self._base = header.address
        self.checksum = zlib.crc32(raw)
        return True

    def _scan(self) -> None:
        """Make the search table from the entries themselves: up to the first that makes no sense."""
        found: dict[int, int] = {}
        at = self._section.offset
        end = at + self._section.size
        scanned = 0
        while at + 8 <= end and scanned < _MAX_SCANNED:
            scanned += 1
            try:
                entry = self._entry(at)
                if not entry.size:
                    # A terminator, which linkers leave between the parts of several objects.
                    at += 4
                    continue
                if not self._is_shared(entry):
                    start, size, _ = self._range(at, entry)
                    if size:
                        found.setdefault(start, at)
            except (IndexError, struct.error, MalformedCfi, MalformedElf):
                self.flaws += 1
                break
            at += entry.size
        self._starts = array("Q", sorted(found))
        self._entries = array("Q", [found[start] for start in self._starts])
        self.checksum = zlib.crc32(self._starts)

    def _entry(self, at: int) -> _Entry:
        try:
            data = self._elf.read(at, _FIRST_READ)
        except MalformedElf:
            data = self._elf.read(at, 4)
        size, body = int.from_bytes(data[:4], "little"), 4
        if not size:
            return _Entry(data, 4, 0)
        if size == 0xFFFFFFFF:
            data = self._elf.read(at, 12) if len(data) < 12 else data
            size, body = int.from_bytes(data[4:12], "little"), 12
        size += body
        if size > _MAX_ENTRY:
            raise MalformedCfi("an entry that is too long")
        return _Entry(data[:size] if size <= len(data) else self._elf.read(at, size), body, size)

    def _is_shared(self, entry: _Entry) -> bool:
        return self._link(entry) == ((1 << 8 * self._width(entry)) - 1 if self._debug else 0)

    def _width(self, entry: _Entry) -> int:
        return 8 if self._debug and entry.body == 12 else 4

    def _link(self, entry: _Entry) -> int:
        width = self._width(entry)
        if len(entry.data) < entry.body + width:
            raise MalformedCfi("an entry is cut short")
        return int.from_bytes(entry.data[entry.body : entry.body + width], "little")

    def _range(self, at: int, entry: _Entry) -> tuple[int, int, tuple[_Shared, int]]:
        """Return a function's start, its size, and its CIE with the offset of what follows the range."""
        link = self._link(entry)
        shared = self._shared_at(self._section.offset + link if self._debug else at + entry.body - link)
        position = entry.body + self._width(entry)
        address = self._address(at)
        start, position = self._pointer(entry.data, position, shared.encoding, address + position)
        size, position = self._pointer(entry.data, position, shared.encoding & 0x0F, 0)
        return start, size, (shared, position)

    def _address(self, at: int) -> int:
        return 0 if self._debug else self._elf.address_of(at) or 0

    def _shared_at(self, at: int) -> _Shared:
        known = self._shared.get(at)
        if known is None:
            if at < 0:
                raise MalformedCfi("an entry before its section")
            if len(self._shared) >= _MAX_SHARED:
                self._shared.clear()
            known = self._shared[at] = self._decode_shared(self._entry(at))
        return known

    def _decode_shared(self, entry: _Entry) -> _Shared:
        data, at = entry.data, entry.body + self._width(entry)
        if not entry.size or not self._is_shared(entry):
            raise MalformedCfi("a function without what it shares with others")
        version = data[at]
        if version not in (1, 3, 4):
            raise MalformedCfi(f"version {version} of the format")
        end = data.index(b"\0", at + 1) if b"\0" in data[at + 1 :] else len(data)
        augmentation = data[at + 1 : end]
        at = end + 1
        if version == 4:
            if data[at : at + 2] != b"\x08\0":
                raise MalformedCfi("addresses of another size than 8 bytes")
            at += 2
        code_factor, at = uleb(data, at)
        data_factor, at = sleb(data, at)
        return_column, at = (data[at], at + 1) if version == 1 else uleb(data, at)
        encoding, signal = 0, False
        if augmentation[:1] == b"z":
            length, at = uleb(data, at)
            encoding, signal = self._augmented(augmentation[1:], data, at)
            at += length
        elif augmentation:
            raise MalformedCfi(f"augmentation {augmentation!r}")
        row = Row(0, CfaRule(-1, 0), {})
        shared = _Shared(
            code_factor, data_factor, return_column, encoding, signal, augmentation[:1] == b"z", row
        )
        rows = self._run(data, at, shared, 0, 0)
        if at > len(data) or len(rows) != 1:
            raise MalformedCfi("what functions share is cut short, or moves on")
        return shared._replace(row=rows[0])

    def _augmented(self, letters: bytes, data: bytes, at: int) -> tuple[int, bool]:
        encoding, signal = 0, False
        for letter in letters:
            if letter == 0x52:  # R: how functions point to their code
                encoding = data[at]
                at += 1
            elif letter == 0x53:  # S: a signal frame
                signal = True
            elif letter == 0x4C:  # L: how they point to their exception table
                at += 1
            elif letter == 0x50:  # P: the personality routine
                _, at = self._pointer(data, at + 1, data[at] & 0x0F, 0)
            elif letter != 0x42:  # B: return addresses are signed with key B (aarch64)
                # The rest cannot be told apart; its length is known, so it is passed over as a whole.
                break
        return encoding, signal

    def _decode(self, at: int) -> Function:
        entry = self._entry(at)
        if not entry.size or self._is_shared(entry):
            raise MalformedCfi("the search table points to no function")
        start, size, (shared, position) = self._range(at, entry)
        if shared.augmented:
            length, position = uleb(entry.data, position)
            position += length
        if position > len(entry.data):
            raise MalformedCfi("an entry is cut short")
        rows = self._run(entry.data, position, shared, start, self._address(at))
        return Function(start, start + size, rows, shared.return_column, shared.signal)

    def _pointer(self, data: bytes, at: int, encoding: int, address: int) -> tuple[int, int]:
        """Return an encoded pointer that lies at virtual address `address`, and the offset after it."""
        if encoding == _OMITTED:
            return 0, at
        form = encoding & 0x0F
        if form == 0x01:
            value, at = uleb(data, at)
        elif form == 0x09:
            value, at = sleb(data, at)
        else:
            layout = _FORMATS.get(form)
            if layout is None:
                raise MalformedCfi(f"a pointer of encoding {encoding:#x}")
            (value,) = layout.unpack_from(data, at)
            at += layout.size
        relative = encoding & 0xF0
        if relative == _PCREL:
            value += address
        elif relative == _DATAREL:
            value += self._header_address
        elif relative:
            raise MalformedCfi(f"a pointer of encoding {encoding:#x}")
        return value & _MASK, at

    def _run(self, data: bytes, at: int, shared: _Shared, start: int, address: int) -> list[Row]:
        def pointer(at: int) -> tuple[int, int]:
            return self._pointer(data, at, shared.encoding, address + at)

        program = Program(data, at, start, shared.code_factor, shared.data_factor)
        return run(program, shared.row, pointer)
