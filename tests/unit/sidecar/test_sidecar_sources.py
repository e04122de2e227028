"""Tasks that inherit events, and tasks that have their own: of each task and CPU one event counts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, cast

import pytest

from quayscope.sidecar.native import sources
from quayscope.sidecar.native.records import Ended, Forked
from quayscope.sidecar.native.sources import Demand, Plan, TaskSource

BASE = 1 << 30
"""No process has such a number."""
ROOT = 100
CPUS = (0, 1)


class NoRings:
    """Gives numbers to events: 10 times the order of the task they are on, plus the CPU."""

    def __init__(self) -> None:
        self.cpus = list(CPUS)
        self.holds_dumps = True
        self.watermark = 0
        self.led = 0
        self.forgotten: list[int] = []

    def lead(self, descriptor: int, cpu: int, *_: object) -> int:
        self.led += 1
        return (self.led - 1) // len(CPUS) * 10 + cpu

    def forget(self, event: int) -> None:
        self.forgotten.append(event)


class World:
    """A source whose events are empty files, opened at 1,000 ns. Tasks are numbered from `BASE` on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.pids: set[int] = set()
        self.tasks: list[int] = []
        self.rings = NoRings()
        patch.setattr(sources, "open_event", self._open)
        patch.setattr("time.monotonic_ns", lambda: 1_000)
        patch.setattr(sources, "_runs", lambda _: True)
        demand = Demand("it", BASE + ROOT, lambda: {BASE + pid for pid in self.pids})
        self.source = TaskSource(cast("Any", self.rings), demand, Plan(99, kernel=True))

    def _open(self, tid: int, cpu: int, *_: object, **__: object) -> int:
        if cpu == 0:
            self.tasks.append(tid - BASE)
        return os.open(os.devnull, os.O_RDONLY)

    def fork(self, tid: int, parent: int, at: int) -> None:
        self.source.seen(Forked(at, 0, BASE + tid, BASE + parent, BASE + tid, BASE + parent))

    def end(self, tid: int) -> None:
        self.source.seen(Ended(0, 0, BASE + tid, BASE + tid))

    def accepts(self, event: int, cpu: int, tid: int) -> bool:
        return self.source.accepts(event, cpu, BASE + tid)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(monkeypatch)
    yield made
    made.source.close()


def test_the_first_fork_after_attaching_is_doubtful(world: World) -> None:
    """It may have begun before the events were open; the next one, and what an heir forks, may not."""
    world.fork(1, ROOT, 900)
    world.fork(2, ROOT, 1_001)
    world.fork(3, ROOT, 1_002)
    world.fork(4, 3, 1_003)
    world.source.rescan()
    assert sorted(world.tasks) == [1, 2, ROOT]
    world.fork(5, 2, 1_004)
    world.fork(6, 2, 1_005)
    world.source.rescan()
    assert sorted(world.tasks) == [1, 2, 5, ROOT]


def test_the_last_event_proves_all(world: World) -> None:
    """A sample of the event that was opened last says that all were inherited, of another one nothing."""
    for tid, event in ((1, 0), (2, 1)):
        world.fork(tid, ROOT, 900)
        assert world.accepts(event, event, tid)
    world.source.rescan()
    assert world.tasks == [ROOT, 1]


def test_one_event_counts(world: World) -> None:
    """Of an own and an inherited event one is taken from first to last, and the own one is closed."""
    accepts = world.accepts
    world.pids = {1}
    world.source.rescan()
    own, inherited = 10, 0
    assert [accepts(own, 0, 1), accepts(inherited, 0, 1), accepts(own, 0, 1)] == [True, False, False]
    assert world.rings.forgotten == [own]
    assert [accepts(inherited, 0, 1) for _ in range(3)] == [True] * 3
    # On the other CPU nothing was inherited.
    assert [accepts(11, 1, 1) for _ in range(3)] == [True] * 3
    assert world.source.duplicates == 1


def test_two_inherited_events(world: World) -> None:
    """A grandchild that inherited of two is counted by one, until that one is closed."""
    accepts = world.accepts
    world.pids = {1}
    world.source.rescan()
    root, parent = 0, 10
    assert [accepts(event, 0, 2) for event in (parent, root, parent, root)] == [True, False, True, False]
    assert world.source.duplicates == 2
    # Its parent's own event goes where the parent's inherited one is met.
    assert [accepts(event, 0, 1) for event in (root, parent)] == [True, False]
    assert world.rings.forgotten == [parent]
    assert [accepts(event, 0, 2) for event in (root, parent, root)] == [True, False, True]


def test_events_stay_for_who_may_need_them(world: World) -> None:
    """Those of a task that ended are closed with the last that has, or may have, inherited them."""
    world.pids = {1}
    world.source.rescan()
    world.fork(2, 1, 1_001)
    world.fork(3, 1, 1_002)
    world.pids = set()
    world.end(1)
    world.end(3)
    assert world.rings.forgotten == []
    world.end(2)
    assert sorted(world.rings.forgotten) == [10, 11]
    assert world.source.counts() == {"attached": 1, "inherited": 0}


def test_a_number_used_again(world: World) -> None:
    """What counted for a task that ended does not for the next one of its number."""
    world.pids = {1}
    world.source.rescan()
    assert world.accepts(10, 0, 5)
    world.end(5)
    assert world.accepts(0, 0, 5)
