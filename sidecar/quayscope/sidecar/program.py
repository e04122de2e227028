"""The sidecar as a program: starts the parts, ticks once a second, and ends them in order."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quayscope.relay import BadDestination, Relay
from quayscope.relay.destination import Destination
from quayscope.relay.uplink import Uplink
from quayscope.sidecar.capabilities import Capabilities
from quayscope.sidecar.database import Database, DatabaseOptions
from quayscope.sidecar.errors import BadOption
from quayscope.sidecar.measurements import Meter, Reading
from quayscope.sidecar.python import PythonCaptures, PythonTarget
from quayscope.sidecar.resources import Container, Processes, Resources, TierCpu

__all__ = ["Options", "Sidecar"]

log = logging.getLogger(__name__)

_TICK_S = 1.0
_REPORT_EVERY = 10
"""Ticks between reports of capabilities and the uplink's counts; a change is reported at once."""
_SWITCH_INTERVAL_S = 0.0005
"""How long the sampling thread may wait for another one of ours; Python's 5 ms outlast most statements."""
_CLOSE_S = 4.5
"""Everything held is sent within this time of SIGTERM, or counted lost."""
_RELAY_FLUSH_S = 1.5


@dataclass(frozen=True)
class Options:
    """What the command line asks for; see `commands` for the meaning of each."""

    socket: Path
    collector: str
    token_file: Path | None = None
    ca_file: Path | None = None
    insecure: bool = False
    postgres: str = "auto"
    postgres_dsn: str = ""
    database_service: str = "quay-database"
    python: Sequence[PythonTarget] = ()
    quay_pid: int | None = None
    hz: int = 99
    window_s: int = 10
    labels: dict[str, str] = field(default_factory=dict)
    ready_file: Path | None = None


_FLAGS = {
    "url": "use --collector http://HOST:PORT",
    "insecure": "use an https address, or --insecure where the network is trusted",
    "token_file": "check --token-file",
    "ca_file": "check --ca-file; it goes with an https address",
}
"""What to do about a field of the destination."""


class Sidecar:
    """Runs until SIGTERM or SIGINT. Raises `SidecarError` or `RelayError` for what cannot be started."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._stop = threading.Event()
        self._faults = 0
        self._capabilities = Capabilities()
        self._reported_changes = 0
        self._uplink = _open_uplink(options)
        self._meter = Meter({**options.labels, "service_name": "quayscope-sidecar"}, self._uplink.metrics)
        database_meter = Meter(
            {**options.labels, "service_name": options.database_service}, self._uplink.metrics
        )
        self._relay = Relay(
            str(options.socket), self._uplink, labels=options.labels, window_s=options.window_s
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
        )
        self._captures = PythonCaptures(
            options.python,
            {**options.labels, "service_name": "quay-app"},
            options.window_s,
            self._uplink.profiles,
            self._capabilities,
        )
        self._processes = Processes()
        self._tiers = TierCpu(self._processes)
        self._resources = Resources(
            options.labels, self._meter, self._processes, self._uplink.metrics, self._capabilities
        )

    def run(self) -> None:
        """Serve until asked to stop; everything held is sent, within five seconds."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        _raise_descriptor_limit()
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        self._uplink.start()
        self._relay.start()
        try:
            self._guard(self._database.start)
            self._captures.start()
            self._report()
            self._say_ready()
            self._tick_until_stopped()
        finally:
            self._close()

    def stop(self) -> None:
        """Ask `run` to return."""
        self._stop.set()

    def _tick_until_stopped(self) -> None:
        ticks = 0
        due = time.monotonic() + _TICK_S
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            # A late tick is one tick: what it measures is cumulative.
            due = max(due + _TICK_S, time.monotonic())
            ticks += 1
            self._guard(self._database.tick)
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
        counts = self._database.counts()
        counts["faults"] += self._faults + self._uplink.faults + self._captures.faults
        readings += [
            Reading(f"quayscope.sidecar.{name}", "cumulative", count, "1", {})
            for name, count in counts.items()
        ]
        self._meter.emit(readings)

    def _say_ready(self) -> None:
        capabilities = {held.name: held.permitted for held in self._capabilities.all()}
        log.info("serving", extra={"socket": str(self._options.socket), "collector": self._options.collector})
        if self._options.ready_file is not None:
            ready = {"pid": os.getpid(), "socket": str(self._options.socket), "capabilities": capabilities}
            temporary = self._options.ready_file.with_name(f"{self._options.ready_file.name}.{os.getpid()}")
            temporary.write_text(json.dumps(ready), encoding="utf-8")
            temporary.replace(self._options.ready_file)

    def _close(self) -> None:
        deadline = time.monotonic() + _CLOSE_S
        self._captures.close(0.5)
        self._guard(lambda: self._relay.close(_RELAY_FLUSH_S))
        self._guard(self._database.close)
        self._guard(self._measure)
        self._resources.close()
        self._processes.close()
        self._guard(self._report)
        self._uplink.close(max(0.1, deadline - time.monotonic()))
        log.info("stopped")


def _open_uplink(options: Options) -> Uplink:
    destination = Destination(
        options.collector,
        token_file=options.token_file,
        ca_file=options.ca_file,
        insecure=options.insecure,
    )
    try:
        return Uplink(destination)
    except BadDestination as error:
        next_step = _FLAGS.get(error.field, error.next_step)
        raise BadOption(str(error), next_step=next_step) from error


def _raise_descriptor_limit() -> None:
    """Perf events take a descriptor a backend and CPU: use all that we may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
