"""Helpers as real processes, and servers that they send to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from certificates import Certificates, make_certificates
from integration.collector.running_collector import RunningCollector
from integration.relay.helper_process import HelperProcess

Start = Callable[..., HelperProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start helpers; whatever is left of them ends with the test."""
    started: list[HelperProcess] = []

    def begin(**named: object) -> HelperProcess:
        started.append(HelperProcess(tmp_path, **named))  # type: ignore[arg-type] # passed through
        return started[-1]

    yield begin
    for one in started:
        one.kill()


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCollector]:
    """One collector for the tests of a module, which tell their data apart by service."""
    running = RunningCollector(tmp_path_factory.mktemp("collector")).start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A CA, servers and a client."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))
