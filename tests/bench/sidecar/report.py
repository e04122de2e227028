"""What is told of the native sampler's figures, and the bounds that it is held to."""

from __future__ import annotations

from bench.bounded import MACHINE, MB, PERCENT, PLAIN, US, Report

__all__ = ["REPORT"]


_AT_MOST = {
    "core_share_99hz": 0.01,
    "core_share_99hz_kept": 0.01,
    "core_share_each_sample_kept": 0.016,
    "core_share_first_5s_kept": 0.015,
    "core_share_each_sample": 0.016,
    "core_share_first_5s": 0.015,
    "ratio_to_perf": 0.6,
    "ratio_to_perf_kept": 0.6,
    "rss_mb": 100.0,
}
_AT_LEAST = {"reach_root_share": 0.99}
_LINES = (
    *MACHINE,
    ("**99 Hz**, two busy CPUs, woken by watermark: of a core", "core_share_99hz", PERCENT),
    ("the same, its memory kept in reach", "core_share_99hz_kept", PERCENT),
    ("first 5 s of the first start", "core_share_first_start", PERCENT),
    ("first 5 s of a second start", "core_share_first_5s", PERCENT),
    ("the same, its memory kept in reach", "core_share_first_5s_kept", PERCENT),
    ("its first 22 s: the first window's names too", "core_share_first_22s", PERCENT),
    ("a sample, all of it", "us_per_sample_99hz", US),
    ("the same, its memory kept in reach", "us_per_sample_99hz_kept", US),
    ("samples", "samples", PLAIN),
    ("stacks that reach their root", "reach_root_share", PERCENT),
    ("most memory", "rss_mb", MB),
    ("**Woken for each sample**, its statement noted: of a core", "core_share_each_sample", PERCENT),
    ("the same, its memory kept in reach", "core_share_each_sample_kept", PERCENT),
    ("**999 Hz**: of a core", "core_share_999hz", PERCENT),
    ("lost", "lost_999hz", PERCENT),
    ("**perf record and script** beside us, a sample", "perf_us_per_sample", US),
    ("ours, the start included", "us_per_sample_with_start", US),
    ("ours / perf's", "ratio_to_perf", PLAIN),
    ("perf's, its memory kept in reach, a sample", "perf_us_per_sample_kept", US),
    ("ours so", "us_per_sample_with_start_kept", US),
    ("ours / perf's so", "ratio_to_perf_kept", PLAIN),
    ("**The unwinder alone**, a stack seen before", "us_per_sample_warm", US),
    ("at a second start", "us_per_sample_second_start", US),
    ("with nothing known", "us_per_sample_cold", US),
    ("**The target's CPU for a round of statements**, sampled / not", "target_slowdown", PLAIN),
    ("lower quartile", "target_slowdown_quartile1", PLAIN),
    ("upper quartile", "target_slowdown_quartile3", PLAIN),
)
REPORT = Report(_LINES, _AT_MOST, _AT_LEAST)
