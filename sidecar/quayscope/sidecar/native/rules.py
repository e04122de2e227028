"""Rules: how to get from an address to its caller's frame, in the few forms that nearly all code needs.

A compiler saves the return address and the frame pointer at fixed distances from the stack pointer or the
frame pointer. Such a row of call frame information becomes a rule of three small integers, in words of 8
bytes, which the walk applies without looking at registers by name; every other row stays as it is, a
`General` rule.
"""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Mapping
from typing import NamedTuple

from quayscope.sidecar.errors import MalformedCfi, MalformedElf
from quayscope.sidecar.native.cfi import CfaRule, How, Recovery, Row
from quayscope.sidecar.native.elf import Elf
from quayscope.sidecar.native.expressions import sleb
from quayscope.sidecar.native.frames import FrameTable, Function
from quayscope.sidecar.native.stored import Stored, StoredFunction

__all__ = [
    "CHAIN",
    "GENERATED",
    "GUESS",
    "ROOT",
    "UNMAPPED",
    "General",
    "Kind",
    "ObjectRules",
    "Rule",
    "Stretch",
]

_MASK = (1 << 64) - 1
_SP, _BP, _RA = 7, 6, 16
_EM_X86_64 = 62
_GO_SECTIONS = (".go.buildinfo", ".gopclntab", ".data.rel.ro.gopclntab")


class Kind:
    """What a rule does; CFA is where the caller's stack pointer was before the call."""

    SP = 0
    """CFA is the stack pointer plus `step`; the frame pointer is the caller's."""
    SP_SAVED = 1
    """The same, and the caller's frame pointer lies at the CFA plus `save`."""
    BP = 2
    """CFA is the frame pointer plus `step`; the caller's lies at the CFA plus `save`."""
    CHAIN = 3
    """As BP without call frame information, in code known to keep frame pointers: Go's."""
    GUESS = 4
    """No information: a frame pointer is believed when it leads to code."""
    GENERATED = 9
    """The same in code that belongs to no file; see `guess`."""
    GENERAL = 5
    """See the rule's `general`."""
    ROOT = 6
    """The outermost frame: it has no caller."""
    UNMAPPED = 7
    """No code lies at the address."""
    PLT = 8
    """Stands for SP with a `step` that depends on the address; never leaves this module."""


class General(NamedTuple):
    """A row that takes registers by name."""

    cfa: CfaRule
    registers: Mapping[int, Recovery]
    return_column: int
    signal: bool


Rule = tuple[int, int, int, General | None]
"""(kind, step, save, general), see `Kind`; `step` and `save` are in words. No NamedTuple: the walk unpacks
one a frame, and a plain tuple in half the time."""


class Stretch(NamedTuple):
    """A rule that holds at all virtual addresses of [start, end)."""

    rule: Rule
    start: int
    end: int


CHAIN: Rule = (Kind.CHAIN, 2, -2, None)
GUESS: Rule = (Kind.GUESS, 2, -2, None)
GENERATED: Rule = (Kind.GENERATED, 2, -2, None)
ROOT: Rule = (Kind.ROOT, 0, 0, None)
UNMAPPED: Rule = (Kind.UNMAPPED, 0, 0, None)

_interned: dict[Rule, Rule] = {}
_MAX_INTERNED = 4096
_ENTRY_BYTES = 48
"""What `_start` takes, at least: glibc's has 38 bytes, and the dynamic linker's no information."""
_MAX_WHOLE = 128
"""Functions of an object kept with all their rows' registers, for walks by name."""


class _Compiled(NamedTuple):
    """A function's rules: `rules[i]` holds from `starts[i]`, the last one up to `end`."""

    end: int
    starts: array[int]
    rules: list[Rule]


_NOTHING = _Compiled(0, array("Q"), [])


