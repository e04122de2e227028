"""Samples gathered into windows."""

from __future__ import annotations

from quayscope.profile import PROCESS_CPU, Attributes, Frame, Profile
from quayscope.profile.model import Losses
from quayscope.sidecar import windows as module
from quayscope.sidecar.windows import SECOND_NS, Windows

_STACK = (Frame("db", kind="root"), Frame("f"))


def _windows(out: list[Profile]) -> Windows:
    return Windows({"service_name": "db", "sampler": "perf"}, 10, out.extend, period_ns=10)


def test_cut_on_unix_boundaries() -> None:
    """A window is whole seconds of Unix time, one profile a role, emitted once it has ended."""
    out: list[Profile] = []
    windows = _windows(out)
    for second in (109, 110, 119, 120):
        windows.add(PROCESS_CPU, "client backend", _STACK, Attributes(second * SECOND_NS), (1, 5))
    windows.add(PROCESS_CPU, "checkpointer", _STACK, Attributes(111 * SECOND_NS), (1, 7))
    windows.flush(120 * SECOND_NS)
    assert sorted((p.start_ns // SECOND_NS, p.labels["role"], p.totals()) for p in out) == [
        (100, "client backend", (1, 5)),
        (110, "checkpointer", (1, 7)),
        (110, "client backend", (2, 10)),
    ]
    assert {p.duration_ns for p in out} == {10 * SECOND_NS}
    assert all(p.labels["sampler"] == "perf" and p.period == 10 for p in out)
    windows.flush()
    assert out[-1].start_ns == 120 * SECOND_NS
    windows.flush()
    assert len(out) == 4


def test_losses_travel_with_their_window() -> None:
    """What was lost or unproven is in the profile of the time it happened in."""
    out: list[Profile] = []
    windows = _windows(out)
    windows.add(PROCESS_CPU, "r", _STACK, Attributes(1 * SECOND_NS), (1, 5), Losses(unproven=1))
    windows.lose(PROCESS_CPU, "r", 11 * SECOND_NS, 3)
    windows.flush()
    assert [(p.losses.unproven, p.losses.lost) for p in sorted(out, key=lambda p: p.start_ns)] == [
        (1, 0),
        (0, 3),
    ]


def test_bounded() -> None:
    """Beyond the bound new samples are counted lost, known ones still add up, and room returns."""
    out: list[Profile] = []
    windows = _windows(out)
    slot = Attributes(SECOND_NS)
    for number in range(module.MAX_SAMPLES + 5):
        windows.add(PROCESS_CPU, "r", (Frame(str(number)),), slot, (1, 1))
    windows.add(PROCESS_CPU, "r", (Frame("0"),), slot, (1, 1))
    windows.flush()
    assert len(out[0].samples) == module.MAX_SAMPLES
    assert out[0].losses.lost == 5
    assert out[0].totals() == (module.MAX_SAMPLES + 1, module.MAX_SAMPLES + 1)
    windows.add(PROCESS_CPU, "r", _STACK, slot, (1, 1))
    windows.flush()
    assert out[1].losses.lost == 0
