"""What is measured, part by part: each takes what is given and returns flat figures."""

from __future__ import annotations

import json
import mmap
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.sidecar.load import Load, Server
from bench.sidecar.unwinding import measure, record
from quayscope.sidecar import procfs

__all__ = ["PARTS", "Given"]

Figures = dict[str, object]


class Given(NamedTuple):
    """What the parts work with: the server and its load, how long, how often."""

    folder: Path
    server: Server
    load: Load
    seconds: float
    perf_seconds: float
    pairs: int
    pair_seconds: float
    say: Callable[[str], None]


def run(given: Given, pid: int, seconds: float, *options: str) -> dict[str, Any]:
    """Run a sampler for so long; returns its figures."""
    command = [sys.executable, "-m", "bench.sidecar.runner", str(pid), "--seconds", str(seconds), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    figures: dict[str, Any] = json.loads(done.stdout)
    given.say(f"{' '.join(options) or '99 Hz'}: {figures}")
    if figures["faults"]:
        raise RuntimeError("the sampler failed while it was measured")
    return figures


def steady(given: Given) -> Figures:
    """99 Hz, by watermark: the first start, then one with the rules of the first."""
    cache = given.folder / "rules"
    first = run(given, given.server.pid, given.seconds, "--cache", str(cache))
    second = run(given, given.server.pid, min(given.seconds, 24.0), "--cache", str(cache))
    figures: Figures = {
        "core_share_first_start": first["first_share"],
        "core_share_first_5s": second["first_share"],
        "us_per_sample_first_start": first["first_us_per_sample"],
        "rss_mb": max(first["rss_mb"], second["rss_mb"]),
        "reach_root_share": 1 - first["truncated"] / max(1, first["samples"]),
        "samples": first["samples"],
        "lost_99hz": first["lost"],
        "source": first["kind"],
    }
    if "named_share" in second:
        figures["core_share_first_22s"] = second["named_share"]
    if "steady_share" in first:
        figures["core_share_99hz"] = first["steady_share"]
        figures["us_per_sample_99hz"] = first["steady_us_per_sample"]
        kept = run(given, given.server.pid, given.seconds, "--cache", str(cache), "--kept")
        figures["core_share_99hz_kept"] = kept["steady_share"]
        figures["us_per_sample_99hz_kept"] = kept["steady_us_per_sample"]
        figures["core_share_first_5s_kept"] = kept["first_share"]
    return figures


_PAGES = 2_000
_IDLE_S = 2.5


def machine(given: Given) -> Figures:
    """What the machine takes for memory not touched for a while: a batch touches some 2,000 pages."""
    given.say("machine: pages touched again at once, and after a while")
    size = mmap.PAGESIZE
    with mmap.mmap(-1, _PAGES * size) as memory:

        def touch() -> float:
            began = time.thread_time()
            for at in range(0, _PAGES * size, size):
                memory[at] = 1
            return (time.thread_time() - began) / _PAGES * 1e6

        touch()
        at_once = statistics.median(touch() for _ in range(5))
        later = []
        for _ in range(1 if given.seconds < _SHORT_S else 3):
            time.sleep(_IDLE_S)
            later.append(touch())
    return {"page_us": at_once, "page_idle_us": statistics.median(later)}


def each(given: Given) -> Figures:
    """99 Hz, woken for each sample to note its statement."""
    options = ("--each", "--cache", str(given.folder / "rules"))
    found = run(given, given.server.pid, given.seconds, *options)
    kept = run(given, given.server.pid, given.seconds, *options, "--kept")
    return {
        "core_share_each_sample": found.get("steady_share", found["first_share"]),
        "core_share_each_sample_kept": kept.get("steady_share", kept["first_share"]),
        "samples_each_sample": found["samples"],
    }


def rate(given: Given) -> Figures:
    """999 Hz: what is lost, and what it costs."""
    found = run(given, given.server.pid, min(given.seconds, 15.0), "--hz", "999")
    return {
        "lost_999hz": found["lost"] / max(1, found["lost"] + found["samples"]),
        "samples_999hz": found["samples"],
        "core_share_999hz": found.get("steady_share", found["first_share"]),
    }


def perf(given: Given) -> Figures:
    """Ours beside `perf record` and `perf script` on the same load at the same time, all their CPU."""
    data = given.folder / "perf.data"
    record = ["perf", "record", "-q", "--call-graph", "dwarf,16384", "-e", "cpu-clock", "-F", "99"]
    tree = ",".join(map(str, (given.server.pid, *procfs.children(given.server.pid))))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    recorder = subprocess.Popen([*record, "-o", str(data), "-p", tree], stderr=subprocess.DEVNULL)
    try:
        ours = run(given, given.server.pid, given.perf_seconds, "--no-inline")
    finally:
        recorder.send_signal(signal.SIGINT)
        recorder.wait(60)
    with (given.folder / "script").open("wb") as out:
        subprocess.run(
            ["perf", "script", "-i", str(data), "--no-inline"],
            stdout=out,
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=1_200,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = sum(getattr(after, name) - getattr(before, name) for name in ("ru_utime", "ru_stime"))
    # Our runner was a child as well.
    theirs = total - ours["cpu_s"] - _START_S
    with (given.folder / "script").open("rb") as lines:
        count = sum(1 for line in lines if b"cpu-clock" in line)
    ours_each, theirs_each = ours["cpu_s"] / max(1, ours["samples"]), theirs / max(1, count)
    return {
        "ratio_to_perf": ours_each / theirs_each,
        "perf_us_per_sample": theirs_each * 1e6,
        "us_per_sample_with_start": ours_each * 1e6,
        "perf_samples": count,
        "perf_seconds": given.perf_seconds,
    }


_SHORT_S = 10.0
_START_S = 0.3
"""The CPU of starting our interpreter, about: taken off what perf is charged with."""


def slowdown(given: Given) -> Figures:
    """What sampling costs the target: one backend sampled, its neighbour not, then the other way round."""
    ratios = []
    for number in range(given.pairs):
        logs = []
        for on, off in (given.load.pids, given.load.pids[::-1]):
            sampler = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "bench.sidecar.runner",
                    str(on),
                    "--seconds",
                    "3600",
                    "--until-closed",
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            assert sampler.stderr is not None
            assert sampler.stdin is not None
            sampler.stderr.readline()
            time.sleep(0.2)
            before = _used(given, on), _used(given, off)
            time.sleep(given.pair_seconds)
            after = _used(given, on), _used(given, off)
            sampler.stdin.close()
            sampler.stderr.close()
            sampler.wait(20)
            each_on, each_off = (
                (b[0] - a[0]) / max(1, b[1] - a[1]) for a, b in zip(before, after, strict=True)
            )
            logs.append(each_on / each_off)
        ratios.append((logs[0] * logs[1]) ** 0.5)
        given.say(f"slowdown: pair {number + 1} of {given.pairs}, {ratios[-1]:.4f}")
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return {
        "target_slowdown": statistics.median(ratios),
        "target_slowdown_quartile1": quartiles[0],
        "target_slowdown_quartile3": quartiles[2],
        "target_slowdown_pairs": len(ratios),
    }


def _used(given: Given, pid: int) -> tuple[int, int]:
    used = procfs.cpu_ns(pid)
    assert used is not None, "a backend is gone"
    return used, given.load.runs[pid]


def unwinding(given: Given) -> Figures:
    """The unwinder alone, on a recorded capture."""
    folder = given.folder / "unwinding"
    folder.mkdir()
    record(folder, given.server, cpu_s=2.0 if given.seconds < _SHORT_S else 10.0)
    found = measure(folder)
    figures: Figures = {name: value for name, value in found.items() if name.startswith("us_")}
    figures["unwinding_samples"] = found["samples"]
    figures["unwinding_reach_root_share"] = found["reach_root_share"]
    return figures


PARTS: Mapping[str, Callable[[Given], Figures]] = {
    "machine": machine,
    "unwinding": unwinding,
    "steady": steady,
    "each": each,
    "rate": rate,
    "perf": perf,
    "slowdown": slowdown,
}
