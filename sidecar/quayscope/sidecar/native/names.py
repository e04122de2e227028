"""The names of one object's code, from wherever there are some."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from quayscope.profile import Frame
from quayscope.sidecar.errors import MalformedElf
from quayscope.sidecar.native.debugfiles import debug_file, mini_debuginfo
from quayscope.sidecar.native.debuginfod import Debuginfod
from quayscope.sidecar.native.demangle import demangle
from quayscope.sidecar.native.elf import Elf
from quayscope.sidecar.native.gosym import GoTable
from quayscope.sidecar.native.symtab import FunctionTable

__all__ = ["Named", "ObjectNames"]

_DELETED = " (deleted)"
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
    of a function without symbol (`postgres+0x47c300`); else the frame says the file at best, or the place.
    """

    frames: tuple[Frame, ...]
    is_root: bool
    known: bool


class ObjectNames:
    """The names of one object; the tables are read when first needed.

    `held` are the answers that whoever asks keeps, by offset in the file. `pid` is a process that has the
    object mapped as `path`: through it separate files are found. `elf` is None where it cannot be read.
    """

    def __init__(self, pid: int, path: str, elf: Elf | None, debuginfod: Debuginfod | None = None) -> None:
        self.elf = elf
        self._debuginfod = debuginfod
        self.held: dict[int, Named] = {}
        self.pid = pid
        self._path = path.removesuffix(_DELETED)
        self._short = Path(self._path).name or "[anonymous]"
        # Generated code and unreadable files have no names; one frame each keeps profiles bounded.
        self.unknown = Named((Frame(self._short, file=self._path),), False, False)
        self._shared: dict[tuple[str, ...], Named] = {}
        self._broken = 0
        self._go: GoTable | None = None
        self._others: list[FunctionTable] = []
        self._go_loaded = False
        self._others_loaded = False
        self._debug: Elf | None = None

    @property
    def debug(self) -> Elf | None:
        """The object with the debug information, None where none is known (yet)."""
        if self._debug is None and self.elf is not None and self.elf.section(".debug_info") is not None:
            self._debug = self.elf
        return self._debug

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
        self.forget_shared()
        self._debug = None
        if self.elf is not None:
            self.elf.forget()
            self._broken -= self.elf.flaws

    def forget_shared(self) -> None:
        """Drop the frames made so far; they are made again when needed."""
        self._shared.clear()

    def with_inlined(self, held: Named, inlined: tuple[str, ...]) -> Named:
        """Return an answer with the calls that are inlined at its address, mangled, leaf first."""
        frames = tuple(Frame(demangle(name), file=self._path) for name in inlined)
        return held._replace(frames=frames + held.frames)

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

    def around(self, offset: int) -> tuple[int, int]:
        """Return the stretch [start, end) of the file around a byte that stands for the same all over.

        One byte where that may depend on the address itself: inlined calls, or a table that is broken.
        """
        elf = self.elf
        address = None if elf is None else elf.address_of(offset)
        if elf is None or address is None or self.debug is not None or self._go_table(elf) is not None:
            return offset, offset + 1
        try:
            near = [elf.entry, *elf.extent_of(address), *elf.starts.around(address)]
            for table in self._tables(elf):
                near += table.around(address)
        except (MalformedElf, OSError):
            self._broken += 1
            return offset, offset + 1
        low = max([one for one in near if one <= address], default=address)
        high = min([one for one in near if one > address], default=address + 1)
        first, end = elf.loaded_around(offset)
        return max(first, offset - (address - low)), min(end, offset + (high - address))

    def _at(self, elf: Elf, address: int) -> Named:
        go = self._go_table(elf)
        function = None if go is None else go.at(address)
        if function is not None:
            return self._named(function.names, "go", function.names[-1] in _GO_ROOTS)
        start = elf.starts.before(address)
        for table in self._tables(elf):
            symbol = table.at(address, start)
            if symbol is not None and symbol.name:
                return self._named((symbol.name,), "native", symbol.name in _ROOTS)
        start, is_function = elf.stretch_of(address)
        if start < 0:
            return self.unknown
        if not is_function:
            # Assembly without unwind entries, between functions: told apart by place, not named.
            return self._named((f"{self._short}+{start:#x}",), "native", False)._replace(known=False)
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
                    # Only its table is kept: an unpacked object is large.
                    self._others.append(other.functions)
                    self._broken += other.flaws
        return [*self._others, elf.functions]

    def _debug_file(self, elf: Elf) -> Elf | None:
        found = debug_file(self.pid, self._path, elf)
        if found is None and self._debuginfod is not None:
            found = self._debuginfod.find(elf.build_id)
        if found is not None and found.section(".debug_info") is not None:
            self._debug = found
        return found
