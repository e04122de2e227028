"""OTLP by hand, read back with the messages that OpenTelemetry publishes."""

from __future__ import annotations

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

from quayscope.relay.otlp import (
    Exemplar,
    Histogram,
    HistogramPoint,
    Metric,
    NumberPoint,
    Span,
    metric_request,
    trace_request,
)

DELTA = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE


def test_metrics_are_read_back() -> None:
    """Gauges, both kinds of sums and histograms come back with their times, values and attributes."""
    point = NumberPoint(7, 2_000, 1_000, {"pid": 5, "share": 0.5, "on": True, "name": "ü\udc80"})
    encoded = metric_request(
        {"service_name": "a", "n": -1},
        [
            Metric("g", "1", "gauge", [NumberPoint(0.25, 9), NumberPoint(-3, 9)]),
            Metric("d", "s", "delta", [point]),
            Metric("c", "By", "cumulative", [NumberPoint(1 << 62, 2, 1)]),
            Histogram("h", "s", (0.5, 1.0), [HistogramPoint((1, 0, 2), 3.5, 20, 10, {"e": "GET /"})]),
        ],
    )
    request = ExportMetricsServiceRequest.FromString(encoded)
    (resource,) = request.resource_metrics
    assert {item.key: item.value for item in resource.resource.attributes}["n"].int_value == -1
    (scope,) = resource.scope_metrics
    assert scope.scope.name == "quayscope"
    gauge, delta, cumulative, histogram = scope.metrics
    assert [p.as_double or p.as_int for p in gauge.gauge.data_points] == [0.25, -3]
    assert (delta.sum.aggregation_temporality, delta.sum.is_monotonic, delta.unit) == (DELTA, True, "s")
    (number,) = delta.sum.data_points
    assert (number.as_int, number.start_time_unix_nano, number.time_unix_nano) == (7, 1_000, 2_000)
    about = {item.key: item.value for item in number.attributes}
    assert about["pid"].int_value == 5
    assert about["share"].double_value == 0.5
    assert about["on"].bool_value is True
    assert about["name"].string_value == "ü?"
    assert cumulative.sum.aggregation_temporality == CUMULATIVE
    assert cumulative.sum.data_points[0].as_int == 1 << 62
    (bucketed,) = histogram.histogram.data_points
    assert histogram.histogram.aggregation_temporality == DELTA
    assert (bucketed.count, bucketed.sum, list(bucketed.bucket_counts)) == (3, 3.5, [1, 0, 2])
    assert list(bucketed.explicit_bounds) == [0.5, 1.0]


def test_exemplars_are_read_back() -> None:
    """An exemplar has its value, time, ids and attributes; ids that are not known are left out."""
    first = Exemplar(0.75, 15, "a" * 32, "b" * 16, {"why": "slow", "busy": 0.25})
    second = Exemplar(0.0, 16, "", "")
    point = HistogramPoint((1, 1), 0.75, 20, 10, {"e": "GET /"}, [first, second])
    request = ExportMetricsServiceRequest.FromString(
        metric_request({}, [Histogram("h", "s", (0.5,), [point])])
    )
    (bars,) = request.resource_metrics[0].scope_metrics[0].metrics[0].histogram.data_points
    one, other = bars.exemplars
    assert (one.as_double, one.time_unix_nano) == (0.75, 15)
    assert (one.trace_id.hex(), one.span_id.hex()) == ("a" * 32, "b" * 16)
    about = {item.key: item.value for item in one.filtered_attributes}
    assert (about["why"].string_value, about["busy"].double_value) == ("slow", 0.25)
    assert (other.WhichOneof("value"), other.trace_id, other.span_id) == ("as_double", b"", b"")
    assert bars.attributes[0].value.string_value == "GET /"


def test_spans_are_read_back() -> None:
    """Ids, parent, kind, times, status and attributes of a span come back; a root has no parent."""
    root = Span("0" * 31 + "1", "0" * 15 + "2", "", "GET /", 2, 10, 20, 2, {"db.rows": 3})
    child = root._replace(span_id="a" * 16, parent_id=root.span_id, status=0, attributes={})
    request = ExportTraceServiceRequest.FromString(
        trace_request({"service.name": "x"}, "flask", [root, child])
    )
    (resource,) = request.resource_spans
    (scope,) = resource.scope_spans
    first, second = scope.spans
    assert scope.scope.name == "flask"
    assert first.trace_id.hex() == root.trace_id
    assert first.parent_span_id == b""
    assert second.parent_span_id == first.span_id
    assert (first.name, first.kind, first.status.code) == ("GET /", 2, 2)
    assert (first.start_time_unix_nano, first.end_time_unix_nano) == (10, 20)
    assert first.attributes[0].value.int_value == 3


def test_ids_must_be_hex() -> None:
    """An id that is not hex is refused rather than sent as something else."""
    with pytest.raises(ValueError, match="hex"):
        trace_request({}, "", [Span("zz", "1" * 16, "", "x", 1, 0, 0, 0, {})])
