"""push.v1 requests, in protobuf or JSON, to profiles with idempotency keys."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator

from quayscope.collector.errors import BadRequest, CollectorError
from quayscope.collector.limits import MAX_DECOMPRESSED, MAX_PROFILES_A_PUSH
from quayscope.collector.receive.admit import admit, series_labels
from quayscope.collector.store import ProfileEntry
from quayscope.profile import MalformedProfile, ProfileError
from quayscope.profile.clock import ClockEstimate
from quayscope.profile.pprof import decode
from quayscope.profile.push import PushSeries, decode_push

__all__ = ["Refused", "read_json", "read_profiles", "read_protobuf"]


class Refused(CollectorError):
    """One profile of a push that cannot be kept; its neighbours are."""

    status = 400
    code = "invalid_argument"


def read_protobuf(body: bytes) -> list[PushSeries]:
    """Read a push.v1.PushRequest; raises `BadRequest`."""
    try:
        return decode_push(body)
    except MalformedProfile as error:
        raise BadRequest(f"the push is malformed: {error}") from error


def read_json(body: bytes) -> list[PushSeries]:
    """Read the same as JSON, `rawProfile` in base64; raises `BadRequest`.

    Source of the names: protobuf's JSON mapping of push.v1 (`rawProfile` or `raw_profile`, `ID`).
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the push is not JSON: {error}") from error
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
        raise BadRequest(
            "the push's JSON is not {series: [{labels: [{name, value}], samples: [{rawProfile, ID}]}]}"
        ) from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    # JSON can spell lone surrogates, which no store and no UTF-8 can hold.
    return value.encode("utf-8", "replace").decode("utf-8")


def _base64(value: object) -> bytes:
    if not isinstance(value, str):
        raise TypeError("not a string")
    try:
        standard = value.replace("-", "+").replace("_", "/").rstrip("=")
        return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except binascii.Error as error:
        raise BadRequest(f"a rawProfile is not base64: {error}") from error


def read_profiles(
    push: list[PushSeries], clock: ClockEstimate | None = None
) -> Iterator[tuple[ProfileEntry, int] | Refused]:
    """Yield each profile of a push with its count of cut stacks, or why it is refused.

    Their times are moved to our clock by what is known of their sender's. The key is made of the labels
    and the ID: a resend has both alike. Raises `BadRequest` for a push with too many profiles.
    """
    total = sum(len(series.samples) for series in push)
    if total > MAX_PROFILES_A_PUSH:
        raise BadRequest(f"{total} profiles in one push, more than {MAX_PROFILES_A_PUSH}")
    for series in push:
        for push_id, data in series.samples:
            try:
                yield _read_profile(series.labels, push_id, data, clock)
            except (ProfileError, CollectorError) as error:
                yield Refused(str(error), next_step=error.next_step)


def _read_profile(
    given: dict[str, str], push_id: str, data: bytes, clock: ClockEstimate | None
) -> tuple[ProfileEntry, int]:
    labels = series_labels(given)
    if not data:
        raise BadRequest("the profile has no bytes")
    profile = decode(data, labels, name=given.get("__name__") or None, max_bytes=MAX_DECOMPRESSED)
    if clock is not None and profile.start_ns:
        profile.move(clock.seconds_ns)
    cut = admit(profile)
    return ProfileEntry(profile, _key(given, push_id), clock), cut


def _key(given: dict[str, str], push_id: str) -> bytes:
    if not push_id:
        return b""
    identity = json.dumps([push_id, sorted(given.items())])
    return hashlib.blake2b(identity.encode("utf-8", "replace"), digest_size=16).digest()
