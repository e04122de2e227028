"""Between rings and profiles: what is held, how it is weighed, when it is sent, what is said of it."""

from __future__ import annotations

import gc
import struct
import weakref
from typing import Any, cast

import pytest

from quayscope.profile import Frame, Profile
from quayscope.sidecar.native.gather import Gathered, Held, Known
from quayscope.sidecar.native.maps import AddressSpace, Layout, Mapping
from quayscope.sidecar.native.objects import Objects
from quayscope.sidecar.native.publish import Publisher
from quayscope.sidecar.native.report import ALL_CPU, CGROUP, RINGS, capabilities
from quayscope.sidecar.native.ring import Rings
from quayscope.sidecar.native.stacks import Stacks
from quayscope.sidecar.native.target import SampledTarget
from quayscope.sidecar.native.tracked import Coverage, Tracked
from quayscope.sidecar.statements import NO_STATEMENT
from quayscope.sidecar.windows import SECOND_NS, Windows

SPACE = AddressSpace(1, [Mapping(0x1000, 0x2000, 0, "")])
PERIOD = 10_101_010


def tracked(out: list[Profile], **known: Any) -> Tracked:
    """A target without events."""
    made = Tracked.__new__(Tracked)
    made.target = SampledTarget("svc", 1, list, lambda _: "main", "main")
    made.windows = Windows({"service_name": "svc", "sampler": "perf"}, 10, out.extend, period_ns=PERIOD)
    made.samples = made.cpu_ns = made.truncated = made.lost = 0
    made.coverage = Coverage(0, 0)
    made.why_not_cgroup = ""
    for name, value in known.items():
        setattr(made, name, value)
    made.root = Frame("svc", kind="root")
    return made


def packed(*addresses: int) -> bytes:
    return struct.pack(f"<{len(addresses)}Q", *addresses)


def held(
    one: Tracked, slot_s: int, user: int = 0x1010, *, complete: bool = True, cpu_ns: int = PERIOD
) -> Held:
    known = Known(one, slot_s * SECOND_NS, "main", 1, NO_STATEMENT, unproven=False)
    return Held(known, b"", SPACE, packed(user), complete, cpu_ns)


def test_gathered_is_bounded() -> None:
    """Samples beyond the bound are counted where they belong."""
    one = tracked([])
    gathered = Gathered(most=2)
    for user in (1, 2, 3, 3, 1):
        gathered.add(held(one, 100, user))
    assert gathered.take(None) == [held(one, 100, 1), held(one, 100, 2)]
    assert gathered.take_dropped() == {(one, 100 * SECOND_NS): 3}
    assert gathered.take_dropped() == {}
    assert len(gathered) == 0


def test_names_wait_for_their_window() -> None:
    """Samples are named when their window is over and its last ones are through; many do not wait."""
    out: list[Profile] = []
    one = tracked(out)
    gathered = Gathered()
    publisher = Publisher(gathered, Stacks(Objects()), 10, 2.0)

    def after(seconds: float) -> int:
        now = int(seconds * SECOND_NS)
        publisher.publish(now)
        publisher.send(one, now)
        return len(gathered)

    gathered.add(held(one, 100))
    gathered.add(held(one, 109, complete=False, cpu_ns=2 * PERIOD))
    gathered.add(held(one, 110))
    assert after(111.9) == 3
    assert out == []
    assert after(112.0) == 1
    (profile,) = out
    assert profile.start_ns == 100 * SECOND_NS
    assert profile.totals() == (2, 3 * PERIOD)
    assert profile.losses.truncated == 1
    assert profile.losses.unattributed == 2
    for user in range(0x1000, 0x1000 + 5_000):
        gathered.add(held(one, 111, user))
    assert after(113.9) == 5_000
    assert after(114.0) == 0
    assert len(out) == 1
    publisher.publish(None)
    publisher.send(one, None)
    assert sum(profile.totals()[0] for profile in out) == 5_003


