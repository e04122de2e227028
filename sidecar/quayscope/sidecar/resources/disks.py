"""Disks: operations, bytes, latency and utilisation of each device. Format: the kernel's `iostats.rst`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from quayscope.sidecar.measurements import Reading
from quayscope.sidecar.resources import names
from quayscope.sidecar.resources.counters import Counters
from quayscope.sidecar.resources.tried import DISKS, Tried, number

__all__ = ["MOST_DISKS", "Disks"]

MOST_DISKS = 64
_SECTOR = 512
_FIELDS = {"read": (3, 5, 6), "write": (7, 9, 10)}
"""Where a direction's operations, sectors and milliseconds are."""
_BUSY = 12


class Disks:
    """Reads /proc/diskstats, each whole device that was ever used; `left_out` counts those beyond 64."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._before: dict[str, list[int]] = {}
        self._at_ns = 0
        self._partitions: dict[str, bool] = {}
        self.names: dict[str, str] = {}
        self.left_out = 0

    def readings(self, tried: Tried) -> list[Reading]:
        """Return the devices' sums, and what they did since the reading before."""
        now_ns = time.monotonic_ns()
        seconds = (now_ns - self._at_ns) / 1e9 if self._at_ns else 0.0
        found = self._parse(tried.read(DISKS, "/proc/diskstats") or "")
        readings: list[Reading] = []
        for name, numbers in found.items():
            readings += self._sums(name, numbers)
            before = self._before.get(name)
            # A counter that went back (a device replaced, 32 bits full) says nothing about this second.
            if before is not None and seconds and all(map(int.__ge__, numbers[3:8], before[3:8])):
                readings += _second(name, before, numbers, seconds)
        self._before, self._at_ns = found, now_ns
        return readings

    def _parse(self, text: str) -> dict[str, list[int]]:
        devices: dict[str, list[int]] = {}
        self.left_out = 0
        for line in text.splitlines():
            fields = line.split()
            if len(fields) < 14 or fields[3] == fields[7] == "0":
                continue  # never used: most of a node's loop devices
            name = fields[2]
            numbers = [number(field) or 0 for field in fields[:14]]
            if self._is_partition(name):
                continue
            if len(devices) >= MOST_DISKS:
                self.left_out += 1
                continue
            self.names[f"{fields[0]}:{fields[1]}"] = name
            devices[name] = numbers
        return devices

    def _is_partition(self, name: str) -> bool:
        """Whether its device counts the same operations already."""
        if name not in self._partitions:
            if len(self._partitions) >= 16 * MOST_DISKS:
                self._partitions.clear()
                self.names.clear()
            self._partitions[name] = Path(f"/sys/class/block/{name}/partition").exists()
        return self._partitions[name]

    def _sums(self, name: str, numbers: list[int]) -> Iterator[Reading]:
        at = self._counters.at
        for direction, (operations, sectors, milliseconds) in _FIELDS.items():
            attributes = {"system.device": name, "disk.io.direction": direction}
            yield at(names.DISK_IO, numbers[sectors] * _SECTOR, attributes)
            yield at(names.DISK_OPERATIONS, numbers[operations], attributes)
            yield at(names.DISK_OPERATION_TIME, numbers[milliseconds] / 1e3, attributes)
        yield at(names.DISK_IO_TIME, numbers[_BUSY] / 1e3, {"system.device": name})


def _second(name: str, before: list[int], now: list[int], seconds: float) -> Iterator[Reading]:
    for direction, (operations, _, milliseconds) in _FIELDS.items():
        done = now[operations] - before[operations]
        took_ms = now[milliseconds] - before[milliseconds]
        if done > 0 and took_ms >= 0:
            attributes = {"system.device": name, "disk.io.direction": direction}
            yield names.DISK_LATENCY.now(took_ms / 1e3 / done, attributes)
    busy_ms = now[_BUSY] - before[_BUSY]
    if busy_ms >= 0:
        # The kernel counts in milliseconds, and we read a moment late: never more than all the time.
        yield names.DISK_UTILIZATION.now(min(1.0, busy_ms / 1e3 / seconds), {"system.device": name})
