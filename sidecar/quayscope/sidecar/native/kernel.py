"""Names of kernel addresses, from /proc/kallsyms where it shows addresses (kptr_restrict)."""

from __future__ import annotations

import bisect
import contextlib
from array import array

from quayscope.profile import Frame

__all__ = ["KernelSymbols"]

_CODE = b"tTwW"
_MAX_SYMBOLS = 1 << 20
_MAX_NAME = 512
_MAX_FRAMES = 20_000


class KernelSymbols:
    """Frames for kernel addresses; the table is read when first asked for.

    Some 100,000 functions take 12 bytes each and their names, less than 8 MB; 1,048,576 are kept at most.
    """

    UNNAMED = Frame("[kernel]", kind="kernel")
    """One frame for all where there are no names: a bare address would tell the kernel's layout."""

    def __init__(self, path: str = "/proc/kallsyms") -> None:
        self._path = path
        self._loaded = False
        # The kernel's own functions come in order; the modules' after them, at other addresses.
        self._parts = (_Packed(), _Packed())
        self._names = b""
        self._frames: dict[int, Frame] = {}

    def frame(self, address: int) -> Frame:
        """Return the frame of a kernel address."""
        found = self._frames.get(address)
        if found is None:
            if len(self._frames) >= _MAX_FRAMES:
                self._frames.clear()
            found = self._frames[address] = self._resolve(address)
        return found

    def _resolve(self, address: int) -> Frame:
        if not self._loaded:
            self._loaded = True
            self._load()
        start, name = max(part.before(address) for part in self._parts)
        if start < 0:
            return self.UNNAMED
        end = self._names.find(b"\0", name)
        return Frame(self._names[name:end].decode(errors="replace"), kind="kernel")

    def _load(self) -> None:
        names = bytearray()
        core, rest = self._parts
        last = 0
        with contextlib.suppress(OSError), open(self._path, "rb") as file:
            for line in file:
                fields = line.split(None, 3)
                if len(fields) < 3 or fields[1] not in _CODE:
                    continue
                try:
                    address = int(fields[0], 16)
                except ValueError:
                    continue
                if not 0 < address < 1 << 64:
                    continue
                if len(core.addresses) + len(rest.addresses) >= _MAX_SYMBOLS:
                    break
                part = core if address >= last and not rest.addresses else rest
                last = address if part is core else last
                part.addresses.append(address)
                part.names.append(len(names))
                names += fields[2][:_MAX_NAME] + b"\0"
        rest.sort()
        self._names = bytes(names)


class _Packed:
    """Addresses, ascending, and where the name of each begins."""

    def __init__(self) -> None:
        self.addresses = array("Q")
        self.names = array("I")

    def sort(self) -> None:
        order = sorted(range(len(self.addresses)), key=self.addresses.__getitem__)
        self.addresses = array("Q", map(self.addresses.__getitem__, order))
        self.names = array("I", map(self.names.__getitem__, order))

    def before(self, address: int) -> tuple[int, int]:
        """Return the last start at or before an address and its name's place; -1 where there is none."""
        index = bisect.bisect_right(self.addresses, address) - 1
        return (self.addresses[index], self.names[index]) if index >= 0 else (-1, 0)
