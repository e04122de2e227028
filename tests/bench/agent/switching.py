"""The four things that are turned on and off in pairs: our agent, OpenTelemetry, pyroscope-io, py-spy."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from types import TracebackType

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from bench.agent.site import Site, process_clock_ns
from integration.agent.push_receiver import PushReceiver
from quayscope.profile import Profile
from quayscope.relay import Relay, WorkerSettings
from quayscope.sidecar.python import parse_raw, py_spy_program

HZ = 100
_COUNTS = "quayscope.agent."
_DEADLINE_S = 20.0
_LOOK_S = 0.4
_END_S = 10.0


class Recorded:
    """A relay's `Emit` that keeps sums: CPU, how much of it is no request's, samples, the agents' counts."""

    def __init__(self) -> None:
        self.cpu_ns = self.unattributed_ns = self.samples = 0
        self.counts: Counter[str] = Counter()

    def profiles(self, profiles: list[Profile]) -> None:
        """Add the CPU up."""
        for profile in profiles:
            if profile.type.name != "process_cpu":
                continue
            for (_, about), (count, cpu) in profile.samples.items():
                self.samples += count
                self.cpu_ns += cpu
                self.unattributed_ns += 0 if about.endpoint else cpu

    def spans(self, request: bytes) -> None:
        """Keep nothing."""

    def metrics(self, request: bytes) -> None:
        """Add the counts up."""
        for resource in ExportMetricsServiceRequest.FromString(request).resource_metrics:
            for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                if metric.name.startswith(_COUNTS):
                    self.counts[metric.name[len(_COUNTS) :]] += sum(
                        point.as_int for point in metric.sum.data_points
                    )


class AgentSwitch:
    """Tells workers over the back-channel; waits under load until each says it is so, and a second more."""

    def __init__(self, site: Site, relay: Relay, settle_s: float) -> None:
        self._site = site
        self._relay = relay
        self._settle_s = settle_s

    def __call__(self, on: int, off: int) -> None:
        """Turn it on in one worker and off in the other."""
        self._relay.tell(WorkerSettings(on=True), on)
        self._relay.tell(WorkerSettings(on=False), off)
        deadline = time.monotonic() + _DEADLINE_S
        while self._site.agents() != {on: "on", off: "off"}:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the workers did not hear of it: {self._site.agents()}")
            self._site.load(_LOOK_S)
        # What is written now is the second before; and caches are warm again.
        self._site.load(self._settle_s)


class InWorkerSwitch:
    """Turns something of the application's own on and off by asking for it."""

    def __init__(self, site: Site, name: str, settle_s: float, *, after: bool) -> None:
        self._site = site
        self._name = name
        self._settle_s = settle_s
        # A profiler is started once a round; OpenTelemetry is on when the worker starts.
        self._on: set[int] = set(site.pids) if after else set()

    def __call__(self, on: int, off: int) -> None:
        """Turn it on in one worker and off in the other."""
        for pid, wanted in ((off, False), (on, True)):
            self._turn(pid, wanted)
        self._site.load(self._settle_s)

    def all_off(self) -> None:
        """Turn it off in both."""
        for pid in self._site.pids:
            self._turn(pid, False)

    def _turn(self, pid: int, wanted: bool) -> None:
        if (pid in self._on) == wanted:
            return
        answer = self._site.ask(pid, f"/switch/{self._name}/{'on' if wanted else 'off'}")
        if not answer["done"]:
            raise RuntimeError(f"{self._name} could not be turned {'on' if wanted else 'off'} in a worker")
        (self._on.add if wanted else self._on.discard)(pid)


class PyroscopeSwitch(InWorkerSwitch):
    """pyroscope-io with one implementation; notes the kernel's CPU between its start and its end."""

    def __init__(self, site: Site, name: str, settle_s: float) -> None:
        super().__init__(site, name, settle_s, after=False)
        self._began: dict[int, int] = {}
        self.kernel_ns = 0

    def _turn(self, pid: int, wanted: bool) -> None:
        if (pid in self._on) != wanted and not wanted:
            self.kernel_ns += process_clock_ns(pid) - self._began[pid]
        super()._turn(pid, wanted)
        if wanted:
            self._began.setdefault(pid, process_clock_ns(pid))
        else:
            self._began.pop(pid, None)


def pushed_cpu(receiver: PushReceiver) -> tuple[int, int]:
    """Return the CPU that was pushed so far, and how much of it names no span."""
    sums: Counter[bool] = Counter()
    for pushed in receiver.pushed:
        for (_, about), (_, cpu) in pushed.profile.samples.items():
            sums[bool(about.span_id)] += cpu
    return sums[True] + sums[False], sums[False]


class PySpySwitch:
    """`py-spy record` on one worker, from outside; a context manager, so that none is left behind.

    `own_ns` and `wall_ns` are of it while the worker was busy and its start was over, `kernel_ns` is the
    worker's CPU, `samples` what it wrote.
    """

    def __init__(self, folder: Path, settle_s: float) -> None:
        program = py_spy_program()
        if program is None:
            raise RuntimeError("py-spy is not installed; next: pip install 'quayscope[sidecar]'")
        self._program = program
        self._folder = folder
        self._settle_s = settle_s
        self._process: subprocess.Popen[bytes] | None = None
        self._target = self._began_ns = self._target_began_ns = 0
        self._own_began_ns = 0
        self.own_ns = self.wall_ns = self.kernel_ns = self.samples = 0

    def __enter__(self) -> PySpySwitch:
        """Begin with none."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the one that runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def __call__(self, on: int, off: int) -> None:
        """Let it look at the first worker alone."""
        self.finish()
        self._target = on
        self._target_began_ns = process_clock_ns(on)
        with open(self._folder / "py-spy.log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    self._program,
                    "record",
                    f"--pid={on}",
                    f"--rate={HZ}",
                    "--format=raw",
                    "--duration=unlimited",
                    f"--output={self._folder / 'py-spy.txt'}",
                ],
                stdout=log,
                stderr=log,
            )
        time.sleep(self._settle_s)  # it reads the interpreter's symbols first: its start, not its running
        self._began_ns, self._own_began_ns = time.perf_counter_ns(), process_clock_ns(self._process.pid)

    def finish(self) -> None:
        """End a round: what it used, and what it saw."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is not None:
            raise RuntimeError(f"py-spy ended by itself: {(self._folder / 'py-spy.log').read_text()}")
        self.wall_ns += time.perf_counter_ns() - self._began_ns
        self.own_ns += process_clock_ns(process.pid) - self._own_began_ns
        self.kernel_ns += process_clock_ns(self._target) - self._target_began_ns
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        output = self._folder / "py-spy.txt"
        self.samples += sum(count for _, count in parse_raw(output.read_text()))
        with contextlib.suppress(FileNotFoundError):
            output.unlink()
