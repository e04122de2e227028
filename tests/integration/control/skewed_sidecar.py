"""A sidecar's control part whose node's clock is wrong: `skewed_sidecar.py SECONDS ...`.

The clock that it is given is shifted, and so are the windows that its real capturers see and the times that
they give, as all of them would be on such a node. Prints when samples truly began, a JSON line each.
Meanwhile it samples the process for its continuous profile, and sends a span a second that is named by the
time when it truly began; both have the node's times.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import click
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from quayscope.profile import Profile
from quayscope.profile.control import Target
from quayscope.relay import Relay
from quayscope.relay.destination import Destination
from quayscope.relay.uplink import Uplink
from quayscope.sidecar.capabilities import Capabilities
from quayscope.sidecar.control.capturer import Captured, Capturer, Window
from quayscope.sidecar.control.memory import MemoryPushes
from quayscope.sidecar.control.part import Control, Pod
from quayscope.sidecar.control.stream import Peer
from quayscope.sidecar.database import Database, DatabaseOptions
from quayscope.sidecar.native.sampler import Sampler
from quayscope.sidecar.native.target import SampledTarget
from quayscope.sidecar.programs import ProgramOptions, Programs
from quayscope.sidecar.python import PythonTarget
from quayscope.sidecar.sampled import SampledPrograms


class Shifted:
    """A capturer on a node whose clock is `shift_ns` ahead."""

    def __init__(self, real: Capturer, shift_ns: int) -> None:
        self.kind = real.kind
        self._real = real
        self._shift_ns = shift_ns

    def suits(self, target: Target) -> bool:
        return self._real.suits(target)

    def capture(self, target: Target, window: Window, hz: int, cancelled: threading.Event) -> Captured:
        true = Window(window.start_ns - self._shift_ns, window.end_ns - self._shift_ns)
        found = self._real.capture(target, true, hz, cancelled)
        print(json.dumps({"started": found.started_ns / 1e9}), flush=True)
        shifted(found.profiles, self._shift_ns)
        return found._replace(
            started_ns=found.started_ns + self._shift_ns, ended_ns=found.ended_ns + self._shift_ns
        )


def shifted(profiles: list[Profile], shift_ns: int) -> list[Profile]:
    """The profiles as they would be on such a node."""
    for profile in profiles:
        profile.move(shift_ns)
    return profiles


def one_span(shift_ns: int, labels: dict[str, str]) -> bytes:
    """A message with a span of 1 ms that begins now."""
    now = time.time_ns()
    message = ExportTraceServiceRequest()
    resource = message.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = labels["pod"]
    resource.scope_spans.add().spans.add(
        trace_id=os.urandom(16),
        span_id=os.urandom(8),
        name=str(now),
        start_time_unix_nano=now + shift_ns,
        end_time_unix_nano=now + shift_ns + 10**6,
    )
    return message.SerializeToString()


@click.command()
@click.argument("shift", type=float)
@click.option("--collector")
@click.option("--control")
@click.option("--pod")
@click.option("--pid", type=int)
def main(shift: float, collector: str, control: str, pod: str, pid: int) -> None:
    """Attach and serve until SIGTERM."""
    shift_ns = round(shift * 1e9)
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    capabilities, labels = Capabilities(), {"pod": pod}
    uplink = Uplink(Destination(collector))
    with tempfile.TemporaryDirectory(prefix="quayscope-skewed-") as directory:
        relay = Relay(str(Path(directory) / "socket"), uplink, labels=labels)
        relay.start()
        database = Database(
            DatabaseOptions("off", "", "quay-database", labels, 99, 10),
            capabilities,
            lambda _: None,
            lambda _: None,
        )
        sampler = Sampler(lambda profiles: uplink.profiles(shifted(profiles, shift_ns)), window_s=1)
        programs = Programs(
            ProgramOptions(pyspy="off", go_pprof=("off",), labels=labels),
            capabilities,
            lambda _: None,
            set,
            SampledPrograms(sampler, capabilities),
        )
        target = PythonTarget(pid, "worker")
        running = Control(
            Peer(control),
            Pod(
                relay,
                database,
                "quay-database",
                programs,
                [target],
                labels,
                capabilities,
                MemoryPushes(),
            ),
            clock=lambda: time.time_ns() + shift_ns,
            wrap=lambda real: Shifted(real, shift_ns),
        )
        uplink.tell_clock(running.clock)
        running.start()
        while running.clock() is None:
            ending.wait(0.05)
        uplink.start()
        sampler.start()
        service = SampledTarget("worker", pid, lambda: (), lambda _pid: "", "", labels, cgroup=False)
        tracked = sampler.add(service)
        while not ending.wait(1.0):
            sampler.flush(time.time_ns())
            uplink.spans(one_span(shift_ns, labels))
        running.close(2.0)
        sampler.remove(tracked)
        sampler.close(1.0)
        relay.close(1.0)
        uplink.close(1.0)
    sys.exit(0)


if __name__ == "__main__":
    main()
