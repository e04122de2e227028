"""Names of kernel addresses, from /proc/kallsyms where it shows addresses (kptr_restrict)."""

from __future__ import annotations

import bisect
import contextlib
from array import array
from typing import NamedTuple

from quayscope.profile import Frame

__all__ = ["KernelSymbols"]

_CODE = (b"t", b"T", b"w", b"W")
_MAX_TEXT = 48 << 20
"""A table past this many bytes is not read: half a million symbols."""
_DIGITS = 16
_MAX_NAME = 512
_MAX_LINE = 1024
_STRIDE = 4096
_LAST = (1 << 64) - 1


class KernelSymbols:
    """Frames for kernel addresses; the table is read when first asked for.

    It is kept as the text that it is, 45 bytes a symbol, which takes 5 to 12 MB, with an index of every 4 kB:
    taking 200,000 lines apart costs more than looking the few hundred functions up in it that are ever asked
    for.
    """

    UNNAMED = Frame("[kernel]", kind="kernel")
    """One frame for all where there are no names: a bare address would tell the kernel's layout."""

    def __init__(self, path: str = "/proc/kallsyms") -> None:
        self._path = path
        self._parts: tuple[_Part, ...] | None = None

    def around(self, address: int) -> tuple[Frame, int, int]:
        """Return the frame of a kernel address, and the addresses [start, end) around it that share it."""
        if self._parts is None:
            self._parts = self._load()
        best, start, end = _Found(0, b"", 0, _LAST + 1), 0, _LAST + 1
        for part in self._parts:
            found = part.before(address)
            best = found if found.address >= best.address else best
            start, end = max(start, found.start), min(end, found.end)
        if not best.address:
            return self.UNNAMED, start, end
        return Frame(best.name.decode(errors="replace"), kind="kernel"), start, end

    def _load(self) -> tuple[_Part, ...]:
        text = b""
        with contextlib.suppress(OSError), open(self._path, "rb") as file:
            text = file.read(_MAX_TEXT + 1)
        if len(text) > _MAX_TEXT:
            return ()
        # The kernel's own functions come in order, as it looks them up itself; the modules' follow in none.
        module = text.find(b"\t[")
        middle = text.rfind(b"\n", 0, module) + 1 if module >= 0 else len(text)
        return _Part(text[:middle]), _Part(b"\n".join(sorted(text[middle:].splitlines())))


class _Found(NamedTuple):
    """A function's address (0: none) and name, and the addresses [start, end) for which it is the answer."""

    address: int
    name: bytes
    start: int
    end: int


class _Part:
    """Lines in order of their addresses, which have as many digits each."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._offsets = array("I")
        self._addresses = array("Q")
        at = 0
        while 0 <= at < len(text):
            address = _address(text, at)
            if address < 0:
                break
            if not self._addresses or address >= self._addresses[-1]:
                self._offsets.append(at)
                self._addresses.append(address)
            at = text.find(b"\n", at + _STRIDE) + 1 or len(text)

    def before(self, address: int) -> _Found:
        """Return the last function at or before an address."""
        text, index = self._text, bisect.bisect_right(self._addresses, address)
        at = self._offsets[index - 1] if index else 0
        last, start, end = -1, 0, _LAST + 1
        while at < len(text):
            here = _address(text, at)
            if here > address:
                end = here
                break
            if here >= 0:
                last, start = at, here
            at = text.find(b"\n", at) + 1 or len(text)
        while last >= 0:
            fields = text[last : last + _MAX_LINE].split(b"\n", 1)[0].split(None, 3)
            if len(fields) >= 3 and fields[1] in _CODE:
                return _Found(int(fields[0], 16), fields[2][:_MAX_NAME], start, end)
            last = text.rfind(b"\n", 0, last - 1) + 1 if last else -1
        return _Found(0, b"", start, end)


def _address(text: bytes, at: int) -> int:
    """Return the address that a line begins with, -1 where it is none."""
    try:
        return int(text[at : at + _DIGITS], 16)
    except ValueError:
        return -1
