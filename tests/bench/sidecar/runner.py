"""A sampler in a process of its own, and what it costs: `python -m bench.sidecar.runner PID ...`.

Samples a process tree for so many seconds as the sidecar does, and writes its figures as one line of JSON.
With `--until-closed` it goes on until standard input ends.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path

from bench.keeper import kept
from quayscope.profile import Profile
from quayscope.sidecar import procfs
from quayscope.sidecar.capabilities import Capabilities
from quayscope.sidecar.interpreter import tune
from quayscope.sidecar.native.sampler import Sampler
from quayscope.sidecar.native.target import SampledTarget
from quayscope.sidecar.native.tracked import Tracked
from quayscope.sidecar.postgres.memory import BackendMemory
from quayscope.sidecar.postgres.sampling import PostgresSampling
from quayscope.sidecar.postgres.shared import SharedReader, open_reader
from quayscope.sidecar.targets import postmaster_at

WARM_S = 24.0
"""After so long the rules are decoded, and the stacks of a first window named."""
_LATEST_START_S = 4.0
_NAMED_S = 22.0
"""By then a first window is named, wherever in it the start fell."""
WINDOW_S = 10
"""As the sidecar's by default: names come when one has ended."""


def main() -> int:
    """Sample, and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.sidecar.runner")
    parser.add_argument("pid", type=int)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--hz", type=int, default=99)
    parser.add_argument("--each", action="store_true", help="wake for each sample, as a database's rings do")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--kept", action="store_true", help="have another process keep our memory in reach")
    parser.add_argument("--no-inline", action="store_true", help="as perf script's option")
    parser.add_argument("--until-closed", action="store_true")
    given = parser.parse_args()
    tune()
    lost = truncated = samples = 0

    def emit(profiles: list[Profile]) -> None:
        nonlocal lost, truncated, samples
        for profile in profiles:
            lost += profile.losses.lost
            truncated += profile.losses.truncated
            samples += sum(values[0] for values in profile.samples.values())

    closed = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        closed.set()

    if given.until_closed:
        threading.Thread(target=wait, daemon=True).start()
    if given.cache is not None:
        # No window may end within the first seconds: what its names cost is another figure.
        into = time.time() % WINDOW_S
        time.sleep(WINDOW_S - into if into > _LATEST_START_S else 0.0)
    with kept(os.getpid()) if given.kept else contextlib.nullcontext():
        began, cpu = time.monotonic(), time.process_time()
        sampler = Sampler(
            emit, hz=given.hz, window_s=WINDOW_S, cache=given.cache, inlined=not given.no_inline
        )
        sampler.start()
        tracked, noting = _add(sampler, given.pid, each=given.each)
        print("ready", file=sys.stderr, flush=True)
        marks = [(0.0, 0.0, 0)]
        used = procfs.cpu_ns(given.pid)
        # Nobody else wakes meanwhile: that would be counted as the sampler's.
        for mark in sorted({5.4, _NAMED_S - 0.1, WARM_S, given.seconds}):
            if mark <= given.seconds and not closed.wait(max(0.0, began + mark - time.monotonic())):
                marks.append((time.monotonic() - began, time.process_time() - cpu, tracked.samples))
        if noting is not None:
            noting.close()
        sampler.close()
        took = time.process_time() - cpu
    figures = {
        "cpu_s": took,
        "wall_s": time.monotonic() - began,
        "kind": tracked.source.kind,
        "samples": samples,
        "lost": lost,
        "truncated": truncated,
        "cpu_sampled_s": tracked.cpu_ns / 1e9,
        "faults": sampler.faults,
        "rss_mb": _most_resident_mb(),
        "alive": used is not None,
        **_shares(marks),
    }
    print(json.dumps(figures))
    return 0


def _most_resident_mb() -> float:
    # Not getrusage: that counts what our parent had before it started us.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _add(sampler: Sampler, pid: int, *, each: bool) -> tuple[Tracked, PostgresSampling | None]:
    if each:
        server = postmaster_at(pid)
        assert server is not None, "no postmaster"
        reader = open_reader(server, Capabilities())
        assert isinstance(reader, SharedReader), reader
        texts = BackendMemory(server)
        noting = PostgresSampling(sampler, server, texts, service="bench", labels={}, backends=lambda: reader)
        return noting.tracked, noting
    target = SampledTarget("bench", pid, lambda: procfs.children(pid), lambda _: "main", "main")
    return sampler.add(target), None


def _shares(marks: list[tuple[float, float, int]]) -> dict[str, float]:
    """Return what share of a core was used when, and microseconds a sample."""

    def between(first: float, last: float) -> tuple[float, float, int]:
        inside = [mark for mark in marks if first <= mark[0] <= last]
        (at, cpu, count), (end, after, more) = inside[0], inside[-1]
        return end - at, after - cpu, more - count

    found = {}
    if marks[-1][0] > _NAMED_S:
        wall, cpu, _ = between(0.0, _NAMED_S)
        found["named_share"] = cpu / wall
    wall, cpu, count = between(0.0, 5.5)
    found["first_share"] = cpu / wall
    found["first_us_per_sample"] = cpu / max(count, 1) * 1e6
    if marks[-1][0] > WARM_S + 4:
        wall, cpu, count = between(WARM_S, marks[-1][0])
        found["steady_share"] = cpu / wall
        found["steady_us_per_sample"] = cpu / max(count, 1) * 1e6
    return found


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
