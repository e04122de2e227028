"""The bounds of what one client can make the collector hold: one constant each, with its reason."""

from __future__ import annotations

__all__ = [
    "COMMIT_INTERVAL_S",
    "MAX_BODY",
    "MAX_DECOMPRESSED",
    "MAX_DEPTH",
    "MAX_EXEMPLARS",
    "MAX_FRAMES",
    "MAX_LABELS",
    "MAX_LABEL_VALUE",
    "MAX_NODES",
    "MAX_PROFILES_A_PUSH",
    "MAX_SERIES",
    "MAX_STRINGS",
    "MAX_TEXT",
    "MAX_TIME_NS",
    "MAX_VALUE",
    "QUEUE_BYTES",
    "QUEUE_REQUESTS",
    "WAIT_S",
]

MAX_BODY = 16 << 20
"""Bytes of one request as sent. A 10 s window of a busy pod is under 1 MiB."""

MAX_DECOMPRESSED = 64 << 20
"""Bytes of one request after decompression, and of one pprof inside it."""

MAX_EXEMPLARS = 1000
"""Exemplars of one data point. A relay's point covers a second."""

MAX_PROFILES_A_PUSH = 4096
"""Profiles in one push request."""

MAX_LABELS = 30
"""Labels a series, as many as a Pyroscope takes by default."""

MAX_LABEL_VALUE = 2048
"""Characters of a label value, as many as a Pyroscope takes by default."""

MAX_TEXT = 16_384
"""Characters of one frame's name or file, or of one attribute; longer text is cut and ends in an ellipsis."""

MAX_DEPTH = 400
"""Frames a stack. Deeper ones keep the frames nearest the leaf and count as truncated.

A flame graph is nested JSON, and CPython's json module reads some 490 such levels by default.
"""

MAX_VALUE = 1 << 56
"""The largest value of one sample: 2.3 years in nanoseconds, so that no honest sum overflows 63 bits."""

MAX_TIME_NS = 1 << 62
"""The largest time stamp, Unix nanoseconds (year 2116)."""

MAX_SERIES = 20_000
"""Profile series, and metric series, that the dictionaries hold."""

MAX_FRAMES = 2_000_000
"""Distinct frames in the dictionary."""

MAX_NODES = 4_000_000
"""Distinct stack prefixes in the dictionary; each takes about 250 bytes of memory."""

MAX_STRINGS = 200_000
"""Distinct endpoints, runs and phases together. These are templates and names, not data."""

QUEUE_REQUESTS = 512
"""Requests that wait for the writer."""

QUEUE_BYTES = 256 << 20
"""Bytes, uncompressed, that wait for the writer."""

COMMIT_INTERVAL_S = 0.25
"""Seconds between two commits. What arrives while the writer is idle is committed at once."""

WAIT_S = 10.0
"""Seconds that a client waits for its commit before it is told to send again."""
