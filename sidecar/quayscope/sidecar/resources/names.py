"""What is measured, under which name: OpenTelemetry's where its conventions have one, `quayscope.*` else.

Source of the names: open-telemetry/semantic-conventions 1.43, `docs/system`. Limits are ours on purpose: the
conventions' `k8s.container.*.limit.*` are what the API server says, these are what the kernel enforces.
docs/resources.md lists them all; a test compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from quayscope.sidecar.measurements import Kind, Reading

__all__ = ["INSTRUMENTS", "Instrument"]

_NOTHING: Mapping[str, str] = {}


class Instrument(NamedTuple):
    """One metric: its kind, its unit in UCUM, the kernel's files it is read from, its attributes."""

    name: str
    kind: Kind
    unit: str
    source: str
    attributes: tuple[str, ...]

    def now(self, value: float, attributes: Mapping[str, str] = _NOTHING) -> Reading:
        """Return a gauge's value, or what a delta grew by."""
        return Reading(self.name, self.kind, value, self.unit, attributes)


INSTRUMENTS: dict[str, Instrument] = {}


def _add(name: str, kind: Kind, unit: str, source: str, *attributes: str) -> Instrument:
    instrument = INSTRUMENTS[name] = Instrument(name, kind, unit, source, attributes)
    return instrument


_MODE = "cpu.mode"
_STATE = "system.memory.state"
_DEVICE = "system.device"
_DIRECTION = "disk.io.direction"
_SLOT = "quayscope.process.slot"
_STALLED = ("quayscope.resource", "quayscope.stalled")
_SOCKET = ("network.transport", "server.address", "server.port")


PROCESS_CPU = _add(
    "process.cpu.time", "cumulative", "s", "/proc/PID/stat, the process's CPU clock", "tier", "pid"
)
PROCESS_DISK_IO = _add(
    "process.disk.io", "delta", "By", "/proc/PID/io", _SLOT, "process.executable.name", _DIRECTION
)
PROCESS_PID = _add("quayscope.process.pid", "gauge", "1", "the process that has the slot", _SLOT)

CONTAINER_CPU = _add("container.cpu.time", "cumulative", "s", "cpu.stat; cpuacct.usage_{user,sys}", _MODE)
CONTAINER_CPU_LIMIT = _add(
    "quayscope.container.cpu.limit", "gauge", "{cpu}", "cpu.max; cpu.cfs_quota_us, cpu.cfs_period_us"
)
CONTAINER_PERIODS = _add("quayscope.container.cpu.periods", "cumulative", "{period}", "cpu.stat")
CONTAINER_THROTTLED = _add("quayscope.container.cpu.throttled_periods", "cumulative", "{period}", "cpu.stat")
CONTAINER_THROTTLED_TIME = _add("quayscope.container.cpu.throttled_time", "cumulative", "s", "cpu.stat")
CONTAINER_DELAY = _add("quayscope.container.cpu.delay", "cumulative", "s", "/proc/PID/task/TID/schedstat")
CONTAINER_MEMORY = _add("container.memory.usage", "gauge", "By", "memory.current; memory.usage_in_bytes")
CONTAINER_WORKING_SET = _add(
    "container.memory.working_set", "gauge", "By", "the usage without memory.stat's inactive_file"
)
CONTAINER_MEMORY_LIMIT = _add(
    "quayscope.container.memory.limit", "gauge", "By", "memory.max; memory.limit_in_bytes"
)
CONTAINER_OOM_KILLS = _add(
    "quayscope.container.memory.oom_kills", "cumulative", "{kill}", "memory.events; memory.oom_control"
)
CONTAINER_DISK_IO = _add(
    "container.disk.io",
    "cumulative",
    "By",
    "io.stat; blkio.throttle.io_service_bytes_recursive",
    _DEVICE,
    _DIRECTION,
)
CONTAINER_DISK_OPERATIONS = _add(
    "quayscope.container.disk.operations",
    "cumulative",
    "{operation}",
    "io.stat; blkio.throttle.io_serviced_recursive",
    _DEVICE,
    _DIRECTION,
)
CONTAINER_PRESSURE = _add(
    "quayscope.container.pressure", "cumulative", "s", "{cpu,io,memory}.pressure; none in v1", *_STALLED
)
CONTAINER_PROCESSES = _add("quayscope.container.processes", "gauge", "{process}", "cgroup.procs")

SYSTEM_CPU = _add("system.cpu.time", "cumulative", "s", "/proc/stat", _MODE)
SYSTEM_DELAY = _add("quayscope.system.cpu.delay", "cumulative", "s", "/proc/schedstat")
SYSTEM_MEMORY = _add("system.memory.usage", "gauge", "By", "/proc/meminfo", _STATE)
SYSTEM_MEMORY_LIMIT = _add("system.memory.limit", "gauge", "By", "/proc/meminfo")
SYSTEM_MEMORY_AVAILABLE = _add("system.memory.linux.available", "gauge", "By", "/proc/meminfo")
SYSTEM_PRESSURE = _add(
    "quayscope.system.pressure", "cumulative", "s", "/proc/pressure/{cpu,io,memory}", *_STALLED
)

DISK_IO = _add("system.disk.io", "cumulative", "By", "/proc/diskstats", _DEVICE, _DIRECTION)
DISK_OPERATIONS = _add(
    "system.disk.operations", "cumulative", "{operation}", "/proc/diskstats", _DEVICE, _DIRECTION
)
DISK_OPERATION_TIME = _add(
    "system.disk.operation_time", "cumulative", "s", "/proc/diskstats", _DEVICE, _DIRECTION
)
DISK_IO_TIME = _add("system.disk.io_time", "cumulative", "s", "/proc/diskstats", _DEVICE)
DISK_LATENCY = _add(
    "quayscope.system.disk.latency",
    "gauge",
    "s",
    "/proc/diskstats, over the last second",
    _DEVICE,
    _DIRECTION,
)
DISK_UTILIZATION = _add(
    "quayscope.system.disk.utilization", "gauge", "1", "/proc/diskstats, over the last second", _DEVICE
)

TCP_SENT = _add("quayscope.network.tcp.segments_sent", "cumulative", "{segment}", "/proc/PID/net/snmp")
TCP_RETRANSMITS = _add("quayscope.network.tcp.retransmits", "cumulative", "{segment}", "/proc/PID/net/snmp")
LISTEN_OVERFLOWS = _add(
    "quayscope.network.tcp.listen_overflows", "cumulative", "{connection}", "/proc/PID/net/netstat"
)
LISTEN_DROPS = _add(
    "quayscope.network.tcp.listen_drops", "cumulative", "{connection}", "/proc/PID/net/netstat"
)
ACCEPT_QUEUE = _add("quayscope.socket.accept_queue", "gauge", "{connection}", "sock_diag(7)", *_SOCKET)
ACCEPT_BACKLOG = _add("quayscope.socket.accept_backlog", "gauge", "{connection}", "sock_diag(7)", *_SOCKET)

LEFT_OUT = _add(
    "quayscope.resources.left_out",
    "gauge",
    "{item}",
    "what a bound left out of this second",
    "quayscope.kind",
)
