"""What is measured, part by part: each takes what is given and returns flat figures."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.keeper import kept, page_costs
from bench.sidecar.load import Load, Server
from bench.sidecar.unwinding import measure, record
from quayscope.sidecar import procfs

__all__ = ["PARTS", "Given"]

Figures = dict[str, object]
_SHORT_S = 10.0
"""What is measured for less than this is to be quick."""


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


def machine(given: Given) -> Figures:
    """What the machine takes for memory not touched for a while: a batch touches some 2,000 pages."""
    given.say("machine: pages touched again at once, and after a while")
    return dict(page_costs(1 if given.seconds < _SHORT_S else 3))


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
    figures: Figures = {"perf_seconds": given.perf_seconds}
    for name, options in (("", ()), ("_kept", ("--kept",))):
        ours, theirs, count = _beside_perf(given, *options)
        ours_each, theirs_each = ours["cpu_s"] / max(1, ours["samples"]), theirs / max(1, count)
        figures[f"ratio_to_perf{name}"] = ours_each / theirs_each
        figures[f"perf_us_per_sample{name}"] = theirs_each * 1e6
        figures[f"us_per_sample_with_start{name}"] = ours_each * 1e6
        figures[f"perf_samples{name}"] = count
    return figures


_RECORD = ("perf", "record", "-q", "--call-graph", "dwarf,16384", "-e", "cpu-clock", "-F", "99")


def _beside_perf(given: Given, *options: str) -> tuple[dict[str, Any], float, int]:
    """Return our figures, perf's CPU seconds and its samples; `--kept` keeps perf's memory in reach too."""
    data, text = given.folder / "perf.data", given.folder / "script"
    tree = ",".join(map(str, (given.server.pid, *procfs.children(given.server.pid))))
    recorder = subprocess.Popen([*_RECORD, "-o", str(data), "-p", tree], stderr=subprocess.DEVNULL)
    with kept(recorder.pid) if options else contextlib.nullcontext():
        try:
            ours = run(given, given.server.pid, given.perf_seconds, "--no-inline", *options)
        finally:
            recorder.send_signal(signal.SIGINT)
            theirs = _cpu_s(recorder)
    with text.open("wb") as out:
        command = ["perf", "script", "-i", str(data), "--no-inline"]
        script = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        theirs += _cpu_s(script)
    if script.returncode != 0:
        raise RuntimeError(f"perf script ended with {script.returncode}")
    with text.open("rb") as lines:
        count = sum(1 for line in lines if b"cpu-clock" in line)
    given.say(f"perf: {theirs:.2f} s of CPU for {count} samples")
    return ours, theirs, count


def _cpu_s(process: subprocess.Popen[bytes]) -> float:
    """Wait for a process; returns its CPU seconds, its children's with them."""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_utime + used.ru_stime


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
