"""A collector for the tests that share one, and a fresh one for those that must not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.collector.running_collector import RunningCollector


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCollector]:
    """One collector for all tests of a module; they tell their data apart by service."""
    running = RunningCollector(tmp_path_factory.mktemp("collector")).start()
    yield running
    assert running.stop() == 0


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[RunningCollector]:
    """A collector of the test's own."""
    running = RunningCollector(tmp_path).start()
    yield running
    running.stop()
