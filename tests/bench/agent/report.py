"""The figures as a table, what they were taken on, and the bounds that the agent is held to."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path

__all__ = ["BOUNDS", "missed", "surroundings", "table"]

BOUNDS = {"cpu_ratio_upper95": 1.02, "cpu_ratio_on_off_median": 1.015, "cost_share_100hz": 0.01}
"""Most that each may be."""
_PACKAGES = (
    "gunicorn",
    "gevent",
    "greenlet",
    "flask",
    "psycopg2-binary",
    "opentelemetry-sdk",
    "pyroscope-io",
    "pyroscope-otel",
    "py-spy",
)
_PERCENT, _US, _MB, _PLAIN, _PAIRS = "percent", "microseconds", "MB", "plain", "pairs"
_LINES: tuple[tuple[str, str, str], ...] = (
    ("**The agent** at 100 Hz, everything on: CPU of a request, on / off", "cpu_ratio_on_off_median", _PAIRS),
    ("95 % upper bound of the median", "cpu_ratio_upper95", _PLAIN),
    ("CPU of a request without it", "us_off", _US),
    ("samples a CPU second", "agent_samples_per_cpu_second", _PLAIN),
    ("CPU on no request", "agent_unattributed_share", _PERCENT),
    ("its own CPU as it counts it itself", "agent_own_account_share", _PERCENT),
    ("**Measured alone**: all of it at 100 Hz, of requests of 20 ms", "cost_share_100hz", _PERCENT),
    ("least of the runs", "cost_share_100hz_least", _PERCENT),
    ("most", "cost_share_100hz_most", _PERCENT),
    ("a sample at depth 40, its signal included", "us_per_sample", _US),
    ("a signal that comes before a sample is due", "us_per_early_signal", _US),
    ("writing what a busy second gave", "us_per_write", _US),
    ("its thread, in a busy second", "us_own_thread_busy_second", _US),
    ("its thread, in an idle second", "us_own_thread_idle_second", _US),
    ("all of these in a busy second", "us_per_second", _US),
    ("a request's borders", "us_per_border", _US),
    ("a statement", "us_per_statement", _US),
    ("a turn of a greenlet", "us_per_turn", _US),
    ("all of these in a request of 12 statements and 10 turns", "us_per_request", _US),
    ("**An idle worker**, a second: without the agent", "idle_us_per_second_off", _US),
    ("with it", "idle_us_per_second_on", _US),
    ("with it, nobody listening", "idle_us_per_second_on_no_relay", _US),
    ("**Memory** that a worker has more with it: resident", "rss_mb_per_worker", _MB),
    ("proportional", "pss_mb_per_worker", _MB),
    ("private dirty", "private_dirty_mb_per_worker", _MB),
    ("**OpenTelemetry**, 1 of 1000 traced: CPU of a request, on / off", "otel_cpu_ratio", _PAIRS),
    ("**pyroscope-io**, PySpy: CPU of a request, on / off", "pyroscope_cpu_ratio", _PAIRS),
    ("CPU it recorded, of the kernel's", "pyroscope_recorded_share", _PERCENT),
    ("of that on no request", "pyroscope_unattributed_share", _PERCENT),
    ("**pyroscope-io**, Stack: CPU of a request, on / off", "pyroscope_stack_cpu_ratio", _PAIRS),
    ("CPU it recorded, of the kernel's", "pyroscope_stack_recorded_share", _PERCENT),
    ("of that on no request", "pyroscope_stack_unattributed_share", _PERCENT),
    ("**py-spy record** from outside: CPU of a request, on / off", "pyspy_cpu_ratio", _PAIRS),
    ("its own CPU, of a core", "pyspy_core_share", _PERCENT),
    ("samples it took, of the worker's CPU", "pyspy_recorded_share", _PERCENT),
    ("of that on no request", "pyspy_unattributed_share", _PERCENT),
    (
        "**Whose CPU it was**, 50 requests at once, all traced: the agent, right",
        "attributed_right_share",
        _PERCENT,
    ),
    ("nobody's work on a request", "attributed_nobodys_tagged_share", _PERCENT),
    ("CPU it recorded, of the kernel's", "attributed_recorded_share", _PERCENT),
    ("pyroscope-io (PySpy) and pyroscope-otel, right", "pyroscope_otel_right_share", _PERCENT),
    ("its samples, each on the right span, would give", "pyroscope_otel_perfect_sampler_share", _PERCENT),
    ("right endpoint, of what was sampled in one's code", "pyroscope_otel_right_endpoint_share", _PERCENT),
    ("nobody's work on a request", "pyroscope_otel_nobodys_tagged_share", _PERCENT),
    ("CPU it recorded, of the kernel's", "pyroscope_otel_recorded_share", _PERCENT),
    ("pyroscope-io (Stack) and pyroscope-otel, right", "pyroscope_otel_stack_right_share", _PERCENT),
    ("CPU it recorded, of the kernel's", "pyroscope_otel_stack_recorded_share", _PERCENT),
)


def surroundings() -> dict[str, object]:
    """Return what the figures depend on: date, machine, kernel, versions, how busy it was."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def missed(figures: Mapping[str, object]) -> list[str]:
    """Return a line for each bound that a figure passes; what was not measured passes none."""
    found = []
    for name, most in BOUNDS.items():
        value = figures.get(name)
        if isinstance(value, (int, float)) and value > most:
            found.append(f"{name} is {value:.4f}, more than {most}")
    return found


def table(figures: Mapping[str, object]) -> str:
    """Return the table in Markdown, what it was taken on first; figures that there are not are left out."""
    about = (
        f"{figures['date']}; CPython {figures['python']}, Linux {figures['kernel']}, "
        f"{figures['cores']} cores ({figures['processor']}), "
        f"load average {figures['load_average']} at the start, {figures['duration_s']} s; "
        f"{figures['versions']}."
    )
    rows = [
        f"| {name} | {_shown(figures, key, form)} | {_bound(key)} |"
        for name, key, form in _LINES
        if key in figures
    ]
    return "\n".join([about, "", "| what | figure | at most |", "|---|---|---|", *rows])


def _shown(figures: Mapping[str, object], key: str, form: str) -> str:
    value = figures[key]
    assert isinstance(value, (int, float))
    if form == _PERCENT:
        return f"{100 * value:.2f} %"
    if form == _US:
        return f"{value:,.1f} µs"
    if form == _MB:
        return f"{value:.1f} MB"
    if form == _PLAIN:
        return f"{value:.4g}"
    prefix = key[: key.index("cpu_ratio")]
    return (
        f"{value:.4f}; quartiles {figures[prefix + 'cpu_ratio_quartile1']:.4f} and "
        f"{figures[prefix + 'cpu_ratio_quartile3']:.4f}, {figures[prefix + 'pairs']} pairs"
    )


def _bound(key: str) -> str:
    if key not in BOUNDS:
        return ""
    return f"{100 * BOUNDS[key]:g} %" if key == "cost_share_100hz" else f"{BOUNDS[key]:g}"
