"""Pressure stall information: how long work waited for CPU, disks or memory, see psi(7)."""

from __future__ import annotations

from collections.abc import Iterator

from quayscope.sidecar.measurements import Reading
from quayscope.sidecar.resources.counters import Counters
from quayscope.sidecar.resources.names import Instrument
from quayscope.sidecar.resources.tried import number

__all__ = ["pressure"]


def pressure(
    text: str | None, resource: str, instrument: Instrument, counters: Counters
) -> Iterator[Reading]:
    """Yield the sums of one pressure file: the time in which `some` of the tasks waited, and `full`, all."""
    for line in (text or "").splitlines():
        share, _, fields = line.partition(" ")
        for field in fields.split():
            name, _, value = field.partition("=")
            total_us = number(value) if name == "total" and share in ("some", "full") else None
            if total_us is not None:
                attributes = {"quayscope.resource": resource, "quayscope.stalled": share}
                yield counters.at(instrument, total_us / 1e6, attributes)
