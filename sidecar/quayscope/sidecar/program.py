"""The sidecar as a program: starts the parts, ticks once a second, and ends them in order."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from quayscope.relay import Relay
from quayscope.sidecar.capabilities import Capabilities, Capability
from quayscope.sidecar.control.memory import MemoryPushes
from quayscope.sidecar.database import Database, DatabaseOptions
from quayscope.sidecar.errors import BadOption, SidecarError
from quayscope.sidecar.gateway import Gateway, GatewayOptions
from quayscope.sidecar.interpreter import tune
from quayscope.sidecar.measurements import Meter, Reading
from quayscope.sidecar.native import report
from quayscope.sidecar.native.debuginfod import Debuginfod
from quayscope.sidecar.native.sampler import Sampler
from quayscope.sidecar.outward import Outward, open_uplinks
from quayscope.sidecar.programs import ProgramOptions, Programs
from quayscope.sidecar.python import PythonCaptures, PythonTarget
from quayscope.sidecar.resources import Container, Processes, Resources, TierCpu
from quayscope.sidecar.sampled import SampledPrograms
from quayscope.sidecar.targets.pod import PODINFO

if TYPE_CHECKING:
    from quayscope.sidecar.control.part import Control

__all__ = ["Options", "Sidecar"]

log = logging.getLogger(__name__)

_TICK_S = 1.0
_REPORT_EVERY = 10
"""Ticks between reports of capabilities and the uplink's counts; a change is reported at once."""
_CLOSE_S = 4.5
"""Everything held is sent within this time of SIGTERM, or counted lost."""
_RELAY_FLUSH_S = 1.5
_CONTROL_CLOSE_S = 1.0
_GATEWAY_CLOSE_S = 0.5
_SAMPLER_CLOSE_S = 1.0


@dataclass(frozen=True)
class Options:
    """What the command line asks for; see `commands` for the meaning of each."""

    socket: Path
    collector: str = ""
    token_file: Path | None = None
    insecure: bool = False
    postgres: str = "auto"
    postgres_dsn: str = ""
    database_service: str = "quay-database"
    python: Sequence[PythonTarget] = ()
    targets: Sequence[str] = ()
    component: str = ""
    podinfo: Path = PODINFO
    pyspy: str = "auto"
    go_pprof: Sequence[str] = ("auto",)
    go_every_s: float = 60.0
    go_cpu_s: int = 10
    quay_pid: int | None = None
    hz: int = 99
    window_s: int = 10
    cache: Path | None = None
    debuginfod: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    ready_file: Path | None = None
    outward: Outward = field(default_factory=Outward)


