"""Pyroscope's older push, `/ingest`, as a push: one profile, all else in the query string.

Source: Grafana's "Server HTTP API" page for Pyroscope: `name=app{label=value}`, `from`, `until`, `units`,
`sampleRate`, `spyName`, `format`; a form's file `profile` (RFC 7578).
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from quayscope.profile import PROCESS_CPU, Profile, ProfileError, folded, pprof
from quayscope.profile.push import PushSeries
from quayscope.sidecar.gateway.body import unpack
from quayscope.sidecar.gateway.errors import Malformed, TooLarge, Unsupported
from quayscope.sidecar.gateway.limits import MAX_FOLDED_FRAMES, MAX_FOLDED_LINES, MAX_UNPACKED
from quayscope.sidecar.gateway.push import admit

__all__ = ["read_ingest"]

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
_MAX_TIME_NS = 1 << 62
_MAX_PARTS = 16
_FORMATS = ("", "pprof", "folded", "groups", "collapsed")


def read_ingest(query: Mapping[str, str], media: str, body: bytes, labels: Mapping[str, str]) -> bytes:
    """Return the push.v1.PushRequest to pass on; `media` is the Content-Type, its parameters included.

    Folded text is samples at `sampleRate`, whose CPU is then nominal: that is all such a client knows.
    Raises `Malformed` and `Unsupported`.
    """
    form = query.get("format", "")
    if form not in _FORMATS:
        raise Unsupported(f"format {form[:40]!r} is not taken: send pprof or folded")
    kind = media.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        body, form = _file(media, body), "pprof"
    body = unpack(body)
    given = _labels(query)
    until_ns = _time(query.get("until", ""), time.time_ns())
    from_ns = _time(query.get("from", ""), until_ns)
    if until_ns < from_ns:
        raise Malformed("until is before from")
    # A pprof begins with its sample types (field 1, length-delimited), folded text never with a newline.
    is_pprof = form == "pprof" or (not form and ("proto" in kind or "octet" in kind or body[:1] == b"\n"))
    try:
        if is_pprof:
            profile = pprof.decode(body, max_bytes=MAX_UNPACKED)
            data = body
            if not profile.start_ns:
                profile.start_ns, profile.duration_ns = from_ns, until_ns - from_ns
                data = pprof.encode(profile)
        else:
            profile = _folded(query, body, from_ns, until_ns)
            data = pprof.encode(profile)
    except ProfileError as error:
        raise Malformed(str(error)) from error
    given["__name__"] = profile.type.name
    # What makes a second one the same: the query and the bytes.
    seed = repr(sorted(query.items()))
    return admit([PushSeries(given, (("", data),))], labels, seed)


def _labels(query: Mapping[str, str]) -> dict[str, str]:
    name = query.get("name", "")
    found = _NAME.fullmatch(name)
    if not found or not found[1]:
        raise Malformed(f"name {name[:80]!r} is not APPLICATION{{LABEL=VALUE,...}}")
    application = found[1]
    for suffix in _SUFFIXES:
        application = application.removesuffix(suffix)
    labels = {}
    for part in filter(str.strip, (found[2] or "").split(",")):
        label, equals, value = part.partition("=")
        if not equals:
            raise Malformed(f"label {part.strip()[:80]!r} in the name is not LABEL=VALUE")
        labels[label.strip()] = value.strip().strip('"')
    labels.setdefault("service_name", application)
    if query.get("spyName"):
        labels.setdefault("sampler", query["spyName"])
    return labels


def _time(text: str, fallback_ns: int) -> int:
    """Read Unix seconds, milli-, micro- or nanoseconds, told apart by size."""
    if not text:
        return fallback_ns
    try:
        value = int(text) if text.isdecimal() else int(float(text) * 1000) / 1000
    except (ValueError, OverflowError) as error:
        raise Malformed(f"time {text[:40]!r} is not a Unix time") from error
    for factor, largest in ((10**9, 10**10), (10**6, 10**13), (10**3, 10**16), (1, _MAX_TIME_NS)):
        if 0 < value < largest:
            return int(value * factor)
    raise Malformed(f"time {text[:40]!r} is not a Unix time")


def _folded(query: Mapping[str, str], body: bytes, from_ns: int, until_ns: int) -> Profile:
    units = query.get("units", "") or "samples"
    if units != "samples":
        raise Unsupported(f"folded stacks in {units[:40]!r} are not taken: send samples, or a pprof")
    rate = query.get("sampleRate", "") or str(_DEFAULT_RATE)
    if not rate.isdecimal() or len(rate) > 7 or not 0 < int(rate) <= _MAX_RATE:
        raise Malformed(f"sampleRate {rate[:40]!r} is not between 1 and {_MAX_RATE}")
    period = 10**9 // int(rate)
    if body.count(b"\n") > MAX_FOLDED_LINES or body.count(b";") > MAX_FOLDED_FRAMES:
        raise TooLarge("the text has too many stacks or frames")
    counted = folded.parse(body.decode("utf-8", "replace"))
    profile = Profile(PROCESS_CPU, {}, from_ns, until_ns - from_ns, period)
    for (stack, attributes), values in counted.samples.items():
        profile.add(stack, attributes, (values[-1], values[-1] * period))
    return profile


def _file(media: str, body: bytes) -> bytes:
    """Return the form's file `profile`."""
    boundary = re.search(r'boundary="?([^";]{1,70})"?', media)
    if boundary is None:
        raise Malformed("the form has no boundary")
    # The first delimiter may stand at the very beginning.
    parts = (b"\r\n" + body).split(b"\r\n--" + boundary[1].encode("latin-1", "replace"), _MAX_PARTS)
    for part in parts[1:]:
        head, blank, content = part.partition(b"\r\n\r\n")
        if blank and re.search(rb'(?i)content-disposition:[^\r\n]*[; ]name="?profile"?', head):
            return content
    raise Malformed("the form has no file `profile`")
