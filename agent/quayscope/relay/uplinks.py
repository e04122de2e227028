"""Where there are two destinations, a Pyroscope and an OTLP backend: one Emit for both."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Callable

from quayscope.profile import Profile
from quayscope.profile.clock import ClockEstimate
from quayscope.relay.uplink import Uplink

__all__ = ["Uplinks"]


class Uplinks:
    """Hands each kind to the uplink that takes it, the first one where there are several or none.

    Implements `quayscope.relay`'s Emit. All methods are thread-safe and mean what `Uplink`'s mean.
    """

    def __init__(self, uplinks: Sequence[Uplink]) -> None:
        self._uplinks = tuple(uplinks)
        self._by_kind = {
            kind: next((uplink for uplink in self._uplinks if uplink.takes(kind)), self._uplinks[0])
            for kind in ("profiles", "spans", "metrics")
        }

    @property
    def faults(self) -> int:
        """How many faults of our own were survived."""
        return sum(uplink.faults for uplink in self._uplinks)

    def start(self) -> None:
        """Begin sending."""
        for uplink in self._uplinks:
            uplink.start()

    def tell_clock(self, clock: Callable[[], ClockEstimate | None]) -> None:
        """See `Uplink.tell_clock`."""
        for uplink in self._uplinks:
            uplink.tell_clock(clock)

    def takes(self, kind: str) -> bool:
        """Whether a kind goes anywhere."""
        return self._by_kind[kind].takes(kind)

    def profiles(self, profiles: list[Profile]) -> None:
        """Queue profiles."""
        self._by_kind["profiles"].profiles(profiles)

    def spans(self, request: bytes) -> None:
        """Queue an encoded ExportTraceServiceRequest."""
        self._by_kind["spans"].spans(request)

    def metrics(self, request: bytes) -> None:
        """Queue an encoded ExportMetricsServiceRequest."""
        self._by_kind["metrics"].metrics(request)

    def hold(self, kind: str, body: bytes) -> bool:
        """Take an encoded message for good; False where there is no room for it."""
        return self._by_kind[kind].hold(kind, body)

    def take_counts(self) -> dict[str, int]:
        """Return what happened since the last call, of all uplinks together."""
        total = Counter[str]()
        for uplink in self._uplinks:
            for name, count in uplink.take_counts().items():
                total[name] += count
        return dict(total)

    def close(self, timeout_s: float) -> int:
        """Close all at the same time; returns how many items were left behind."""
        left: list[int] = []
        threads = [
            threading.Thread(target=lambda uplink=uplink: left.append(uplink.close(timeout_s)))
            for uplink in self._uplinks
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(left)
