"""One layout of an address space, as walks see it: the rules of its addresses, and what walks found in it.

Processes that share a layout (forks) share its view.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from quayscope.sidecar.errors import MalformedElf
from quayscope.sidecar.native.maps import Layout
from quayscope.sidecar.native.memo import Memo, State, Walked
from quayscope.sidecar.native.rules import GENERATED, GUESS, UNMAPPED, Kind, ObjectRules, Rule

__all__ = ["RuleSource", "View"]

_NO_FILES = ("/memfd:", "/dev/zero", "/SYSV")
_MAX_FAILED = 1024
_MAX_RETURNS = 4096
_BEFORE_RETURN = 7
_INDIRECT_CALLS = (2, 3, 4, 6, 7)
"""Lengths of the encodings of `call` through a register or memory: FF /2 with its operands."""


class RuleSource(Protocol):
    """Where the rules of objects come from: see `rulebook.RuleBook`."""

    def of(self, pid: int, path: str) -> ObjectRules | None:
        """Return the rules of what process `pid` has mapped as `path`."""
        ...


class View:
    """`rules` holds what `learn` has answered, `memo` what walks have found.

    `learned` and `stored` are called when they grow by one, and may clear them.
    """

    def __init__(
        self, layout: Layout, source: RuleSource, learned: Callable[[], None], stored: Callable[[], None]
    ) -> None:
        self.rules: dict[int, Rule] = {}
        self.memo = Memo()
        self._layout = layout
        self._source = source
        self._learned = learned
        self._stored = stored
        self._objects: dict[str, ObjectRules] = {}
        self._failed: set[tuple[int, str]] = set()
        self._returns: dict[int, bool] = {}

    def learn(self, pid: int, address: int) -> Rule:
        """Return the rule at an address, as process `pid` has its files."""
        known = self.rules.get(address)
        if known is not None:
            return known
        rule, lasting = self._look_up(pid, address, ObjectRules.rule)
        if lasting:
            self.rules[address] = rule
            self._learned()
        return rule

    def general(self, pid: int, address: int) -> Rule:
        """Return the rule at an address, with registers by name where there is information."""
        return self._look_up(pid, address, ObjectRules.general)[0]

    def _look_up(self, pid: int, address: int, ask: Callable[[ObjectRules, int], Rule]) -> tuple[Rule, bool]:
        """Return a rule, and whether it is worth keeping."""
        mapping = self._layout.find(address)
        if mapping is None:
            # Garbage has many addresses.
            return UNMAPPED, False
        found = self._object(pid, mapping.path)
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

    def _object(self, pid: int, path: str) -> ObjectRules | None:
        found = self._objects.get(path)
        if found is None and path and path[0] in "/[" and (pid, path) not in self._failed:
            found = self._source.of(pid, path)
            if found is not None:
                self._objects[path] = found
            else:
                if len(self._failed) >= _MAX_FAILED:
                    self._failed.clear()
                self._failed.add((pid, path))
        return found

    def is_code(self, address: int) -> bool:
        """Whether an address is mapped as code at all."""
        return self._layout.find(address) is not None

    def follows_call(self, pid: int, word: int) -> bool:
        """Whether a word is an address right after an indirect call, in code with call frame information."""
        known = self._returns.get(word)
        if known is None:
            if len(self._returns) >= _MAX_RETURNS:
                self._returns.clear()
            known = self._returns[word] = self._look_before(pid, word)
        return known

    def _look_before(self, pid: int, word: int) -> bool:
        mapping = self._layout.find(word - 1)
        found = self._object(pid, mapping.path) if mapping is not None else None
        if mapping is None or found is None or self.learn(pid, word - 1)[0] > Kind.BP:
            return False
        try:
            before = found.elf.read(word - mapping.start + mapping.offset - _BEFORE_RETURN, _BEFORE_RETURN)
        except (MalformedElf, OSError):
            return False
        return any(before[-n] == 0xFF and before[1 - n] >> 3 & 7 == 2 for n in _INDIRECT_CALLS)
