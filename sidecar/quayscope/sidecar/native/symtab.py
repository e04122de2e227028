"""Symbol tables packed into arrays: which function holds an address, at 16 bytes a function and its name.

Layout of a table's entries: the System V ABI's "Symbol Table" (64-bit). A table of Python objects would take
ten times the memory.
"""

from __future__ import annotations

import bisect
import struct
from array import array
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Function", "FunctionTable", "Starts", "Symbol", "find_variable"]

_SYMBOL = struct.Struct("<IBBHQQ")
_STT_OBJECT = 1
_STT_FUNC = 2
_STT_GNU_IFUNC = 10
_STB_LOCAL = 0
_STB_WEAK = 2
_MAX_NAME = 4096
_MAX_SIZE = (1 << 32) - 1
_MAX_FUNCTIONS = 400_000
"""Functions kept of one object: sorting more takes too much memory for a moment."""
# .eh_frame_hdr as every linker writes it: table of pairs of signed 32-bit offsets from the header's address.
_TABLE_ENCODING = 0x3B
_COUNT_UDATA4 = 0x03
_POINTER_BYTES = {0x1B: 4, 0x03: 4, 0x0B: 4, 0x3B: 4, 0x04: 8, 0x0C: 8, 0x1C: 8}


class Symbol(NamedTuple):
    """A named stretch of the object; `address` is virtual, before relocation."""

    name: str
    address: int
    size: int


class Function(NamedTuple):
    """One entry of a `FunctionTable`: virtual address, size in bytes (0: not said), and where its name is."""

    address: int
    size: int
    name: int


class FunctionTable:
    """The functions of some symbol tables, given as (entries, names); earlier tables win.

    Of several names at one address the one that perf would show is kept: of a sized symbol, global before
    weak before local, with the fewest leading underscores. `skipped` counts functions beyond 400,000.
    """

    def __init__(self, tables: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.skipped = 0
        self.addresses = array("Q")
        self._sizes = array("I")
        self._offsets = array("I")
        self._names = b""
        for entries, names in tables:
            self._add(entries, names)

    def _add(self, entries: bytes, names: bytes) -> None:
        """Merge one table in: sorted as packed numbers, since objects would take ten times the memory."""
        addresses, sizes, offsets, ranks = array("Q"), array("I"), array("I"), array("B")
        for name, info, _, section, address, size in _SYMBOL.iter_unpack(entries):
            if not section or not address or info & 15 not in (_STT_FUNC, _STT_GNU_IFUNC):
                continue
            if len(addresses) + len(self.addresses) >= _MAX_FUNCTIONS:
                self.skipped += 1
                continue
            addresses.append(address)
            sizes.append(min(size, _MAX_SIZE))
            offsets.append(name)
            ranks.append(_rank(names, name, info >> 4, size))
        held = self.addresses
        merged = array("Q"), array("I"), array("I")
        kept = bytearray()
        at, last = 0, -1
        for index in sorted(range(len(addresses)), key=lambda i: addresses[i] << 8 | ranks[i]):
            address = addresses[index]
            while at < len(held) and held[at] <= address:
                last = held[at]
                self._copy(at, merged, kept)
                at += 1
            if address == last:
                continue
            last = address
            end = names.find(b"\0", offsets[index], offsets[index] + _MAX_NAME)
            _append(merged, kept, address, sizes[index], names[offsets[index] : max(end, offsets[index])])
        for rest in range(at, len(held)):
            self._copy(rest, merged, kept)
        self.addresses, self._sizes, self._offsets = merged
        self._names = bytes(kept)

    def _copy(self, index: int, into: tuple[array[int], array[int], array[int]], names: bytearray) -> None:
        start = self._offsets[index]
        name = self._names[start : self._names.find(b"\0", start)]
        _append(into, names, self.addresses[index], self._sizes[index], name)

    def __len__(self) -> int:
        return len(self.addresses)

    @property
    def cost(self) -> int:
        """What the table takes in memory, in bytes."""
        return 16 * len(self.addresses) + len(self._names)

    def at(self, address: int, floor: int) -> Function | None:
        """Return the function that holds a virtual address.

        Assembly routines have symbols without a size: those reach to the next start that is known, which
        `floor` is (the last start at or before the address by other sources, -1: none).
        """
        index = bisect.bisect_right(self.addresses, address) - 1
        if index < 0:
            return None
        start, size = self.addresses[index], self._sizes[index]
        if address < start + size or (size == 0 and floor <= start):
            return Function(start, size, self._offsets[index])
        return None

    def name(self, function: Function) -> str:
        """Return a function's name as it stands in the table: mangled where it is C++ or Rust."""
        end = self._names.find(b"\0", function.name)
        return self._names[function.name : end].decode(errors="replace")


def _append(
    into: tuple[array[int], array[int], array[int]], names: bytearray, address: int, size: int, name: bytes
) -> None:
    into[0].append(address)
    into[1].append(size)
    into[2].append(len(names))
    names += name + b"\0"


def _rank(names: bytes, at: int, binding: int, size: int) -> int:
    underscores = 0
    while underscores < 3 and names[at + underscores : at + underscores + 1] == b"_":
        underscores += 1
    weakness = 8 if binding == _STB_LOCAL else 4 if binding == _STB_WEAK else 0
    return (0 if size else 16) + weakness + underscores


def find_variable(entries: bytes, names: bytes, name: str) -> Symbol | None:
    """Return a global or weak variable of a symbol table by its name."""
    wanted = name.encode() + b"\0"
    for at, info, _, section, address, size in _SYMBOL.iter_unpack(entries):
        if info & 15 == _STT_OBJECT and info >> 4 and section and address and names.startswith(wanted, at):
            return Symbol(name, address, size)
    return None


class Starts:
    """The starts of functions, ascending virtual addresses, and those of their unwind entries (0: none)."""

    def __init__(self, starts: Iterable[tuple[int, int]] = ()) -> None:
        pairs = sorted(starts)
        self.addresses = array("Q", (start for start, _ in pairs))
        self._entries = array("Q", (entry for _, entry in pairs))

    @classmethod
    def of_frame_header(cls, data: bytes, address: int) -> Starts:
        """Return the starts that an `.eh_frame_hdr` lists; none where it has no table of the usual form."""
        if len(data) < 4 or data[0] != 1 or data[2] != _COUNT_UDATA4 or data[3] != _TABLE_ENCODING:
            return cls()
        pointer = _POINTER_BYTES.get(data[1])
        if pointer is None or len(data) < 8 + pointer:
            return cls()
        table = data[8 + pointer :]
        count = min(int.from_bytes(data[4 + pointer : 8 + pointer], "little"), len(table) // 8)
        pairs = struct.iter_unpack("<ii", table[: count * 8])
        return cls(
            (address + start, max(address + entry, 0))
            for start, entry in pairs
            if 0 <= address + start < 1 << 64 and address + entry < 1 << 64
        )

    def before(self, address: int) -> int:
        """Return the last start at or before an address, -1 where there is none."""
        index = bisect.bisect_right(self.addresses, address) - 1
        return self.addresses[index] if index >= 0 else -1

    def entry_before(self, address: int) -> int:
        """Return the address of the unwind entry of that start, 0 where there is none."""
        index = bisect.bisect_right(self.addresses, address) - 1
        return self._entries[index] if index >= 0 else 0

    @property
    def cost(self) -> int:
        """What they take in memory, in bytes."""
        return 16 * len(self.addresses)
