"""The pod's programs: follows the targets, and has the Python and Go ones sampled in their own ways."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quayscope.profile import Profile
from quayscope.sidecar.capabilities import Capabilities
from quayscope.sidecar.errors import BadOption
from quayscope.sidecar.golang import Address, GoProgram, GoScrapes, clair_operations, parse_address
from quayscope.sidecar.measurements import Reading
from quayscope.sidecar.python import PythonProcess, PythonRotation
from quayscope.sidecar.sampled import SampledPrograms
from quayscope.sidecar.targets.pod import PODINFO, Pod, read_pod
from quayscope.sidecar.targets.selection import select
from quayscope.sidecar.targets.watch import Target, TargetWatch

__all__ = ["ProgramOptions", "Programs"]

AUTO, OFF = "auto", "off"


@dataclass(frozen=True)
class ProgramOptions:
    """What the command line asks for; see `commands` for each. `labels` win over all others."""

    targets: Sequence[str] = ()
    component: str = ""
    podinfo: Path = PODINFO
    pyspy: str = AUTO
    go_pprof: Sequence[str] = (AUTO,)
    go_every_s: float = 60.0
    go_cpu_s: int = 10
    window_s: int = 10
    labels: Mapping[str, str] = field(default_factory=dict)


class Programs:
    """Keeps the pod's targets. `tick` is to be called each second, from one thread.

    `connected` gives the pids in which an agent lives; `sampled` has perf events on some. `chosen` are the
    targets that are watched, as of the last tick. Raises `BadOption` for an address that is none.
    """

    def __init__(
        self,
        options: ProgramOptions,
        capabilities: Capabilities,
        profiles: Callable[[list[Profile]], None],
        connected: Callable[[], set[int]],
        sampled: SampledPrograms,
    ) -> None:
        self._options = options
        self._pod = read_pod(os.environ, options.podinfo, options.component)
        self._watch = TargetWatch(self._pod, options.labels)
        self._rotation = None
        if options.pyspy != OFF:
            self._rotation = PythonRotation(profiles, capabilities, connected, window_s=options.window_s)
        self._go = None
        if OFF not in options.go_pprof:
            addresses = [parse_address(url) for url in options.go_pprof if url != AUTO]
            self._go = GoScrapes(
                addresses,
                clair_operations(),
                profiles,
                capabilities,
                every_s=options.go_every_s,
                cpu_s=options.go_cpu_s,
                discover=AUTO in options.go_pprof,
                fallback=options.labels,
            )
        elif len(options.go_pprof) > 1:
            raise BadOption("--go-pprof off goes with no other", next_step="leave one of them out")
        self._sampled = sampled
        self._kinds: Counter[str] = Counter()
        self.chosen: tuple[Target, ...] = ()

    def start(self) -> None:
        """Look for the first time, and begin."""
        self.tick()
        for part in (self._rotation, self._go):
            if part is not None:
                part.start()

    def tick(self) -> None:
        """Follow what came and went."""
        self._watch.scan()
        targets = self._watch.targets()
        self._kinds = Counter(target.kind for target in targets)
        # Outside of a pod the other processes are strangers: only those that were named are touched.
        chosen = select(targets, self._options.targets, default=self._pod.inside)
        self.chosen = tuple(chosen)
        if self._rotation is not None:
            self._rotation.update(
                [PythonProcess(*_facts(target)) for target in chosen if target.kind == "python"]
            )
        if self._go is not None:
            self._go.update([GoProgram(*_facts(target)) for target in chosen if target.kind == "go"])
        self._sampled.update(chosen, named=bool(self._options.targets))

    def readings(self) -> list[Reading]:
        """Return how many targets there are, and what the samplers did and cost."""
        found = [
            Reading("quayscope.targets", "gauge", count, "1", {"kind": kind})
            for kind, count in sorted(self._kinds.items())
        ]
        passed_over = self._watch.passed_over + self._sampled.passed_over
        found.append(Reading("quayscope.targets.passed_over", "cumulative", passed_over, "1", {}))
        if self._rotation is not None:
            found += self._rotation.readings()
        if self._go is not None:
            found += [
                Reading(f"quayscope.go.{name}", "cumulative", count, "1", {})
                for name, count in self._go.counts().items()
            ]
        return found

    @property
    def pod(self) -> Pod:
        """The pod that this is in."""
        return self._pod

    def go_address(self, pid: int) -> Address | None:
        """Return where a Go program serves its profiles; None where that is not known. Thread-safe."""
        return self._go.address_of(pid) if self._go is not None else None

    @property
    def faults(self) -> int:
        """Errors of our own, in all threads."""
        of_go = self._go.counts().get("faults", 0) if self._go is not None else 0
        return of_go + (self._rotation.faults if self._rotation is not None else 0)

    def close(self, timeout_s: float) -> None:
        """End what is under way; waits about that long."""
        for part in (self._go, self._rotation):
            if part is not None:
                part.close(timeout_s / 2)
        self._sampled.close()


def _facts(target: Target) -> tuple[int, int, Mapping[str, str]]:
    return target.pid, target.start_ticks, target.labels
