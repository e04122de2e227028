"""Spans out of the stored messages: of one trace, or the newest of a time range."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from quayscope.collector.query.request import TimeRange
from quayscope.collector.query.select import fetch
from quayscope.collector.receive.otlp import attribute_text, is_whole
from quayscope.collector.store import Store

__all__ = ["newest_spans", "spans_of_trace"]

_MAX_MESSAGES_OF_A_TRACE = 10_000


class _Found(NamedTuple):
    service: str
    span: Span


def spans_of_trace(store: Store, trace_id: str, limit: int) -> dict[str, Any]:
    """Return a trace's spans by start, each once; `trace_id` is 32 hexadecimal digits."""
    trace = int(trace_id, 16)
    rows = fetch(
        store,
        "SELECT body FROM messages WHERE id IN "
        "(SELECT message FROM traces WHERE trace_high = ? AND trace_low = ?) LIMIT ?",
        [trace >> 64, trace & 0xFFFFFFFFFFFFFFFF, _MAX_MESSAGES_OF_A_TRACE],
    )
    wanted = bytes.fromhex(trace_id)
    found: dict[bytes, _Found] = {}
    for body in rows["body"]:
        for one in _spans(bytes(body)):
            if one.span.trace_id == wanted:
                found.setdefault(one.span.span_id, one)
    ordered = sorted(found.values(), key=lambda one: one.span.start_time_unix_nano)
    return {"count": len(ordered), "spans": [_shown(one) for one in ordered[:limit]]}


def newest_spans(store: Store, time_range: TimeRange, limit: int) -> dict[str, Any]:
    """Return how many spans start in the range, and the newest `limit` of them, newest first.

    Only messages that straddle a border, and those with the newest spans, are unpacked.
    """
    start, end = time_range
    rows = fetch(
        store,
        "SELECT id, spans, first_ns, last_ns FROM messages "
        "WHERE last_ns >= ? AND first_ns < ? ORDER BY last_ns DESC",
        [start, end],
    )
    count = 0
    found: list[_Found] = []
    columns = (rows[name].tolist() for name in ("id", "spans", "first_ns", "last_ns"))
    for number, spans, first, last in zip(*columns, strict=True):
        inside = first >= start and last < end
        if inside:
            count += spans
        # Messages come by falling last start: once `limit` spans are newer than that, no later one matters.
        needed = len(found) < limit or found[-1].span.start_time_unix_nano <= last
        if inside and not needed:
            continue
        body = fetch(store, "SELECT body FROM messages WHERE id = ?", [number])["body"]
        here = [one for one in _spans(bytes(body[0])) if start <= one.span.start_time_unix_nano < end]
        if not inside:
            count += len(here)
        found = sorted(found + here, key=lambda one: -one.span.start_time_unix_nano)[:limit]
    return {"count": count, "spans": [_shown(one) for one in found]}


def _spans(body: bytes) -> Iterator[_Found]:
    message = ExportTraceServiceRequest.FromString(zlib.decompress(body))
    for resource in message.resource_spans:
        service = ""
        for pair in resource.resource.attributes:
            if pair.key in ("service.name", "service_name"):
                service = attribute_text(pair.value)
        for scope in resource.scope_spans:
            for span in scope.spans:
                if is_whole(span):
                    yield _Found(service, span)


def _shown(found: _Found) -> dict[str, Any]:
    span = found.span
    return {
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent_span_id": span.parent_span_id.hex(),
        "name": span.name,
        "service_name": found.service,
        "kind": span.kind,
        "status": span.status.code,
        "start_ns": span.start_time_unix_nano,
        "end_ns": span.end_time_unix_nano,
        "attributes": {pair.key: _value(pair) for pair in span.attributes},
    }


def _value(pair: KeyValue) -> str | int | bool:
    form = pair.value.WhichOneof("value")
    if form == "bool_value":
        return pair.value.bool_value
    # Doubles go as text: JSON has no NaN and no infinity.
    return pair.value.int_value if form == "int_value" else attribute_text(pair.value)
