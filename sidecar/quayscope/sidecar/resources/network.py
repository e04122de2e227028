"""TCP of a network namespace: retransmits, and connections that a full accept queue turned away.

Meaning of the counters: the kernel's `snmp_counter.rst`. A Unix socket whose queue is full is in none of
them, see `sockets`.
"""

from __future__ import annotations

from collections.abc import Iterator

from quayscope.sidecar.measurements import Reading
from quayscope.sidecar.resources import names
from quayscope.sidecar.resources.counters import Counters
from quayscope.sidecar.resources.tried import NETWORK, Tried

__all__ = ["parse_snmp", "tcp_readings"]

_COUNTERS = {
    "snmp": ("Tcp", {"OutSegs": names.TCP_SENT, "RetransSegs": names.TCP_RETRANSMITS}),
    "netstat": ("TcpExt", {"ListenOverflows": names.LISTEN_OVERFLOWS, "ListenDrops": names.LISTEN_DROPS}),
}


def parse_snmp(text: str, group: str) -> dict[str, int]:
    """Return one group of a file whose lines come in pairs, names above and numbers below."""
    rows = [line.split()[1:] for line in text.splitlines() if line.startswith(f"{group}: ")]
    if len(rows) < 2:
        return {}
    return {name: int(value) for name, value in zip(*rows[:2], strict=False) if value.lstrip("-").isdigit()}


def tcp_readings(pid: int, tried: Tried, counters: Counters) -> Iterator[Reading]:
    """Yield the counters of the namespace that `pid` is in."""
    for file, (group, instruments) in _COUNTERS.items():
        text = tried.read(NETWORK, f"/proc/{pid}/net/{file}", f"/proc/PID/net/{file}")
        numbers = parse_snmp(text or "", group)
        for name, instrument in instruments.items():
            if name in numbers:
                yield counters.at(instrument, numbers[name])
