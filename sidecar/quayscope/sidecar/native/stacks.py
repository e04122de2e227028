"""From addresses to a stack of frames, on the thread that flushes."""

from __future__ import annotations

import os

from quayscope.profile import Frame
from quayscope.sidecar.native.debuginfod import Debuginfod
from quayscope.sidecar.native.inlines import Inlines
from quayscope.sidecar.native.kernel import KernelSymbols
from quayscope.sidecar.native.maps import AddressSpace, Layout
from quayscope.sidecar.native.objects import Objects
from quayscope.sidecar.native.symbols import Named, Symbols

__all__ = ["Stacks"]

_MAX_REMEMBERED = 2_048
"""Distinct user stacks: most samples of a server are of a few hundred. Each keeps its process's maps."""

_MAX_ADDRESSES = 60_000
_MAX_SPACES = 512
"""Layouts whose first process is known: backends of a server share one, what comes and goes has its own."""

_Stack = tuple[tuple[Frame, ...], bool]


class Stacks:
    """Names whole stacks, and remembers the latest. Not thread-safe."""

    def __init__(
        self, objects: Objects, debuginfod: Debuginfod | None = None, inlines: Inlines | None = None
    ) -> None:
        self._symbols = Symbols(objects, debuginfod, inlines)
        self._kernel = KernelSymbols()
        self._spaces: dict[Layout, AddressSpace] = {}
        self._remembered: dict[tuple[Layout, tuple[int, ...]], _Stack] = {}
        self._named: dict[Layout, dict[int, Named]] = {}
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

        Files are read through the process, else, when it is gone, through `root_pid` of the same container.
        """
        if self._symbols.refresh():
            self._forget()
        key = (space.layout, addresses)
        found = self._remembered.get(key)
        if found is None:
            if len(self._remembered) >= _MAX_REMEMBERED or len(self._spaces) >= _MAX_SPACES:
                self._forget()
            found = self._remembered[key] = self._name(self._shared(space, root_pid), addresses)
        return found

    def _shared(self, space: AddressSpace, root_pid: int) -> AddressSpace:
        # Processes of one layout run the same files: the first one's names are all the others'.
        shared = self._spaces.get(space.layout)
        if shared is None:
            pid = space.pid if os.path.exists(f"/proc/{space.pid}") else root_pid  # noqa: PTH110 cheaper
            shared = self._spaces[space.layout] = AddressSpace(pid, space.layout)
        return shared

    def _name(self, space: AddressSpace, addresses: tuple[int, ...]) -> _Stack:
        known = self._named.get(space.layout)
        if known is None:
            known = self._named[space.layout] = {}
        frames: list[Frame] = []
        is_root = False
        for address in addresses:
            named = known.get(address)
            if named is None:
                if space.find(address) is None:
                    # Code without frame pointers led the kernel astray: what follows is no stack.
                    is_root = False
                    break
                named = known[address] = self._symbols.frames(space, address)
                self._held += 1
            frames += named.frames
            is_root = named.is_root
        if self._held > _MAX_ADDRESSES:
            self._forget()
        frames.reverse()
        return tuple(frames), is_root

    def _forget(self) -> None:
        self._remembered.clear()
        self._spaces.clear()
        self._named.clear()
        self._held = 0

    def kernel(self, addresses: tuple[int, ...]) -> tuple[Frame, ...]:
        """Return the kernel's frames, root first."""
        return tuple([self._kernel.frame(address) for address in reversed(addresses)])
