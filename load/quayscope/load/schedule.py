"""When arrivals come: pure functions of rate, duration and seed, made before the run starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quayscope.load.errors import LoadError
from quayscope.load.workload import Phase

__all__ = ["MAX_ARRIVALS", "Schedule", "Stage", "choose", "constant", "plan", "poisson"]

MAX_ARRIVALS = 5_000_000
"""Most arrivals of one run: about 70 bytes of each are held until its report."""

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Stage:
    """One phase placed in time. `start_s` and `end_s` are seconds from the start of the run."""

    phase: Phase
    rate: float
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Schedule:
    """Every arrival of a run, by time: nanoseconds from its start, index of its stage, index in its mix."""

    stages: tuple[Stage, ...]
    due_ns: npt.NDArray[np.int64]
    stage: npt.NDArray[np.int64]
    choice: npt.NDArray[np.int64]


def constant(rate: float, duration_s: float) -> Seconds:
    """Return arrivals at equal distances in [0, duration), the first at 0."""
    return np.arange(math.ceil(rate * duration_s - 1e-9), dtype=np.float64) / rate


def poisson(rate: float, duration_s: float, seed: int) -> Seconds:
    """Return independent arrivals of mean `rate` in [0, duration)."""
    generator = np.random.default_rng([seed, 1])
    # Given their number, the times of a Poisson process are independent and uniform.
    times = generator.random(generator.poisson(rate * duration_s)) * duration_s
    times.sort()
    return times


def choose(weights: Sequence[float], count: int, seed: int) -> npt.NDArray[np.int64]:
    """Return `count` indices into `weights`, each drawn with a probability in proportion to its weight."""
    shares = np.asarray(weights, dtype=np.float64)
    generator = np.random.default_rng([seed, 2])
    return generator.choice(len(shares), size=count, p=shares / shares.sum()).astype(np.int64)


def plan(phases: Sequence[Phase], duration_s: float, rate_scale: float, seed: int) -> Schedule:
    """Place `phases` one after the other into `duration_s`; raises `LoadError` beyond `MAX_ARRIVALS`."""
    whole = sum(phase.share for phase in phases)
    expected = sum(phase.rate * rate_scale * duration_s * phase.share / whole for phase in phases)
    if expected > MAX_ARRIVALS:
        raise LoadError(
            f"{expected:.0f} arrivals are more than one run can hold ({MAX_ARRIVALS})",
            next_step="lower --duration or --rate-scale",
            exit_code=2,
        )
    stages, dues, numbers, choices = [], [], [], []
    start = 0.0
    for number, phase in enumerate(phases):
        length = duration_s * phase.share / whole
        stage = Stage(phase, phase.rate * rate_scale, start, start + length)
        own_seed = seed * 1_000_003 + number
        if phase.arrival == "poisson":
            times = poisson(stage.rate, length, own_seed)
        else:
            times = constant(stage.rate, length)
        stages.append(stage)
        dues.append(((start + times) * 1e9).astype(np.int64))
        numbers.append(np.full(len(times), number, dtype=np.int64))
        choices.append(choose([choice.weight for choice in phase.mix], len(times), own_seed))
        start += length
    return Schedule(tuple(stages), np.concatenate(dues), np.concatenate(numbers), np.concatenate(choices))
