"""A cgroup of a test's own, the measuring of resources, and processes to be measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from measured_resources import Measured, Told
from own_cgroup import OwnCgroup, own_cgroup


@pytest.fixture
def measured() -> Iterator[Measured]:
    """Ticks when told to."""
    made = Measured()
    yield made
    made.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Told]]:
    """Start processes that do what they are told; ended afterwards."""
    started: list[Told] = []

    def begin(*arguments: Any) -> Told:
        started.append(Told(*arguments))
        started[-1].do("pass")
        return started[-1]

    yield begin
    for told in started:
        if told.process.returncode is None:
            told.end()


@pytest.fixture
def cgroup() -> Iterator[OwnCgroup]:
    """Removed afterwards."""
    with own_cgroup() as made:
        yield made
