"""One layout of an address space, as walks see it: the rules of its addresses, and what walks found in it.

Processes that share a layout (forks) share its view.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

from quayscope.sidecar.errors import MalformedElf
from quayscope.sidecar.native.elf import Elf
from quayscope.sidecar.native.maps import AddressSpace, Layout, Mapping
from quayscope.sidecar.native.memo import Memo, State, Walked
from quayscope.sidecar.native.rules import GENERATED, GUESS, UNMAPPED, ObjectRules, Rule, Stretch

__all__ = ["Call", "Guess", "RuleSource", "View"]

_NO_FILES = ("/memfd:", "/dev/zero", "/SYSV")
_MAX_FAILED = 1024
_MAX_CALLS = 4096
_BEFORE_RETURN = 7
_SYSCALL = b"\x0f\x05"
_INDIRECT_CALLS = (2, 3, 4, 6, 7)
"""Lengths of the encodings of `call` through a register or memory: FF /2 with its operands."""


Guess = Literal["call", "frame pointer", "search"]
"""By what a caller was found where there is no call frame information."""


class Call(NamedTuple):
    """The call before an address: `unknown` where the code cannot be read; `target` of a direct one."""

    kind: Literal["none", "direct", "indirect", "system", "unknown"]
    target: int = 0


_NO_CALL, _UNKNOWN_CALL, _INDIRECT_CALL = Call("none"), Call("unknown"), Call("indirect")


class RuleSource(Protocol):
    """Where the rules of objects come from: see `rulebook.RuleBook`."""

    def of(self, pid: int, path: str) -> ObjectRules | None:
        """Return the rules of what process `pid` has mapped as `path`."""
        ...


class View:
    """`rules` holds what `learn` has answered, `memo` what walks have found.

    `learned` and `stored` are called when they grow by one, and may clear them; `guesses` counts steps that
    no information backs.
    """

    def __init__(
        self,
        layout: Layout,
        source: RuleSource,
        learned: Callable[[], None],
        stored: Callable[[], None],
        guesses: Counter[Guess],
        number: int,
    ) -> None:
        self.rules: dict[int, Rule] = {}
        self.memo = Memo()
        self.guesses = guesses
        self.number = number
        self._layout = layout
        self._source = source
        self._learned = learned
        self._stored = stored
        self._objects: dict[str, ObjectRules] = {}
        self._failed: set[tuple[int, str]] = set()
        self._calls: dict[int, Call] = {}

    def learn(self, space: AddressSpace, address: int) -> Rule:
        """Return the rule at an address, as this process has its files."""
        known = self.rules.get(address)
        if known is not None:
            return known
        rule, lasting = self._look_up(space, address, ObjectRules.rule)
        if lasting:
            self.rules[address] = rule
            self._learned()
        return rule

    def learn_stretch(self, space: AddressSpace, address: int) -> Stretch | None:
        """Return the rule at an address, and the addresses around it that share it; None: not known."""
        mapping = self._layout.find(address)
        found = None if mapping is None else self._object(space, mapping)
        if mapping is None or found is None:
            return None
        distance = mapping.start - mapping.offset
        virtual = found.elf.address_of(address - distance)
        if virtual is None:
            return None
        rule, start, end = found.row(virtual)
        bias = address - virtual
        first, last = found.elf.loaded_around(address - distance)
        self._learned()
        return Stretch(
            rule,
            max(start + bias, first + distance, mapping.start),
            min(end + bias, last + distance, mapping.end),
        )

    def general(self, space: AddressSpace, address: int) -> Rule:
        """Return the rule at an address, with registers by name where there is information."""
        return self._look_up(space, address, ObjectRules.general)[0]

    def _look_up(
        self, space: AddressSpace, address: int, ask: Callable[[ObjectRules, int], Rule]
    ) -> tuple[Rule, bool]:
        """Return a rule, and whether it is worth keeping."""
        mapping = self._layout.find(address)
        if mapping is None:
            # Garbage has many addresses.
            return UNMAPPED, False
        found = self._object(space, mapping)
        if found is None:
            if not mapping.path.startswith("/") or mapping.path.startswith(_NO_FILES):
                return GENERATED, True
            # Another process of this layout may be able to read what this one could not: it may have ended.
            return GUESS, False
        virtual = found.elf.address_of(address - mapping.start + mapping.offset)
        return (found.fallback if virtual is None else ask(found, virtual)), True

    def store(self, state: State, spots: list[int], start: int, words: memoryview, walked: Walked) -> None:
        """Remember a stretch, see `Memo.store`."""
        if self.memo.store(state, spots, start, words, walked):
            self._stored()

    def _object(self, space: AddressSpace, mapping: Mapping) -> ObjectRules | None:
        path = mapping.path
        found = self._objects.get(path)
        if found is None and path and path[0] in "/[" and (space.pid, path) not in self._failed:
            found = self._source.of(space.pid, path)
            if found is None and space.ancestor:
                # It may have ended before it was looked at; then what its ancestor has there counts if it
                # can be what is mapped.
                found = self._source.of(space.ancestor, path)
                if found is not None and not _fits(mapping, found.elf):
                    found = None
            if found is not None:
                self._objects[path] = found
            else:
                if len(self._failed) >= _MAX_FAILED:
                    self._failed.clear()
                self._failed.add((space.pid, path))
        return found

    def forget_objects(self) -> None:
        """Let go of the objects; they are asked for again when something new is to be learned."""
        self._objects.clear()

    def call_before(self, space: AddressSpace, word: int) -> Call:
        """Return which call a word is the return address of."""
        known = self._calls.get(word)
        if known is None:
            if len(self._calls) >= _MAX_CALLS:
                self._calls.clear()
            known = self._calls[word] = self._look_before(space, word)
        return known

    def _look_before(self, space: AddressSpace, word: int) -> Call:
        mapping = self._layout.find(word - 1)
        if mapping is None:
            return _NO_CALL
        found = self._object(space, mapping)
        if found is None:
            return _UNKNOWN_CALL
        try:
            before = found.elf.read(word - mapping.start + mapping.offset - _BEFORE_RETURN, _BEFORE_RETURN)
        except (MalformedElf, OSError):
            return _NO_CALL
        if any(before[-n] == 0xFF and before[1 - n] >> 3 & 7 == 2 for n in _INDIRECT_CALLS):
            return _INDIRECT_CALL
        if before[-5] != 0xE8:
            return Call("system") if before[-2:] == _SYSCALL else _NO_CALL
        return Call("direct", word + int.from_bytes(before[-4:], "little", signed=True))


def _fits(mapping: Mapping, elf: Elf) -> bool:
    """Whether a mapping is as long as, and lies where, an object's code does."""
    page = mmap.PAGESIZE
    for segment in elf.segments:
        first = segment.offset // page * page
        end = -(-(segment.offset + segment.size) // page) * page
        if segment.executable and first == mapping.offset and end - first == mapping.end - mapping.start:
            return True
    return False
