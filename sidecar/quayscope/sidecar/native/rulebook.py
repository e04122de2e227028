"""The rules of all objects that are mapped anywhere, kept between runs where there is a place for them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from quayscope.sidecar.native.elf import Elf
from quayscope.sidecar.native.rules import ObjectRules
from quayscope.sidecar.native.stored import StoredRules

__all__ = ["ObjectSource", "RuleBook"]

_MAX_OBJECTS = 128
_MAX_FUNCTIONS = 65_536
"""Functions compiled at once, of all objects; some 300 bytes each."""
_MAX_TABLE_BYTES = 64 << 20
"""Search tables of all objects; Postgres's has 150 kB, LLVM's 2 MB."""
_SAVE_EVERY_S = 60.0


class ObjectSource(Protocol):
    """Where objects come from: `Objects`."""

    def of(self, pid: int, path: str) -> Elf | None:
        """Return the object that process `pid` knows as `path`; None when it is unreadable or malformed."""
        ...


class RuleBook:
    """At most 128 objects with 65,536 compiled functions in all: what is more is compiled again when needed.

    `malformed` counts functions whose information made no sense, `corrupted` files of stored rules that were
    passed over, `dropped` objects let go.
    """

    def __init__(
        self, objects: ObjectSource, cache: Path | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._objects = objects
        self._stored = StoredRules(cache) if cache is not None else None
        self._clock = clock
        self._save_at = clock() + _SAVE_EVERY_S
        self._held: OrderedDict[str, ObjectRules] = OrderedDict()
        self._malformed = 0
        self.dropped = 0

    @property
    def malformed(self) -> int:
        """Functions of all objects whose call frame information made no sense."""
        return self._malformed + sum(rules.malformed for rules in self._held.values())

    @property
    def corrupted(self) -> int:
        """Files of stored rules that were passed over."""
        return self._stored.corrupted if self._stored is not None else 0

    def of(self, pid: int, path: str) -> ObjectRules | None:
        """Return the rules of what process `pid` has mapped as `path`; None: no readable object."""
        elf = self._objects.of(pid, path)
        if elf is None:
            return None
        # Objects without a build-id are told apart by being held here.
        key = elf.build_id or f"object {id(elf)}"
        rules = self._held.get(key)
        if rules is None:
            rules = self._held[key] = ObjectRules(elf)
            if self._stored is not None and elf.build_id:
                rules.stored = self._stored.load(elf.build_id, rules.checksum)
            while len(self._held) > 1 and (
                len(self._held) > _MAX_OBJECTS
                or sum(held.table_bytes for held in self._held.values()) > _MAX_TABLE_BYTES
            ):
                _, gone = self._held.popitem(last=False)
                self._malformed += gone.malformed
                self.dropped += 1
        self._held.move_to_end(key)
        return rules

    def tend(self) -> None:
        """Keep what is held in bounds, and store what is new at most once a minute."""
        if self._clock() >= self._save_at:
            self.save()
        if sum(map(len, self._held.values())) > _MAX_FUNCTIONS:
            self.save()
            for rules in self._held.values():
                rules.forget()

    def save(self) -> None:
        """Store the rules of all objects that have new ones."""
        self._save_at = self._clock() + _SAVE_EVERY_S
        if self._stored is None:
            return
        for rules in self._held.values():
            if rules.changed and rules.elf.build_id:
                kept = self._stored.save(rules.elf.build_id, rules.checksum, rules.compiled())
                rules.stored = kept or rules.stored
                rules.changed = False
