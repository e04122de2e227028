"""Address spaces by process: a stand-in until the unwinder's own."""

# ruff: noqa: ARG002, D101, D102
from __future__ import annotations

from quayscope.sidecar.native.maps import AddressSpace, read_maps


class Spaces:
    def __init__(self) -> None:
        self._held: dict[int, AddressSpace | None] = {}

    def of(self, pid: int) -> AddressSpace | None:
        if pid not in self._held:
            self._held[pid] = read_maps(pid)
        return self._held[pid]

    def mapped(self, pid: int, start: int, length: int, offset: int, path: str, executable: bool) -> None:
        self._held.pop(pid, None)

    def forked(self, pid: int, parent: int) -> None:
        if parent in self._held:
            self._held[pid] = self._held[parent]

    def executed(self, pid: int) -> None:
        self._held.pop(pid, None)

    def ended(self, pid: int) -> None:
        self._held.pop(pid, None)
