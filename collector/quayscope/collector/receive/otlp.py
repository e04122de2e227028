"""OTLP traces and metrics to entries. Messages stay as they came; what finds them again is read out.

Source of the formats: opentelemetry-proto, `trace/v1` and `metrics/v1`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    DataPointFlags,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from quayscope.collector.errors import BadRequest
from quayscope.collector.limits import MAX_EXEMPLARS, MAX_LABEL_VALUE, MAX_TEXT, MAX_TIME_NS
from quayscope.collector.store import Exemplar, MetricPoint, MetricsEntry, SpansEntry

__all__ = ["MetricsRead", "TracesRead", "attribute_text", "is_whole", "read_metrics", "read_traces"]

_MAX_ATTRIBUTES = 64
_TEMPORALITY = {
    AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA: "delta",
    AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE: "cumulative",
}


class TracesRead(NamedTuple):
    """The entry (None: no span to keep), and how many spans are refused."""

    entry: SpansEntry | None
    rejected: int


class MetricsRead(NamedTuple):
    """The entry (None: no point to keep), how many points and how many exemplars are refused, and why."""

    entry: MetricsEntry | None
    rejected: int
    exemplars_rejected: int
    reason: str


def is_whole(span: Span) -> bool:
    """Whether a span has valid ids and times; others are refused and never shown."""
    return (
        len(span.trace_id) == 16
        and len(span.span_id) == 8
        and any(span.trace_id)
        and 0 < span.start_time_unix_nano < MAX_TIME_NS
        and span.end_time_unix_nano < MAX_TIME_NS
    )


def read_traces(body: bytes) -> TracesRead:
    """Read an ExportTraceServiceRequest; raises `BadRequest`."""
    try:
        message = ExportTraceServiceRequest.FromString(body)
    except DecodeError as error:
        raise BadRequest(f"the trace message is malformed: {error}") from error
    traces: dict[bytes, None] = {}
    starts: list[int] = []
    rejected = 0
    for resource in message.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                if is_whole(span):
                    traces[span.trace_id] = None
                    starts.append(span.start_time_unix_nano)
                else:
                    rejected += 1
    if not starts:
        return TracesRead(None, rejected)
    entry = SpansEntry(body, b"".join(traces), len(starts), min(starts), max(starts), _digest(body))
    return TracesRead(entry, rejected)


def read_metrics(body: bytes) -> MetricsRead:
    """Read an ExportMetricsServiceRequest; raises `BadRequest`.

    Sums, gauges and histograms with bounds are kept; summaries, exponential histograms and points
    without a time or with values that are no numbers are counted as refused. So are exemplars that are
    ill-formed or too many; their point is kept.
    """
    try:
        message = ExportMetricsServiceRequest.FromString(body)
    except DecodeError as error:
        raise BadRequest(f"the metrics message is malformed: {error}") from error
    points: list[MetricPoint] = []
    rejected, exemplars, reason = 0, 0, ""
    for resource in message.resource_metrics:
        shared = _attributes(resource.resource.attributes)
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                exemplars += sum(len(point.exemplars) for point in metric.histogram.data_points)
                for found in _points(metric, shared):
                    if isinstance(found, MetricPoint):
                        points.append(found)
                    else:
                        rejected += 1
                        reason = reason or f"{metric.name[:200]}: {found}"
    exemplars -= sum(len(point.exemplars) for point in points)
    if exemplars:
        reason = reason or f"{exemplars} exemplars are ill-formed, too many, or of a refused point"
    entry = MetricsEntry(points, _digest(body)) if points else None
    return MetricsRead(entry, rejected, exemplars, reason)


def _points(metric: Metric, shared: dict[str, str]) -> Iterator[MetricPoint | str]:
    """Yield each point, or why it is refused."""
    form = metric.WhichOneof("data")
    if form == "gauge":
        yield from (_number(metric, "gauge", shared, point) for point in metric.gauge.data_points)
    elif form == "sum":
        kind = _TEMPORALITY.get(metric.sum.aggregation_temporality)
        for point in metric.sum.data_points:
            yield _number(metric, f"{kind} sum", shared, point) if kind else "its temporality is not set"
    elif form == "histogram":
        kind = _TEMPORALITY.get(metric.histogram.aggregation_temporality)
        for bars in metric.histogram.data_points:
            yield (
                _histogram(metric, f"{kind} histogram", shared, bars)
                if kind
                else "its temporality is not set"
            )
    elif form is not None:
        points: Iterable[object] = getattr(metric, form).data_points
        yield from (f"{form.replace('_', ' ')} points are not kept" for _ in points)


def _number(metric: Metric, kind: str, shared: dict[str, str], point: NumberDataPoint) -> MetricPoint | str:
    form = point.WhichOneof("value")
    if form is None:
        return "a point has no value"
    value = float(point.as_int if form == "as_int" else point.as_double)
    problem = _problem(metric, point, value)
    if problem:
        return problem
    attributes = _merged(shared, point.attributes)
    return MetricPoint(metric.name, metric.unit, kind, attributes, point.time_unix_nano, value)


def _histogram(
    metric: Metric, kind: str, shared: dict[str, str], point: HistogramDataPoint
) -> MetricPoint | str:
    bounds, buckets = tuple(point.explicit_bounds), tuple(point.bucket_counts)
    if buckets and len(buckets) != len(bounds) + 1:
        return f"{len(buckets)} buckets do not fit {len(bounds)} bounds"
    if not all(map(math.isfinite, bounds)) or max((point.count, *buckets)) >= 1 << 62:
        return "its bounds or counts cannot be"
    problem = _problem(metric, point, point.sum)
    if problem:
        return problem
    attributes = _merged(shared, point.attributes)
    return MetricPoint(
        metric.name,
        metric.unit,
        kind,
        attributes,
        point.time_unix_nano,
        point.sum,
        point.count,
        bounds,
        buckets,
        tuple(_exemplars(point)),
    )


def _exemplars(point: HistogramDataPoint) -> Iterator[Exemplar]:
    """Yield the exemplars that can be kept."""
    for one in point.exemplars[:MAX_EXEMPLARS]:
        form = one.WhichOneof("value")
        value = float(one.as_int if form == "as_int" else one.as_double)
        # Ids may be missing, not odd: an event outside of any trace has none.
        if (
            form is not None
            and math.isfinite(value)
            and 0 < one.time_unix_nano < MAX_TIME_NS
            and len(one.trace_id) in (0, 16)
            and len(one.span_id) in (0, 8)
            and len(one.filtered_attributes) <= _MAX_ATTRIBUTES
        ):
            about = tuple(sorted(_attributes(one.filtered_attributes).items()))
            yield Exemplar(one.time_unix_nano, value, one.trace_id, one.span_id, about)


def _problem(metric: Metric, point: NumberDataPoint | HistogramDataPoint, value: float) -> str:
    if point.flags & DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK:
        return "a point has no recorded value"
    if not 0 < point.time_unix_nano < MAX_TIME_NS:
        return "a point has no time"
    if not math.isfinite(value):
        return "a value is not a number"
    if not metric.name or len(metric.name) > MAX_LABEL_VALUE or len(metric.unit) > MAX_LABEL_VALUE:
        return "its name or unit is empty or too long"
    if len(point.attributes) > _MAX_ATTRIBUTES:
        return f"a point has more than {_MAX_ATTRIBUTES} attributes"
    return ""


def _merged(shared: dict[str, str], own: Iterable[KeyValue]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({**shared, **_attributes(own)}.items()))


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        # One word for the service in all tables, whoever sent it.
        name = "service_name" if pair.key == "service.name" else pair.key[:MAX_LABEL_VALUE]
        found[name] = attribute_text(pair.value)[:MAX_LABEL_VALUE]
    return found


def attribute_text(value: AnyValue) -> str:
    """Return an attribute's value as text: strings as they are, lists and maps as JSON, bytes in hex."""
    form = value.WhichOneof("value")
    if form == "string_value":
        return value.string_value[:MAX_TEXT]
    if form == "bool_value":
        return "true" if value.bool_value else "false"
    if form in ("int_value", "double_value"):
        return str(getattr(value, form))
    if form == "bytes_value":
        return value.bytes_value.hex()[:MAX_TEXT]
    if form == "array_value":
        return json.dumps([attribute_text(item) for item in value.array_value.values])[:MAX_TEXT]
    if form == "kvlist_value":
        return json.dumps({pair.key: attribute_text(pair.value) for pair in value.kvlist_value.values})[
            :MAX_TEXT
        ]
    return ""


def _digest(body: bytes) -> bytes:
    """Two messages with equal bytes are one sent twice: both hold nanosecond times or random ids."""
    return hashlib.blake2b(body, digest_size=16).digest()
