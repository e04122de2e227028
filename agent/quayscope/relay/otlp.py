"""OTLP requests by hand: the few messages that metrics and spans need.

Source of the format: open-telemetry/opentelemetry-proto, `metrics.proto`, `trace.proto`, `common.proto`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Union

from quayscope.profile.protowire import put_bytes, put_double, put_fixed64, put_text, put_varint, varint

__all__ = [
    "AttributeValue",
    "Exemplar",
    "Histogram",
    "HistogramPoint",
    "Metric",
    "NumberPoint",
    "Span",
    "metric_request",
    "trace_request",
]

AttributeValue = Union[str, int, float, bool]
SCOPE = "quayscope"
DELTA, CUMULATIVE = 1, 2


class NumberPoint(NamedTuple):
    """One number at `time_ns`, for sums since `start_ns` (Unix nanoseconds)."""

    value: int | float
    time_ns: int
    start_ns: int = 0
    attributes: Mapping[str, AttributeValue] = {}


class Exemplar(NamedTuple):
    """One of the events that a point counts; ids are hex, or "" where they are not known."""

    value: float
    time_ns: int
    trace_id: str
    span_id: str
    attributes: Mapping[str, AttributeValue] = {}


class HistogramPoint(NamedTuple):
    """Counts of one interval by bucket: `counts` has one more element than the metric's bounds."""

    counts: Sequence[int]
    total: float
    time_ns: int
    start_ns: int
    attributes: Mapping[str, AttributeValue] = {}
    exemplars: Sequence[Exemplar] = ()


class Metric(NamedTuple):
    """Numbers of one name. `kind` is `gauge`, `delta` or `cumulative` (sums); `unit` in UCUM."""

    name: str
    unit: str
    kind: str
    points: Sequence[NumberPoint]


class Histogram(NamedTuple):
    """A delta histogram with explicit upper bounds."""

    name: str
    unit: str
    bounds: Sequence[float]
    points: Sequence[HistogramPoint]


class Span(NamedTuple):
    """A finished span; ids are hex, times Unix nanoseconds, `kind` and `status` OTLP's numbers."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: int
    start_ns: int
    end_ns: int
    status: int
    attributes: Mapping[str, AttributeValue]


def metric_request(resource: Mapping[str, AttributeValue], metrics: Iterable[Metric | Histogram]) -> bytes:
    """Return an ExportMetricsServiceRequest with one resource."""
    scope_metrics = bytearray()
    _put_scope(scope_metrics, SCOPE)
    for metric in metrics:
        put_bytes(scope_metrics, 2, _metric(metric))
    return _request(resource, scope_metrics)


def trace_request(resource: Mapping[str, AttributeValue], scope: str, spans: Iterable[Span]) -> bytes:
    """Return an ExportTraceServiceRequest of one resource; raises ValueError on ids that are not hex."""
    scope_spans = bytearray()
    _put_scope(scope_spans, scope)
    for span in spans:
        put_bytes(scope_spans, 2, _span(span))
    return _request(resource, scope_spans)


def _request(resource: Mapping[str, AttributeValue], scoped: bytearray) -> bytes:
    described = bytearray()
    _put_attributes(described, 1, resource)
    body = bytearray()
    put_bytes(body, 1, described)
    put_bytes(body, 2, scoped)
    out = bytearray()
    put_bytes(out, 1, body)
    return bytes(out)


def _put_scope(out: bytearray, name: str) -> None:
    scope = bytearray()
    put_text(scope, 1, name)
    put_bytes(out, 1, scope)


def _put_attributes(out: bytearray, number: int, attributes: Mapping[str, AttributeValue]) -> None:
    for key, value in attributes.items():
        held = bytearray()
        if isinstance(value, bool):
            varint(held, 2 << 3)
            varint(held, int(value))
        elif isinstance(value, int):
            varint(held, 3 << 3)
            varint(held, value)
        elif isinstance(value, float):
            put_double(held, 4, value)
        else:
            put_bytes(held, 1, value.encode("utf-8", "replace"))
        pair = bytearray()
        put_text(pair, 1, key)
        put_bytes(pair, 2, held)
        put_bytes(out, number, pair)


def _metric(metric: Metric | Histogram) -> bytearray:
    out = bytearray()
    put_text(out, 1, metric.name)
    put_text(out, 3, metric.unit)
    data = bytearray()
    if isinstance(metric, Histogram):
        for point in metric.points:
            put_bytes(data, 1, _histogram_point(point, metric.bounds))
        put_varint(data, 2, DELTA)
        put_bytes(out, 9, data)
        return out
    for number in metric.points:
        put_bytes(data, 1, _number_point(number))
    if metric.kind == "gauge":
        put_bytes(out, 5, data)
    else:
        put_varint(data, 2, CUMULATIVE if metric.kind == "cumulative" else DELTA)
        put_varint(data, 3, 1)  # monotonic: every sum here only grows
        put_bytes(out, 7, data)
    return out


def _number_point(point: NumberPoint) -> bytearray:
    out = bytearray()
    _put_times(out, point.start_ns, point.time_ns)
    if isinstance(point.value, int):
        put_fixed64(out, 6, point.value)
    else:
        put_double(out, 4, point.value)
    _put_attributes(out, 7, point.attributes)
    return out


def _histogram_point(point: HistogramPoint, bounds: Sequence[float]) -> bytearray:
    out = bytearray()
    _put_times(out, point.start_ns, point.time_ns)
    put_fixed64(out, 4, sum(point.counts))
    put_double(out, 5, point.total)
    put_bytes(out, 6, struct.pack(f"<{len(point.counts)}Q", *point.counts))
    put_bytes(out, 7, struct.pack(f"<{len(bounds)}d", *bounds))
    for exemplar in point.exemplars:
        put_bytes(out, 8, _exemplar(exemplar))
    _put_attributes(out, 9, point.attributes)
    return out


def _exemplar(exemplar: Exemplar) -> bytearray:
    out = bytearray()
    put_fixed64(out, 2, exemplar.time_ns)
    put_double(out, 3, exemplar.value)
    if exemplar.span_id:
        put_bytes(out, 4, bytes.fromhex(exemplar.span_id))
    if exemplar.trace_id:
        put_bytes(out, 5, bytes.fromhex(exemplar.trace_id))
    _put_attributes(out, 7, exemplar.attributes)
    return out


def _put_times(out: bytearray, start_ns: int, time_ns: int) -> None:
    if start_ns:
        put_fixed64(out, 2, start_ns)
    put_fixed64(out, 3, time_ns)


def _span(span: Span) -> bytearray:
    out = bytearray()
    put_bytes(out, 1, bytes.fromhex(span.trace_id))
    put_bytes(out, 2, bytes.fromhex(span.span_id))
    if span.parent_id:
        put_bytes(out, 4, bytes.fromhex(span.parent_id))
    put_text(out, 5, span.name)
    put_varint(out, 6, span.kind)
    put_fixed64(out, 7, span.start_ns)
    put_fixed64(out, 8, span.end_ns)
    _put_attributes(out, 9, span.attributes)
    status = bytearray()
    put_varint(status, 3, span.status)
    put_bytes(out, 15, status)
    return out
