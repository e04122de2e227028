"""Real parts for the agent's tests: a gunicorn with the agent inside, and a keeper of what a relay makes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

import quayscope.agent
from quayscope.profile import BLOCK, PROCESS_CPU, Attributes, Profile, Stack

CHECKOUT = Path(__file__).parents[3]
INJECT = Path(quayscope.agent.__path__[0]) / "inject"
ROOTS = [CHECKOUT / part for part in ("agent", "tests")]
DEADLINE_S = 15.0


def until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE_S) -> Any:
    """Wait for a condition to hold and return its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds:g} s: {what}")


class Kept:
    """A relay's `Emit` that keeps everything, decoded."""

    def __init__(self) -> None:
        self.made: list[Profile] = []
        self.traces: list[ExportTraceServiceRequest] = []
        self.measured: list[ExportMetricsServiceRequest] = []

    def profiles(self, profiles: list[Profile]) -> None:
        self.made += profiles

    def spans(self, request: bytes) -> None:
        self.traces.append(ExportTraceServiceRequest.FromString(request))

    def metrics(self, request: bytes) -> None:
        self.measured.append(ExportMetricsServiceRequest.FromString(request))

    def samples(self, kind: str) -> Iterator[tuple[Stack, Attributes, tuple[int, ...]]]:
        """Yield all samples of a profile type."""
        for profile in self.made:
            if profile.type.name == kind:
                for (stack, attributes), values in profile.samples.items():
                    yield stack, attributes, values

    def cpu(self, pid: int | None = None) -> dict[str, int]:
        """Return CPU nanoseconds by endpoint."""
        return self._by_endpoint(PROCESS_CPU.name, pid)

    def delay(self, pid: int | None = None) -> dict[str, int]:
        """Return blocked nanoseconds by endpoint."""
        return self._by_endpoint(BLOCK.name, pid)

    def _by_endpoint(self, kind: str, pid: int | None) -> dict[str, int]:
        found: dict[str, int] = {}
        for _, attributes, values in self.samples(kind):
            if pid in (None, attributes.pid):
                found[attributes.endpoint] = found.get(attributes.endpoint, 0) + values[1]
        return found

    def spans_kept(self) -> list[Span]:
        """Return all spans."""
        return [
            span
            for trace in self.traces
            for resource in trace.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def counts(self, prefix: str = "quayscope.agent.") -> dict[str, int]:
        """Return the sums of the counters behind a prefix."""
        found: dict[str, int] = {}
        for metric in self._metrics():
            if metric.name.startswith(prefix) and metric.HasField("sum"):
                name = metric.name[len(prefix) :]
                found[name] = found.get(name, 0) + sum(point.as_int for point in metric.sum.data_points)
        return found

    def sums(self, name: str, by: str) -> dict[str, float]:
        """Return the sums of a metric of numbers by one attribute."""
        found: dict[str, float] = {}
        for metric in self._metrics():
            if metric.name == name:
                for point in metric.sum.data_points:
                    about = {item.key: item.value.string_value for item in point.attributes}
                    found[about[by]] = found.get(about[by], 0.0) + point.as_double
        return found

    def levels(self, name: str) -> list[int]:
        """Return the values of one of the agents' levels."""
        return [
            point.as_int
            for metric in self._metrics()
            if metric.name == f"quayscope.agent.{name}"
            for point in metric.gauge.data_points
        ]

    def requests(self) -> dict[tuple[str, int], int]:
        """Return how many requests were counted, by endpoint and status."""
        found: dict[tuple[str, int], int] = {}
        for metric in self._metrics():
            if metric.name == "http.server.request.duration":
                for point in metric.histogram.data_points:
                    about = {item.key: item.value for item in point.attributes}
                    key = (about["endpoint"].string_value, about["http.response.status_code"].int_value)
                    found[key] = found.get(key, 0) + point.count
        return found

    def _metrics(self) -> Iterator[Any]:
        for request in list(self.measured):
            for resource in request.resource_metrics:
                for scope in resource.scope_metrics:
                    yield from scope.metrics


class Served:
    """An application that answers on a port of loopback."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        """Ask for a path; return the status and the body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path, headers=dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def json(self, path: str, headers: Mapping[str, str] | None = None) -> Any:
        """Ask for a path that must answer 200 with JSON."""
        status, body = self.get(path, headers)
        assert status == 200, body
        return json.loads(body)

    def get_often(self, path: str, times: int, headers: Mapping[str, str] | None = None) -> list[int]:
        """Ask for a path a number of times, one after the other; return the statuses."""
        return [self.get(path, headers)[0] for _ in range(times)]

    def answers(self, path: str = "/agent") -> bool:
        """Whether the agent's test application, or another that knows this path, is there."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.get(path)[0] == 200
        return False


class Gunicorn(Served):
    """A gunicorn with the agent on its PYTHONPATH, ended with the test.

    `path` stands behind the agent's folder `inject`, `python` runs it, `prefix` stands before the command;
    `ready` is what it answers with 200 once it serves.
    """

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        environment: Mapping[str, str],
        application: str = "integration.agent.agent_app:app",
        worker_class: str = "gevent",
        inject: Path | None = INJECT,
        path: Sequence[Path] = (CHECKOUT / "tests",),
        python: Path = Path(sys.executable),
        prefix: Sequence[str] = (),
        ready: str = "/agent",
    ) -> None:
        self._ready = ready
        self.log_path = directory / "gunicorn.log"
        # Bound here and passed on: nobody else can take the port in between.
        with socket.create_server(("127.0.0.1", 0)) as listener:
            super().__init__(listener.getsockname()[1])
            listener.set_inheritable(True)
            command = [*prefix, str(python), "-m", "gunicorn", f"--worker-class={worker_class}"]
            command += [f"--bind=fd://{listener.fileno()}", "--graceful-timeout=3", *arguments, application]
            with self.log_path.open("wb") as log:
                self.process = subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=log,
                    pass_fds=[listener.fileno()],
                    env={
                        **os.environ,
                        "PYTHONPATH": os.pathsep.join(map(str, [*([inject] if inject else []), *path])),
                        "QUAYSCOPE_ROLE": "registry",
                        **environment,
                    },
                )
        try:
            until(self._serves, f"gunicorn serves: {self.log()}")
        except BaseException:
            self.kill()
            raise

    def _serves(self) -> bool:
        assert self.process.poll() is None, self.log()
        return self.answers(self._ready)

    def workers(self) -> list[int]:
        """Return the workers' pids."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def log(self) -> str:
        """Return what gunicorn and its workers wrote."""
        return self.log_path.read_text(errors="replace")

    def stop(self, number: int = signal.SIGQUIT) -> int:
        """End it, at once by default; return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)

    def kill(self) -> None:
        """End it whatever it does."""
        if self.process.poll() is None:
            for pid in [*self.workers(), self.process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
        self.process.wait()


def at_once(*calls: Callable[[], object]) -> None:
    """Run the calls in threads of their own and wait for all; the first failure is raised."""
    failures: list[BaseException] = []

    def guarded(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - raised again below, in the test's thread
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def left_behind(socket: str) -> list[int]:
    """Return the processes that were started with this socket and are still there."""
    mark = f"QUAYSCOPE_SOCKET={socket}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parts[2]))
    return [pid for pid in found if pid != os.getpid()]


def process_cpu_ns(pid: int) -> int:
    """Return the CPU that a process used, ended threads included, in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class Cores:
    """The machine's cores, since this was made."""

    def __init__(self) -> None:
        self._at = self._times()

    def idle(self) -> float:
        """Return the share of their time in which they had nothing to do."""
        passed = [now - then for now, then in zip(self._times(), self._at, strict=True)]
        return sum(passed[3:5]) / max(1, sum(passed))

    def _times(self) -> list[int]:
        line, _, _ = Path("/proc/stat").read_text().partition("\n")
        return [int(field) for field in line.split()[1:9]]  # guests' time is in the first two already
