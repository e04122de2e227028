"""Pyroscope pushes of the pod's clients: checked, marked with the pod's labels, each profile with an ID.

Sources: grafana/pyroscope `api/push/v1/push.proto`, in protobuf and in its JSON mapping.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import time
from collections.abc import Mapping

from quayscope.profile import MalformedProfile
from quayscope.profile.protowire import numbers, put_varint
from quayscope.profile.push import PushSeries, decode_push, encode_push
from quayscope.profile.pushjson import push_of_json
from quayscope.sidecar.gateway.body import unpack
from quayscope.sidecar.gateway.errors import Malformed
from quayscope.sidecar.gateway.limits import (
    MAX_LABEL_VALUE,
    MAX_LABELS,
    MAX_PROFILES,
    MAX_PUSH_FIELDS,
    MAX_UNPACKED,
)
from quayscope.sidecar.gateway.otlp_json import load
from quayscope.sidecar.gateway.schema import PPROF, PUSH, check

__all__ = ["admit", "read_push"]

_LABEL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")
_TIME_NANOS = 9


def read_push(body: bytes, labels: Mapping[str, str], *, is_json: bool) -> bytes:
    """Return the push.v1.PushRequest to pass on; raises `Malformed`.

    One bad profile refuses the push: nothing of it is taken, and its client hears why.
    """
    if is_json:
        try:
            series = push_of_json(load(body))
        except MalformedProfile as error:
            raise Malformed(str(error)) from error
    else:
        # Before anything of it is held: four bytes a label would take a hundred times their room.
        check(PUSH, body, MAX_PUSH_FIELDS)
        series = decode_push(body)
    return admit(series, labels)


def admit(push: list[PushSeries], labels: Mapping[str, str], seed: str = "") -> bytes:
    """Check series and return them as a PushRequest with `labels` added, which win over the client's.

    A profile without an ID gets one of its content and `seed`, so that a client that sends it again does
    not double it. One without a time gets the present one: it may be sent on much later.
    """
    if sum(len(series.samples) for series in push) > MAX_PROFILES:
        raise Malformed(f"there are more than {MAX_PROFILES} profiles in it")
    admitted, room = [], MAX_UNPACKED
    for series in push:
        merged = _labels(series, labels)
        samples = []
        for push_id, data in series.samples:
            # The room is that of the whole push: a small one could unpack to very much otherwise.
            message = unpack(data, limit=room)
            room -= len(message)
            samples.append(_profile(push_id, data, message, json.dumps([seed, sorted(merged.items())])))
        admitted.append(PushSeries(merged, tuple(samples)))
    return encode_push(admitted)


def _labels(series: PushSeries, labels: Mapping[str, str]) -> dict[str, str]:
    merged = {**series.labels, **labels}
    if len(merged) > MAX_LABELS:
        raise Malformed(f"{len(merged)} labels with the pod's, more than {MAX_LABELS}")
    for name, value in merged.items():
        if not _LABEL_NAME.fullmatch(name):
            raise Malformed(f"label name {name[:80]!r} is not letters, digits and _.-")
        if len(value) > MAX_LABEL_VALUE or not value.isprintable():
            raise Malformed(f"the value of label {name} is too long or unprintable")
    return merged


def _profile(push_id: str, data: bytes, message: bytes, about: str) -> tuple[str, bytes]:
    if not message:
        raise Malformed("a profile has no bytes")
    check(PPROF, message)
    timed = bool(numbers(message).get(_TIME_NANOS))
    if not push_id:
        # Two profiles without a time may well be equal: they are two.
        when = "" if timed else str(time.time_ns())
        push_id = hashlib.blake2b((about + when).encode() + message, digest_size=16).hexdigest()
    if timed:
        return push_id, data
    tail = bytearray()
    put_varint(tail, _TIME_NANOS, time.time_ns())
    return push_id, gzip.compress(message + tail, 6, mtime=0)
