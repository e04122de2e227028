"""Names for addresses: of mapped files, read through the process they are mapped in, and of the kernel."""

from __future__ import annotations

import bisect
import contextlib
from pathlib import Path
from typing import NamedTuple

from quayscope.profile import Frame
from quayscope.sidecar.native.maps import AddressSpace, Mapping
from quayscope.sidecar.native.objects import Objects

__all__ = ["KernelSymbols", "NativeFrame", "Symbols"]

_MAX_FRAMES = 200_000
_ROOTS = frozenset(
    {"_start", "main", "__libc_start_main", "__libc_start_call_main", "__libc_start_main_impl"}
)


class NativeFrame(NamedTuple):
    """A frame, and whether a stack that ends in it reached its root."""

    frame: Frame
    is_root: bool


class Symbols:
    """Frames for user addresses, remembered by file and offset."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._frames: dict[tuple[str, int], NativeFrame] = {}

    def frame(self, space: AddressSpace, mapping: Mapping, address: int) -> NativeFrame:
        """Return the frame of an address that `mapping` of `space` holds."""
        offset = address - mapping.start + mapping.offset
        key = (mapping.path, offset)
        found = self._frames.get(key)
        if found is None:
            if len(self._frames) >= _MAX_FRAMES:
                self._frames.clear()
            found = self._frames[key] = self._resolve(space, mapping, offset)
        return found

    def forget(self) -> None:
        """Drop all names: the files behind the paths may be others now (a new server)."""
        self._frames.clear()

    def _resolve(self, space: AddressSpace, mapping: Mapping, offset: int) -> NativeFrame:
        short = Path(mapping.path.removesuffix(" (deleted)")).name or "[anonymous]"
        elf = self._objects.of(space.pid, mapping.path) if mapping.path.startswith("/") else None
        if elf is None:
            # Generated code and unreadable files have no names; one frame each keeps profiles bounded.
            return NativeFrame(Frame(short, file=mapping.path), False)
        address = elf.address_of(offset)
        function = None if address is None else elf.function_at(address)
        if function is None:
            return NativeFrame(Frame(short, file=mapping.path), False)
        entry = function.address <= elf.entry < function.address + max(function.size, 1)
        name = function.name or ("_start" if entry else f"{short}+{function.address:#x}")
        return NativeFrame(Frame(name, file=mapping.path), name in _ROOTS)


class KernelSymbols:
    """Frames for kernel addresses from /proc/kallsyms, where it shows addresses (kptr_restrict)."""

    UNNAMED = Frame("[kernel]", kind="kernel")
    """One frame for all where there are no names: a bare address would tell the kernel's layout."""

    def __init__(self, path: str = "/proc/kallsyms") -> None:
        self._path = path
        self._addresses: list[int] | None = None
        self._names: list[str] = []
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
        if self._addresses is None:
            self._load()
        assert self._addresses is not None
        index = bisect.bisect_right(self._addresses, address) - 1
        return Frame(self._names[index], kind="kernel") if index >= 0 else self.UNNAMED

    def _load(self) -> None:
        entries = []
        with contextlib.suppress(OSError), open(self._path, "rb") as file:
            for line in file:
                fields = line.split()
                if len(fields) >= 3 and fields[1] in (b"t", b"T", b"w", b"W"):
                    with contextlib.suppress(ValueError):
                        entries.append((int(fields[0], 16), fields[2]))
        entries.sort()
        if not entries or entries[-1][0] == 0:
            entries = []
        self._addresses = [address for address, _ in entries]
        self._names = [name.decode(errors="replace") for _, name in entries]
