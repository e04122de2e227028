"""What workers counted and measured, as OTLP metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import HistogramDataPoint, Metric

from quayscope.profile import Attributes
from quayscope.relay.metrics import WorkerMetrics
from quayscope.relay.records import BOUNDS, Counts, HubRow, KeptRow, RequestRow

SECOND = 10**9
SLOT = 1_800_000_000 * SECOND
LABELS = {"service_name": "quay-app", "role": "web"}
DURATION = "http.server.request.duration"


def buckets(*counts: int) -> tuple[int, ...]:
    return counts + (0,) * (len(BOUNDS) + 1 - len(counts))


def row(status: int = 200, **changed: Any) -> RequestRow:
    return RequestRow(
        "GET /a", status, "r", "p", 9 * SECOND, 4 * SECOND, 2 * SECOND, buckets(1, 2), **changed
    )


def kept_row(**changed: Any) -> KeptRow:
    made = KeptRow("GET /a", 200, "r", "p", SLOT - SECOND, SECOND + 5, 3, 2, "a" * 32, "b" * 16, "slow")
    return made._replace(**changed)


def taken(held: WorkerMetrics) -> dict[str, Metric]:
    """What leaves, by name."""
    return dict(_named(held.take()))


def _named(requests: list[bytes]) -> Iterator[tuple[str, Metric]]:
    for request in requests:
        for resource in ExportMetricsServiceRequest.FromString(request).resource_metrics:
            for metric in resource.scope_metrics[0].metrics:
                yield metric.name, metric


def about(point: Any) -> dict[str, str]:
    return {item.key: str(getattr(item.value, item.value.WhichOneof("value"))) for item in point.attributes}


def the(points: Any) -> Any:
    (one,) = points
    return one


def test_a_row_without_buckets_gives_sums() -> None:
    """A worker that does not know how busy each request was says how busy all of them were."""
    held = WorkerMetrics()
    held.requests(LABELS, SLOT, [row()])
    found = taken(held)
    busy, stalled = (found[f"quayscope.request.{name}"] for name in ("busy", "stalled"))
    assert (the(busy.sum.data_points).as_double, the(stalled.sum.data_points).as_double) == (4, 2)
    assert busy.unit == "s"
    assert about(the(busy.sum.data_points)) == {"endpoint": "GET /a", "run": "r", "phase": "p"}
    assert the(found[DURATION].histogram.data_points).count == 3


def test_a_row_with_buckets_gives_histograms() -> None:
    """Then busy and stalled are histograms over the same bounds, with the exact sums."""
    held = WorkerMetrics()
    held.requests(LABELS, SLOT, [row(busy_buckets=buckets(3), stalled_buckets=buckets(0, 0, 3))])
    found = taken(held)
    busy, stalled = (found[f"quayscope.request.{name}"] for name in ("busy", "stalled"))
    for metric, total, counts in ((busy, 4, buckets(3)), (stalled, 2, buckets(0, 0, 3))):
        point = the(metric.histogram.data_points)
        assert metric.unit == "s"
        assert (point.count, point.sum, tuple(point.bucket_counts)) == (3, total, counts)
        assert tuple(point.explicit_bounds) == BOUNDS
        assert (point.start_time_unix_nano, point.time_unix_nano) == (SLOT, SLOT + SECOND - 1)
        assert about(point) == {"endpoint": "GET /a", "run": "r", "phase": "p"}


def exemplars(points: Any) -> list[tuple[int, int, int, int]]:
    """Status, count, start and number of exemplars of each point."""
    return [
        (
            int(about(point)["http.response.status_code"]),
            point.count,
            point.start_time_unix_nano,
            len(point.exemplars),
        )
        for point in points
    ]


def test_a_kept_request_is_an_exemplar_of_its_kind() -> None:
    """It goes with the point of its endpoint, status, run, phase and the second it ended in."""
    held = WorkerMetrics()
    held.requests(LABELS, SLOT, [row(), row(500)])
    held.kept(LABELS, [kept_row(), kept_row(status=500, why="failed"), kept_row()])
    points = taken(held)[DURATION].histogram.data_points
    assert exemplars(points) == [(200, 3, SLOT, 2), (500, 3, SLOT, 1)]
    found = points[1].exemplars[0]
    assert found.as_double == 1.000000005
    assert found.time_unix_nano == SLOT + 5
    assert (found.trace_id.hex(), found.span_id.hex()) == ("a" * 32, "b" * 16)
    values = {item.key: item.value for item in found.filtered_attributes}
    assert values["why"].string_value == "failed"
    assert (values["busy"].double_value, values["stalled"].double_value) == (3e-9, 2e-9)
    assert held.take() == []


def test_a_kept_request_without_its_point_comes_with_one_that_counts_nothing() -> None:
    """When the point left earlier or comes later, the series still gets the request, and no count twice."""
    held = WorkerMetrics()
    held.requests(LABELS, SLOT, [row()])
    first = taken(held)[DURATION].histogram.data_points
    held.kept(LABELS, [kept_row()])
    held.requests(LABELS, SLOT + SECOND, [row()])
    second = taken(held)[DURATION].histogram.data_points
    assert exemplars(first) == [(200, 3, SLOT, 0)]
    assert exemplars(second) == [(200, 3, SLOT + SECOND, 0), (200, 0, SLOT, 1)]
    nothing: HistogramDataPoint = second[1]
    assert (nothing.sum, sum(nothing.bucket_counts)) == (0, 0)
    assert len(nothing.bucket_counts) == len(BOUNDS) + 1
    assert nothing.time_unix_nano == SLOT + SECOND - 1


def test_what_a_hub_could_not_do_is_measured() -> None:
    """Held-up time, and that of the requests behind it, by endpoint; the point lies in any slot's length."""
    held = WorkerMetrics()
    on = Attributes(SLOT, "GET /a", "r", "p", 7)
    rows = [HubRow(60, 1, on, 120, (0,)), HubRow(40, 1, on, 0, (1,)), HubRow(5, 1, None, 10, (0,))]
    held.hub(LABELS, SLOT + SECOND // 4, rows)
    found = taken(held)
    for name, first, second in (("stalled", 100e-9, 5e-9), ("waiting", 120e-9, 10e-9)):
        metric = found[f"quayscope.hub.{name}"]
        assert metric.unit == "s"
        one, other = metric.sum.data_points
        assert (one.as_double, other.as_double) == (first, second)
        assert about(one) == {"endpoint": "GET /a", "run": "r", "phase": "p"}
        assert about(other) == {"endpoint": "", "run": "", "phase": ""}
        assert one.start_time_unix_nano == SLOT + SECOND // 4
        assert SLOT + SECOND // 4 < one.time_unix_nano < SLOT + SECOND // 2


def test_levels_are_gauges() -> None:
    """What a worker says of its state is shown as it stands, beside its increments, by pid."""
    held = WorkerMetrics()
    held.counts(LABELS, "quayscope.agent.", Counts(SLOT, {"samples": 5}, "", {"hz": 99}), 7)
    assert held.points() == 2
    found = taken(held)
    level = the(found["quayscope.agent.hz"].gauge.data_points)
    assert (level.as_int, level.time_unix_nano, about(level)) == (99, SLOT, {"pid": "7"})
    assert the(found["quayscope.agent.samples"].sum.data_points).as_int == 5
