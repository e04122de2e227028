"""Names for addresses of user code: the frames that an address of a process stands for."""

from __future__ import annotations

from collections import OrderedDict
from weakref import WeakKeyDictionary

from quayscope.profile import Frame
from quayscope.sidecar.native.debuginfod import Debuginfod
from quayscope.sidecar.native.elf import Elf
from quayscope.sidecar.native.inlines import Inlines
from quayscope.sidecar.native.maps import AddressSpace, Mapping
from quayscope.sidecar.native.names import Named, ObjectNames
from quayscope.sidecar.native.objects import Objects

__all__ = ["Named", "Symbols"]

_MAX_ADDRESSES = 60_000
_MAX_OBJECTS = 128
_MAX_TABLES = 24 << 20
"""Tables of names held of all objects together, in bytes; the least lately used are read again."""
_UNMAPPED = Named((Frame("[unmapped]"),), False, False)


class Symbols:
    """Frames for user addresses. Holds at most 60,000 addresses and 24 MB of tables.

    With `debuginfod` what has no debug file here gets the fetched one's names once it has come; with
    `inlines` an address gets its inlined calls once they are known. Both are started and closed by who made
    them. `unnamed` counts look-ups that found no name (of what is remembered, the first), `malformed` tables
    and look-ups that contradicted themselves, beside the objects' own count. All but the counters belongs to
    one thread.
    """

    def __init__(
        self, objects: Objects, debuginfod: Debuginfod | None = None, inlines: Inlines | None = None
    ) -> None:
        self._objects = objects
        self._debuginfod = debuginfod
        self._inlines = inlines
        self._files_taken = self._calls_taken = 0
        self._spaces: WeakKeyDictionary[AddressSpace, dict[Mapping, ObjectNames]] = WeakKeyDictionary()
        self._names: OrderedDict[Elf, ObjectNames] = OrderedDict()
        self._unreadable: dict[str, ObjectNames] = {}
        self._held = 0
        self.unnamed = 0
        self._malformed = 0

    @property
    def malformed(self) -> int:
        """How many files, tables and look-ups were broken."""
        return self._malformed + self._objects.malformed

    def frames(self, space: AddressSpace, address: int) -> Named:
        """Return what an address of `space` stands for; never raises for what is found there."""
        self.refresh()
        mapping = space.find(address)
        if mapping is None:
            self.unnamed += 1
            return _UNMAPPED
        known = self._spaces.get(space)
        if known is None:
            known = self._spaces[space] = {}
        names = known.get(mapping)
        if names is None:
            names = known[mapping] = self._names_of(space.pid, mapping.path)
        offset = address - mapping.start + mapping.offset
        found = names.held.get(offset)
        if found is None:
            found = self._resolve(names, offset)
        return found

    def around(self, space: AddressSpace, address: int) -> tuple[int, int]:
        """Return the addresses [start, end) around a mapped one of `space` that stand for the same frames."""
        mapping = space.find(address)
        known = self._spaces.get(space)
        names = None if mapping is None or known is None else known.get(mapping)
        if mapping is None or names is None:
            return address, address + 1
        distance = mapping.start - mapping.offset
        low, high = names.around(address - distance)
        return max(low + distance, mapping.start), min(high + distance, mapping.end)

    def refresh(self) -> bool:
        """Take in what came since the last look-up; returns whether it changes earlier answers.

        Whoever remembers answers asks this before using them; `frames` does it by itself.
        """
        changed = False
        if self._debuginfod is not None and self._debuginfod.generation != self._files_taken:
            changed |= self._take_files(self._debuginfod)
        if self._inlines is not None and self._inlines.generation != self._calls_taken:
            changed |= self._take_calls(self._inlines)
        return changed

    def forget(self) -> None:
        """Drop all names: the files behind the paths may be others now (a new server)."""
        self._spaces.clear()
        self._names.clear()
        self._unreadable.clear()
        self._held = 0

    def _take_files(self, debuginfod: Debuginfod) -> bool:
        changed = False
        self._files_taken = debuginfod.generation
        arrived = set(debuginfod.arrived())
        for names in self._names.values():
            if names.elf is not None and names.elf.build_id in arrived:
                self._held -= len(names.held)
                names.held.clear()
                names.forget()
                changed = True
        return changed

    def _take_calls(self, inlines: Inlines) -> bool:
        changed = False
        self._calls_taken = inlines.generation
        for elf, address, inlined in inlines.answers():
            names, offset = self._names.get(elf), elf.offset_of(address)
            held = None if names is None or offset is None else names.held.get(offset)
            # Asked twice, it is answered twice.
            if names and offset is not None and held and held.known and len(held.frames) == 1:
                names.held[offset] = names.with_inlined(held, inlined)
                changed = True
        return changed

    def _names_of(self, pid: int, path: str) -> ObjectNames:
        elf = self._objects.of(pid, path)
        if elf is None:
            if len(self._unreadable) >= _MAX_OBJECTS:
                self._unreadable.clear()
            return self._unreadable.setdefault(path, ObjectNames(pid, path, None))
        names = self._names.get(elf)
        if names is None:
            names = self._names[elf] = ObjectNames(pid, path, elf, self._debuginfod)
            if len(self._names) > _MAX_OBJECTS:
                # Whoever still maps it keeps its names; a new space finds them anew.
                self._names.popitem(last=False)
        names.pid = pid
        return names

    def _resolve(self, names: ObjectNames, offset: int) -> Named:
        if names.elf is None:
            self.unnamed += 1
            return names.unknown
        if self._held >= _MAX_ADDRESSES:
            self._clear_held()
        flaws, cost = names.flaws, names.cost
        found = names.held[offset] = names.at(offset)
        self._held += 1
        self.unnamed += not found.known
        self._malformed += names.flaws - flaws
        self._names.setdefault(names.elf, names)
        self._names.move_to_end(names.elf)
        if names.cost != cost:
            self._keep_within(names)
        if self._inlines is not None and found.known and found.frames[0].kind == "native":
            debug, address = names.debug, names.elf.address_of(offset)
            if debug is not None and address is not None:
                self._inlines.ask(names.elf, debug, address)
        return found

    def _clear_held(self) -> None:
        for known in self._spaces.values():
            for names in known.values():
                names.held.clear()
        for names in self._names.values():
            names.held.clear()
            names.forget_shared()
        self._held = 0

    def _keep_within(self, latest: ObjectNames) -> None:
        total = sum(names.cost for names in self._names.values())
        for names in list(self._names.values()):
            if total <= _MAX_TABLES:
                break
            if names is not latest:
                total -= names.cost
                names.forget()
