"""speedscope's own format, one profile a `sampled` one. Source: jlfwong/speedscope `file-format-spec.ts`."""

from __future__ import annotations

import json
from typing import Any

from quayscope.profile import Frame, Profile, Stack

__all__ = ["render_speedscope"]

_UNITS = {"nanoseconds": "nanoseconds", "bytes": "bytes"}


def render_speedscope(profile: Profile, column: int, title: str) -> bytes:
    """Return one column; stacks that are equal but for their attributes are one sample."""
    sums: dict[Stack, int] = {}
    for (stack, _), values in profile.samples.items():
        sums[stack] = sums.get(stack, 0) + values[column]
    places: dict[Frame, int] = {}
    samples, weights = [], []
    for stack, value in sums.items():
        if value:
            samples.append([places.setdefault(frame, len(places)) for frame in stack])
            weights.append(value)
    frames: list[dict[str, Any]] = []
    for frame in places:
        shown: dict[str, Any] = {"name": frame.function or "[unknown]"}
        if frame.file:
            shown["file"] = frame.file
        if frame.line:
            shown["line"] = frame.line
        frames.append(shown)
    document = {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "name": title,
        "exporter": "quayscope",
        "activeProfileIndex": 0,
        "shared": {"frames": frames},
        "profiles": [
            {
                "type": "sampled",
                "name": title,
                "unit": _UNITS.get(profile.type.values[column].unit, "none"),
                "startValue": 0,
                "endValue": sum(weights),
                "samples": samples,
                "weights": weights,
            }
        ],
    }
    return json.dumps(document, separators=(",", ":")).encode("utf-8", "replace")
