"""What a Go program's pprof endpoints give, as profiles of ours.

Heap, mutex and block profiles count from the program's start: what is shown is the difference to the scrape
before. Where the program offers `delta_heap` and so on (grafana/pyroscope-go `godeltaprof`, as Clair does) it
has done that itself. In both cases the first scrape only says where to count from: its allocations and delays
are of a time that nobody watched. `inuse_*` and goroutines are a state, not a difference.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

from quayscope.profile import (
    BLOCK,
    GOROUTINE,
    MEMORY,
    MUTEX,
    PROCESS_CPU,
    Attributes,
    Profile,
    ProfileType,
    Stack,
    pprof,
)
from quayscope.sidecar.windows import SECOND_NS

__all__ = ["CPU", "KINDS", "Converter", "Kind"]

MAX_UNPACKED = 32 << 20
_OLDEST_NS = 3600 * SECOND_NS
"""A CPU profile that says it began longer ago, or in the future, is taken as of now."""


class Kind(NamedTuple):
    """One endpoint: its name, that of its delta form (empty: none), and the columns that only grow."""

    name: str
    type: ProfileType
    delta: str = ""
    growing: tuple[int, ...] = ()


CPU = Kind("profile", PROCESS_CPU)
KINDS = (
    Kind("heap", MEMORY, "delta_heap", (0, 1)),
    Kind("goroutine", GOROUTINE),
    Kind("mutex", MUTEX, "delta_mutex", (0, 1)),
    Kind("block", BLOCK, "delta_block", (0, 1)),
)

_Values = tuple[int, ...]


class Converter:
    """Reads the answers of one program; holds the last totals of what it has to subtract."""

    def __init__(self, labels: Mapping[str, str], pid: int) -> None:
        self._labels = {**labels, "sampler": "go"}
        self._pid = pid
        self._last: dict[str, dict[Stack, _Values]] = {}
        self._since_ns: dict[str, int] = {}

    def read(self, kind: Kind, body: bytes, *, is_delta: bool, now_ns: int | None = None) -> Profile | None:
        """Return the profile in an answer; None where there is nothing to show, or not yet.

        Raises `MalformedProfile` or `UnknownProfileType` when it is none of that kind.
        """
        raw = pprof.decode(body, name=kind.type.name, max_bytes=MAX_UNPACKED)
        now_ns = time.time_ns() if now_ns is None else now_ns
        since_ns = self._since_ns.get(kind.name)
        self._since_ns[kind.name] = now_ns
        totals = _by_stack(raw)
        if kind.growing:
            shown = self._growth(kind, totals, first=since_ns is None, is_delta=is_delta)
            start_ns, duration_ns = (now_ns, 0) if since_ns is None else (since_ns, max(0, now_ns - since_ns))
        elif kind is CPU:
            shown, duration_ns = totals, max(0, raw.duration_ns)
            start_ns = raw.start_ns if 0 <= now_ns - raw.start_ns <= _OLDEST_NS else now_ns - duration_ns
        else:
            shown, start_ns, duration_ns = totals, now_ns, 0
        profile = Profile(kind.type, dict(self._labels), start_ns, duration_ns, max(0, raw.period))
        attributes = Attributes(slot_ns=start_ns - start_ns % SECOND_NS, pid=self._pid)
        for stack, values in shown.items():
            if any(values):
                profile.add(stack, attributes, values)
                if not stack:
                    # Go's profiler writes such a sample now and then: it was taken, and could not be walked.
                    profile.losses.truncated += values[0]
        return profile if profile.samples else None

    def _growth(
        self, kind: Kind, totals: dict[Stack, _Values], *, first: bool, is_delta: bool
    ) -> dict[Stack, _Values]:
        before = {} if is_delta else self._last.get(kind.name, {})
        if not is_delta:
            self._last[kind.name] = totals
        found = {}
        for stack, values in totals.items():
            old = before.get(stack)
            grown = list(values)
            for column in kind.growing:
                # Two stacks that were one before their names were cut can shrink: never below nothing.
                grown[column] = 0 if first else max(0, values[column] - (old[column] if old else 0))
            found[stack] = tuple(grown)
        return found


def _by_stack(raw: Profile) -> dict[Stack, _Values]:
    """Return the values of each stack, its frames as Go's; labels of the program's own are not kept."""
    found: dict[Stack, _Values] = {}
    for (stack, _), values in raw.samples.items():
        frames = tuple(frame._replace(kind="go") for frame in stack)
        held = found.get(frames)
        found[frames] = values if held is None else tuple(a + b for a, b in zip(held, values, strict=True))
    return found
