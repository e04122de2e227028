"""A Go service like Clair, scraped under load: every kind of profile, and what each sample was for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import clair_standin
from quayscope.profile import Profile
from quayscope.sidecar import procfs
from quayscope.sidecar.capabilities import Capabilities
from quayscope.sidecar.golang import Address, GoProgram, GoScrapes, clair_operations
from quayscope.sidecar.golang.ports import listening_ports
from quayscope.sidecar.targets.golang import BuildInfos

_ENOUGH = 150
"""Samples on which a share of a tenth is told from one of a fiftieth."""
_LABELS = {"service_name": "clair-app", "role": "clair"}


@pytest.fixture(scope="module")
def service(checkout: Path, make_server: Callable[..., Any]) -> Iterator[clair_standin.StandIn]:
    """The service, on a Postgres 15 of its own."""
    binary = clair_standin.build(checkout)
    with clair_standin.running(binary, make_server("15").dsn) as started:
        yield started


def _samples(profiles: list[Profile]) -> int:
    return sum(profile.totals()[0] for profile in profiles)


class _Taken:
    def __init__(self) -> None:
        self.profiles: list[Profile] = []

    def __call__(self, profiles: list[Profile]) -> None:
        self.profiles += profiles

    def of(self, name: str) -> list[Profile]:
        return [profile for profile in list(self.profiles) if profile.type.name == name]


def _program(service: clair_standin.StandIn) -> GoProgram:
    facts = procfs.stat(service.pid)
    assert facts is not None
    return GoProgram(service.pid, facts.start_ticks, _LABELS)


def test_a_stripped_service_is_known(service: clair_standin.StandIn) -> None:
    """Its module is in its build information, its two ports are its own."""
    found = BuildInfos().of(service.pid)
    assert found is not None
    assert found.module == "quayscope.example/clair_standin"
    ports = [port for _, port in listening_ports(service.pid)]
    assert ports == sorted((service.api, service.introspection))


def test_operations_of_a_service_under_load(
    service: clair_standin.StandIn, until: Callable[..., Any], full: bool
) -> None:
    """At least nine tenths of its CPU that is not the runtime's is told to be for an operation."""
    taken = _Taken()
    capabilities = Capabilities()
    scrapes = GoScrapes([], clair_operations(), taken, capabilities, every_s=1.0, cpu_s=20 if full else 2)
    scrapes.update([_program(service)])
    with clair_standin.Load(service) as load:
        until(lambda: load.rounds > 0, 20.0, "the service works")
        scrapes.start()
        try:
            before = procfs.cpu_ns(service.pid)
            profiles = until(
                lambda: (found := taken.of("process_cpu")) and _samples(found) >= _ENOUGH and found,
                120.0,
                "enough samples",
            )
            after = procfs.cpu_ns(service.pid)
            until(lambda: taken.of("block") and taken.of("mutex"), 60.0, "a second round")
        finally:
            scrapes.close(5.0)
    assert load.rounds > 3
    cpu: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for profile in profiles:
        for (stack, attributes), (count, value) in profile.samples.items():
            cpu[attributes.endpoint] += value
            assert {frame.kind for frame in stack} <= {"go"}
            assert attributes.pid == service.pid
            if not attributes.endpoint:
                unknown[" ".join(frame.function for frame in stack)] += count
    print(dict(cpu.most_common()), f"{load.rounds} rounds")
    own = cpu.total() - cpu["runtime"]
    assert cpu[""] <= 0.1 * own, unknown
    assert {
        "index report: fetch",
        "index report: scan",
        "index report: store",
        "vulnerability report",
    } <= cpu.keys()
    assert cpu["index report: scan"] > 0.05 * own
    assert sum(profile.losses.unattributed for profile in profiles) == unknown.total()
    assert before is not None
    assert after is not None
    # Go's profiler is a timer's: it is late on a busy machine, and never counts twice.
    assert 0.5 * sum(profile.totals()[1] for profile in profiles) < after - before
    assert profiles[0].labels == {**_LABELS, "sampler": "go"}
    counts = scrapes.counts()
    assert counts["scrapes"] >= 5
    assert not counts.get("failures")
    assert not counts.get("faults")
    assert capabilities.permitted("go_pprof")


def test_states_and_differences(service: clair_standin.StandIn, until: Callable[..., Any]) -> None:
    """The first heap profile shows what is in use, later ones what was allocated since; goroutines stand."""
    taken = _Taken()
    address = Address("127.0.0.1", service.introspection)
    scrapes = GoScrapes([address], clair_operations(), taken, Capabilities(), every_s=1.0, cpu_s=1)
    scrapes.update([_program(service)])
    with clair_standin.Load(service):
        scrapes.start()
        try:
            first, second = until(
                lambda: taken.of("memory")[:2] if len(taken.of("memory")) > 1 else None, 30.0
            )
            until(lambda: taken.of("goroutine"), 5.0)
        finally:
            scrapes.close(5.0)
    assert first.totals()[:2] == (0, 0)
    assert first.totals()[3] > 0
    assert second.totals()[1] > 0
    assert second.duration_ns > 0
    assert first.labels["service_name"] == "clair-app"
    goroutines = taken.of("goroutine")[0]
    functions = {frame.function for stack, _ in goroutines.samples for frame in stack}
    assert "main.main" in functions
    assert goroutines.totals()[0] >= 5


def test_only_the_address_that_was_given(service: clair_standin.StandIn, until: Callable[..., Any]) -> None:
    """Where nobody answers that is said, and the program's own ports are not tried instead."""
    taken = _Taken()
    capabilities = Capabilities()
    closed = Address("127.0.0.1", service.api, "/nothing/")
    scrapes = GoScrapes([closed], clair_operations(), taken, capabilities, cpu_s=1, discover=False)
    scrapes.update([_program(service)])
    scrapes.start()
    try:
        until(lambda: scrapes.counts().get("failures", 0) >= 5, 20.0, "each kind has failed")
    finally:
        scrapes.close(5.0)
    assert not taken.profiles
    (said,) = [held for held in capabilities.all() if held.name == "go_pprof"]
    assert not said.permitted
    assert "status 404" in said.detail
    assert said.remedy


def test_its_spans_leave_by_otlp(checkout: Path, make_server: Callable[..., Any], receiver: Any) -> None:
    """Its requests' spans are exported where the environment says: a gateway can take them."""
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
    with clair_standin.running(clair_standin.build(checkout), make_server("15").dsn, environment) as started:
        with clair_standin.Load(started) as load:
            pass
        assert load.error is None
    assert "/v1/traces" in {path for path, _ in receiver.received.requests}


def test_the_stand_in_has_clairs_names(checkout: Path) -> None:
    """Each marker that the service stands in for is a function of its source: names cannot drift apart."""
    source = "\n".join(
        path.read_text() for path in (checkout / "tests" / "targets" / "clair_standin").rglob("*.go")
    )
    for name in ("fetchInto", "scanLayer", "EnrichedMatch", "SetIndexReport", "DeleteManifests"):
        assert f"{name}(" in source
