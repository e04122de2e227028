"""From addresses to a stack of frames, on the thread that flushes."""

from __future__ import annotations

from quayscope.profile import Frame
from quayscope.sidecar.native.maps import AddressSpace
from quayscope.sidecar.native.objects import Objects
from quayscope.sidecar.native.symbols import KernelSymbols, Symbols

__all__ = ["Stacks"]

_MAX_REMEMBERED = 8_192
"""Distinct user stacks: most samples of a server are of a few hundred."""


class Stacks:
    """Names whole stacks, and remembers the latest. Not thread-safe."""

    def __init__(self, objects: Objects) -> None:
        self._symbols = Symbols(objects)
        self._kernel = KernelSymbols()
        self._remembered: dict[tuple[AddressSpace, tuple[int, ...]], tuple[tuple[Frame, ...], bool]] = {}

    def user(self, space: AddressSpace, addresses: tuple[int, ...]) -> tuple[tuple[Frame, ...], bool]:
        """Return the frames, root first, and whether the outermost is where a thread begins."""
        key = (space, addresses)
        found = self._remembered.get(key)
        if found is None:
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered.clear()
            found = self._remembered[key] = self._name(space, addresses)
        return found

    def _name(self, space: AddressSpace, addresses: tuple[int, ...]) -> tuple[tuple[Frame, ...], bool]:
        frames: list[Frame] = []
        is_root = False
        for address in addresses:
            mapping = space.find(address)
            if mapping is None:
                # Code without frame pointers led the kernel astray: what follows is no stack.
                is_root = False
                break
            named = self._symbols.frame(space, mapping, address)
            frames.append(named.frame)
            is_root = named.is_root
        frames.reverse()
        return tuple(frames), is_root

    def kernel(self, addresses: tuple[int, ...]) -> tuple[Frame, ...]:
        """Return the kernel's frames, root first."""
        return tuple([self._kernel.frame(address) for address in reversed(addresses)])

    def forget(self) -> None:
        """Drop all names: the files behind the paths may be others now."""
        self._symbols.forget()
        self._remembered.clear()
