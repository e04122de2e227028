"""What a worker says (docs/wire.md), one value a kind of record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Union

from quayscope.profile import Attributes, Frame
from quayscope.relay.otlp import Span

__all__ = [
    "BOUNDS",
    "WHYS",
    "Counts",
    "Frames",
    "Hello",
    "Hub",
    "HubRow",
    "Kept",
    "KeptRow",
    "Record",
    "RequestRow",
    "Requests",
    "Spans",
    "Stacks",
    "Stalls",
]

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Upper bounds in seconds of the request duration buckets (semantic conventions)."""
WHYS = ("slow", "failed", "sampled")
"""Why a single request is kept."""


class Hello(NamedTuple):
    """Who is on this connection."""

    pid: int
    role: str
    service: str
    labels: dict[str, str]


class Frames(NamedTuple):
    """Definitions: frame id to frame."""

    frames: list[tuple[int, Frame]]


class Stacks(NamedTuple):
    """CPU samples of one slot: (cpu ns, count, what it is about or None, frame ids root first)."""

    slot_ns: int
    rows: list[tuple[int, int, Attributes | None, tuple[int, ...]]]


class Stalls(NamedTuple):
    """Blocked time of one slot: (delay ns, count, about, statement, frame ids root first)."""

    slot_ns: int
    rows: list[tuple[int, int, Attributes | None, str, tuple[int, ...]]]


class HubRow(NamedTuple):
    """Time in which a hub could not run: `waiting_ns` is the delay times the other requests in flight."""

    delay_ns: int
    times: int
    about: Attributes | None
    waiting_ns: int
    ids: tuple[int, ...]


class Hub(NamedTuple):
    """Held-up time of one worker's hub in one slot; each stack ends in a frame of kind wait."""

    slot_ns: int
    rows: list[HubRow]


class RequestRow(NamedTuple):
    """Finished requests of one kind; times in nanoseconds, `buckets` one longer than `BOUNDS`.

    `busy_buckets` and `stalled_buckets` are the same for those times, or empty: not known.
    """

    endpoint: str
    status: int
    run: str
    phase: str
    sum_ns: int
    busy_ns: int
    stalled_ns: int
    buckets: tuple[int, ...]
    busy_buckets: tuple[int, ...] = ()
    stalled_buckets: tuple[int, ...] = ()


class Requests(NamedTuple):
    """Finished requests of one slot."""

    slot_ns: int
    rows: list[RequestRow]


class KeptRow(NamedTuple):
    """One request worth keeping; `why` is one of `WHYS`, ids are hex or "" (not known)."""

    endpoint: str
    status: int
    run: str
    phase: str
    start_ns: int
    duration_ns: int
    busy_ns: int
    stalled_ns: int
    trace_id: str
    span_id: str
    why: str


class Kept(NamedTuple):
    """Single requests that were slow, failed, or are samples of the rest."""

    rows: list[KeptRow]


class Spans(NamedTuple):
    """Finished spans of one instrumentation scope."""

    scope: str
    spans: list[Span]


class Counts(NamedTuple):
    """The worker's own counters, as increments; `fault` is its first fault, said once.

    `levels` are numbers as they stand, no increments.
    """

    time_ns: int
    counts: dict[str, int]
    fault: str = ""
    levels: Mapping[str, int] = {}


Record = Union[Hello, Frames, Stacks, Stalls, Hub, Requests, Kept, Spans, Counts]
