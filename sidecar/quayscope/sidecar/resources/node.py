"""The node: CPU by mode (iowait and steal too), memory, pressure, run-queue delay. See proc(5)."""

from __future__ import annotations

from collections.abc import Iterator

from quayscope.sidecar.measurements import Reading
from quayscope.sidecar.procfs import TICK_NS
from quayscope.sidecar.resources import names
from quayscope.sidecar.resources.counters import Counters
from quayscope.sidecar.resources.pressure import pressure
from quayscope.sidecar.resources.tried import NODE, RUN_DELAY, Tried, number

__all__ = ["node_readings"]

_MODES = ("user", "nice", "system", "idle", "iowait", "interrupt", "softirq", "steal")
_STATES = {"free": "MemFree", "buffers": "Buffers", "cached": "Cached"}


def node_readings(tried: Tried, counters: Counters) -> Iterator[Reading]:
    """Yield what the node did and has; `counters` are those that began at boot."""
    yield from _cpu(tried.read(NODE, "/proc/stat") or "", counters)
    yield from _memory(tried.read(NODE, "/proc/meminfo") or "")
    for resource in ("cpu", "io", "memory"):
        text = tried.read(NODE, f"/proc/pressure/{resource}")
        yield from pressure(text, resource, names.SYSTEM_PRESSURE, counters)
    yield from _delay(tried.read(RUN_DELAY, "/proc/schedstat") or "", counters)


def _cpu(text: str, counters: Counters) -> Iterator[Reading]:
    name, *fields = text.partition("\n")[0].split() or [""]
    if name == "cpu":
        for mode, ticks in zip(_MODES, fields, strict=False):
            # Idle and iowait are known to fall by a tick where a CPU's idle time is summed anew.
            yield counters.highest(names.SYSTEM_CPU, (number(ticks) or 0) * TICK_NS / 1e9, {"cpu.mode": mode})


def _memory(text: str) -> Iterator[Reading]:
    kilobytes = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        size = number(rest.removesuffix("kB"))
        if size is not None:
            kilobytes[name] = size
    if "MemTotal" not in kilobytes:
        return
    total = kilobytes["MemTotal"]
    yield names.SYSTEM_MEMORY_LIMIT.now(total * 1024)
    if "MemAvailable" in kilobytes:
        yield names.SYSTEM_MEMORY_AVAILABLE.now(kilobytes["MemAvailable"] * 1024)
    states = {state: kilobytes.get(name, 0) for state, name in _STATES.items()}
    states["used"] = max(0, total - sum(states.values()))
    for state, value in states.items():
        yield names.SYSTEM_MEMORY.now(value * 1024, {"system.memory.state": state})


def _delay(text: str, counters: Counters) -> Iterator[Reading]:
    # cpuN, then nine numbers: the eighth is the time tasks waited to run, in nanoseconds (sched-stats.rst).
    rows = [line.split() for line in text.splitlines() if line.startswith("cpu")]
    waits = [number(fields[8]) or 0 for fields in rows if len(fields) > 8]
    if waits:
        yield counters.at(names.SYSTEM_DELAY, sum(waits) / 1e9)
