"""Control as a part of the sidecar's program: everything put together, started and ended."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from quayscope.profile.clock import ClockEstimate
from quayscope.profile.control import Register
from quayscope.relay import Relay
from quayscope.sidecar.capabilities import Capabilities
from quayscope.sidecar.control.agents import AgentCapturer, Rates
from quayscope.sidecar.control.capturer import Capturer, Clock
from quayscope.sidecar.control.captures import Captures
from quayscope.sidecar.control.commands import Obedience
from quayscope.sidecar.control.database import PostgresCapturer
from quayscope.sidecar.control.golang import GoCapturer, GoMemoryCapturer
from quayscope.sidecar.control.inventory import Inventory, pod_labels
from quayscope.sidecar.control.memory import MemoryPushes, PythonMemoryCapturer
from quayscope.sidecar.control.perf import NativeCapturer, PerfRecordings
from quayscope.sidecar.control.pyspy import PySpyCapturer
from quayscope.sidecar.control.stream import ControlStream, Peer
from quayscope.sidecar.database import Database
from quayscope.sidecar.golang import clair_operations
from quayscope.sidecar.measurements import Reading
from quayscope.sidecar.programs import Programs
from quayscope.sidecar.python import PythonTarget

__all__ = ["Control", "Pod"]


class Pod(NamedTuple):
    """The running parts that are captured, and what they are called."""

    relay: Relay
    database: Database
    database_service: str
    programs: Programs
    python: Sequence[PythonTarget]
    labels: dict[str, str]
    capabilities: Capabilities
    pushes: MemoryPushes


class Control:
    """Attaches to the collector and does what it asks. `cache` as for the native sampler.

    `clock` gives Unix nanoseconds; `wrap` is put around each capturer.
    """

    def __init__(
        self,
        peer: Peer,
        pod: Pod,
        cache: Path | None = None,
        *,
        clock: Clock = time.time_ns,
        wrap: Callable[[Capturer], Capturer] = lambda capturer: capturer,
    ) -> None:
        peer.check()
        self._pod = pod
        self._instance = secrets.token_hex(8)
        labels = pod_labels(pod.labels, pod.programs.pod.name, pod.programs.pod.namespace)
        self._inventory = Inventory(
            labels, pod.relay, pod.database, pod.database_service, pod.programs, pod.python
        )
        self._recordings = PerfRecordings(cache)
        rates = Rates(pod.relay)
        operations = clair_operations()
        capturers: list[Capturer] = [
            AgentCapturer(pod.relay, rates),
            PySpyCapturer(),
            PostgresCapturer(pod.database, self._recordings),
            GoCapturer(pod.programs.go_address, operations),
            GoMemoryCapturer(pod.programs.go_address, operations),
            PythonMemoryCapturer(pod.pushes),
            NativeCapturer(self._recordings),
        ]
        self._captures = Captures(
            [wrap(capturer) for capturer in capturers],
            self._inventory.targets,
            lambda part: self._stream.send(part),
            lambda: self._stream.offset.best.offset_ns,
            clock,
        )
        obedience = Obedience(self._captures, pod.relay, rates, clock)
        self._stream = ControlStream(peer, self._describe, self._inventory.targets, obedience.obey, clock)

    def start(self) -> None:
        """Begin to attach."""
        self._stream.start()

    def close(self, timeout_s: float) -> None:
        """Cancel captures, deliver what they have, and detach; takes about that long at most."""
        self._captures.close(timeout_s / 2)
        self._stream.close(timeout_s / 2)
        self._recordings.close()

    @property
    def attached(self) -> bool:
        """Whether the collector has answered on the stream that is open now."""
        return self._stream.attached

    def clock(self) -> ClockEstimate | None:
        """Return how far our clock is from the collector's; None while it is not known."""
        best = self._stream.offset.best
        return ClockEstimate(best.offset_ns, -(-best.round_trip_ns // 2)) if best.round_trip_ns else None

    @property
    def faults(self) -> int:
        """Errors of our own."""
        return self._captures.faults + self._stream.counts["faults"]

    def readings(self) -> list[Reading]:
        """Return what happened on the stream, and the clock's offset where it is known."""
        counts = [
            Reading(f"quayscope.control.{name}", "cumulative", count, "1", {})
            for name, count in self._stream.counts.items()
        ]
        best = self._stream.offset.best
        if not best.round_trip_ns:
            return counts
        return [
            *counts,
            Reading("quayscope.clock.offset", "gauge", best.offset_ns / 1e9, "s", {}),
            Reading("quayscope.clock.round_trip", "gauge", best.round_trip_ns / 1e9, "s", {}),
        ]

    def _describe(self) -> Register:
        return Register(
            self._instance,
            _own_version(),
            self._inventory.labels,
            (),
            tuple(held.name for held in self._pod.capabilities.all() if held.permitted),
            self._captures.kinds(),
        )


def _own_version() -> str:
    try:
        return version("quayscope")
    except PackageNotFoundError:
        return "0"
