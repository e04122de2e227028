"""What is told of the agent's figures, what they were taken on, and the bounds that it is held to."""

from __future__ import annotations

import importlib.metadata

from bench.bounded import MB, PAIRS, PERCENT, PLAIN, US, Report

__all__ = ["REPORT", "versions"]

_AT_MOST = {"cpu_ratio_upper95": 1.02, "cpu_ratio_on_off_median": 1.015, "cost_share_100hz": 0.01}
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
_LINES = (
    ("**The agent** at 100 Hz, everything on: CPU of a request, on / off", "cpu_ratio_on_off_median", PAIRS),
    ("95 % upper bound of the median", "cpu_ratio_upper95", PLAIN),
    ("CPU of a request without it", "us_off", US),
    ("samples a CPU second", "agent_samples_per_cpu_second", PLAIN),
    ("CPU on no request", "agent_unattributed_share", PERCENT),
    ("its own CPU as it counts it itself", "agent_own_account_share", PERCENT),
    ("**Measured alone**: all of it at 100 Hz, of requests of 20 ms", "cost_share_100hz", PERCENT),
    ("least of the runs", "cost_share_100hz_least", PERCENT),
    ("most", "cost_share_100hz_most", PERCENT),
    ("a sample at depth 40, its signal included", "us_per_sample", US),
    ("a signal that comes before a sample is due", "us_per_early_signal", US),
    ("writing what a busy second gave", "us_per_write", US),
    ("its thread, in a busy second", "us_own_thread_busy_second", US),
    ("its thread, in an idle second", "us_own_thread_idle_second", US),
    ("all of these in a busy second", "us_per_second", US),
    ("a request's borders", "us_per_border", US),
    ("a statement", "us_per_statement", US),
    ("a turn of a greenlet", "us_per_turn", US),
    ("all of these in a request of 12 statements and 10 turns", "us_per_request", US),
    ("**An idle worker**, a second: without the agent", "idle_us_per_second_off", US),
    ("with it", "idle_us_per_second_on", US),
    ("with it, nobody listening", "idle_us_per_second_on_no_relay", US),
    ("**Memory** that a worker has more with it: resident", "rss_mb_per_worker", MB),
    ("proportional", "pss_mb_per_worker", MB),
    ("private dirty", "private_dirty_mb_per_worker", MB),
    ("**OpenTelemetry**, 1 of 1000 traced: CPU of a request, on / off", "otel_cpu_ratio", PAIRS),
    ("**pyroscope-io**, PySpy: CPU of a request, on / off", "pyroscope_cpu_ratio", PAIRS),
    ("CPU it recorded, of the kernel's", "pyroscope_recorded_share", PERCENT),
    ("of that on no request", "pyroscope_unattributed_share", PERCENT),
    ("**pyroscope-io**, Stack: CPU of a request, on / off", "pyroscope_stack_cpu_ratio", PAIRS),
    ("CPU it recorded, of the kernel's", "pyroscope_stack_recorded_share", PERCENT),
    ("of that on no request", "pyroscope_stack_unattributed_share", PERCENT),
    ("**py-spy record** from outside: CPU of a request, on / off", "pyspy_cpu_ratio", PAIRS),
    ("its own CPU, of a core", "pyspy_core_share", PERCENT),
    ("samples it took, of the worker's CPU", "pyspy_recorded_share", PERCENT),
    ("of that on no request", "pyspy_unattributed_share", PERCENT),
    (
        "**Whose CPU it was**, 50 requests at once, all traced: the agent, right",
        "attributed_right_share",
        PERCENT,
    ),
    ("nobody's work on a request", "attributed_nobodys_tagged_share", PERCENT),
    ("CPU it recorded, of the kernel's", "attributed_recorded_share", PERCENT),
    ("pyroscope-io (PySpy) and pyroscope-otel, right", "pyroscope_otel_right_share", PERCENT),
    ("its samples, each on the right span, would give", "pyroscope_otel_perfect_sampler_share", PERCENT),
    ("right endpoint, of what was sampled in one's code", "pyroscope_otel_right_endpoint_share", PERCENT),
    ("nobody's work on a request", "pyroscope_otel_nobodys_tagged_share", PERCENT),
    ("CPU it recorded, of the kernel's", "pyroscope_otel_recorded_share", PERCENT),
    ("pyroscope-io (Stack) and pyroscope-otel, right", "pyroscope_otel_stack_right_share", PERCENT),
    ("CPU it recorded, of the kernel's", "pyroscope_otel_stack_recorded_share", PERCENT),
)
REPORT = Report(_LINES, _AT_MOST, {})


def versions() -> str:
    """Return which packages the figures depend on."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
