"""OTLP requests of the pod's clients: checked, and marked with the pod's labels.

Source: the OpenTelemetry Protocol specification, OTLP/HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping

from quayscope.profile.protowire import fields, put_bytes, put_text, put_varint, text
from quayscope.sidecar.gateway.literals import without_literals
from quayscope.sidecar.gateway.otlp_json import from_json
from quayscope.sidecar.gateway.schema import METRICS, TRACES, check

__all__ = ["KINDS", "PATHS", "read_otlp", "status_message"]

PATHS = {"/v1/traces": "spans", "/v1/metrics": "metrics"}
KINDS = {"spans": TRACES, "metrics": METRICS}


def read_otlp(kind: str, body: bytes, labels: Mapping[str, str], *, is_json: bool) -> bytes:
    """Return the request to pass on: protobuf, `labels` among each resource's attributes, no SQL literals.

    An attribute of the client's own with such a name is replaced: whose pod it is, the pod knows. Raises
    `Malformed`.
    """
    if is_json:
        body = from_json(KINDS[kind], body)
    check(KINDS[kind], body)
    if kind == "spans":
        body = without_literals(body)
    return _labelled(body, labels) if labels else body


def _labelled(request: bytes, labels: Mapping[str, str]) -> bytes:
    added = bytearray()
    for name, label in labels.items():
        pair, held = bytearray(), bytearray()
        put_bytes(held, 1, label.encode("utf-8", "replace"))
        put_text(pair, 1, name)
        put_bytes(pair, 2, held)
        put_bytes(added, 1, pair)
    out = bytearray()
    for number, _, value in fields(request):
        if number != 1 or isinstance(value, int):
            continue  # there is nothing else in a request
        resource = bytearray()
        rest = bytearray()
        for inner, wire, content in fields(value):
            if inner == 1 and not isinstance(content, int):
                # One that comes twice is merged by its reader; so it is here.
                resource += _without(content, labels)
            else:
                _copy(rest, inner, wire, content)
        described = bytearray()
        put_bytes(described, 1, resource + added)
        put_bytes(out, 1, described + rest)
    return bytes(out)


def _without(resource: memoryview, names: Mapping[str, str]) -> bytearray:
    kept = bytearray()
    for number, wire, value in fields(resource):
        if number == 1 and not isinstance(value, int):
            key = next((text(part) for inner, _, part in fields(value) if inner == 1), "")
            if key in names:
                continue
        _copy(kept, number, wire, value)
    return kept


def _copy(out: bytearray, number: int, wire: int, value: int | memoryview) -> None:
    if isinstance(value, memoryview):
        put_bytes(out, number, bytes(value))
    elif wire == 0:
        put_varint(out, number, value)
    # Other wire types: no field of a resource or of its list has them, in no version so far.


def status_message(number: int, message: str) -> bytes:
    """Return a google.rpc.Status, what OTLP answers errors with."""
    out = bytearray()
    put_varint(out, 1, number)
    put_text(out, 2, message)
    return bytes(out)
