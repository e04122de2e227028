"""The figures as a table, what they were taken on, and the bounds that reading Postgres is held to."""

from __future__ import annotations

from collections.abc import Mapping

from bench.sidecar.report import surroundings

__all__ = ["AT_LEAST", "AT_MOST", "missed", "surroundings", "table"]

AT_MOST = {"core_share_200_mmap": 0.01, "core_share_200_readv": 0.02}
AT_LEAST = {
    "proven_right_share": 0.995,
    "proven_share_oltp": 0.80,
    "proven_share_mixed": 0.95,
    "proven_share_slow": 0.95,
}
_PERCENT, _PLAIN = "percent", "plain"
_LINES: tuple[tuple[str, str, str], ...] = (
    *(
        (f"**{size} backends**, 99 Hz, {how}: of a core", f"core_share_{size}_{key}", _PERCENT)
        for size in (16, 64, 200, 500)
        for key, how in (("mmap", "mapped"), ("readv", "read"))
    ),
    ("**200 backends of 2,000 slots**, mapped: of a core", "core_share_200_of_2000", _PERCENT),
    ("the same, read", "core_share_200_of_2000_readv", _PERCENT),
    ("`pg_stat_activity` of 200, 10 Hz, both sides: of a core", "core_share_polls", _PERCENT),
    ("99 Hz mapped / 10 Hz polled", "ratio_to_polls", _PLAIN),
    ("**Samples, stacks, statements and sweeps**, two busy CPUs: of a core", "core_share_join", _PERCENT),
    ("of that, noting what ran", "core_share_join_notes", _PERCENT),
    ("**Proven**, statements below a millisecond", "proven_share_oltp", _PERCENT),
    ("at normal priority", "proven_share_oltp_normal", _PERCENT),
    ("mixed", "proven_share_mixed", _PERCENT),
    ("slow", "proven_share_slow", _PERCENT),
    ("right, of those proven", "proven_right_share", _PERCENT),
    ("so many were checked", "proven_checked", _PLAIN),
    ("**pgbench's transactions**, sampled / not", "pgbench_ratio", _PLAIN),
    ("lower quartile", "pgbench_ratio_quartile1", _PLAIN),
    ("upper quartile", "pgbench_ratio_quartile3", _PLAIN),
    ("its backends' CPU for a transaction, sampled / not", "pgbench_cpu_ratio", _PLAIN),
)


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
        f"{figures['cores']} cores ({figures['processor']}), PostgreSQL 15, "
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
    return f"{100 * value:.2f} %" if form == _PERCENT else f"{value:.4g}"


def _bound(key: str, form: str) -> str:
    if key in AT_MOST:
        return f"at most {_shown(AT_MOST[key], form)}"
    return f"at least {_shown(AT_LEAST[key], form)}" if key in AT_LEAST else ""
