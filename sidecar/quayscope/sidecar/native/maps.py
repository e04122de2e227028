"""A process's address space: which file's code lies where. Format: proc_pid_maps(5)."""

from __future__ import annotations

import bisect
import os
import re
import weakref
from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple

__all__ = ["AddressSpace", "Layout", "Mapping", "parse_maps", "read_maps"]

_LINE = re.compile(
    rb"^([0-9a-f]{1,16})-([0-9a-f]{1,16}) (..x.) ([0-9a-f]{1,16}) ([0-9a-f]+:[0-9a-f]+ [0-9]+) *([^\n]*)$",
    re.MULTILINE,
)
_MAX_BYTES = 16 << 20
MAX_MAPPINGS = 65_536
"""Executable mappings kept of one process, the lowest ones; Linux allows as many in all by default."""


class Mapping(NamedTuple):
    """One stretch of executable memory: [start, end) shows `path` from file offset `offset`."""

    start: int
    end: int
    offset: int
    path: str


class Layout:
    """Where code lies: mappings in order of address. Equal ones made by `of` are the same object.

    `identity` tells files apart that have the same path: processes share a layout only where it is equal.
    """

    _held: ClassVar[weakref.WeakValueDictionary[tuple[tuple[Mapping, ...], int], Layout]] = (
        weakref.WeakValueDictionary()
    )

    def __init__(self, mappings: tuple[Mapping, ...], identity: int) -> None:
        self.mappings = mappings
        self.identity = identity
        self._starts = [mapping.start for mapping in mappings]

    @classmethod
    def of(cls, mappings: Iterable[Mapping], identity: int = 0) -> Layout:
        """Return the layout of these mappings, sorted, those that continue one another merged."""
        key = (tuple(_merged(sorted(mappings))[:MAX_MAPPINGS]), identity)
        held = cls._held.get(key)
        if held is None:
            held = cls._held[key] = cls(*key)
        return held

    def find(self, address: int) -> Mapping | None:
        """Return the mapping that holds the address, None where there is no code."""
        index = bisect.bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        mapping = self.mappings[index]
        return mapping if address < mapping.end else None

    def with_mappings(self, added: Iterable[Mapping]) -> Layout:
        """Return this layout with mappings laid over it, in the order in which they were made."""
        kept = list(self.mappings)
        starts = list(self._starts)
        for new in added:
            first = bisect.bisect_right(starts, new.start) - 1
            if first < 0 or kept[first].end <= new.start:
                first += 1
            last = bisect.bisect_left(starts, new.end, first)
            pieces = [new]
            for old in kept[first:last]:
                if old.start < new.start:
                    pieces.insert(0, old._replace(end=new.start))
                if old.end > new.end:
                    moved = old.offset + new.end - old.start if old.path else 0
                    pieces.append(Mapping(new.end, old.end, moved, old.path))
            kept[first:last] = pieces
            starts[first:last] = [piece.start for piece in pieces]
        return Layout.of(kept, self.identity)


def _merged(mappings: Sequence[Mapping]) -> list[Mapping]:
    merged: list[Mapping] = []
    for mapping in mappings:
        if merged:
            last = merged[-1]
            if last.end == mapping.start and last.path == mapping.path:
                continues = last.offset + last.end - last.start == mapping.offset
                if continues or not mapping.path.startswith("/"):
                    merged[-1] = last._replace(end=mapping.end)
                    continue
        merged.append(mapping)
    return merged


class AddressSpace:
    """The executable mappings of one process, findable by address.

    `ancestor` is the process it descends from, as far as that is known, else 0: it may outlive this one, and
    has the same files.
    """

    def __init__(self, pid: int, mappings: Iterable[Mapping] | Layout, ancestor: int = 0) -> None:
        self.pid = pid
        self.ancestor = ancestor
        self.layout = mappings if isinstance(mappings, Layout) else Layout.of(mappings)

    @property
    def mappings(self) -> Sequence[Mapping]:
        """All of them, in order of address."""
        return self.layout.mappings

    def find(self, address: int) -> Mapping | None:
        """Return the mapping that holds the address, None where there is no code."""
        return self.layout.find(address)


def parse_maps(text: bytes) -> list[Mapping]:
    """Return the executable mappings of a /proc/PID/maps; lines of another form are passed over."""
    return _parse(text)[0]


def _parse(text: bytes) -> tuple[list[Mapping], int]:
    """Return the executable mappings, and a number that differs where their files do."""
    found = []
    paths: dict[bytes, str] = {}
    files: set[bytes] = set()
    for match in _LINE.finditer(text):
        start, end, _, offset, file, path = match.groups()
        first, last = int(start, 16), int(end, 16)
        if first < last:
            # Thousands of mappings of one file share one string.
            name = paths.get(path)
            if name is None:
                name = paths[path] = os.fsdecode(path)
            files.add(file + path)
            found.append(Mapping(first, last, int(offset, 16), name))
    return found, hash(frozenset(files))


def read_maps(pid: int) -> AddressSpace | None:
    """Return the address space of a process; None when it is gone or may not be read."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            text = file.read(_MAX_BYTES)
    except OSError:
        return None
    mappings, identity = _parse(text)
    return AddressSpace(pid, Layout.of(mappings, identity))