class Sidecar:
    """Runs until SIGTERM or SIGINT. Raises `SidecarError` or `RelayError` for what cannot be started."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._stop = threading.Event()
        self._faults = 0
        self._capabilities = Capabilities()
        self._reported_changes = 0
        outward = options.outward
        self._uplink = open_uplinks(outward, options.collector, options.token_file, options.insecure)
        self._pushes = MemoryPushes()
        self._gateway = Gateway(
            GatewayOptions(outward.otlp_listen, outward.push_listen, options.labels, outward.gateway_service),
            self._uplink,
            self._pushes,
        )
        self._meter = Meter({**options.labels, "service_name": "quayscope-sidecar"}, self._uplink.metrics)
        database_meter = Meter(
            {**options.labels, "service_name": options.database_service}, self._uplink.metrics
        )
        self._relay = Relay(
            str(options.socket), self._uplink, labels=options.labels, window_s=options.window_s
        )
        self._sampler = Sampler(
            self._uplink.profiles,
            hz=options.hz,
            window_s=options.window_s,
            cache=options.cache,
            debuginfod=_open_debuginfod(options),
        )
        self._database = Database(
            DatabaseOptions(
                options.postgres,
                options.postgres_dsn,
                options.database_service,
                options.labels,
                options.hz,
                options.window_s,
            ),
            self._capabilities,
            self._uplink.profiles,
            database_meter.emit,
            self._sampler,
        )
        self._captures = PythonCaptures(
            options.python,
            {**options.labels, "service_name": "quay-app"},
            options.window_s,
            self._uplink.profiles,
            self._capabilities,
        )
        self._programs = Programs(
            ProgramOptions(
                options.targets,
                options.component,
                options.podinfo,
                options.pyspy,
                options.go_pprof,
                options.go_every_s,
                options.go_cpu_s,
                options.window_s,
                options.labels,
            ),
            self._capabilities,
            self._uplink.profiles,
            lambda: {worker.pid for worker in self._relay.workers()},
            SampledPrograms(self._sampler, self._capabilities),
        )
        self._control = self._open_control() if outward.control else None
        self._processes = Processes()
        self._tiers = TierCpu(self._processes)
        self._resources = Resources(options.labels, self._processes, self._uplink.metrics, self._capabilities)

    def _open_control(self) -> Control:
        # gRPC takes 20 MB of memory: where nobody asked for control it is not loaded.
        from quayscope.sidecar.control.part import Control, Pod
        from quayscope.sidecar.control.stream import Peer

        options = self._options
        peer = Peer(options.outward.control, options.token_file, options.outward.ca_file, options.insecure)
        pod = Pod(
            self._relay,
            self._database,
            options.database_service,
            self._programs,
            options.python,
            options.labels,
            self._capabilities,
            self._pushes,
        )
        control = Control(peer, pod, options.cache)
        self._uplink.tell_clock(control.clock)
        return control

    def run(self) -> None:
        """Serve until asked to stop; everything held is sent, within five seconds."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        _raise_descriptor_limit()
        tune()
        self._uplink.start()
        self._relay.start()
        self._sampler.start()
        try:
            self._guard(self._database.start)
            self._captures.start()
            self._open_gateway()
            self._guard(self._programs.start)
            if self._control is not None:
                self._control.start()
            self._report()
            self._say_ready()
            self._tick_until_stopped()
        finally:
            self._close()

    def stop(self) -> None:
        """Ask `run` to return."""
        self._stop.set()

    def _open_gateway(self) -> None:
        """Listen for the pod's clients; the rest goes on where another program has the port."""
        try:
            self._gateway.start()
        except SidecarError as error:
            self._capabilities.note(Capability("gateway", False, str(error), error.next_step))

    def _tick_until_stopped(self) -> None:
        ticks = 0
        due = time.monotonic() + _TICK_S
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            # A late tick is one tick: what it measures is cumulative.
            due = max(due + _TICK_S, time.monotonic())
            ticks += 1
            self._guard(self._database.tick)
            self._guard(self._sample)
            self._guard(self._programs.tick)
            self._guard(self._measure)
            if ticks % _REPORT_EVERY == 0 or self._capabilities.changes != self._reported_changes:
                self._guard(self._report)

    def _guard(self, step: Callable[[], None]) -> None:
        # The one border of the main loop: a step that fails costs itself, and is said and counted.
        try:
            step()
        except Exception:
            self._faults += 1
            log.exception("fault", extra={"faults": self._faults})

    def _sample(self) -> None:
        for capability in report.capabilities(self._sampler.targets):
            self._capabilities.note(capability)

    def _measure(self) -> None:
        self._processes.look()
        self._meter.emit(self._tiers.readings(self._database.server, self._options.quay_pid))
        self._resources.tick(self._containers())

    def _containers(self) -> list[Container]:
        server, quay_pid = self._database.server, self._options.quay_pid
        found = []
        if server is not None:
            found.append(Container({"service_name": self._options.database_service}, server.pid))
        if quay_pid is not None:
            found.append(Container({"service_name": "quay-app"}, quay_pid))
        return found

    def _report(self) -> None:
        self._reported_changes = self._capabilities.changes
        readings = [
            Reading(
                "quayscope.capability",
                "gauge",
                int(held.permitted),
                "1",
                {"capability": held.name, "detail": held.detail, "remedy": held.remedy},
            )
            for held in self._capabilities.all()
        ]
        readings += [
            Reading(f"quayscope.uplink.{name}", "delta", count, "1", {})
            for name, count in self._uplink.take_counts().items()
        ]
        counts = {**self._sampler.counts(), **self._database.counts()}
        parts = (self._sampler, self._uplink, self._captures, self._programs)
        counts["faults"] += self._faults + sum(part.faults for part in parts)
        if self._control is not None:
            counts["faults"] += self._control.faults
            readings += self._control.readings()
        readings += [
            Reading(f"quayscope.sidecar.{name}", "cumulative", count, "1", {})
            for name, count in counts.items()
        ]
        readings += [
            Reading(f"quayscope.gateway.{name}", "cumulative", count, "1", {})
            for name, count in self._gateway.counts().items()
        ]
        self._meter.emit(readings + self._programs.readings())

    def _say_ready(self) -> None:
        capabilities = {held.name: held.permitted for held in self._capabilities.all()}
        sent_to = self._options.collector or self._options.outward.pyroscope
        log.info("serving", extra={"socket": str(self._options.socket), "sent_to": sent_to})
        if self._options.ready_file is not None:
            ready = {
                "pid": os.getpid(),
                "socket": str(self._options.socket),
                "capabilities": capabilities,
                "gateway": self._gateway.ports(),
            }
            temporary = self._options.ready_file.with_name(f"{self._options.ready_file.name}.{os.getpid()}")
            temporary.write_text(json.dumps(ready), encoding="utf-8")
            temporary.replace(self._options.ready_file)

    def _close(self) -> None:
        deadline = time.monotonic() + _CLOSE_S
        control = self._control
        if control is not None:
            self._guard(lambda: control.close(_CONTROL_CLOSE_S))
        self._guard(lambda: self._gateway.close(_GATEWAY_CLOSE_S))
        self._captures.close(0.5)
        self._guard(lambda: self._programs.close(1.0))
        self._guard(lambda: self._relay.close(_RELAY_FLUSH_S))
        self._guard(self._database.close)
        self._guard(lambda: self._sampler.close(_SAMPLER_CLOSE_S))
        self._guard(self._measure)
        self._resources.close()
        self._processes.close()
        self._guard(self._report)
        self._uplink.close(max(0.1, deadline - time.monotonic()))
        log.info("stopped")


def _open_debuginfod(options: Options) -> Debuginfod | None:
    if not options.debuginfod:
        return None
    if options.cache is None:
        raise BadOption("debug files from a debuginfod need a folder", next_step="use --cache FOLDER")
    return Debuginfod(options.debuginfod, options.cache / "debuginfod")


def _raise_descriptor_limit() -> None:
    """Perf events take a descriptor a backend and CPU: use all that we may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
