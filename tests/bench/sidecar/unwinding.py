"""What unwinding one sample costs, on a recording: cold, at a second start, and warm.

`record(directory)` makes the recording (`perf.data`) that `measure(directory)` reads: a Postgres without
frame pointers under a mixed load.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from integration.sidecar.recorder import Database, mixed_load, prepare, recording
from perf_data import Files, Replay, Sample
from quayscope.sidecar.native.maps import AddressSpace
from quayscope.sidecar.native.unwind import CfiUnwinder

__all__ = ["measure", "record"]

RECORDING = "perf.data"
ROUNDS = 5


def record(directory: Path, database: Database, cpu_s: float = 10.0) -> None:
    """Record a running Postgres until its backends have used so much CPU, some 500 samples a second of it."""
    prepare(database)
    with recording(directory / RECORDING, "-p", str(database.pid)), mixed_load(database, cpu_s):
        pass


def measure(directory: Path) -> dict[str, float]:
    """Return medians of CPU microseconds a sample.

    `us_per_sample_cold` is the first half of the recording without anything known,
    `us_per_sample_second_start` the same with the rules that a run before has stored, `us_per_sample_warm`
    the second half after the first: other samples of the same load, as in steady state. And
    `frames_per_sample`, `reach_root_share`, `samples`.
    """
    replay = Replay(directory / RECORDING)
    middle = len(replay) // 2
    first, second = replay.samples[:middle], replay.samples[middle:]
    cold, stored, warm = [], [], []
    frames = roots = 0
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="quayscope-rules-") as name:
            unwinder = CfiUnwinder(Files(), cache=Path(name))
            cold.append(cost_us(unwinder, first))
            warm.append(cost_us(unwinder, second))
            unwinder.close()
            stored.append(cost_us(CfiUnwinder(Files(), cache=Path(name)), first))
            roots = unwinder.ends["root"]
            frames = sum(len(unwinder.unwind(space, s.registers, s.stack).addresses) for space, s in second)
    return {
        "us_per_sample_cold": statistics.median(cold),
        "us_per_sample_second_start": statistics.median(stored),
        "us_per_sample_warm": statistics.median(warm),
        "frames_per_sample": frames / len(second),
        "reach_root_share": roots / len(replay),
        "samples": float(len(replay)),
    }


def cost_us(unwinder: CfiUnwinder, samples: Sequence[tuple[AddressSpace, Sample]]) -> float:
    """Return CPU microseconds a sample."""
    gc.collect()
    unwind = unwinder.unwind
    began = time.thread_time_ns()
    for space, sample in samples:
        unwind(space, sample.registers, sample.stack)
    return (time.thread_time_ns() - began) / len(samples) / 1000
