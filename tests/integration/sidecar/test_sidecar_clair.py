"""A Go service like Clair through the real sidecar: perf events, its own profiles, its spans, all at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clair_standin
from integration.sidecar.running_sidecar import RunningSidecar
from quayscope.profile import Profile

ENDINGS = {"runtime.goexit", "runtime.mcall", "runtime.mstart", "runtime.morestack", "runtime.gosched_m"}


def _operations(profiles: list[Profile]) -> Counter[str]:
    found: Counter[str] = Counter()
    for profile in profiles:
        for (_, attributes), values in profile.samples.items():
            found[attributes.endpoint] += values[1]
    return found


def test_stacks_both_ways_operations_and_spans(
    checkout: Path, make_server: Callable[..., Any], receiver: Any, until: Callable[..., Any], tmp_path: Path
) -> None:
    """The same operations by either sampler, never summed; stacks end at a goroutine's root; spans arrive."""
    sidecar = RunningSidecar(
        tmp_path,
        *("--collector", receiver.url, "--target", "clair_standin", "--window", "2", "--hz", "499"),
        *("--go-every", "3", "--go-cpu", "2", "--pyspy", "off"),
    ).start()
    binary = clair_standin.build(checkout)
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": sidecar.url("otlp")}
    try:
        dsn = make_server("15").dsn
        with clair_standin.running(binary, dsn, environment) as service, clair_standin.Load(service):
            by_perf = until(lambda: _enough(receiver.received.cpu("perf"), 400), 60.0, "samples by perf")
            by_itself = until(lambda: _enough(receiver.received.cpu("go"), 150), 60.0, "samples by Go")
    finally:
        assert sidecar.stop() == 0, sidecar.log()
    names: set[str] = set()
    reached = counted = 0
    for profile in by_perf:
        assert profile.labels["service_name"] == by_itself[0].labels["service_name"]
        assert profile.labels["role"] == by_itself[0].labels["role"]
        for (stack, attributes), values in profile.samples.items():
            assert attributes.pid == service.pid
            own = [frame for frame in stack if frame.kind == "go"]
            names |= {frame.function for frame in own}
            counted += values[0]
            reached += values[0] if own and own[0].function in ENDINGS else 0
    assert reached >= 0.97 * counted
    assert any(name.endswith("scanLayer") for name in names)
    assert any("pgx" in name for name in names)
    for profiles in (by_perf, by_itself):
        operations = _operations(profiles)
        print(profiles[0].labels["sampler"], operations.most_common())
        own_cpu = operations.total() - operations["runtime"]
        assert operations[""] <= 0.15 * own_cpu
        assert {"index report: scan", "index report: store"} <= operations.keys()
    assert "/v1/traces" in {path for path, _ in receiver.received.requests}


def _enough(profiles: list[Profile], samples: int) -> list[Profile] | None:
    return profiles if sum(profile.totals()[0] for profile in profiles) >= samples else None
