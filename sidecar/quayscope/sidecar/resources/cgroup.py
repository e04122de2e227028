"""One container's cgroup: CPU and its limit, throttling, memory, disks, pressure. v1, v2, or a mix of both.

Files and units: the kernel's `cgroup-v2.rst` and `cgroup-v1/`; psi(7) for pressure (microseconds).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from quayscope.sidecar.measurements import Reading
from quayscope.sidecar.resources import names
from quayscope.sidecar.resources.counters import Counters
from quayscope.sidecar.resources.mounts import UNIFIED
from quayscope.sidecar.resources.pressure import pressure
from quayscope.sidecar.resources.tried import CONTAINER, PRESSURE, Tried, number, read_text

__all__ = ["Cgroup", "parse_blkio", "parse_flat", "parse_io_stat"]

_NO_LIMIT = 1 << 60
"""v1's memory limit is the largest multiple of a page when there is none."""
_MOST_DEVICES = 64
_MOST_BELOW = 64


def parse_flat(text: str) -> dict[str, int]:
    """Return the numbers of a file of `NAME VALUE` lines; other lines are skipped."""
    numbers = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        count = number(value)
        if count is not None:
            numbers[name] = count
    return numbers


def parse_io_stat(text: str) -> dict[str, dict[str, int]]:
    """Return v2's numbers by device (`MAJOR:MINOR`): `rbytes`, `wbytes`, `rios`, `wios` and others."""
    devices = {}
    for line in text.splitlines()[:_MOST_DEVICES]:
        device, _, pairs = line.partition(" ")
        numbers = (
            (name, number(value)) for name, _, value in (pair.partition("=") for pair in pairs.split())
        )
        devices[device] = {name: count for name, count in numbers if count is not None}
    return devices


def parse_blkio(text: str) -> dict[str, dict[str, int]]:
    """Return v1's numbers by device and then `Read`, `Write` and others; the total of all is left out."""
    devices: dict[str, dict[str, int]] = {}
    for line in text.splitlines():
        fields = line.split()
        if (
            len(fields) == 3
            and fields[2].isdigit()
            and (fields[0] in devices or len(devices) < _MOST_DEVICES)
        ):
            devices.setdefault(fields[0], {})[fields[1]] = int(fields[2])
    return devices


