"""The sidecar's measuring of resources by itself, what it sent, and processes to be measured."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from quayscope.sidecar.capabilities import Capabilities
from quayscope.sidecar.resources import Container, Processes, Resources
from quayscope.sidecar.resources.names import INSTRUMENTS

MEGABYTE = 1 << 20
_SLOT = "quayscope.process.slot"


class Point(NamedTuple):
    """One number as it was sent."""

    name: str
    labels: dict[str, str]
    attributes: dict[str, str]
    value: float
    start_ns: int
    time_ns: int


class Measured:
    """The sidecar's part that measures resources, ticking when told to."""

    def __init__(self) -> None:
        self._sent: list[bytes] = []
        self.capabilities = Capabilities()
        self.processes = Processes()
        self.resources = Resources({"pod": "p1"}, self.processes, self._sent.append, self.capabilities)

    def tick(self, *containers: Container) -> list[Point]:
        self.processes.look()
        self.resources.tick(containers)
        points = [point for body in self._sent for point in _points(body)]
        self._sent.clear()
        for point in points:
            # What is sent is what the docs' table says.
            assert point.attributes.keys() <= set(INSTRUMENTS[point.name].attributes)
        return points

    def close(self) -> None:
        self.resources.close()
        self.processes.close()


def _points(body: bytes) -> Iterator[Point]:
    for of in ExportMetricsServiceRequest.FromString(body).resource_metrics:
        labels = {pair.key: pair.value.string_value for pair in of.resource.attributes}
        for metric in of.scope_metrics[0].metrics:
            data = getattr(metric, str(metric.WhichOneof("data")))
            for point in data.data_points:
                attributes = {pair.key: pair.value.string_value for pair in point.attributes}
                value = getattr(point, str(point.WhichOneof("value")))
                times = point.start_time_unix_nano, point.time_unix_nano
                yield Point(metric.name, labels, attributes, value, *times)


def one(points: list[Point], name: str, **attributes: str) -> Point:
    """The only point of that name and those attributes."""
    wanted = attributes.items()
    (found,) = [point for point in points if point.name == name and wanted <= point.attributes.items()]
    return found


def written(points: list[Point], unit: int = MEGABYTE) -> dict[str, int]:
    """What was written by pid, and by the others under ``: in whole units, as file systems add a little."""
    whose = {p.attributes[_SLOT]: str(round(p.value)) for p in points if p.name == "quayscope.process.pid"}
    by_pid = {
        whose.get(point.attributes.get(_SLOT, ""), ""): round(point.value / unit)
        for point in points
        if point.name == "process.disk.io" and point.attributes["disk.io.direction"] == "write"
    }
    return {pid: units for pid, units in by_pid.items() if units or not pid}


def descriptors(of: str = "") -> int:
    """How many of our own are open, to what begins with `of`."""
    found = 0
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += str(path.readlink()).startswith(of)
    return found


class Told:
    """A process that runs the Python statements it is told, and answers when each is done."""

    _PROGRAM = """
import os, socket, sys, time
names = {}
for line in sys.stdin:
    try:
        exec(line, globals())
    except Exception as error:
        print(repr(error), flush=True)
    else:
        print("done", flush=True)
"""

    def __init__(self, wrap: Callable[..., list[str]] = lambda *command: list(command)) -> None:
        command = wrap(sys.executable, "-c", self._PROGRAM)
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.pid = self.process.pid

    def do(self, statement: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(statement + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()
