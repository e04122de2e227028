"""Flat figures as a table in Markdown, with the bounds that some of them are held to."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["MACHINE", "MB", "PAIRS", "PERCENT", "PLAIN", "US", "Report", "surroundings"]

PERCENT, US, MB, PLAIN, PAIRS = "percent", "microseconds", "MB", "plain", "pairs"
"""How a figure is shown. One of pairs is a median, `cpu_ratio...`, with its quartiles and their number."""
MACHINE = (
    ("**The machine**: a page of memory touched again at once, us", "page_us", PLAIN),
    ("touched again after 2.5 s", "page_idle_us", US),
)
"""Lines of what the others depend on (`bench.keeper.page_costs`)."""
Figures = Mapping[str, object]


class Report(NamedTuple):
    """What is told of a benchmark: `lines` are (what, key, form) in order; bounds are by key.

    `about` is what the figures were taken on, beside the machine; empty: nothing more. A figure
    `versions` is told with it.
    """

    lines: Sequence[tuple[str, str, str]]
    at_most: Mapping[str, float]
    at_least: Mapping[str, float]
    about: str = ""

    def missed(self, figures: Figures) -> list[str]:
        """Return a line for each bound that a figure does not keep; what was not measured keeps all."""
        found = []
        for name, value in figures.items():
            if not isinstance(value, (int, float)):
                continue
            if name in self.at_most and value > self.at_most[name]:
                found.append(f"{name} is {value:.4f}, more than {self.at_most[name]}")
            if name in self.at_least and value < self.at_least[name]:
                found.append(f"{name} is {value:.4f}, less than {self.at_least[name]}")
        return found

    def table(self, figures: Figures) -> str:
        """Return the table, what it was taken on first; figures that there are not are left out."""
        versions = f"; {figures['versions']}" if "versions" in figures else ""
        about = (
            f"{figures['date']}; CPython {figures['python']}, Linux {figures['kernel']}, "
            f"{figures['cores']} cores ({figures['processor']}), {self.about}"
            f"load average {figures['load_average']} at the start, {figures['duration_s']} s{versions}."
        )
        rows = [
            f"| {name} | {_shown(figures, key, form)} | {self._bound(key, form)} |"
            for name, key, form in self.lines
            if key in figures
        ]
        return "\n".join([about, "", "| what | figure | bound |", "|---|---|---|", *rows])

    def _bound(self, key: str, form: str) -> str:
        form = PLAIN if form == PAIRS else form
        if key in self.at_most:
            return f"at most {_shown(self.at_most, key, form)}"
        return f"at least {_shown(self.at_least, key, form)}" if key in self.at_least else ""


def surroundings() -> dict[str, object]:
    """Return what figures depend on: date, machine, kernel, how busy it was."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _shown(figures: Figures, key: str, form: str) -> str:
    value = figures[key]
    assert isinstance(value, (int, float))
    if form == PERCENT:
        return f"{100 * value:.2f} %"
    if form == US:
        return f"{value:,.1f} µs"
    if form == MB:
        return f"{value:.1f} MB"
    if form == PAIRS:
        prefix = key[: key.index("cpu_ratio")]
        return (
            f"{value:.4f}; quartiles {figures[prefix + 'cpu_ratio_quartile1']:.4f} and "
            f"{figures[prefix + 'cpu_ratio_quartile3']:.4f}, {figures[prefix + 'pairs']} pairs"
        )
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
