"""Names of kernel addresses, from /proc/kallsyms where it shows addresses (kptr_restrict)."""

from __future__ import annotations

import contextlib

from quayscope.profile import Frame

__all__ = ["KernelSymbols"]

_CODE = (b"t", b"T", b"w", b"W")
_MAX_TEXT = 48 << 20
"""A table past this many bytes is not read: half a million symbols."""
_DIGITS = 16
_MAX_NAME = 512
_MAX_FRAMES = 20_000


class KernelSymbols:
    """Frames for kernel addresses; the table is read when first asked for.

    It is kept as the text that it is, 45 bytes a symbol, which takes 5 to 12 MB: taking 200,000 lines apart
    costs more than looking the few hundred addresses up in it that are ever asked for.
    """

    UNNAMED = Frame("[kernel]", kind="kernel")
    """One frame for all where there are no names: a bare address would tell the kernel's layout."""

    def __init__(self, path: str = "/proc/kallsyms") -> None:
        self._path = path
        self._loaded = False
        # The kernel's own functions come in order, as it looks them up itself; the modules' follow in none.
        self._parts = (b"", b"")
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
        wanted = b"%016x" % address
        core, modules = (_before(part, wanted) for part in self._parts)
        start, name = modules if modules[0] >= core[0] else core
        return Frame(name.decode(errors="replace"), kind="kernel") if start.strip(b"0") else self.UNNAMED

    def _load(self) -> None:
        text = b""
        with contextlib.suppress(OSError), open(self._path, "rb") as file:
            text = file.read(_MAX_TEXT + 1)
        if len(text) > _MAX_TEXT:
            return
        module = text.find(b"\t[")
        middle = text.rfind(b"\n", 0, module) + 1 if module >= 0 else len(text)
        self._parts = text[:middle], b"\n".join(sorted(text[middle:].splitlines()))


def _before(text: bytes, wanted: bytes) -> tuple[bytes, bytes]:
    """Return the address (16 digits) and the name of the last function at or before `wanted`; empty: none.

    Lines are in order of their addresses, which have as many digits each.
    """
    low, high = 0, len(text)
    while low < high:
        middle = (low + high) // 2
        start = text.rfind(b"\n", low, middle) + 1 or low
        if text[start : start + _DIGITS] <= wanted:
            low = text.find(b"\n", middle) + 1 or high
        else:
            high = start
    while low > 0:
        start = text.rfind(b"\n", 0, low - 1) + 1
        fields = text[start:low].split(None, 3)
        if len(fields) >= 3 and fields[1] in _CODE and len(fields[0]) == _DIGITS:
            return fields[0], fields[2][:_MAX_NAME]
        low = start
    return b"", b""
