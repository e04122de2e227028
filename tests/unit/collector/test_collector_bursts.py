"""Bursts in series of values by second."""

from __future__ import annotations

import random

from quayscope.collector.query.bursts import find_bursts


def _series(
    seconds: int, period: int, length: int, *, seed: int = 1, high: float = 3000.0
) -> dict[int, float]:
    dice = random.Random(seed)
    start = 1_000_000
    return {
        start + n: (high if n % period < length else 200.0) * dice.uniform(0.85, 1.1) for n in range(seconds)
    }


def test_a_disk_at_its_ceiling_again_and_again() -> None:
    """Twelve seconds of each minute: all found, with the minute as their period."""
    found = find_bursts(_series(1200, 60, 12))
    assert len(found.found) == 20
    assert (found.period_s, found.periodic) == (60, True)
    assert {(burst.end - burst.start) for burst in found.found} == {12}
    assert 150 < found.usual < 250
    assert all(burst.peak > 2500 for burst in found.found)


def test_what_is_alike_has_no_bursts() -> None:
    """Neither calm nor a steady ceiling are bursts, nor is noise."""
    for high in (200.0, 3000.0):
        assert find_bursts(_series(600, 10, 10, high=high)).found == []
    assert find_bursts({}).found == []
    assert find_bursts(dict.fromkeys(range(100), 0.0)).found == []


def test_bursts_without_a_period_are_not_called_periodic() -> None:
    """Gaps of 20 to 200 seconds are bursts, and no period."""
    dice = random.Random(3)
    values = dict.fromkeys(range(3000), 10.0)
    at = 50
    while at < 2900:
        values.update(dict.fromkeys(range(at, at + 5), 900.0))
        at += dice.choice([20, 60, 110, 200])
    found = find_bursts(values)
    assert len(found.found) > 10
    assert not found.periodic


def test_a_second_of_calm_does_not_end_a_burst() -> None:
    """A second that is missing or low in between is within; two of them end it."""
    values = {**dict.fromkeys(range(100), 1.0), **dict.fromkeys((40, 41, 43, 44, 47), 50.0)}
    found = find_bursts(values)
    assert [(burst.start, burst.end) for burst in found.found] == [(40, 45), (47, 48)]
    assert found.period_s is None
