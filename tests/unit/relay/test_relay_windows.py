"""Windows: cut on boundaries, closed after a grace, bounded, nothing lost silently."""

from __future__ import annotations

import pytest

from quayscope.profile import PROCESS_CPU, Attributes, Frame, Stack
from quayscope.relay import connection, windows
from quayscope.relay.connection import Connection, Room
from quayscope.relay.records import Frames, Hello
from quayscope.relay.windows import Series, Windows

SECOND = 1_000_000_000
SERIES: Series = (("service_name", "quay-app"),)
STACK: Stack = (Frame("main", "m.py", 1, "python"),)


def add(held: Windows, slot_s: int, now_s: float, endpoint: str = "GET /", stack: Stack = STACK) -> int:
    about = Attributes(slot_s * SECOND, endpoint)
    return held.add(PROCESS_CPU, SERIES, slot_s * SECOND, [(stack, about, (2, 50))], int(now_s * SECOND))


def test_a_window_leaves_after_its_grace() -> None:
    """Samples of ten seconds leave together, one and a half seconds after the window's end."""
    held = Windows(10)
    for second in range(100, 110):
        assert add(held, second, second + 1) == 0
    assert held.take(int(111.4 * SECOND)) == []
    (profile,) = held.take(int(111.5 * SECOND))
    assert (profile.start_ns, profile.duration_ns) == (100 * SECOND, 10 * SECOND)
    assert profile.totals() == (20, 500)
    assert held.take(10**30) == []


def test_late_samples_go_out_apart_and_are_counted() -> None:
    """What comes after its window has left makes a further profile of that window, counted as late."""
    held = Windows(10)
    assert add(held, 100, 111.6) == 1
    (profile,) = held.take(int(111.6 * SECOND))
    assert profile.start_ns == 100 * SECOND
    assert profile.losses.late == 2
    assert profile.totals() == (2, 50)


def test_losses_are_counted_in_samples() -> None:
    """What belongs to no request is unattributed, what is cut before its root truncated."""
    held = Windows(10)
    add(held, 100, 101, endpoint="")
    add(held, 100, 101, stack=(Frame("[truncated]", "", 0, "root"), *STACK))
    (profile,) = held.take(0, everything=True)
    assert (profile.losses.unattributed, profile.losses.truncated) == (2, 2)


def test_samples_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limits new samples are counted as lost, known ones still added, and room comes back."""
    monkeypatch.setattr(windows, "MAX_SAMPLES", 2)
    held = Windows(10)
    for endpoint in ("a", "b", "c", "a"):
        add(held, 100, 101, endpoint)
    (profile,) = held.take(0, everything=True)
    assert profile.totals() == (6, 150)
    assert profile.losses.lost == 2
    monkeypatch.setattr(windows, "MAX_SAMPLES", 100)
    monkeypatch.setattr(windows, "MAX_CELLS", 3)
    for endpoint in ("a", "b", "c", "d"):
        add(held, 120, 121, endpoint)
    (profile,) = held.take(0, everything=True)
    assert profile.losses.lost == 2
    assert profile.totals() == (6, 150)
    monkeypatch.setattr(windows, "MAX_PROFILES", 1)
    add(held, 140, 141)
    add(held, 150, 151)
    assert held.lost == 2
    assert len(held.take(0, everything=True)) == 1


def test_frames_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames beyond the room are refused and counted; a closed connection gives its room back."""
    monkeypatch.setattr(connection, "MAX_FRAME_BYTES", 3 * (connection.FRAME_BYTES + 2))
    monkeypatch.setattr(connection, "MAX_ALL_FRAME_BYTES", 4 * (connection.FRAME_BYTES + 2))
    room = Room()
    first, second = Connection(room), Connection(room)
    frames = Frames([(number, Frame("f", "a", number, "python")) for number in range(5)])
    first.define(frames)
    second.define(frames)
    assert (first.refused, second.refused) == (2, 4)
    first.release()
    second.define(frames)
    assert second.refused == 4 + 2
    second.release()
    assert room.used == 0


def test_a_frame_defined_anew_means_the_new_one() -> None:
    """A worker that starts its table anew is understood: remembered stacks are forgotten."""
    known = Connection(Room())
    known.hello(Hello(7, "web", "quay-app", {"pod": "mine", "zone": "a"}), {"pod": "p1"})
    assert known.labels == {"pod": "p1", "zone": "a", "role": "web", "service_name": "quay-app"}
    known.define(Frames([(0, Frame("old"))]))
    assert known.stack((0,))[0].function == "old"
    known.define(Frames([(0, Frame("new"))]))
    assert known.stack((0,))[0].function == "new"
