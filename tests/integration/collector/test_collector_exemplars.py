"""Exemplars from a relay's own message to the API."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

from integration.collector.running_collector import SECOND, RunningCollector
from quayscope.relay.otlp import Exemplar, Histogram, HistogramPoint, metric_request

NAME = "http.server.request.duration"
PROTOBUF = "application/x-protobuf"


def message(service: str, endpoint: str, time_ns: int, *exemplars: Exemplar) -> bytes:
    """One point of one endpoint."""
    point = HistogramPoint((1, 0), 0.5, time_ns, time_ns - SECOND, {"endpoint": endpoint}, exemplars)
    return metric_request({"service_name": service}, [Histogram(NAME, "s", (1.0,), [point])])


def exemplar(time_ns: int, value: float, **changed: Any) -> Exemplar:
    made = Exemplar(value, time_ns, "0a" * 16, "b" * 16, {"why": "slow", "busy": 0.25})
    return made._replace(**changed)


def test_exemplars_come_back_beside_their_points(shared: RunningCollector) -> None:
    """By time, with ids and attributes; a series without any has no such key, a resend changes nothing."""
    now = time.time_ns() - 5 * SECOND
    with_some = message(
        "one",
        "GET /a",
        now,
        exemplar(now - 1_000_000, 0.75),
        exemplar(now - SECOND // 2, 0.5, span_id="", trace_id=""),
    )
    for body in (with_some, with_some, message("one", "GET /b", now)):
        assert shared.post("/v1/metrics", body, PROTOBUF)[0] == 200
    found = shared.get("metrics", name=NAME, match="service_name=one")
    series = {one["attributes"]["endpoint"]: one for one in found["series"]}
    first, second = series["GET /a"]["exemplars"]
    assert second == {
        # A float holds a quarter of a microsecond of today's time.
        "time": pytest.approx((now - 1_000_000) / SECOND, abs=1e-6),
        "value": 0.75,
        "trace_id": "0a" * 16,
        "span_id": "b" * 16,
        "attributes": {"why": "slow", "busy": "0.25"},
    }
    assert (first["value"], first["trace_id"], first["span_id"]) == (0.5, "", "")
    assert "exemplars_omitted" not in series["GET /a"]
    assert set(series["GET /b"]) == {"attributes", "points"}
    of_one = shared.get(
        "metrics", name=NAME, match=["service_name=one", "endpoint=GET /b"], from_=now / SECOND - 9
    )
    assert len(of_one["series"]) == 1


def test_a_range_holds_for_exemplars(shared: RunningCollector) -> None:
    """What happened outside of the range is not shown, whatever point it came with."""
    now = time.time_ns() - 5 * SECOND
    body = message("two", "GET /a", now, exemplar(now - 1, 0.75), exemplar(now - 60 * SECOND, 0.5))
    assert shared.post("/v1/metrics", body, PROTOBUF)[0] == 200
    match = "service_name=two"
    (recent,) = shared.get("metrics", name=NAME, match=match, from_=now / SECOND - 30)["series"]
    assert [one["value"] for one in recent["exemplars"]] == [0.75]
    (earlier,) = shared.get("metrics", name=NAME, match=match, to=now / SECOND - 30)["series"]
    assert ([one["value"] for one in earlier["exemplars"]], earlier["points"]) == ([0.5], [])


def test_an_answer_is_bounded_and_says_so(shared: RunningCollector) -> None:
    """The newest 10,000 are shown, and how many of a series are not."""
    now = time.time_ns() - 30 * SECOND
    for second in range(11):
        many = [exemplar(now + second * SECOND + number, second) for number in range(1000)]
        body = message("three", "GET /a", now + second * SECOND, *many)
        assert shared.post("/v1/metrics", body, PROTOBUF)[0] == 200
    (series,) = shared.get("metrics", name=NAME, match="service_name=three")["series"]
    assert len(series["exemplars"]) == 10_000
    assert series["exemplars_omitted"] == 1000
    assert {one["value"] for one in series["exemplars"]} == set(range(1, 11))


def test_what_is_refused_is_said_and_counted(shared: RunningCollector) -> None:
    """The sender hears of it, the status counts it, and the point is there."""
    now = time.time_ns() - 5 * SECOND
    before = shared.get("status")["exemplars_refused"]
    body = message("four", "GET /a", now, exemplar(now, float("nan")), exemplar(now, 1.0))
    status, answer = shared.post("/v1/metrics", body, PROTOBUF)
    assert status == 200
    success = ExportMetricsServiceResponse.FromString(answer).partial_success
    assert success.rejected_data_points == 0
    assert "1 exemplars" in success.error_message
    counts = shared.get("status")
    assert counts["exemplars_refused"] == before + 1
    (series,) = shared.get("metrics", name=NAME, match="service_name=four")["series"]
    assert (len(series["points"]), len(series["exemplars"])) == (1, 1)


def test_exemplars_survive_a_restart(tmp_path: Path) -> None:
    """What was acknowledged is there after the collector was killed."""
    running = RunningCollector(tmp_path).start()
    now = time.time_ns() - 5 * SECOND
    try:
        body = message("five", "GET /a", now, exemplar(now, 1.0))
        assert running.post("/v1/metrics", body, PROTOBUF)[0] == 200
    finally:
        running.kill()
    again = RunningCollector(tmp_path).start()
    try:
        (series,) = again.get("metrics", name=NAME)["series"]
        assert [one["value"] for one in series["exemplars"]] == [1.0]
    finally:
        again.stop()
