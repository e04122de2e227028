"""A process's address space: which file's code lies where. Format: proc_pid_maps(5)."""

from __future__ import annotations

import bisect
import os
import re
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["AddressSpace", "Mapping", "parse_maps", "read_maps"]

_LINE = re.compile(
    rb"^([0-9a-f]{1,16})-([0-9a-f]{1,16}) (..x.) ([0-9a-f]{1,16}) [0-9a-f]+:[0-9a-f]+ [0-9]+ *([^\n]*)$",
    re.MULTILINE,
)
_MAX_BYTES = 16 << 20


class Mapping(NamedTuple):
    """One stretch of executable memory: [start, end) shows `path` from file offset `offset`."""

    start: int
    end: int
    offset: int
    path: str


class AddressSpace:
    """The executable mappings of one process, findable by address."""

    def __init__(self, pid: int, mappings: Iterable[Mapping]) -> None:
        self.pid = pid
        self.mappings = sorted(mappings)
        self._starts = [mapping.start for mapping in self.mappings]

    def find(self, address: int) -> Mapping | None:
        """Return the mapping that holds the address, None where there is no code."""
        index = bisect.bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        mapping = self.mappings[index]
        return mapping if address < mapping.end else None


def parse_maps(text: bytes) -> list[Mapping]:
    """Return the executable mappings of a /proc/PID/maps; lines of another form are passed over."""
    found = []
    for match in _LINE.finditer(text):
        start, end, _, offset, path = match.groups()
        first, last = int(start, 16), int(end, 16)
        if first < last:
            found.append(Mapping(first, last, int(offset, 16), os.fsdecode(path)))
    return found


def read_maps(pid: int) -> AddressSpace | None:
    """Return the address space of a process; None when it is gone or may not be read."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            return AddressSpace(pid, parse_maps(file.read(_MAX_BYTES)))
    except OSError:
        return None
