"""What waits for the writer: decoded, validated, and small enough to hold."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import NamedTuple

from quayscope.profile import Profile
from quayscope.profile.clock import ClockEstimate

__all__ = ["Exemplar", "MetricPoint", "MetricsEntry", "ProfileEntry", "SpansEntry", "Ticket", "Work"]


class ProfileEntry(NamedTuple):
    """One profile. `key` is its idempotency key (16 bytes; empty: always stored).

    Its times are moved to our clock already; `clock` is by what, None: its sender's clock is not known.
    """

    profile: Profile
    key: bytes = b""
    clock: ClockEstimate | None = None


class SpansEntry(NamedTuple):
    """One OTLP trace message as it came, with what finds it again.

    `body` is a serialised `ExportTraceServiceRequest`; `traces` its distinct trace ids joined,
    16 bytes each; `spans` its count; `first_ns` and `last_ns` the smallest and the largest start, by the
    sender's clock, of which `clock` is known.
    """

    body: bytes
    traces: bytes
    spans: int
    first_ns: int
    last_ns: int
    key: bytes
    clock: ClockEstimate | None = None


class Exemplar(NamedTuple):
    """One event of those that a point counts. `trace_id` has 16 bytes, `span_id` 8, or none: not known."""

    time_ns: int
    value: float
    trace_id: bytes
    span_id: bytes
    attributes: tuple[tuple[str, str], ...]


class MetricPoint(NamedTuple):
    """One data point. A histogram has `value` = its sum, `observations`, `buckets` and `exemplars`.

    `kind` is `delta sum`, `cumulative sum`, `gauge`, `delta histogram` or `cumulative histogram`;
    `attributes` are sorted (name, value) pairs of resource and point; `bounds` as OTLP has them.
    """

    name: str
    unit: str
    kind: str
    attributes: tuple[tuple[str, str], ...]
    time_ns: int
    value: float
    observations: int = 0
    bounds: tuple[float, ...] = ()
    buckets: tuple[int, ...] = ()
    exemplars: tuple[Exemplar, ...] = ()


class MetricsEntry(NamedTuple):
    """The points of one OTLP metrics message; `key` is the digest of its bytes."""

    points: list[MetricPoint]
    key: bytes

    def moved(self, clock: ClockEstimate) -> MetricsEntry:
        """Return it by our clock: points by whole seconds as samples are, single events as spans are."""
        by_ns, event_ns = clock.seconds_ns, clock.proven_ns
        if not (by_ns or event_ns):
            return self
        points = [
            point._replace(
                time_ns=point.time_ns + by_ns,
                exemplars=tuple(one._replace(time_ns=one.time_ns + event_ns) for one in point.exemplars),
            )
            for point in self.points
        ]
        return self._replace(points=points)


class Ticket:
    """What a request waits on. Resolved once: stored (`error` is None) or not.

    `refused` are entries that a limit kept out while the rest was stored; one text each.
    """

    def __init__(self) -> None:
        self._done = threading.Event()
        self.error: Exception | None = None
        self.refused: list[str] = []

    def resolve(self, error: Exception | None = None) -> None:
        """Wake the waiting request."""
        self.error = error
        self._done.set()

    def wait(self, timeout_s: float) -> bool:
        """Whether the work was resolved within `timeout_s` seconds."""
        return self._done.wait(timeout_s)


@dataclass
class Work:
    """Everything of one request. `size` is its uncompressed bytes, which the queue is bounded by."""

    size: int
    profiles: list[ProfileEntry] = field(default_factory=list)
    spans: list[SpansEntry] = field(default_factory=list)
    metrics: list[MetricsEntry] = field(default_factory=list)
    ticket: Ticket = field(default_factory=Ticket)