def test_losses_are_in_the_profile() -> None:
    """What found no room among the gathered, and what the rings lost, is lost in the profile's words."""
    out: list[Profile] = []
    one = tracked(out, lost=7)
    gathered = Gathered(most=1)
    publisher = Publisher(gathered, Stacks(Objects()), 10, 2.0)
    gathered.add(held(one, 100, 1))
    gathered.add(held(one, 101, 2))
    publisher.publish(None)
    one.charge(102 * SECOND_NS)
    one.charge(103 * SECOND_NS)
    publisher.send(one, None)
    assert [profile.losses.lost for profile in out] == [8]


@pytest.mark.parametrize(
    ("counts", "weights"),
    [
        ([PERIOD, 2 * PERIOD + 5, 4 * PERIOD], [PERIOD, PERIOD + 5, 2 * PERIOD - 5]),
        ([50 * PERIOD, 51 * PERIOD], [PERIOD, PERIOD]),  # others before it were lost
        ([PERIOD, PERIOD // 2], [PERIOD, PERIOD]),  # another task of the same number
    ],
)
def test_weight_is_what_was_counted(counts: list[int], weights: list[int]) -> None:
    """A sample stands for what its event counted since the one before, where that is known."""
    rings = cast("Any", Rings).__new__(Rings)
    rings._counts = {}
    assert [rings._weigh(1, 2, count, PERIOD) for count in counts] == weights
    assert rings._weigh(1, 3, PERIOD, PERIOD) == PERIOD  # another task of the same event


def test_what_is_said() -> None:
    """The worst of all targets is told, and stays the same text while little changes."""

    class Sized:
        def __init__(self, size: int) -> None:
            self.size = size
            self.holds_dumps = size >= 64 << 10

    source = object()
    good = tracked([], rings=Sized(8 << 20), source=source, coverage=Coverage(10**10, 98 * 10**8))
    poor = tracked([], rings=Sized(32 << 10), source=source, coverage=Coverage(10**10, 41 * 10**8))
    idle = tracked([], rings=Sized(8 << 20), source=source, coverage=Coverage(10**8, 0))
    poor.why_not_cgroup = "it is in the root cgroup"
    said = {one.name: one for one in capabilities([good, poor, idle])}
    assert "root cgroup" in said[CGROUP].detail
    assert "32 kB" in said[RINGS].detail
    assert "frame pointers only" in said[RINGS].detail
    assert "less than 50 %" in said[ALL_CPU].detail
    poor.coverage = Coverage(10**10, 44 * 10**8)
    assert capabilities([good, poor, idle])[2] == said[ALL_CPU]
    assert capabilities([good, idle])[1].permitted
    assert capabilities([good, idle])[2].permitted
    assert capabilities([]) == []


def test_stacks_end_where_no_code_is() -> None:
    """A stack is named as far as code is mapped, whatever was remembered of its callers before."""
    near, far = (Mapping(0x1000, 0x2000, 0, "near"), Mapping(0x3000, 0x4000, 0, "far"))
    stacks = Stacks(Objects())
    space = AddressSpace(1, [near, far])

    def shown(*addresses: int) -> list[str]:
        frames, is_root = stacks.users([(space, packed(*addresses), 1)])[0]
        assert not is_root
        return [frame.function for frame in frames]

    for _ in range(2):
        assert shown(0x1010, 0x3010, 0x1020) == ["near", "far", "near"]
        assert shown(0x3010, 0x3010, 0x1020) == ["near", "far", "far"]
        assert shown(0x1010, 0x5000, 0x1020) == ["near"]
        assert shown(0x5000, 0x3010, 0x1020) == []
        assert shown(0x1010) == ["near"]


def test_what_is_remembered_of_programs_that_come_and_go_is_bounded() -> None:
    """Each has a layout of its own: no more than some hundred of them are kept."""
    stacks = Stacks(Objects())
    made: list[weakref.ref[Layout]] = []
    for number in range(3_000):
        start = 0x400000 + number * 0x1000
        layout = Layout((Mapping(start, start + 0x1000, 0, ""),), number)
        stacks.users([(AddressSpace(1, layout), packed(start + 0x10), 1)])
        made.append(weakref.ref(layout))
    del layout
    gc.collect()
    assert sum(ref() is not None for ref in made) < 600
