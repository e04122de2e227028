"""Spans out of the stored messages: of one trace, or the newest of a time range."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy.typing as npt
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from quayscope.collector.query.request import TimeRange
from quayscope.collector.query.select import fetch
from quayscope.collector.receive.otlp import attribute_text, is_whole
from quayscope.collector.store import Store
from quayscope.profile.clock import ClockEstimate

__all__ = ["newest_spans", "spans_of_trace"]

_MAX_MESSAGES_OF_A_TRACE = 10_000


class _Found(NamedTuple):
    """A span, and what is known of the clock that its times were taken by."""

    service: str
    span: Span
    clock: ClockEstimate

    @property
    def start_ns(self) -> int:
        """When it began, by our clock."""
        return self.span.start_time_unix_nano + self.clock.proven_ns

    @property
    def end_ns(self) -> int:
        """When it ended, by our clock; 0 where that is not known."""
        end = self.span.end_time_unix_nano
        return end + self.clock.proven_ns if end else 0


def spans_of_trace(store: Store, trace_id: str, limit: int) -> dict[str, Any]:
    """Return a trace's spans by start, each once; `trace_id` is 32 hexadecimal digits."""
    trace = int(trace_id, 16)
    rows = fetch(
        store,
        "SELECT body, clock_offset_ns, clock_error_ns FROM messages WHERE id IN "
        "(SELECT message FROM traces WHERE trace_high = ? AND trace_low = ?) LIMIT ?",
        [trace >> 64, trace & 0xFFFFFFFFFFFFFFFF, _MAX_MESSAGES_OF_A_TRACE],
    )
    wanted = bytes.fromhex(trace_id)
    found: dict[bytes, _Found] = {}
    for body, clock in zip(rows["body"], _clocks(rows), strict=True):
        for one in _spans(bytes(body), clock):
            if one.span.trace_id == wanted:
                found.setdefault(one.span.span_id, one)
    ordered = sorted(found.values(), key=lambda one: one.start_ns)
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
        needed = len(found) < limit or found[-1].start_ns <= last
        if inside and not needed:
            continue
        message = fetch(
            store, "SELECT body, clock_offset_ns, clock_error_ns FROM messages WHERE id = ?", [number]
        )
        (clock,) = _clocks(message)
        here = [one for one in _spans(bytes(message["body"][0]), clock) if start <= one.start_ns < end]
        if not inside:
            count += len(here)
        found = sorted(found + here, key=lambda one: -one.start_ns)[:limit]
    return {"count": count, "spans": [_shown(one) for one in found]}


def _clocks(rows: Mapping[str, npt.NDArray[Any]]) -> list[ClockEstimate]:
    columns = (rows[name].tolist() for name in ("clock_offset_ns", "clock_error_ns"))
    return [ClockEstimate(*pair) for pair in zip(*columns, strict=True)]


def _spans(body: bytes, clock: ClockEstimate) -> Iterator[_Found]:
    message = ExportTraceServiceRequest.FromString(zlib.decompress(body))
    for resource in message.resource_spans:
        service = ""
        for pair in resource.resource.attributes:
            if pair.key in ("service.name", "service_name"):
                service = attribute_text(pair.value)
        for scope in resource.scope_spans:
            for span in scope.spans:
                if is_whole(span):
                    yield _Found(service, span, clock)


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
        "start_ns": found.start_ns,
        "end_ns": found.end_ns,
        "clock": _shown_clock(found.clock),
        "attributes": {pair.key: _value(pair) for pair in span.attributes},
    }


def _shown_clock(clock: ClockEstimate) -> dict[str, float] | None:
    known = clock.error_ns >= 0
    return {"offset": clock.offset_ns / 1e9, "error": clock.error_ns / 1e9} if known else None


def _value(pair: KeyValue) -> str | int | bool:
    form = pair.value.WhichOneof("value")
    if form == "bool_value":
        return pair.value.bool_value
    # Doubles go as text: JSON has no NaN and no infinity.
    return pair.value.int_value if form == "int_value" else attribute_text(pair.value)