class ObjectRules:
    """The rules of one object, compiled function by function when first asked for.

    `stored` are rules that an earlier run has compiled; `fallback` is what holds at addresses without
    information; `malformed` counts functions whose information made no sense.
    """

    def __init__(self, elf: Elf) -> None:
        self.elf = elf
        self.malformed = 0
        self.is_go = any(elf.section(name) is not None for name in _GO_SECTIONS)
        self.fallback = CHAIN if self.is_go else GUESS
        self._short = elf.machine == _EM_X86_64
        self._table: FrameTable | None = None
        try:
            self._table = FrameTable.of(elf, debug=not self.is_go)
        except (MalformedCfi, MalformedElf, OSError):
            self.malformed += 1
        if self._table is not None:
            self.malformed += self._table.flaws
        self.stored: Stored | None = None
        self._functions: dict[int, _Compiled] = {}
        self._whole: dict[int, Function] = {}
        self.changed = False

    def __len__(self) -> int:
        return len(self._functions)

    @property
    def checksum(self) -> int:
        """Differs where the object's table of functions does."""
        return self._table.checksum if self._table is not None else 0

    @property
    def table_bytes(self) -> int:
        """What the table of functions takes."""
        return self._table.size if self._table is not None else 0

    def rule(self, address: int) -> Rule:
        """Return the rule at a virtual address of the object."""
        return self.row(address).rule

    def row(self, address: int) -> Stretch:
        """Return the rule at a virtual address of the object, and the stretch around it that has the same."""
        table = self._table
        index = -1 if table is None else table.index_of(address)
        if table is None or index < 0:
            return self._alone(address, self._without(address))
        compiled = self._functions.get(index)
        if compiled is None:
            start = table.start_of(index)
            kept = self._kept(start, address)
            if kept is not None:
                return kept
            compiled = self._functions[index] = self._decode(table, index)
        if address >= compiled.end:
            return self._alone(address, self._without(address))
        at = bisect.bisect_right(compiled.starts, address) - 1
        end = compiled.starts[at + 1] if at + 1 < len(compiled.starts) else compiled.end
        return self._row(compiled.rules[at], address, compiled.starts[at], min(end, compiled.end))

    @staticmethod
    def _alone(address: int, rule: Rule) -> Stretch:
        return Stretch(rule, address, address + 1)

    def _row(self, rule: Rule, address: int, start: int, end: int) -> Stretch:
        if rule[0] == Kind.PLT:
            return self._alone(address, _at(rule, address))
        return Stretch(rule, start, end)

    def _kept(self, start: int, address: int) -> Stretch | None:
        """Return what an earlier run has stored for an address; None where its function is to be decoded."""
        found = None if self.stored is None else self.stored.row(start, address - start)
        if found is None:
            self.changed = True
            return None
        size, (distance, kind, step, save), end = found
        if address >= start + size:
            return self._alone(address, self._without(address))
        # Of a general rule it is stored only that it is one.
        if kind == Kind.GENERAL:
            return None
        return self._row(_intern((kind, step, save, None)), address, start + distance, start + min(end, size))

    def _without(self, address: int) -> Rule:
        """Return the rule at an address without information; the first instructions have no caller."""
        if not self.is_go and 0 < self.elf.entry <= address < self.elf.entry + _ENTRY_BYTES:
            return ROOT
        return self.fallback

    def general(self, address: int) -> Rule:
        """Return the rule at a virtual address with every register by name, where there is information."""
        rule = self.rule(address)
        if self._table is None or rule[0] in (Kind.CHAIN, Kind.GUESS, Kind.ROOT) or rule[3] is not None:
            return rule
        index = self._table.index_of(address)
        function = self._whole.get(index)
        if function is None:
            if len(self._whole) >= _MAX_WHOLE:
                self._whole.clear()
            try:
                function = self._whole[index] = self._table.function(index)
            except (MalformedCfi, MalformedElf, OSError):
                self.malformed += 1
                return self.fallback
        row = function.rows[bisect.bisect_right(function.rows, address, key=lambda row: row.start) - 1]
        return (
            Kind.GENERAL,
            0,
            0,
            General(row.cfa, row.registers, function.return_column, function.signal),
        )

    def _decode(self, table: FrameTable, index: int) -> _Compiled:
        try:
            function = table.function(index)
        except (MalformedCfi, MalformedElf, OSError):
            self.malformed += 1
            return _NOTHING
        if not function.start < function.end or function.start != table.start_of(index):
            self.malformed += 1
            return _NOTHING
        starts = array("Q", [row.start for row in function.rows])
        # Where two functions overlap, the later one's entry is found.
        end = min(function.end, table.end_of(index))
        return _Compiled(end, starts, [_compile(function, row, self._short) for row in function.rows])

    def compiled(self) -> list[StoredFunction]:
        """Return what is worth keeping: what is compiled, then what only an earlier run has."""
        if self._table is None:
            return []
        found = []
        for index, (end, starts, rules) in self._functions.items():
            if rules:
                start = self._table.start_of(index)
                rows = [
                    (at - start, rule[0], rule[1], rule[2]) for at, rule in zip(starts, rules, strict=True)
                ]
                found.append((start, end - start, rows))
        if self.stored is not None:
            known = {start for start, _, _ in found}
            for start in self.stored.starts:
                kept = None if start in known else self.stored.function(start)
                if kept is not None:
                    found.append((start, *kept))
        return found

    def forget(self) -> None:
        """Drop what is compiled; it is compiled again when asked for."""
        self._functions.clear()
        self._whole.clear()


