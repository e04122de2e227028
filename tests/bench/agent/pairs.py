"""Something on in one worker and off in the other, then the other way round: what it costs a request.

Both run at the same time under the same load, so that what the machine does to one it does to the other; the
swap takes out what makes one worker dearer than its neighbour. A pair is two such rounds, its ratio the
geometric mean of theirs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bench.agent.site import Site, Used

__all__ = ["Pair", "Summary", "measure", "summarise", "upper_95"]

Switch = Callable[[int, int], None]
"""Turns it on in the first worker (its pid) and off in the second."""


class Pair(NamedTuple):
    """CPU of a request in microseconds, with it and without; and the ratio."""

    on_us: float
    off_us: float
    ratio: float
    requests: int


class Summary(NamedTuple):
    """Medians over the pairs, and how far they lie apart (quartiles of the ratio)."""

    ratio: float
    upper_95: float
    quartile_1: float
    quartile_3: float
    on_us: float
    off_us: float
    pairs: int
    requests: int


def measure(
    site: Site, switch: Switch, pairs: int, seconds: float, say: Callable[[str], None], name: str
) -> list[Pair]:
    """Measure so many pairs of rounds, each round so long."""
    found = []
    for number in range(pairs):
        rounds: list[tuple[Used, Used]] = []
        # The order changes too: whatever drifts does not always favour the same one.
        order = site.pids if number % 2 else site.pids[::-1]
        for on, off in (order, order[::-1]):
            switch(on, off)
            used = site.load(seconds)
            rounds.append((used[on], used[off]))
        found.append(_pair(rounds))
        say(f"{name}: pair {number + 1} of {pairs}, {found[-1].ratio:.4f}")
    return found


def _pair(rounds: Sequence[tuple[Used, Used]]) -> Pair:
    ratios = [on.us_a_request / off.us_a_request for on, off in rounds]
    return Pair(
        statistics.fmean(on.us_a_request for on, _ in rounds),
        statistics.fmean(off.us_a_request for _, off in rounds),
        math.exp(statistics.fmean(map(math.log, ratios))),
        sum(on.requests + off.requests for on, off in rounds),
    )


def upper_95(values: Sequence[float]) -> float:
    """Return the upper bound of the median that holds with 95 %, by order statistics.

    The smallest value below which so many lie that a fair coin shows no more heads in 95 % of the cases:
    exact, whatever the values' distribution. Of fewer than five the largest, which holds with less.
    """
    ordered = sorted(values)
    count = len(ordered)
    at_most = 0.0
    for rank in range(count):
        at_most += math.comb(count, rank) / 2**count
        if at_most >= 0.95:
            return ordered[rank]
    return ordered[-1]


def summarise(pairs: Sequence[Pair]) -> Summary:
    """Return what the pairs say together."""
    ratios = [pair.ratio for pair in pairs]
    first, _, third = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return Summary(
        statistics.median(ratios),
        upper_95(ratios),
        first,
        third,
        statistics.median(pair.on_us for pair in pairs),
        statistics.median(pair.off_us for pair in pairs),
        len(pairs),
        sum(pair.requests for pair in pairs),
    )
