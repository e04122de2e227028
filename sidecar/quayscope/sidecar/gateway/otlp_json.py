"""OTLP's JSON to OTLP's protobuf, by the tables of `schema`.

Source: the OpenTelemetry Protocol specification, "JSON Protobuf Encoding": names in lowerCamelCase, trace
and span ids in hexadecimal, enumerations as numbers, 64-bit integers as text or number, unknown names
ignored.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from typing import Any

from quayscope.profile.protowire import FIXED32, FIXED64, LENGTH, put_bytes, put_double, put_fixed64, varint
from quayscope.sidecar.gateway.errors import Malformed, TooLarge
from quayscope.sidecar.gateway.limits import MAX_DEPTH, MAX_JSON, MAX_JSON_PARTS
from quayscope.sidecar.gateway.schema import Field, fields_of

__all__ = ["from_json", "load"]

_RANGES = {
    "enum": (-(1 << 31), (1 << 31) - 1),
    "sint32": (-(1 << 31), (1 << 31) - 1),
    "uint32": (0, (1 << 32) - 1),
    "fixed32": (0, (1 << 32) - 1),
    "int64": (-(1 << 63), (1 << 63) - 1),
    "sfixed64": (-(1 << 63), (1 << 63) - 1),
    "uint64": (0, (1 << 64) - 1),
    "fixed64": (0, (1 << 64) - 1),
}
_ODD_DOUBLES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_INTEGER = re.compile(r"-?[0-9]{1,20}")


def load(body: bytes) -> Any:
    """Return a JSON document; raises `Malformed`, and `TooLarge` for what would take too much to hold."""
    if len(body) > MAX_JSON:
        raise TooLarge(f"as JSON more than {MAX_JSON} bytes are not taken: send protobuf")
    if body.count(b"{") + body.count(b"[") > MAX_JSON_PARTS:
        raise TooLarge(f"as JSON more than {MAX_JSON_PARTS} objects and lists are not taken: send protobuf")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the body is not JSON: {str(error)[:200]}") from error


def from_json(message: str, body: bytes) -> bytes:
    """Return the protobuf of a JSON document of that message; raises `Malformed` with the place."""
    return bytes(_message(message, load(body), message, 0))


def _message(message: str, document: object, place: str, depth: int) -> bytearray:
    if not isinstance(document, dict):
        raise Malformed(f"{place} is not an object")
    if depth > MAX_DEPTH:
        raise Malformed(f"more than {MAX_DEPTH} messages lie inside each other")
    out = bytearray()
    for field in (fields_of(message) or {}).values():
        name = _camel(field.name)
        value = document.get(name)
        if value is None:
            continue
        inside = f"{place}.{name}"
        if not field.repeated:
            _put(out, field, value, inside, depth)
        elif isinstance(value, list):
            for number, item in enumerate(value):
                _put(out, field, item, f"{inside}[{number}]", depth)
        else:
            raise Malformed(f"{inside} is not a list")
    return out


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _put(out: bytearray, field: Field, value: object, place: str, depth: int) -> None:
    # Zeros are written too: in a oneof they say which one it is.
    if fields_of(field.type) is not None:
        put_bytes(out, field.number, _message(field.type, value, place, depth + 1))
    elif field.wire == LENGTH:
        put_bytes(out, field.number, _text_or_bytes(field.type, value, place))
    elif field.type == "double":
        put_double(out, field.number, _double(value, place))
    else:
        number = _integer(field.type, value, place)
        if field.wire == FIXED64:
            put_fixed64(out, field.number, number)
        elif field.wire == FIXED32:
            varint(out, field.number << 3 | FIXED32)
            out += number.to_bytes(4, "little")
        else:
            varint(out, field.number << 3)
            if field.type == "sint32":
                number = number * 2 if number >= 0 else -number * 2 - 1
            varint(out, number)


def _text_or_bytes(kind: str, value: object, place: str) -> bytes:
    if not isinstance(value, str):
        raise Malformed(f"{place} is not text")
    try:
        if kind == "id":
            return bytes.fromhex(value)
        if kind == "bytes":
            return base64.b64decode(value.replace("-", "+").replace("_", "/"), validate=True)
    except (ValueError, binascii.Error) as error:
        raise Malformed(f"{place} is not {'hexadecimal' if kind == 'id' else 'base64'}") from error
    # JSON can spell lone surrogates, which UTF-8 cannot hold.
    return value.encode("utf-8", "replace")


def _double(value: object, place: str) -> float:
    if isinstance(value, str):
        if value in _ODD_DOUBLES:
            return _ODD_DOUBLES[value]
        try:
            return float(value)
        except ValueError as error:
            raise Malformed(f"{place} is not a number") from error
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Malformed(f"{place} is not a number")
    try:
        return float(value)
    except OverflowError as error:
        raise Malformed(f"{place} is too large") from error


def _integer(kind: str, value: object, place: str) -> int:
    if kind == "bool":
        if not isinstance(value, bool):
            raise Malformed(f"{place} is neither true nor false")
        return int(value)
    written = isinstance(value, str) and _INTEGER.fullmatch(value)
    if isinstance(value, str | float) and (written or (isinstance(value, float) and value.is_integer())):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Malformed(f"{place} is not a whole number")
    least, most = _RANGES[kind]
    if not least <= value <= most:
        raise Malformed(f"{place} is not a {kind}")
    return value
