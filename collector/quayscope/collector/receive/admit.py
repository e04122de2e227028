"""What a profile must be to be kept: bounded labels, times, values and depth; others are refused by name."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from quayscope.collector.errors import BadRequest
from quayscope.collector.limits import MAX_DEPTH, MAX_LABEL_VALUE, MAX_LABELS, MAX_TIME_NS, MAX_VALUE
from quayscope.profile import Attributes, Frame, Profile

__all__ = ["UNKNOWN_SERVICE", "admit", "series_labels"]

UNKNOWN_SERVICE = "unknown_service"
"""The service of a profile that names none; OpenTelemetry's word for it."""

_LABEL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")
_SPAN_ID = re.compile(r"[0-9a-fA-F]{16}")
_TRACE_ID = re.compile(r"[0-9a-fA-F]{32}")
_MAX_PID = (1 << 31) - 1
_CUT = (Frame("(truncated)", "", 0, "root"),)


def series_labels(given: Mapping[str, str]) -> dict[str, str]:
    """Return the series labels of a push: service and sampler filled in, dunder names left out.

    Stock clients lack `sampler`: theirs is the spy's name where given, else `pyroscope`. Raises
    `BadRequest` for too many labels, long values, or names that are none.
    """
    labels = {name: value for name, value in given.items() if value and not name.startswith("__")}
    if len(labels) > MAX_LABELS:
        raise BadRequest(f"{len(labels)} labels, more than {MAX_LABELS}")
    for name, value in labels.items():
        if not _LABEL_NAME.fullmatch(name):
            raise BadRequest(f"label name {name[:80]!r} is not letters, digits and _.-")
        if len(value) > MAX_LABEL_VALUE:
            raise BadRequest(
                f"the value of label {name} has {len(value)} characters, more than {MAX_LABEL_VALUE}"
            )
        if not value.isprintable():
            raise BadRequest(f"the value of label {name} has unprintable characters")
    if "service_name" not in labels:
        labels["service_name"] = (
            labels.pop("service.name", "") or labels.get("app_name", "") or UNKNOWN_SERVICE
        )
    if "sampler" not in labels:
        labels["sampler"] = labels.pop("pyroscope_spy", "") or "pyroscope"
    return labels


def admit(profile: Profile) -> int:
    """Check a decoded profile and put it into the form that is stored; return how many stacks were cut.

    A missing start is now; labels that are sample attributes (`endpoint`, `pid`, ...) become such.
    Raises `BadRequest`.
    """
    if profile.start_ns == 0:
        profile.start_ns = time.time_ns()
    if not (0 < profile.start_ns < MAX_TIME_NS and 0 <= profile.duration_ns < MAX_TIME_NS):
        raise BadRequest(f"time {profile.start_ns} + {profile.duration_ns} ns is outside 1970 to 2116")
    profile.labels = series_labels(profile.labels)
    for name, count in vars(profile.losses).items():
        if not 0 <= count <= MAX_VALUE:
            raise BadRequest(f"the loss count {name}={count} cannot be")
    _labels_to_attributes(profile)
    deep = False
    requests: set[tuple[str, str]] = set()
    for (stack, attributes), values in profile.samples.items():
        if min(values) < 0 or max(values) > MAX_VALUE:
            raise BadRequest(f"a sample's values {values} are not between 0 and 2**56")
        if not (0 <= attributes.slot_ns < MAX_TIME_NS and 0 <= attributes.pid <= _MAX_PID):
            raise BadRequest(f"a sample's slot {attributes.slot_ns} or pid {attributes.pid} cannot be")
        request = attributes[5:7]
        if request not in requests:
            _check_request(attributes)
            requests.add(request)
        deep = deep or len(stack) > MAX_DEPTH
    return _cut(profile) if deep else 0


def _check_request(attributes: Attributes) -> None:
    if attributes.span_id and not _SPAN_ID.fullmatch(attributes.span_id):
        raise BadRequest(f"span_id {attributes.span_id[:40]!r} is not 16 hexadecimal digits")
    if attributes.trace_id and not _TRACE_ID.fullmatch(attributes.trace_id):
        raise BadRequest(f"trace_id {attributes.trace_id[:40]!r} is not 32 hexadecimal digits")


def _labels_to_attributes(profile: Profile) -> None:
    found = {name: profile.labels.pop(name) for name in Attributes._fields[1:] if name in profile.labels}
    if not found:
        return
    pid = found.pop("pid", "")
    if pid and not (pid.isascii() and pid.isdecimal() and len(pid) <= 10):
        raise BadRequest(f"pid {pid[:20]!r} is not a number")
    samples, profile.samples = profile.samples, {}
    for (stack, attributes), values in samples.items():
        own = attributes._asdict()
        own["pid"] = own["pid"] or int(pid or 0)
        own.update({name: value for name, value in found.items() if not own[name]})
        profile.add(stack, Attributes(**own), values)


def _cut(profile: Profile) -> int:
    samples, profile.samples = profile.samples, {}
    cut = 0
    for (stack, attributes), values in samples.items():
        if len(stack) > MAX_DEPTH:
            cut += 1
            profile.add(_CUT + stack[1 - MAX_DEPTH :], attributes, values)
        else:
            profile.add(stack, attributes, values)
    profile.losses.truncated += cut
    return cut
