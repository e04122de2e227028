"""Arrival times as pure functions of rate, duration and seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quayscope.load.errors import LoadError
from quayscope.load.schedule import choose, constant, plan, poisson
from quayscope.load.template import Template
from quayscope.load.workload import Arrival, Choice, Flow, Phase, Step


def phase(name: str, share: float, rate: float, arrival: Arrival = "constant") -> Phase:
    """A phase with one request."""
    step = Step(endpoint=f"GET /{name}", path=Template(f"/{name}"))
    return Phase(name, share, rate, arrival, (Choice(1.0, Flow("", (step,))),))


@given(rate=st.floats(0.1, 1000), duration=st.floats(0.1, 20))
def test_constant_arrivals_fill_the_duration_exactly(rate: float, duration: float) -> None:
    """They start at 0, keep their distance and end before the duration does; one more would not fit."""
    times = constant(rate, duration)
    assert times[0] == 0.0
    assert times[-1] < duration + 1e-6
    assert times[-1] + 1 / rate >= duration - 1e-6
    assert np.allclose(np.diff(times), 1 / rate)


def test_poisson_counts_scatter_around_their_mean() -> None:
    """Over 200 seeds the count's mean is the rate's, and its variance is its mean."""
    counts = np.array([len(poisson(50, 4, seed)) for seed in range(200)])
    assert abs(counts.mean() - 200) < 4 * (200 / 200) ** 0.5
    assert 0.7 < counts.var() / 200 < 1.4


def test_poisson_distances_are_exponential() -> None:
    """Mean and spread are alike, and 1 - 1/e of the distances are shorter than the mean."""
    gaps = np.diff(poisson(1000, 20, 3))
    assert gaps.min() >= 0
    assert abs(gaps.mean() - 0.001) < 0.00005
    assert abs(gaps.std() / gaps.mean() - 1) < 0.05
    assert abs((gaps < gaps.mean()).mean() - (1 - np.exp(-1))) < 0.02


def test_choices_follow_the_weights_and_the_seed() -> None:
    """Three to one, the same again by the same seed."""
    chosen = choose([3, 1], 10_000, 7)
    assert abs((chosen == 0).mean() - 0.75) < 0.02
    assert (chosen == choose([3, 1], 10_000, 7)).all()
    assert (chosen != choose([3, 1], 10_000, 8)).any()


def test_phases_follow_each_other_and_share_the_duration() -> None:
    """Shares are relative; rates are scaled; arrivals lie inside their phase and rise."""
    schedule = plan([phase("a", 1, 10), phase("b", 3, 20, "poisson")], 8, 2.0, 1)
    assert [(stage.start_s, stage.end_s, stage.rate) for stage in schedule.stages] == [(0, 2, 20), (2, 8, 40)]
    assert (np.diff(schedule.due_ns) >= 0).all()
    assert (schedule.due_ns[schedule.stage == 1] >= 2_000_000_000).all()
    assert (schedule.stage == 0).sum() == 40


def test_phases_of_one_rate_are_not_copies_of_each_other() -> None:
    """Each has draws of its own."""
    schedule = plan([phase("a", 1, 100, "poisson"), phase("b", 1, 100, "poisson")], 4, 1.0, 1)
    first = schedule.due_ns[schedule.stage == 0]
    second = schedule.due_ns[schedule.stage == 1] - 2_000_000_000
    assert len(first) != len(second) or (first != second).any()


def test_more_arrivals_than_memory_holds_are_refused() -> None:
    """A usage error with a next step, before anything is allocated."""
    with pytest.raises(LoadError, match="more than one run can hold") as caught:
        plan([phase("a", 1, 1_000_000)], 86_400, 1000.0, 1)
    assert caught.value.exit_code == 2
    assert caught.value.next_step
