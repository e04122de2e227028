"""Our profiles as a Pyroscope can hold them: no sample label that would split a series, bounded sizes.

Source of the limits: grafana/pyroscope's defaults, 16,000 samples and 4 MiB a profile. Sample labels
other than span_id and trace_id make new series there, and 5,000 series are all it takes.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from itertools import islice

from quayscope.profile.model import Attributes, Frame, Losses, Profile
from quayscope.profile.pprof import encode
from quayscope.profile.push import PushSeries

__all__ = ["MAX_PPROF_BYTES", "MAX_SAMPLES", "mapped", "pieces", "pyroscope_series"]

MAX_SAMPLES = 16_000
MAX_PPROF_BYTES = 4 << 20


def pyroscope_series(profile: Profile) -> list[PushSeries]:
    """Return `profile` as the series to push to a Pyroscope, mapped and within its limits."""
    labels = {**profile.labels, "__name__": profile.type.name}
    # An ID of its own for each, kept over retries: a Pyroscope may hold the first of them already.
    return [PushSeries(labels, ((str(uuid.uuid4()), data),)) for data in pieces(mapped(profile))]


def mapped(profile: Profile) -> Profile:
    """Return the profile with endpoints as root frames; slots, runs, phases and pids fall together."""
    result = Profile(
        profile.type,
        profile.labels,
        profile.start_ns,
        profile.duration_ns,
        profile.period,
        losses=profile.losses,
    )
    roots: dict[str, Frame] = {}
    stacks: dict[tuple[int, str], tuple[Frame, ...]] = {}
    for (stack, attributes), values in profile.samples.items():
        endpoint = attributes.endpoint
        key = (id(stack), endpoint)
        rooted = stacks.get(key)
        if rooted is None:
            root = (roots.setdefault(endpoint, Frame(endpoint, "", 0, "root")),) if endpoint else ()
            rooted = stacks[key] = root + stack
        kept = Attributes(span_id=attributes.span_id, trace_id=attributes.trace_id)
        result.add(rooted, kept, values)
    return result


def pieces(
    profile: Profile, max_samples: int = MAX_SAMPLES, max_bytes: int = MAX_PPROF_BYTES
) -> Iterator[bytes]:
    """Yield the profile as gzipped pprof messages within the limits, halved until they fit.

    One sample that alone is larger is yielded all the same: the receiver's refusal is counted.
    """
    count = len(profile.samples)
    if count <= max_samples:
        data = encode(profile)
        if count < 2 or _unpacked_size(data) <= max_bytes:
            yield data
            return
    for start, end in ((0, count // 2), (count // 2, count)):
        half = Profile(profile.type, profile.labels, profile.start_ns, profile.duration_ns, profile.period)
        half.samples = dict(islice(profile.samples.items(), start, end))
        # The losses are those of the whole: they travel once.
        half.losses = profile.losses if start == 0 else Losses()
        yield from pieces(half, max_samples, max_bytes)


def _unpacked_size(gzipped: bytes) -> int:
    """Return the size before compression, which a gzip stream ends with."""
    return int(struct.unpack("<I", gzipped[-4:])[0])
