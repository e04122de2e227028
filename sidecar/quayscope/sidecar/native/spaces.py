"""The address spaces of all sampled processes, kept current by perf's records and by reading them again.

Records of mappings, forks and programs started tell what changed; where they are missing (the process is
older than the events, the ring lost some), an address in no mapping says so, and the maps are read again.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from quayscope.sidecar.native.maps import AddressSpace, Layout, Mapping, read_maps

__all__ = ["Spaces"]

_MAX_PROCESSES = 4096
_REREAD_AFTER_S = 0.2
_SHARE = 50
"""What a reading took is followed by this many times as long without one: 2 % of a core at most."""
_LARGE = 1024
"""Mappings past which applying changes is bounded in the same way."""
_HUGE = 4096
_MAX_HUGE_MAPPINGS = 1 << 18
"""Mappings of all processes with more than 4,096 of them: some 40 MB."""
_MAX_CHANGES = 1024
"""Mappings noted and not yet laid over the space."""


class _Held:
    """What is known of one process: `space` lacks `changes`, and is None where it could not be read.

    It is read again not before `read_after`, and changed not before `apply_after`.
    """

    __slots__ = ("apply_after", "changes", "read_after", "space")

    def __init__(self, space: AddressSpace | None, read_after: float = 0.0) -> None:
        self.space = space
        self.read_after = read_after
        self.apply_after = 0.0
        self.changes: list[Mapping] = []


class Spaces:
    """Address spaces by process, the least lately used go first.

    At most 4,096 processes, and of those with more than 4,096 mappings as many as have 262,144 together.

    `read` reads one, None where that is not possible; `unreadable` counts such reads, `read_again` those that
    an address in no mapping asked for.
    """

    def __init__(
        self,
        *,
        read: Callable[[int], AddressSpace | None] = read_maps,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._clock = clock
        self._held: OrderedDict[int, _Held] = OrderedDict()
        self.unreadable = 0
        self.read_again = 0

    def __len__(self) -> int:
        return len(self._held)

    def of(self, pid: int) -> AddressSpace | None:
        """Return the address space of a process, read when first asked for; None when it cannot be read."""
        held = self._held.get(pid)
        if held is None:
            held = self._keep(pid, _Held(None))
        if held.space is None and self._clock() >= held.read_after:
            self._set(pid, held, self._read_now(pid, held))
        if held.changes:
            self._apply(pid, held)
        self._held.move_to_end(pid)
        return held.space

    def missed(self, pid: int) -> AddressSpace | None:
        """Read a process again, as an address of it is in no mapping; at most once in 200 ms a process.

        Returns the space where it is another one now, else None.
        """
        held = self._held.get(pid)
        if held is None or self._clock() < held.read_after:
            return None
        self.read_again += 1
        space = self._read_now(pid, held)
        if space is None or (held.space is not None and space.layout is held.space.layout):
            return None
        held.changes.clear()
        self._set(pid, held, space)
        return space

    def mapped(self, pid: int, start: int, length: int, offset: int, path: str, executable: bool) -> None:
        """Note a mapping that a process has made, as a record of perf's tells."""
        if not executable or length <= 0:
            return
        held = self._held.get(pid) or self._keep(pid, _Held(None))
        held.changes.append(Mapping(start, start + length, offset, "" if path == "//anon" else path))
        if len(held.changes) > _MAX_CHANGES:
            # Nothing tells what was unmapped: who maps code all the time is read again.
            held.changes.clear()
            self._set(pid, held, self._read_now(pid, held) or held.space)

    def forked(self, pid: int, parent: int) -> None:
        """Note a new process: it has its parent's space until one of them changes."""
        if pid == parent:
            return
        space = self.of(parent) if parent in self._held else None
        if space is None:
            self._held.pop(pid, None)
        else:
            self._keep(pid, _Held(AddressSpace(pid, space.layout, space.ancestor or parent)))

    def executed(self, pid: int) -> None:
        """Note that a process runs another program now: only what it maps from here on is mapped."""
        held = self._held.get(pid)
        ancestor = held.space.ancestor if held is not None and held.space is not None else 0
        self._keep(pid, _Held(AddressSpace(pid, (), ancestor)))

    def ended(self, pid: int) -> None:
        """Forget a process."""
        self._held.pop(pid, None)

    def _keep(self, pid: int, held: _Held) -> _Held:
        self._held[pid] = held
        self._held.move_to_end(pid)
        if len(self._held) > _MAX_PROCESSES:
            self._held.popitem(last=False)
        return held

    def _set(self, pid: int, held: _Held, space: AddressSpace | None) -> None:
        held.space = space
        if space is None or len(space.mappings) <= _HUGE:
            return
        self._held.move_to_end(pid)
        known = [(one, other.space.layout) for one, other in self._held.items() if other.space is not None]
        total = sum(
            size
            for size in (len(layout.mappings) for layout in {layout for _, layout in known})
            if size > _HUGE
        )
        for one, layout in known:
            if total <= _MAX_HUGE_MAPPINGS or one == pid:
                break
            if len(layout.mappings) > _HUGE:
                total -= len(layout.mappings)
                del self._held[one]

    def _read_now(self, pid: int, held: _Held) -> AddressSpace | None:
        began = self._clock()
        space = self._read(pid)
        now = self._clock()
        held.read_after = now + max(_REREAD_AFTER_S, _SHARE * (now - began))
        if space is None:
            self.unreadable += 1
        elif held.space is not None:
            space.ancestor = held.space.ancestor
        return space

    def _apply(self, pid: int, held: _Held) -> None:
        """Lay what was mapped over the space; a process that cannot be read has nothing else."""
        began = self._clock()
        if began < held.apply_after:
            return
        changes, held.changes = held.changes, []
        layout = Layout.of(()) if held.space is None else held.space.layout
        ancestor = 0 if held.space is None else held.space.ancestor
        space = AddressSpace(pid, layout.with_mappings(changes), ancestor)
        self._set(pid, held, space)
        if len(space.mappings) > _LARGE:
            now = self._clock()
            held.apply_after = now + _SHARE * (now - began)
