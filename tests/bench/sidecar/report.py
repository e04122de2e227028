"""The figures as a table, what they were taken on, and the bounds that the sampler is held to."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping
from pathlib import Path

__all__ = ["AT_LEAST", "AT_MOST", "missed", "surroundings", "table"]

AT_MOST = {
    "core_share_99hz": 0.01,
    "core_share_each_sample": 0.016,
    "core_share_first_5s": 0.015,
    "ratio_to_perf": 0.6,
    "rss_mb": 100.0,
}
AT_LEAST = {"reach_root_share": 0.99}
_PERCENT, _US, _MB, _PLAIN = "percent", "microseconds", "MB", "plain"
_LINES: tuple[tuple[str, str, str], ...] = (
    ("**99 Hz**, two busy CPUs, woken by watermark: of a core", "core_share_99hz", _PERCENT),
    ("first 5 s of the first start", "core_share_first_start", _PERCENT),
    ("first 5 s of a second start", "core_share_first_5s", _PERCENT),
    ("its first 15 s: the first window's names too", "core_share_first_15s", _PERCENT),
    ("a sample, all of it", "us_per_sample_99hz", _US),
    ("samples", "samples", _PLAIN),
    ("stacks that reach their root", "reach_root_share", _PERCENT),
    ("most memory", "rss_mb", _MB),
    ("**Woken for each sample**, its statement noted: of a core", "core_share_each_sample", _PERCENT),
    ("**999 Hz**: of a core", "core_share_999hz", _PERCENT),
    ("lost", "lost_999hz", _PERCENT),
    ("**perf record and script** beside us, a sample", "perf_us_per_sample", _US),
    ("ours, the start included", "us_per_sample_with_start", _US),
    ("ours / perf's", "ratio_to_perf", _PLAIN),
    ("**The unwinder alone**, a stack seen before", "us_per_sample_warm", _US),
    ("at a second start", "us_per_sample_second_start", _US),
    ("with nothing known", "us_per_sample_cold", _US),
    ("**The target's CPU for a round of statements**, sampled / not", "target_slowdown", _PLAIN),
    ("lower quartile", "target_slowdown_quartile1", _PLAIN),
    ("upper quartile", "target_slowdown_quartile3", _PLAIN),
)


def surroundings() -> dict[str, object]:
    """Return what the figures depend on: date, machine, kernel, how busy it was."""
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


def missed(figures: Mapping[str, object]) -> list[str]:
    """Return a line for each bound that a figure does not keep; what was not measured keeps all."""
    found = []
    for name, value in figures.items():
        if not isinstance(value, (int, float)):
            continue
        if name in AT_MOST and value > AT_MOST[name]:
            found.append(f"{name} is {value:.4f}, more than {AT_MOST[name]}")
        if name in AT_LEAST and value < AT_LEAST[name]:
            found.append(f"{name} is {value:.4f}, less than {AT_LEAST[name]}")
    return found


def table(figures: Mapping[str, object]) -> str:
    """Return the table in Markdown, what it was taken on first; figures that there are not are left out."""
    about = (
        f"{figures['date']}; CPython {figures['python']}, Linux {figures['kernel']}, "
        f"{figures['cores']} cores ({figures['processor']}), "
        f"load average {figures['load_average']} at the start, {figures['duration_s']} s."
    )
    rows = [
        f"| {name} | {_shown(figures[key], form)} | {_bound(key, form)} |"
        for name, key, form in _LINES
        if key in figures
    ]
    return "\n".join([about, "", "| what | figure | bound |", "|---|---|---|", *rows])


def _shown(value: object, form: str) -> str:
    assert isinstance(value, (int, float))
    if form == _PERCENT:
        return f"{100 * value:.2f} %"
    if form == _US:
        return f"{value:,.1f} µs"
    if form == _MB:
        return f"{value:.1f} MB"
    return f"{value:.4g}"


def _bound(key: str, form: str) -> str:
    if key in AT_MOST:
        return f"at most {_shown(AT_MOST[key], form)}"
    return f"at least {_shown(AT_LEAST[key], form)}" if key in AT_LEAST else ""
