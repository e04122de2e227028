"""From addresses to a stack of frames, on the thread that flushes."""

from __future__ import annotations

import os
from itertools import chain

from quayscope.profile import Frame
from quayscope.sidecar.native.debuginfod import Debuginfod
from quayscope.sidecar.native.inlines import Inlines
from quayscope.sidecar.native.kernel import KernelSymbols
from quayscope.sidecar.native.maps import AddressSpace, Layout
from quayscope.sidecar.native.objects import Objects
from quayscope.sidecar.native.symbols import Symbols

__all__ = ["Stacks"]

_MAX_REMEMBERED = 2_048
"""Distinct stacks of callers: a server has a few hundred. Each keeps its process's maps."""

_MAX_ADDRESSES = 60_000
_MAX_SPACES = 512
"""Layouts whose first process is known: backends of a server share one, what comes and goes has its own."""

_Frames = tuple[Frame, ...]
_Stack = tuple[_Frames, bool]


class Stacks:
    """Names whole stacks, and remembers the latest. Not thread-safe."""

    def __init__(
        self, objects: Objects, debuginfod: Debuginfod | None = None, inlines: Inlines | None = None
    ) -> None:
        self._symbols = Symbols(objects, debuginfod, inlines)
        self._kernel = KernelSymbols()
        self._remembered: dict[tuple[Layout, tuple[int, ...]], _Stack] = {}
        self._kernels: dict[tuple[int, ...], _Frames] = {}
        self._known: dict[Layout, _Known] = {}
        self._held = 0

    @property
    def unnamed(self) -> int:
        """Addresses that got no name."""
        return self._symbols.unnamed

    @property
    def malformed(self) -> int:
        """Files and tables that contradict themselves."""
        return self._symbols.malformed

    def user(self, space: AddressSpace, addresses: tuple[int, ...], root_pid: int) -> _Stack:
        """Return the frames, root first, and whether the outermost is where a thread begins.

        `addresses` are leaf first, one at least. Files are read through the process, else, when it is gone,
        through `root_pid` of the same container.
        """
        if self._symbols.refresh() or self._held > _MAX_ADDRESSES:
            self._forget()
        layout = space.layout
        known = self._known.get(layout)
        if known is None:
            if len(self._known) >= _MAX_SPACES:
                self._forget()
            known = self._known[layout] = _Known(_shared(space, root_pid))
        leaf = known.frames.get(addresses[0]) or self._learn(known, addresses[0])
        if leaf is None:
            return (), False
        # The function that runs differs from sample to sample, those that called it do so seldom.
        callers = addresses[1:]
        if not callers:
            return leaf, addresses[0] in known.roots
        key = (layout, callers)
        found = self._remembered.get(key)
        if found is None:
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered.clear()
            found = self._remembered[key] = self._name(known, callers)
        return found[0] + leaf, found[1]

    def _name(self, known: _Known, addresses: tuple[int, ...]) -> _Stack:
        frames: list[_Frames] = []
        for address in addresses:
            found = known.frames.get(address) or self._learn(known, address)
            if found is None:
                break
            frames.append(found)
        frames.reverse()
        return tuple(chain.from_iterable(frames)), len(frames) == len(addresses) and address in known.roots

    def _learn(self, known: _Known, address: int) -> _Frames | None:
        if known.space.find(address) is None:
            # Code without frame pointers led the kernel astray: what follows is no stack.
            return None
        named = self._symbols.frames(known.space, address)
        self._held += 1
        if named.is_root:
            known.roots.add(address)
        found = known.frames[address] = named.frames[::-1]
        return found

    def _forget(self) -> None:
        self._remembered.clear()
        self._known.clear()
        self._held = 0

    def kernel(self, addresses: tuple[int, ...]) -> _Frames:
        """Return the kernel's frames, root first."""
        found = self._kernels.get(addresses)
        if found is None:
            if len(self._kernels) >= _MAX_REMEMBERED:
                self._kernels.clear()
            found = tuple([self._kernel.frame(address) for address in reversed(addresses)])
            self._kernels[addresses] = found
        return found


class _Known:
    """The frames of one layout's addresses, root first, and which of them are roots."""

    def __init__(self, space: AddressSpace) -> None:
        self.space = space
        self.frames: dict[int, _Frames] = {}
        self.roots: set[int] = set()


def _shared(space: AddressSpace, root_pid: int) -> AddressSpace:
    # Processes of one layout run the same files: the first one's names are all the others'.
    pid = space.pid if os.path.exists(f"/proc/{space.pid}") else root_pid  # noqa: PTH110 cheaper
    return AddressSpace(pid, space.layout)
