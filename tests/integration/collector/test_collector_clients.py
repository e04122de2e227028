"""Stock clients against the real collector: OpenTelemetry's exporters, gRPC, pyroscope-io."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from integration.collector.running_collector import SECOND, RunningCollector, cpu_profile
from quayscope.profile.push import encode_push, series_of

PROTOBUF = "application/x-protobuf"
DELTA = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE


@pytest.fixture(scope="module")
def channel(shared: RunningCollector) -> Iterator[grpc.Channel]:
    """A plain gRPC channel to the collector."""
    with grpc.insecure_channel(shared.grpc) as opened:
        yield opened


def _traces(trace_id: bytes, spans: int, start_ns: int) -> ExportTraceServiceRequest:
    message = ExportTraceServiceRequest()
    resource = message.resource_spans.add()
    pair = resource.resource.attributes.add(key="service.name")
    pair.value.string_value = "clair-app"
    scope = resource.scope_spans.add()
    for number in range(spans):
        scope.spans.add(
            trace_id=trace_id,
            span_id=(number + 1).to_bytes(8, "big"),
            parent_span_id=number.to_bytes(8, "big") if number else b"",
            name=f"span {number}",
            start_time_unix_nano=start_ns + number,
            end_time_unix_nano=start_ns + number + 5,
        )
    return message


def test_spans_of_a_stock_exporter_over_grpc(shared: RunningCollector) -> None:
    """A trace exported by OpenTelemetry's SDK is found by its id, with parents and attributes."""
    provider = TracerProvider(resource=Resource.create({"service.name": "quay-app"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(shared.grpc, insecure=True)))
    tracer = provider.get_tracer("test")
    attributes: dict[str, str | int | bool] = {"http.route": "/v2/", "n": 3, "ok": True}
    with tracer.start_as_current_span("request", attributes=attributes) as outer:
        tracer.start_span("query").end()
    assert provider.force_flush(10_000)
    provider.shutdown()
    trace_id = f"{outer.get_span_context().trace_id:032x}"
    answer = shared.get("spans", trace_id=trace_id)
    assert answer["count"] == 2
    first, second = answer["spans"]
    assert (first["name"], first["service_name"], first["parent_span_id"]) == ("request", "quay-app", "")
    assert first["attributes"] == {"http.route": "/v2/", "n": 3, "ok": True}
    assert second["parent_span_id"] == first["span_id"] == f"{outer.get_span_context().span_id:016x}"
    assert first["start_ns"] < second["start_ns"] <= second["end_ns"] <= first["end_ns"]


def test_spans_over_http_in_a_time_range(shared: RunningCollector) -> None:
    """The count is exact at the borders, the newest come first, and a resent message counts once."""
    start = 1_700_000_000 * SECOND
    for number in range(4):
        message = _traces(bytes([number + 1] * 16), 10, start + number * SECOND)
        for _ in range(2):
            status, answer = shared.post("/v1/traces", message.SerializeToString(), PROTOBUF)
            assert status == 200
            assert not ExportTraceServiceResponse.FromString(answer).partial_success.rejected_spans
    answer = shared.get("spans", from_=start / SECOND, to=start / SECOND + 10)
    assert (answer["count"], len(answer["spans"])) == (40, 40)
    assert answer["spans"][0]["trace_id"] == "04" * 16
    newest = shared.get("spans", from_=start / SECOND + 1, to=start / SECOND + 3, limit=12)
    assert newest["count"] == 20
    assert [span["start_ns"] for span in newest["spans"]] == [
        *(start + 2 * SECOND + number for number in range(9, -1, -1)),
        start + SECOND + 9,
        start + SECOND + 8,
    ]


def test_spans_that_cannot_be_are_refused_beside_whole_ones(shared: RunningCollector) -> None:
    """Spans without ids or times are counted in the answer; their neighbours are stored."""
    message = _traces(b"\x77" * 16, 3, 1_600_000_000 * SECOND)
    spans = message.resource_spans[0].scope_spans[0].spans
    spans[0].trace_id = b"short"
    spans[1].start_time_unix_nano = 0
    status, answer = shared.post("/v1/traces", message.SerializeToString(), PROTOBUF)
    assert status == 200
    assert ExportTraceServiceResponse.FromString(answer).partial_success.rejected_spans == 2
    assert shared.get("spans", trace_id="77" * 16)["count"] == 1


@pytest.mark.parametrize("path", ["/v1/traces", "/v1/metrics"])
def test_malformed_otlp_is_refused(shared: RunningCollector, path: str) -> None:
    """Broken protobuf is 400, JSON and other types 415, an empty message is fine."""
    assert shared.post(path, b"\xff\xff\xff", PROTOBUF)[0] == 400
    assert shared.post(path, b"{}", "application/json")[0] == 415
    assert shared.post(path, b"", PROTOBUF)[0] == 200


def _metrics(now_ns: int) -> ExportMetricsServiceRequest:
    message = ExportMetricsServiceRequest()
    resource = message.resource_metrics.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "quay-app"
    metrics = resource.scope_metrics.add().metrics
    duration = metrics.add(name="http.server.request.duration", unit="s")
    duration.histogram.aggregation_temporality = DELTA
    for second in range(2):
        point = duration.histogram.data_points.add(time_unix_nano=now_ns + second * SECOND, count=3, sum=0.5)
        point.explicit_bounds.extend([0.1, 1.0])
        point.bucket_counts.extend([1, 2, 0])
        point.attributes.add(key="endpoint").value.string_value = "GET /x"
    cpu = metrics.add(name="process.cpu.time", unit="s")
    cpu.sum.aggregation_temporality = CUMULATIVE
    cpu.sum.data_points.add(time_unix_nano=now_ns, as_double=1.5).attributes.add(
        key="pid"
    ).value.int_value = 7
    cpu.sum.data_points.add(time_unix_nano=now_ns, as_double=2.5).attributes.add(
        key="pid"
    ).value.int_value = 8
    gauge = metrics.add(name="quayscope.capability").gauge.data_points
    gauge.add(time_unix_nano=now_ns, as_int=1).attributes.add(key="capability").value.string_value = "perf"
    return message


def test_metric_sums_gauges_and_histograms(shared: RunningCollector) -> None:
    """Each kind comes back with its unit, attributes, and values as sent; a resend changes nothing."""
    now = time.time_ns() - 5 * SECOND
    for _ in range(2):
        status, answer = shared.post("/v1/metrics", _metrics(now).SerializeToString(), PROTOBUF)
        assert status == 200
        assert not ExportMetricsServiceResponse.FromString(answer).partial_success.rejected_data_points
    duration = shared.get("metrics", name="http.server.request.duration", match="endpoint=GET /x")
    assert (duration["unit"], duration["kind"]) == ("s", "delta histogram")
    (series,) = duration["series"]
    assert series["attributes"] == {"service_name": "quay-app", "endpoint": "GET /x"}
    expected = {"count": 3, "sum": 0.5, "bounds": [0.1, 1.0], "buckets": [1, 2, 0]}
    assert [value for _, value in series["points"]] == [expected, expected]
    assert series["points"][1][0] - series["points"][0][0] == pytest.approx(1.0)
    (chosen,) = shared.get("metrics", name="process.cpu.time", match="pid=8")["series"]
    assert chosen["points"][0][1] == 2.5
    named = shared.get("metrics", name="*")["metrics"]
    kinds = {metric["name"]: metric["kind"] for metric in named}
    assert kinds["process.cpu.time"] == "cumulative sum"
    assert kinds["quayscope.capability"] == "gauge"
    assert shared.get("metrics", name="nosuch")["series"] == []


def test_points_of_other_kinds_are_refused_beside_whole_ones(shared: RunningCollector) -> None:
    """Summaries, missing times, NaN and misfitting buckets are counted, their neighbours stored."""
    message = ExportMetricsServiceRequest()
    now = time.time_ns()
    metrics = message.resource_metrics.add().scope_metrics.add().metrics
    metrics.add(name="s").summary.data_points.add(time_unix_nano=now)
    metrics.add(name="no.time").gauge.data_points.add(as_int=1)
    metrics.add(name="nan").gauge.data_points.add(time_unix_nano=now, as_double=float("nan"))
    odd = metrics.add(name="odd")
    odd.histogram.aggregation_temporality = DELTA
    odd.histogram.data_points.add(time_unix_nano=now, bucket_counts=[1, 2], explicit_bounds=[1, 2, 3])
    metrics.add(name="good").gauge.data_points.add(time_unix_nano=now, as_int=5)
    status, answer = shared.post("/v1/metrics", message.SerializeToString(), PROTOBUF)
    partial = ExportMetricsServiceResponse.FromString(answer).partial_success
    assert (status, partial.rejected_data_points) == (200, 4)
    assert "summary points are not kept" in partial.error_message
    assert shared.get("metrics", name="good")["series"][0]["points"][0][1] == 5


def test_metrics_and_pushes_over_grpc(shared: RunningCollector, channel: grpc.Channel) -> None:
    """Both services take raw messages; a malformed one is INVALID_ARGUMENT."""
    now = time.time_ns() - 60 * SECOND
    channel.unary_unary("/opentelemetry.proto.collector.metrics.v1.MetricsService/Export")(
        _metrics(now).SerializeToString(), timeout=10
    )
    push = channel.unary_unary("/push.v1.PusherService/Push")
    profile = cpu_profile(service_name="by-grpc")
    assert push(encode_push([series_of(profile, "g")]), timeout=10) == b""
    found = shared.get("flamegraph", type="process_cpu", match="service_name=by-grpc")
    assert found["total"] == profile.totals()[1]
    with pytest.raises(grpc.RpcError) as refused:
        push(b"\xff\xff", timeout=10)
    error: Any = refused.value
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "malformed" in error.details()


BURNER = """
import sys, time
import pyroscope

pyroscope.configure(application_name="stock-app", server_address=sys.argv[1], tags={"region": "eu"})

def burning():
    return sum(number * number for number in range(20_000))

def outer():
    with pyroscope.tag_wrapper({"endpoint": "GET /burn"}):
        burning()

end = time.monotonic() + 4
while time.monotonic() < end:
    outer()
pyroscope.shutdown()
"""


def test_a_stock_pyroscope_client_appears_under_its_name(shared: RunningCollector) -> None:
    """pyroscope-io pushes CPU that is found by service, endpoint and frame, with sampler `pyroscope`."""
    subprocess.run([sys.executable, "-c", BURNER, shared.http], check=True, timeout=60, env=dict(os.environ))
    (row,) = shared.get("series", type="process_cpu", match="service_name=stock-app")["series"]
    assert (row["labels"]["sampler"], row["labels"]["region"]) == ("pyroscope", "eu")
    answer = shared.get("top", type="process_cpu", match=["service_name=stock-app", "endpoint=GET /burn"])
    rows = {found["function"]: found for found in answer["rows"]}
    assert answer["total"] > 1.5 * SECOND
    assert rows["burning"]["total"] > 0.8 * answer["total"]
    assert shared.get("status")["malformed"] <= 4  # those of this module's other tests
