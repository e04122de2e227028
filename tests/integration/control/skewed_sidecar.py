"""A sidecar's control part whose node's clock is wrong: `skewed_sidecar.py SECONDS ...`.

The clock that it is given is shifted, and so are the windows that its real capturers see and the times that
they give, as all of them would be on such a node. Prints when samples truly began, a JSON line each.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import click

from quayscope.profile.control import Target
from quayscope.relay import Relay
from quayscope.relay.destination import Destination
from quayscope.relay.uplink import Uplink
from quayscope.sidecar.capabilities import Capabilities
from quayscope.sidecar.control.capturer import Captured, Capturer, Window
from quayscope.sidecar.control.part import Control, Pod
from quayscope.sidecar.control.stream import Peer
from quayscope.sidecar.database import Database, DatabaseOptions
from quayscope.sidecar.native.sampler import Sampler
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
        for profile in found.profiles:
            profile.start_ns += self._shift_ns
            samples, profile.samples = profile.samples, {}
            for (stack, about), values in samples.items():
                profile.add(stack, about._replace(slot_ns=about.slot_ns + self._shift_ns), values)
        return found._replace(
            started_ns=found.started_ns + self._shift_ns, ended_ns=found.ended_ns + self._shift_ns
        )


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
        sampler = Sampler(lambda _: None)
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
            ),
            clock=lambda: time.time_ns() + shift_ns,
            wrap=lambda real: Shifted(real, shift_ns),
        )
        running.start()
        ending.wait()
        running.close(2.0)
        relay.close(1.0)
    sys.exit(0)


if __name__ == "__main__":
    main()
