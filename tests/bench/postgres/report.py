"""What is told of the figures of reading Postgres, and the bounds that it is held to."""

from __future__ import annotations

from bench.bounded import MACHINE, PERCENT, PLAIN, Report

__all__ = ["REPORT"]


_AT_MOST = {
    "core_share_200_mmap": 0.01,
    "core_share_200_readv": 0.02,
    "core_share_200_mmap_kept": 0.01,
    "core_share_200_readv_kept": 0.02,
}
_AT_LEAST = {
    "proven_right_share": 0.995,
    "proven_share_oltp": 0.80,
    "proven_share_mixed": 0.95,
    "proven_share_slow": 0.95,
}
_LINES = (
    *MACHINE,
    ("waking 99 times a second and doing nothing: of a core", "core_share_waking", PERCENT),
    ("the same, its memory kept in reach", "core_share_waking_kept", PERCENT),
    *(
        (f"**{size} backends**, 99 Hz, {how}: of a core", f"core_share_{size}_{key}", PERCENT)
        for size in (16, 64, 200, 500)
        for key, how in (("mmap", "mapped"), ("readv", "read"))
    ),
    ("**200 backends**, mapped, memory kept in reach", "core_share_200_mmap_kept", PERCENT),
    ("the same, read", "core_share_200_readv_kept", PERCENT),
    ("**200 backends of 2,000 slots**, mapped: of a core", "core_share_200_of_2000", PERCENT),
    ("the same, read", "core_share_200_of_2000_readv", PERCENT),
    ("`pg_stat_activity` of 200, 10 Hz, both sides: of a core", "core_share_polls", PERCENT),
    ("99 Hz mapped / 10 Hz polled", "ratio_to_polls", PLAIN),
    ("**Samples, stacks, statements and sweeps**, two busy CPUs: of a core", "core_share_join", PERCENT),
    ("of that, noting what ran", "core_share_join_notes", PERCENT),
    ("**Proven**, statements below a millisecond", "proven_share_oltp", PERCENT),
    ("at normal priority", "proven_share_oltp_normal", PERCENT),
    ("mixed", "proven_share_mixed", PERCENT),
    ("slow", "proven_share_slow", PERCENT),
    ("right, of those proven", "proven_right_share", PERCENT),
    ("so many were checked", "proven_checked", PLAIN),
    ("**pgbench's transactions**, sampled / not", "pgbench_ratio", PLAIN),
    ("lower quartile", "pgbench_ratio_quartile1", PLAIN),
    ("upper quartile", "pgbench_ratio_quartile3", PLAIN),
    ("its backends' CPU for a transaction, sampled / not", "pgbench_cpu_ratio", PLAIN),
)
REPORT = Report(_LINES, _AT_MOST, _AT_LEAST, "PostgreSQL 15, ")
