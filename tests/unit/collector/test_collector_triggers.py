"""What each trigger computes from stored metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from quayscope.collector.control.triggers import RULES
from quayscope.collector.counters import Counters
from quayscope.collector.query.request import TimeRange
from quayscope.collector.receive import Receiver
from quayscope.collector.store import Store
from quayscope.relay.otlp import Histogram, HistogramPoint, Metric, NumberPoint, metric_request

SECOND = 10**9
NOW = time.time_ns()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    opened = Store(tmp_path, Counters())
    yield opened
    opened.close()


def found(store: Store, rule: str) -> dict[str, float]:
    """What a rule sees of the last half minute."""
    span = TimeRange(NOW - 30 * SECOND, NOW)
    return {one.where: one.value for one in RULES[rule](store, span)}


def keep(store: Store, service: str, *metrics: Metric | Histogram) -> None:
    Receiver(store, Counters()).metrics(metric_request({"service_name": service}, metrics))


def durations(endpoint: str, status: str, counts: list[int]) -> Histogram:
    at = NOW - 5 * SECOND
    about = {"endpoint": endpoint, "http.response.status_code": status}
    point = HistogramPoint(counts, 1.0, at, at - SECOND, about)
    return Histogram("http.server.request.duration", "s", (0.1, 1.0), [point])


def test_requests(store: Store) -> None:
    """The bucket in which the 99th of a hundred lies, all statuses together; few requests tell nothing."""
    for one in (
        durations("GET /a", "200", [98, 1, 0]),
        durations("GET /a", "500", [0, 1, 0]),
        durations("GET /b", "200", [97, 0, 3]),
        durations("GET /few", "500", [0, 0, 19]),
    ):
        keep(store, "quay-app", one)
    keep(store, "clair-app", durations("GET /c", "503", [19, 0, 0]))
    assert found(store, "p99") == {"quay-app GET /a": 1.0, "quay-app GET /b": math.inf}
    assert found(store, "errors") == {"quay-app": pytest.approx(20 / 219)}


def test_growth_and_sessions(store: Store) -> None:
    """Counters grow by the second, sessions are averaged over the seconds that were seen."""
    times = [NOW - (25 - 5 * step) * SECOND for step in range(4)]
    throttled = [NumberPoint(float(3 * step), at, NOW - 99 * SECOND) for step, at in enumerate(times)]
    stalled = [NumberPoint(0.5, at, at - SECOND, {"endpoint": "GET /a"}) for at in times]
    keep(
        store,
        "quay-app",
        Metric("quayscope.container.cpu.throttled_time", "s", "cumulative", throttled),
        Metric("quayscope.hub.stalled", "s", "delta", stalled),
    )
    assert found(store, "throttled") == {"quay-app": pytest.approx(9 / 30)}
    assert found(store, "hub") == {"quay-app": pytest.approx(2 / 30)}
    sessions = [
        NumberPoint(value, at, 0, {"class": name, "source": "shared memory"})
        for name, value in (("Lock", 4.0), ("none", 2.0), ("cpu", 9.0), ("run queue", 9.0))
        for at in times[:2]
    ]
    keep(store, "quay-database", Metric("postgresql.sessions.active", "1", "gauge", sessions))
    assert found(store, "sessions") == {"quay-database, shared memory": pytest.approx(6.0)}


def test_nothing_stored_is_nothing_found(store: Store) -> None:
    """An empty store fires nothing."""
    assert [found(store, name) for name in RULES] == [{}] * len(RULES)
