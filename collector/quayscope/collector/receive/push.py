"""push.v1 requests, in protobuf or JSON, to profiles with idempotency keys."""

from __future__ import annotations

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
from quayscope.profile.pushjson import push_of_json

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
    """Read the same as JSON, `rawProfile` in base64; raises `BadRequest`."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the push is not JSON: {error}") from error
    try:
        return push_of_json(document)
    except MalformedProfile as error:
        raise BadRequest(str(error)) from error


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
