"""Names for addresses of user code: the frames that an address of a process stands for."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

from quayscope.profile import Frame
from quayscope.sidecar.errors import MalformedElf
from quayscope.sidecar.native.debugfiles import debug_file, mini_debuginfo
from quayscope.sidecar.native.debuginfod import Debuginfod
from quayscope.sidecar.native.demangle import demangle
from quayscope.sidecar.native.elf import Elf
from quayscope.sidecar.native.gosym import GoTable
from quayscope.sidecar.native.maps import AddressSpace, Mapping
from quayscope.sidecar.native.objects import Objects
from quayscope.sidecar.native.symtab import FunctionTable

__all__ = ["Named", "Symbols"]

_MAX_ADDRESSES = 60_000
_MAX_OBJECTS = 128
_MAX_TABLES = 24 << 20
"""Tables of names held of all objects together, in bytes; the least lately used are read again."""
_ROOTS = frozenset(
    {
        "_start",
        "main",
        "__libc_start_main",
        "__libc_start_call_main",
        "__libc_start_main_impl",
        "start_thread",
        "clone",
        "clone3",
        "__clone",
        "__clone3",
        "thread_start",
    }
)
_GO_ROOTS = frozenset(
    f"runtime.{name}{form}"
    for name in ("goexit", "mcall", "mstart", "morestack", "gosched_m", "rt0_go")
    for form in ("", ".abi0")
)


class Named(NamedTuple):
    """The frames that an address stands for, **leaf first**: inlined calls, then the function they are in.

    `is_root`: a stack that ends here has reached its root. `known`: there is a name, if only the stable one
    of a function without symbol (`postgres+0x47c300`); else the frame names the file at best.
    """

    frames: tuple[Frame, ...]
    is_root: bool
    known: bool


_UNMAPPED = Named((Frame("[unmapped]"),), False, False)


class Symbols:
    """Frames for user addresses. Holds at most 60,000 addresses and 24 MB of tables.

    With `debuginfod` what has no debug file here gets the fetched one's names once it has come.
    `unnamed` counts addresses that got no name, `malformed` tables and look-ups that contradicted
    themselves, beside the objects' own count. All but the counters belongs to one thread.
    """

    def __init__(self, objects: Objects, debuginfod: Debuginfod | None = None) -> None:
        self._objects = objects
        self._debuginfod = debuginfod
        self._generation = 0
        self._spaces: WeakKeyDictionary[AddressSpace, dict[Mapping, _Names]] = WeakKeyDictionary()
        self._names: OrderedDict[Elf, _Names] = OrderedDict()
        self._unreadable: dict[str, _Names] = {}
        self._held = 0
        self.unnamed = 0
        self._malformed = 0

    @property
    def malformed(self) -> int:
        """How many files, tables and look-ups were broken."""
        return self._malformed + self._objects.malformed

    def frames(self, space: AddressSpace, address: int) -> Named:
        """Return what an address of `space` stands for; never raises for what is found there."""
        if self._debuginfod is not None and self._debuginfod.generation != self._generation:
            self._take_arrived(self._debuginfod)
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

    def forget(self) -> None:
        """Drop all names: the files behind the paths may be others now (a new server)."""
        self._spaces.clear()
        self._names.clear()
        self._unreadable.clear()
        self._held = 0

    def _take_arrived(self, debuginfod: Debuginfod) -> None:
        self._generation = debuginfod.generation
        arrived = set(debuginfod.arrived())
        for names in self._names.values():
            if names.elf is not None and names.elf.build_id in arrived:
                self._held -= len(names.held)
                names.held.clear()
                names.forget()

    def _names_of(self, pid: int, path: str) -> _Names:
        elf = self._objects.of(pid, path)
        if elf is None:
            if len(self._unreadable) >= _MAX_OBJECTS:
                self._unreadable.clear()
            return self._unreadable.setdefault(path, _Names(pid, path, None))
        names = self._names.get(elf)
        if names is None:
            names = self._names[elf] = _Names(pid, path, elf, self._debuginfod)
            if len(self._names) > _MAX_OBJECTS:
                # Whoever still maps it keeps its names; a new space finds them anew.
                self._names.popitem(last=False)
        return names

    def _resolve(self, names: _Names, offset: int) -> Named:
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
        return found

    def _clear_held(self) -> None:
        for known in self._spaces.values():
            for names in known.values():
                names.held.clear()
        for names in self._names.values():
            names.held.clear()
        self._held = 0

    def _keep_within(self, latest: _Names) -> None:
        total = sum(names.cost for names in self._names.values())
        for names in list(self._names.values()):
            if total <= _MAX_TABLES:
                break
            if names is not latest:
                total -= names.cost
                names.forget()


class _Names:
    """The names of one object, from wherever there are some; the tables are read when first needed."""

    def __init__(self, pid: int, path: str, elf: Elf | None, debuginfod: Debuginfod | None = None) -> None:
        self.elf = elf
        self._debuginfod = debuginfod
        self.held: dict[int, Named] = {}
        self._pid = pid
        self._path = path
        self._short = Path(path.removesuffix(" (deleted)")).name or "[anonymous]"
        # Generated code and unreadable files have no names; one frame each keeps profiles bounded.
        self.unknown = Named((Frame(self._short, file=path),), False, False)
        self._shared: dict[tuple[str, ...], Named] = {}
        self._broken = 0
        self._go: GoTable | None = None
        self._others: list[FunctionTable] = []
        self._go_loaded = False
        self._others_loaded = False

    @property
    def flaws(self) -> int:
        """How many tables and look-ups were broken."""
        found = self._broken + (self.elf.flaws if self.elf is not None else 0)
        return found + (self._go.flaws if self._go is not None else 0)

    @property
    def cost(self) -> int:
        """What the tables take in memory, in bytes."""
        found = sum(table.cost for table in self._others)
        found += self.elf.cost if self.elf is not None else 0
        return found + (self._go.cost if self._go is not None else 0)

    def forget(self) -> None:
        """Drop the tables, and what was found in them."""
        self._broken = self.flaws
        self._go, self._go_loaded = None, False
        self._others, self._others_loaded = [], False
        self._shared.clear()
        if self.elf is not None:
            self.elf.forget()
            self._broken -= self.elf.flaws

    def at(self, offset: int) -> Named:
        """Return what a byte of the file stands for."""
        elf = self.elf
        address = None if elf is None else elf.address_of(offset)
        if elf is None or address is None:
            return self.unknown
        try:
            return self._at(elf, address)
        except (MalformedElf, OSError):
            self._broken += 1
            return self.unknown

    def _at(self, elf: Elf, address: int) -> Named:
        go = self._go_table(elf)
        function = None if go is None else go.at(address)
        if function is not None:
            return self._named(function.names, "go", function.names[-1] in _GO_ROOTS)
        start = elf.starts.before(address)
        for table in self._tables(elf):
            symbol = table.at(address, start)
            name = "" if symbol is None else table.name(symbol)
            if name:
                return self._named((name,), "native", name in _ROOTS)
        if start < 0:
            return self.unknown
        if start <= elf.entry <= address and elf.starts.before(elf.entry) == start:
            return self._named(("_start",), "native", True)
        return self._named((f"{self._short}+{start:#x}",), "native", False)

    def _named(self, names: tuple[str, ...], kind: str, is_root: bool) -> Named:
        found = self._shared.get(names)
        if found is None:
            shown = names if kind == "go" else tuple(map(demangle, names))
            frames = tuple(Frame(name, file=self._path, kind=kind) for name in shown)
            found = self._shared[names] = Named(frames, is_root, True)
        return found

    def _go_table(self, elf: Elf) -> GoTable | None:
        if not self._go_loaded:
            self._go_loaded = True
            try:
                self._go = GoTable.find(elf)
            except MalformedElf:
                self._broken += 1
        return self._go

    def _tables(self, elf: Elf) -> list[FunctionTable]:
        """Return the tables of functions to ask, the fullest first."""
        if elf.has_full_table:
            return [elf.functions]
        if not self._others_loaded:
            self._others_loaded = True
            for find in (self._debug_file, mini_debuginfo):
                try:
                    other = find(elf)
                except MalformedElf:
                    self._broken += 1
                    continue
                if other is not None:
                    # Only its table is kept: an unpacked object is large, an open one holds a descriptor.
                    self._others.append(other.functions)
                    self._broken += other.flaws
        return [*self._others, elf.functions]

    def _debug_file(self, elf: Elf) -> Elf | None:
        found = debug_file(self._pid, self._path.removesuffix(" (deleted)"), elf)
        if found is None and self._debuginfod is not None:
            found = self._debuginfod.find(elf.build_id)
        return found
