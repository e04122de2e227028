"""Pyroscope's older push, `/ingest`: one profile, everything else in the query string.

Source: Grafana's "Server HTTP API" page for Pyroscope: `name=app{label=value}`, `from`, `until`,
`units`, `sampleRate`, `spyName`, `format`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from quayscope.collector.errors import BadRequest
from quayscope.collector.limits import MAX_DECOMPRESSED, MAX_TIME_NS
from quayscope.collector.receive.admit import admit, series_labels
from quayscope.collector.store import ProfileEntry
from quayscope.profile import PROCESS_CPU, Profile, folded
from quayscope.profile.pprof import decode

__all__ = ["read_ingest", "read_name", "read_time"]

_NAME = re.compile(r"\s*([^{}]*?)\s*(?:\{(.*)\}\s*)?", re.DOTALL)
_SUFFIXES = (
    ".cpu",
    ".itimer",
    ".alloc_objects",
    ".alloc_space",
    ".inuse_objects",
    ".inuse_space",
    ".goroutines",
)
_DEFAULT_RATE = 100
_MAX_RATE = 1_000_000


def read_name(name: str) -> dict[str, str]:
    """Read `app.cpu{region="eu",pod=a}` as labels, `service_name` among them; raises `BadRequest`."""
    found = _NAME.fullmatch(name)
    if not found or not found[1]:
        raise BadRequest(f"name {name[:80]!r} is not APPLICATION{{LABEL=VALUE,...}}")
    application = found[1]
    for suffix in _SUFFIXES:
        application = application.removesuffix(suffix)
    labels = {}
    for part in (found[2] or "").split(","):
        if not part.strip():
            continue
        label, equals, value = part.partition("=")
        if not equals:
            raise BadRequest(f"label {part.strip()[:80]!r} in the name is not LABEL=VALUE")
        labels[label.strip()] = value.strip().strip('"')
    labels.setdefault("service_name", application)
    return labels


def read_time(text: str, fallback_ns: int) -> int:
    """Read Unix seconds, milli-, micro- or nanoseconds, told apart by size; raises `BadRequest`."""
    if not text:
        return fallback_ns
    try:
        number = float(text)
        value = int(text) if text.isdecimal() else int(number * 1000) / 1000
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"time {text[:40]!r} is not a Unix time") from error
    # The next unit's numbers for the year 1970 + a day are larger than this one's for 2286.
    for factor, largest in ((10**9, 10**10), (10**6, 10**13), (10**3, 10**16), (1, MAX_TIME_NS)):
        if 0 < value < largest:
            return int(value * factor)
    raise BadRequest(f"time {text[:40]!r} is not a Unix time")


def read_ingest(query: Mapping[str, str], body: bytes, *, pprof: bool) -> tuple[ProfileEntry, int]:
    """Read one profile and how many of its stacks were cut.

    `body` is a pprof message, or folded text (`a;b;c 12`) of samples at `sampleRate`, whose CPU is
    then nominal: that is all such a client knows. Raises `BadRequest` and `ProfileError`.
    """
    given = read_name(query.get("name", ""))
    if query.get("spyName"):
        given.setdefault("sampler", query["spyName"])
    labels = series_labels(given)
    until_ns = read_time(query.get("until", ""), time.time_ns())
    from_ns = read_time(query.get("from", ""), until_ns)
    if until_ns < from_ns:
        raise BadRequest("until is before from")
    if pprof:
        profile = decode(body, labels, max_bytes=MAX_DECOMPRESSED)
        if not profile.start_ns:
            profile.start_ns, profile.duration_ns = from_ns, until_ns - from_ns
    else:
        profile = _read_folded(query, body, labels, from_ns, until_ns)
    return ProfileEntry(profile), admit(profile)


def _read_folded(
    query: Mapping[str, str], body: bytes, labels: dict[str, str], from_ns: int, until_ns: int
) -> Profile:
    units = query.get("units", "") or "samples"
    if units != "samples":
        raise BadRequest(
            f"folded stacks in {units[:40]!r} are not taken", next_step="send samples, or a pprof"
        )
    rate = query.get("sampleRate", "") or str(_DEFAULT_RATE)
    if not rate.isdecimal() or not 0 < int(rate) <= _MAX_RATE:
        raise BadRequest(f"sampleRate {rate[:40]!r} is not between 1 and {_MAX_RATE}")
    period = 10**9 // int(rate)
    counted = folded.parse(body.decode("utf-8", "replace"))
    profile = Profile(PROCESS_CPU, labels, from_ns, until_ns - from_ns, period)
    for (stack, attributes), values in counted.samples.items():
        profile.add(stack, attributes, (values[-1], values[-1] * period))
    return profile
