"""The sidecar's own measurements as OTLP metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from quayscope.relay.otlp import Metric, NumberPoint, metric_request

__all__ = ["Kind", "Meter", "Reading"]

Kind = Literal["cumulative", "delta", "gauge"]


class Reading(NamedTuple):
    """One number: a `cumulative` or `delta` sum, or a `gauge`; `unit` in UCUM ("s", "1").

    `start_ns` is when a cumulative sum began, 0: with its meter.
    """

    name: str
    kind: Kind
    value: int | float
    unit: str
    attributes: Mapping[str, str]
    start_ns: int = 0


class Meter:
    """Encodes readings of one series and hands them to `send`. `resource` are its labels.

    A delta covers the time since the delta of that name before it (the first: since the meter was made).
    """

    def __init__(self, resource: Mapping[str, str], send: Callable[[bytes], None]) -> None:
        self._resource = dict(resource)
        self._send = send
        self._start_ns = time.time_ns()
        self._deltas: dict[str, int] = {}

    def emit(self, readings: Sequence[Reading]) -> None:
        """Send readings taken now."""
        now = time.time_ns()
        metrics = []
        by_name: dict[str, list[Reading]] = {}
        for reading in readings:
            by_name.setdefault(reading.name, []).append(reading)
        for name, held in by_name.items():
            start = self._deltas.get(name, self._start_ns) if held[0].kind == "delta" else self._start_ns
            points = tuple(
                NumberPoint(reading.value, now, reading.start_ns or start, reading.attributes)
                for reading in held
            )
            metrics.append(Metric(name, held[0].unit, held[0].kind, points))
            if held[0].kind == "delta":
                self._deltas[name] = now
        if metrics:
            self._send(metric_request(self._resource, metrics))
