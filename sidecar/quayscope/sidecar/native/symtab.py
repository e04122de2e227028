"""Symbol tables packed into arrays: which function holds an address, at 13 bytes a function and the names.

Layout of a table's entries: the System V ABI's "Symbol Table" (64-bit). A table of Python objects would take
ten times the memory.
"""

from __future__ import annotations

import bisect
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress, islice, repeat
from operator import sub
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
_MAX_ADDRESS = (1 << 64) - 1
_MAX_ALIASES = 256
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
    """One entry of a `FunctionTable`: virtual address, size in bytes (0: not said), and name.

    The name is as it stands in the table: mangled where it is C++ or Rust.
    """

    address: int
    size: int
    name: str


class FunctionTable:
    """The functions of some symbol tables, given as (entries, names); earlier tables win.

    Of several names at one address the one that perf would show is kept: of a sized symbol, global before
    weak before local, with the fewest leading underscores. `skipped` counts names of functions beyond
    400,000; `cost` is what the table takes in memory, in bytes.
    """

    def __init__(self, tables: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.skipped = 0
        self._tables: list[_Table] = []
        for entries, names in tables:
            table = _Table(entries, names, _MAX_FUNCTIONS - len(self))
            self.skipped += table.skipped
            self._tables.append(table)
        self.cost = sum(table.cost for table in self._tables)

    def __len__(self) -> int:
        return sum(map(len, self._tables))

    @property
    def addresses(self) -> list[int]:
        """Where functions start, ascending; made anew each time."""
        return sorted({start for table in self._tables for start in table.starts if start})

    def at(self, address: int, floor: int) -> Function | None:
        """Return the function that holds a virtual address.

        Assembly routines have symbols without a size: those reach to the next start that is known, which
        `floor` is (the last start at or before the address by other sources, -1: none).
        """
        last, holder = 0, None
        for table in self._tables:
            start = table.before(address)
            if start > last:
                last, holder = start, table
        if holder is None:
            return None
        found = holder.best(last)
        return found if address < last + found.size or (found.size == 0 and floor <= last) else None

    def around(self, address: int) -> Iterator[int]:
        """Return where functions begin and end around a virtual address: up to there `at` is the same."""
        for table in self._tables:
            yield from table.around(address)


class _Table:
    """One symbol table's functions in order of address, taken apart into columns of 13 bytes a function.

    Nothing is done for each of them in Python: of a hundred thousand only some hundred are ever asked for.
    """

    def __init__(self, entries: bytes, names: bytes, most: int) -> None:
        wanted = _functions(entries)
        values = memoryview(entries).cast("Q")
        starts, sizes = values[1::3], values[2::3]
        order = list(islice(compress(range(len(wanted)), wanted), most))
        self.skipped = wanted.count(1) - len(order)
        order.sort(key=starts.__getitem__)
        self._names = names if order else b""
        self._base = starts[order[0]] if order else 0
        span = starts[order[-1]] - self._base if order else 0
        distances = map(sub, map(starts.__getitem__, order), repeat(self._base))
        self._distances = array("I" if span <= _MAX_SIZE else "Q", distances)
        self._sizes = array("I", map(min, map(sizes.__getitem__, order), repeat(_MAX_SIZE)))
        self._offsets = array("I", map(memoryview(entries).cast("I")[::6].__getitem__, order))
        self._bindings = bytes(map(entries[4 :: _SYMBOL.size].__getitem__, order))

    def __len__(self) -> int:
        return len(self._distances)

    @property
    def starts(self) -> set[int]:
        """The addresses at which functions start."""
        return {self._base + distance for distance in self._distances}

    @property
    def cost(self) -> int:
        """What it takes in memory, in bytes."""
        return len(self) * (self._distances.itemsize + 9) + len(self._names)

    def before(self, address: int) -> int:
        """Return the last start at or before an address, 0 where there is none."""
        index = bisect.bisect_right(self._distances, address - self._base) - 1
        return self._base + self._distances[index] if index >= 0 else 0

    def around(self, address: int) -> Iterator[int]:
        """Return the starts before and after an address, and the ends of all that begins at the first."""
        index = bisect.bisect_right(self._distances, address - self._base)
        if index < len(self):
            yield self._base + self._distances[index]
        if index > 0:
            start = self._distances[index - 1]
            yield self._base + start
            for alias in range(index - 1, max(-1, index - 1 - _MAX_ALIASES), -1):
                if self._distances[alias] != start:
                    break
                yield self._base + start + self._sizes[alias]

    def best(self, start: int) -> Function:
        """Return what starts at an address, by the best of its names."""
        first = bisect.bisect_left(self._distances, start - self._base)
        last = bisect.bisect_right(self._distances, start - self._base, first)
        index = min(range(first, min(last, first + _MAX_ALIASES)), key=self._rank)
        at = self._offsets[index]
        end = self._names.find(b"\0", at, at + _MAX_NAME)
        return Function(start, self._sizes[index], self._names[at : max(end, at)].decode(errors="replace"))

    def _rank(self, index: int) -> int:
        at, binding = self._offsets[index], self._bindings[index] >> 4
        prefix = self._names[at : at + 3]
        weakness = 8 if binding == _STB_LOCAL else 4 if binding == _STB_WEAK else 0
        return (0 if self._sizes[index] else 16) + weakness + len(prefix) - len(prefix.lstrip(b"_"))


_IS_FUNCTION = bytes(info & 15 in (_STT_FUNC, _STT_GNU_IFUNC) for info in range(256))
_IS_SET = bytes(bool(byte) for byte in range(256))


def _functions(entries: bytes) -> bytes:
    """Return 1 for each entry that is a function and defined here, else 0."""
    low, high = entries[6 :: _SYMBOL.size].translate(_IS_SET), entries[7 :: _SYMBOL.size].translate(_IS_SET)
    defined = int.from_bytes(low, "little") | int.from_bytes(high, "little")
    wanted = int.from_bytes(entries[4 :: _SYMBOL.size].translate(_IS_FUNCTION), "little") & defined
    return wanted.to_bytes(len(low), "little")


def find_variable(entries: bytes, names: bytes, name: str) -> Symbol | None:
    """Return a global or weak variable of a symbol table by its name."""
    wanted = name.encode() + b"\0"
    for at, info, _, section, address, size in _SYMBOL.iter_unpack(entries):
        if info & 15 == _STT_OBJECT and info >> 4 and section and address and names.startswith(wanted, at):
            return Symbol(name, address, size)
    return None


class Starts:
    """The starts of functions, ascending virtual addresses, and those of their unwind entries (0: none).

    `pairs` of both are given as distances from `base`.
    """

    def __init__(self, pairs: Iterable[tuple[int, int]] = (), base: int = 0) -> None:
        ordered = sorted(pairs)
        self._base = base
        self._starts: Sequence[int] = array("q", [start for start, _ in ordered])
        self._entries: Sequence[int] = array("q", [entry for _, entry in ordered])

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
        words = memoryview(table[: count * 8]).cast("i")
        starts = words[::2].tolist()
        if starts != sorted(starts):
            # Linkers sort it.
            return cls(zip(starts, words[1::2], strict=True), address)
        found = cls((), address)
        found._starts, found._entries = words[::2], words[1::2]
        return found

    @property
    def addresses(self) -> list[int]:
        """All starts; made anew each time."""
        return [self._base + start for start in self._starts if 0 <= self._base + start <= _MAX_ADDRESS]

    def before(self, address: int) -> int:
        """Return the last start at or before an address, -1 where there is none."""
        index = bisect.bisect_right(self._starts, address - self._base) - 1
        return max(-1, self._base + self._starts[index]) if index >= 0 else -1

    def entry_before(self, address: int) -> int:
        """Return the address of the unwind entry of that start, 0 where there is none."""
        index = bisect.bisect_right(self._starts, address - self._base) - 1
        entry = self._base + self._entries[index] if index >= 0 else 0
        return entry if 0 <= entry <= _MAX_ADDRESS else 0

    def around(self, address: int) -> Iterator[int]:
        """Return the starts before and after an address."""
        index = bisect.bisect_right(self._starts, address - self._base)
        for near in self._starts[max(0, index - 1) : index + 1]:
            yield self._base + near

    @property
    def cost(self) -> int:
        """What they take in memory, in bytes."""
        return 16 * len(self._starts) if isinstance(self._starts, array) else 8 * len(self._starts)
