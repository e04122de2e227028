"""Captures of a Postgres: CPU by perf events with the statements, and what its sessions waited for."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Protocol

from quayscope.profile import PROCESS_CPU, Attributes, Profile, ProfileType, Stack
from quayscope.profile.control import Target
from quayscope.profile.model import Losses
from quayscope.sidecar import doctor
from quayscope.sidecar.control.capturer import Captured, Collected, Window
from quayscope.sidecar.control.perf import Opened, PerfRecordings
from quayscope.sidecar.errors import CaptureRefused
from quayscope.sidecar.native.sampler import Sampler
from quayscope.sidecar.postgres.sampling import PostgresSampling
from quayscope.sidecar.targets import Postmaster
from quayscope.sidecar.windows import SECOND_NS, WindowsTap

__all__ = ["PostgresCapturer", "WatchedDatabase"]

_WRITTEN_S = 0.6
"""What sessions waited for in a second is known that long after its end."""


class WatchedDatabase(Protocol):
    """The watch over a server that goes on beside captures."""

    server: Postmaster | None

    def tap(self, tap: WindowsTap) -> None:
        """Have `tap` called with what its sessions do from now on."""

    def untap(self, tap: WindowsTap) -> None:
        """Call it no longer."""


class PostgresCapturer:
    """Takes captures of the server that is watched."""

    kind = "postgres"

    def __init__(self, database: WatchedDatabase, recordings: PerfRecordings) -> None:
        self._database = database
        self._recordings = recordings

    def suits(self, target: Target) -> bool:
        """Whether the target is that server."""
        server = self._database.server
        return server is not None and server.pid == target.pid

    def capture(self, target: Target, window: Window, hz: int, cancelled: threading.Event) -> Captured:
        """See `Capturer`."""
        server = self._database.server
        if server is None or server.pid != target.pid:
            raise CaptureRefused("the server is gone")
        waits = _Waits(window)
        self._database.tap(waits.take)
        note = ""
        try:
            try:
                captured = self._cpu(server, target, window, hz, cancelled)
                waits.without_cpu = True
            except CaptureRefused as error:
                # What the polls saw stands in: coarse, and said so by its sampler.
                note = str(error)
                window.wait_end(cancelled)
                captured = Captured([], window.start_ns, min(window.clock(), window.end_ns))
            window.wait_end(cancelled, _WRITTEN_S)
        finally:
            self._database.untap(waits.take)
        if not server.alive():
            note = f"the server (process {server.pid}) ended during the capture"
        elif note and waits.saw_cpu:
            note += "; CPU is what polls of its sessions saw"
        profiles = captured.profiles + waits.profiles(captured.started_ns, captured.ended_ns)
        return captured._replace(profiles=profiles, note=note)

    def _cpu(
        self, server: Postmaster, target: Target, window: Window, hz: int, cancelled: threading.Event
    ) -> Captured:
        def open_target(sampler: Sampler, labels: Mapping[str, str]) -> Opened:
            _, memory = doctor.try_memory(server)
            return PostgresSampling(
                sampler,
                server,
                memory,
                service=target.labels.get("service_name", ""),
                labels={**target.labels, **labels},
            )

        return self._recordings.record((self.kind, server.pid), open_target, window, hz, cancelled)


class _Waits:
    """Gathers what the continuous watch puts into its windows, as far as it lies in a capture's."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._collected = Collected()
        self._lock = threading.Lock()
        self.without_cpu = False
        self.saw_cpu = False

    def take(
        self,
        kind: ProfileType,
        labels: Mapping[str, str],
        stack: Stack,
        attributes: Attributes,
        values: tuple[int, ...],
        losses: Losses | None,
    ) -> None:
        """Take what was added to windows."""
        if not self._window.holds(attributes.slot_ns, SECOND_NS):
            return
        profile = Profile(kind, dict(labels), attributes.slot_ns, SECOND_NS, losses=losses or Losses())
        profile.add(stack, attributes, values)
        with self._lock:
            self.saw_cpu = self.saw_cpu or kind is PROCESS_CPU
            self._collected.add(profile)

    def profiles(self, started_ns: int, ended_ns: int) -> list[Profile]:
        """Return them; CPU only where no finer sampler saw it."""
        with self._lock:
            found = self._collected.within(started_ns, ended_ns)
        return [one for one in found if not (self.without_cpu and one.type is PROCESS_CPU)]
