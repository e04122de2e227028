"""TCP of a network namespace: retransmits, and connections that a full accept queue turned away.

Meaning of the counters: the kernel's `snmp_counter.rst`. A Unix socket whose queue is full is in none of
them, see `sockets`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from quayscope.sidecar.measurements import Reading
from quayscope.sidecar.resources import names
from quayscope.sidecar.resources.counters import Counters
from quayscope.sidecar.resources.tried import NETWORK, Tried, number

__all__ = ["parse_snmp", "tcp_readings"]

_COUNTERS = {
    "snmp": ("Tcp", {"OutSegs": names.TCP_SENT, "RetransSegs": names.TCP_RETRANSMITS}),
    "netstat": ("TcpExt", {"ListenOverflows": names.LISTEN_OVERFLOWS, "ListenDrops": names.LISTEN_DROPS}),
}


def parse_snmp(text: str, group: str, wanted: Iterable[str]) -> dict[str, int]:
    """Return numbers of one group of a file whose lines come in pairs, names above and numbers below."""
    rows = [line.split() for line in text.splitlines() if line.startswith(f"{group}: ")]
    found: dict[str, int] = {}
    if len(rows) < 2:
        return found
    for name in wanted:
        with contextlib.suppress(ValueError, IndexError):
            value = number(rows[1][rows[0].index(name)])
            if value is not None:
                found[name] = value
    return found


def tcp_readings(pid: int, tried: Tried, counters: Counters) -> Iterator[Reading]:
    """Yield the counters of the namespace that `pid` is in."""
    for file, (group, instruments) in _COUNTERS.items():
        text = tried.read(NETWORK, f"/proc/{pid}/net/{file}", f"/proc/PID/net/{file}")
        numbers = parse_snmp(text or "", group, instruments)
        for name, value in numbers.items():
            yield counters.at(instruments[name], value)