def _at(rule: Rule, address: int) -> Rule:
    """Return a function's rule as it is at an address."""
    if rule[0] == Kind.PLT:
        return _intern((Kind.SP, rule[1] + ((address & 15) >= rule[2]), 0, None))
    return rule


def _compile(function: Function, row: Row, short: bool) -> Rule:
    registers = row.registers
    returns = registers.get(function.return_column)
    if returns is not None and returns.how == How.UNDEFINED:
        return ROOT
    if short and not function.signal and function.return_column == _RA and (rule := _shorten(row)):
        return _intern(rule)
    return (Kind.GENERAL, 0, 0, General(row.cfa, registers, function.return_column, function.signal))


def _shorten(row: Row) -> Rule | None:
    """Return a row of x86-64 in short, None where it takes more."""
    returns, saved = row.registers.get(_RA), row.registers.get(_BP)
    if returns is not None and returns != (How.OFFSET, -8, b""):
        return None
    if row.cfa.expression:
        return _plt(row.cfa.expression) if saved is None else None
    offset = row.cfa.offset
    if offset < 8 or offset & 7 or offset > 1 << 30 or _SP in row.registers:
        return None
    if saved is None:
        return (Kind.SP, offset >> 3, 0, None) if row.cfa.register == _SP else None
    if saved.how != How.OFFSET or saved.value >= 0 or saved.value & 7 or saved.value < -(1 << 17):
        return None
    if row.cfa.register == _SP:
        return (Kind.SP_SAVED, offset >> 3, saved.value >> 3, None)
    return (Kind.BP, offset >> 3, saved.value >> 3, None) if row.cfa.register == _BP else None


def _plt(expression: bytes) -> Rule | None:
    """Recognise what linkers say of the procedure linkage table: one word more from byte N of 16 of an entry.

    breg7 +K; breg16 +0; lit15; and; litN; ge; lit3; shl; plus
    """
    if len(expression) != 11 or expression[0] != 0x77 or expression[2:6] != b"\x80\x00\x3f\x1a":
        return None
    offset, _ = sleb(expression, 1)
    threshold = expression[6] - 0x30
    if expression[7:] != b"\x2a\x33\x24\x22" or not 0 <= threshold < 32 or offset < 8 or offset & 7:
        return None
    return (Kind.PLT, offset >> 3, threshold, None)


def _intern(rule: Rule) -> Rule:
    if len(_interned) >= _MAX_INTERNED:
        _interned.clear()
    return _interned.setdefault(rule, rule)
