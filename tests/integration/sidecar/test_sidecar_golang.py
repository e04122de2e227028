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

_LABELS = {"service_name": "clair-app", "role": "clair"}


@pytest.fixture(scope="module")
def service(checkout: Path, make_server: Callable[..., Any]) -> Iterator[clair_standin.StandIn]:
    """The service, on a Postgres 15 of its own."""
    binary = clair_standin.build(checkout)
    with clair_standin.running(binary, make_server("15").dsn) as started:
        yield started


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
    scrapes = GoScrapes([], clair_operations(), taken, capabilities, every_s=1.0, cpu_s=20 if full else 4)
    scrapes.update([_program(service)])
    with clair_standin.Load(service) as load:
        until(lambda: load.rounds > 0, 20.0, "the service works")
        scrapes.start()
        try:
            before = procfs.cpu_ns(service.pid)
            (profile, *_) = until(lambda: taken.of("process_cpu"), 60.0, "a CPU profile")
            after = procfs.cpu_ns(service.pid)
            until(lambda: taken.of("block") and taken.of("mutex"), 60.0, "a second round")
        finally:
            scrapes.close(5.0)
    assert load.rounds > 3
    cpu: Counter[str] = Counter()
    for (stack, attributes), (_, value) in profile.samples.items():
        cpu[attributes.endpoint] += value
        assert {frame.kind for frame in stack} == {"go"}
    print(dict(cpu.most_common()), f"{load.rounds} rounds")
    own = cpu.total() - cpu["runtime"]
    assert cpu[""] <= 0.1 * own, [
        [frame.function for frame in stack] for (stack, about) in profile.samples if not about.endpoint
    ]
    assert {
        "index report: fetch",
        "index report: scan",
        "index report: store",
        "vulnerability report",
    } <= cpu.keys()
    assert cpu["index report: scan"] > 0.05 * own
    assert profile.losses.unattributed == sum(
        count for (_, about), (count, _) in profile.samples.items() if not about.endpoint
    )
    assert before is not None
    assert after is not None
    assert 0.5 * profile.totals()[1] < after - before
    assert profile.labels == {**_LABELS, "sampler": "go"}
    assert {about.pid for _, about in profile.samples} == {service.pid}
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


def test_spans_names_are_clairs(checkout: Path) -> None:
    """Each marker that the service stands in for is a function of its source: names cannot drift apart."""
    source = "\n".join(
        path.read_text() for path in (checkout / "tests" / "targets" / "clair_standin").rglob("*.go")
    )
    for name in ("fetchInto", "scanLayer", "EnrichedMatch", "SetIndexReport", "DeleteManifests"):
        assert f"{name}(" in source
