"""push.v1.PushRequest in protobuf's JSON mapping, as some clients send it.

Source of the names: grafana/pyroscope `api/push/v1/push.proto` (`rawProfile` or `raw_profile`, `ID`).
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from quayscope.profile.errors import MalformedProfile
from quayscope.profile.push import PushSeries

__all__ = ["push_of_json"]


def push_of_json(document: Any) -> list[PushSeries]:
    """Return the series of a parsed JSON document; raises `MalformedProfile`."""
    try:
        return [
            PushSeries(
                {_text(pair["name"]): _text(pair.get("value", "")) for pair in series.get("labels", ())},
                tuple(
                    (
                        _text(sample.get("ID", sample.get("id", ""))),
                        _base64(sample.get("rawProfile", sample.get("raw_profile", ""))),
                    )
                    for sample in series.get("samples", ())
                ),
            )
            for series in document.get("series", ())
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise MalformedProfile(
            "the push's JSON is not {series: [{labels: [{name, value}], samples: [{rawProfile, ID}]}]}"
        ) from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    # JSON can spell lone surrogates, which no store and no UTF-8 can hold.
    return value.encode("utf-8", "replace").decode("utf-8")


def _base64(value: object) -> bytes:
    standard = _text(value).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except binascii.Error as error:
        raise MalformedProfile(f"a rawProfile is not base64: {error}") from error