class Cgroup:
    """Reads one container's files: `directories` as `mounts` found them, `name` says whose they are."""

    def __init__(self, directories: Mapping[str, str], counters: Counters, name: str) -> None:
        self._directories = directories
        self._counters = counters
        self._name = name
        self._unified = directories.get(UNIFIED, "")
        top = directories.get("cpu") or directories.get("memory") or self._unified
        self._members = _member_files(Path(top)) if top else []

    def readings(self, tried: Tried, disks: Mapping[str, str]) -> list[Reading]:
        """Return everything that can be read now; `disks` names devices by their `MAJOR:MINOR`."""
        found: list[Reading] = []
        if self._directories:
            for part in (
                self._cpu(tried),
                self._memory(tried),
                self._io(tried, disks),
                self._pressure(tried),
            ):
                found += part
        return found

    def pids(self, tried: Tried) -> list[int]:
        """Return the container's processes, those of cgroups just below its own too."""
        own, *below = self._members or [""]
        text = (tried.read(CONTAINER, own, f"{self._name}: cgroup.procs") if own else None) or ""
        for file in below:
            with contextlib.suppress(OSError):
                text += read_text(file)
        # 0 stands for a process that our own pid namespace does not show.
        return [int(line) for line in text.split() if line.isdigit() and line != "0"]

    def _read(self, tried: Tried, controller: str, file: str, capability: str = CONTAINER) -> str | None:
        """Read a controller's file: v1's hierarchy when there is one for it, v2's else."""
        directory = self._directories.get(controller) or self._unified
        if not directory:
            tried.refused(capability, f"{self._name}: {controller}", "in the root cgroup, or not reached")
            return None
        return tried.read(capability, f"{directory}/{file}", f"{self._name}: {file}")

    def _cpu(self, tried: Tried) -> Iterator[Reading]:
        at = self._counters.at
        stat = parse_flat(self._read(tried, "cpu", "cpu.stat") or "")
        if "cpu" in self._directories or "cpuacct" in self._directories:
            yield from self._cpuacct(tried)
            limit = _ratio(
                self._read(tried, "cpu", "cpu.cfs_quota_us"), self._read(tried, "cpu", "cpu.cfs_period_us")
            )
            throttled_s = stat.get("throttled_time", 0) / 1e9
        else:
            for mode in ("user", "system"):
                if f"{mode}_usec" in stat:
                    yield at(names.CONTAINER_CPU, stat[f"{mode}_usec"] / 1e6, {"cpu.mode": mode})
            quota, _, period = (self._read(tried, "cpu", "cpu.max") or "max").partition(" ")
            limit = _ratio(quota, period)
            throttled_s = stat.get("throttled_usec", 0) / 1e6
        if limit is not None:
            yield names.CONTAINER_CPU_LIMIT.now(limit)
        if "nr_periods" in stat:
            yield at(names.CONTAINER_PERIODS, stat["nr_periods"])
            yield at(names.CONTAINER_THROTTLED, stat.get("nr_throttled", 0))
            yield at(names.CONTAINER_THROTTLED_TIME, throttled_s)

    def _cpuacct(self, tried: Tried) -> Iterator[Reading]:
        for mode, file in (("user", "cpuacct.usage_user"), ("system", "cpuacct.usage_sys")):
            used_ns = number(self._read(tried, "cpuacct", file) or "")
            if used_ns is not None:
                yield self._counters.at(names.CONTAINER_CPU, used_ns / 1e9, {"cpu.mode": mode})

    def _memory(self, tried: Tried) -> Iterator[Reading]:
        v1 = "memory" in self._directories
        usage = number(self._read(tried, "memory", "memory.usage_in_bytes" if v1 else "memory.current") or "")
        limit = number(self._read(tried, "memory", "memory.limit_in_bytes" if v1 else "memory.max") or "")
        stat = parse_flat(self._read(tried, "memory", "memory.stat") or "")
        events = parse_flat(
            self._read(tried, "memory", "memory.oom_control" if v1 else "memory.events") or ""
        )
        if usage is not None:
            inactive = stat.get("total_inactive_file" if v1 else "inactive_file")
            yield names.CONTAINER_MEMORY.now(usage)
            if inactive is not None:
                yield names.CONTAINER_WORKING_SET.now(max(0, usage - inactive))
        if limit is not None:
            least = min(limit, stat.get("hierarchical_memory_limit", _NO_LIMIT))
            if least < _NO_LIMIT:
                yield names.CONTAINER_MEMORY_LIMIT.now(least)
        if "oom_kill" in events:
            yield self._counters.at(names.CONTAINER_OOM_KILLS, events["oom_kill"])

    def _io(self, tried: Tried, disks: Mapping[str, str]) -> Iterator[Reading]:
        if "blkio" in self._directories:
            sums = [
                parse_blkio(self._read(tried, "blkio", f"blkio.throttle.{file}_recursive") or "")
                for file in ("io_service_bytes", "io_serviced")
            ]
            keys = (("Read", "Write"), ("Read", "Write"))
        else:
            sums = [parse_io_stat(self._read(tried, "io", "io.stat") or "")] * 2
            keys = (("rbytes", "wbytes"), ("rios", "wios"))
        instruments = (names.CONTAINER_DISK_IO, names.CONTAINER_DISK_OPERATIONS)
        for instrument, devices, pair in zip(instruments, sums, keys, strict=True):
            for device, numbers in devices.items():
                for direction, key in zip(("read", "write"), pair, strict=True):
                    if key in numbers:
                        attributes = {
                            "system.device": disks.get(device, device),
                            "disk.io.direction": direction,
                        }
                        yield self._counters.at(instrument, numbers[key], attributes)

    def _pressure(self, tried: Tried) -> Iterator[Reading]:
        if not self._unified:
            tried.refused(PRESSURE, self._name, "its cgroup is not in the v2 hierarchy")
            return
        for resource in ("cpu", "io", "memory"):
            file = f"{resource}.pressure"
            text = tried.read(PRESSURE, f"{self._unified}/{file}", f"{self._name}: {file}")
            yield from pressure(text, resource, names.CONTAINER_PRESSURE, self._counters)


def _member_files(directory: Path) -> list[str]:
    own = directory / "cgroup.procs"
    return [str(own), *map(str, sorted(directory.glob("*/cgroup.procs"))[:_MOST_BELOW])]


def _ratio(quota: str | None, period: str | None) -> float | None:
    """Return the CPUs that a quota allows in its period; None when there is no limit."""
    allowed, of = number(quota or ""), number(period or "")
    return allowed / of if allowed is not None and of else None
